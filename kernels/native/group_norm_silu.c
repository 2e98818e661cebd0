/* Group normalisation and swish of one picture's activations in bfloat16 or float32: see ../group_norm_silu.py.
 *
 * Two passes over x: one measures the groups, the other normalises and applies swish, with one rounding. Positions are
 * cut into PARTS whatever the number of threads, so sums never depend on it.
 */
#include "native.h"

#include "arithmetic.h"

#include <math.h>

#define PARTS 64
#define VECTOR 64           /* elements at least that the innermost loops run over: narrow channels are repeated */
#define ROWS_IN_FLOAT 256   /* sums of so many rows are float32, sums of those are double */
#define ROOM (GROUP_NORM_CHANNELS + VECTOR)

#define READ_BF16(value) from_bits((uint32_t)(value) << 16)
#define WRITE_BF16(value) (rounded(value) >> 16)
#define AS_IT_IS(value) (value)

/* Both passes over x for one type of numbers. */
#define PASSES(TYPE, READ, WRITE)                                                                                   \
    VECTORISED static void add_up_##TYPE(const TYPE *restrict x, long elements, long row, float *restrict sums,     \
                                         float *restrict squares) {                                                 \
        for (long start = 0; start < elements; start += row) {                                                      \
            long count = elements - start < row ? elements - start : row;                                           \
            _Pragma("GCC ivdep")                                                                                    \
            for (long i = 0; i < count; i++) {                                                                      \
                float value = READ(x[start + i]);                                                                   \
                sums[i] += value;                                                                                   \
                squares[i] += value * value;                                                                        \
            }                                                                                                       \
        }                                                                                                           \
    }                                                                                                               \
    VECTORISED static void scale_and_silu_##TYPE(const TYPE *x, TYPE *y, long elements, long row,                   \
                                                 const float *restrict scale, const float *restrict shift) {        \
        for (long start = 0; start < elements; start += row) {                                                      \
            long count = elements - start < row ? elements - start : row;                                           \
            _Pragma("GCC ivdep")                                                                                    \
            for (long i = 0; i < count; i++)                                                                        \
                y[start + i] = WRITE(silu(READ(x[start + i]) * scale[i] + shift[i]));                               \
        }                                                                                                           \
    }
PASSES(bf16, READ_BF16, WRITE_BF16)
PASSES(float, AS_IT_IS, AS_IT_IS)

void group_norm_silu(const void *x, const float *weight, const float *bias, void *y, int in_float, long positions,
                     long channels, long groups, float epsilon) {
    double partial[PARTS][2 * GROUP_NORM_GROUPS] = {{0}};
    float scale[ROOM], shift[ROOM];
    long repeats = (VECTOR + channels - 1) / channels, row = repeats * channels, width = channels / groups;
#pragma omp parallel for if (positions * channels >= WORTH_A_THREAD)
    for (long part = 0; part < PARTS; part++) {
        long stop = (part + 1) * positions / PARTS, step = ROWS_IN_FLOAT * repeats;
        for (long from = part * positions / PARTS; from < stop; from += step) {
            float sums[ROOM] = {0}, squares[ROOM] = {0};
            long count = stop - from < step ? stop - from : step;
            if (in_float) add_up_float((const float *)x + from * channels, count * channels, row, sums, squares);
            else add_up_bf16((const bf16 *)x + from * channels, count * channels, row, sums, squares);
            for (long i = 0; i < row; i++) {
                partial[part][2 * (i % channels / width)] += sums[i];
                partial[part][2 * (i % channels / width) + 1] += squares[i];
            }
        }
    }
    for (long group = 0; group < groups; group++) {
        double sum = 0, squares = 0, count = (double)positions * width;
        for (long part = 0; part < PARTS; part++) {
            sum += partial[part][2 * group];
            squares += partial[part][2 * group + 1];
        }
        double mean = sum / count, variance = squares / count - mean * mean;
        double factor = 1.0 / sqrt((variance > 0 ? variance : 0) + epsilon);
        for (long i = 0; i < row; i++)
            if (i % channels / width == group) {
                scale[i] = (float)(weight[i % channels] * factor);
                shift[i] = (float)(bias[i % channels] - mean * scale[i]);
            }
    }
#pragma omp parallel for if (positions * channels >= WORTH_A_THREAD)
    for (long part = 0; part < PARTS; part++) {
        long from = part * positions / PARTS * channels, stop = (part + 1) * positions / PARTS * channels;
        if (in_float) scale_and_silu_float((const float *)x + from, (float *)y + from, stop - from, row, scale, shift);
        else scale_and_silu_bf16((const bf16 *)x + from, (bf16 *)y + from, stop - from, row, scale, shift);
    }
}

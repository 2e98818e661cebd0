/* Group normalisation and swish of one picture's activations in bfloat16: see ../group_norm_silu.py.
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

VECTORISED static void add_up(const bf16 *restrict x, long elements, long row, float *restrict sums,
                              float *restrict squares) {
    for (long start = 0; start < elements; start += row) {
        long count = elements - start < row ? elements - start : row;
#pragma GCC ivdep
        for (long i = 0; i < count; i++) {
            float value = from_bits((uint32_t)x[start + i] << 16);
            sums[i] += value;
            squares[i] += value * value;
        }
    }
}

VECTORISED static void scale_and_silu(const bf16 *restrict x, bf16 *restrict y, long elements, long row,
                                      const float *restrict scale, const float *restrict shift) {
    for (long start = 0; start < elements; start += row) {
        long count = elements - start < row ? elements - start : row;
#pragma GCC ivdep
        for (long i = 0; i < count; i++)
            y[start + i] = rounded(silu(from_bits((uint32_t)x[start + i] << 16) * scale[i] + shift[i])) >> 16;
    }
}

void group_norm_silu(const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *y, long positions, long channels,
                     long groups, float epsilon) {
    double partial[PARTS][2 * GROUP_NORM_GROUPS] = {{0}};
    float scale[ROOM], shift[ROOM];
    long repeats = (VECTOR + channels - 1) / channels, row = repeats * channels, width = channels / groups;
#pragma omp parallel for if (positions * channels >= WORTH_A_THREAD)
    for (long part = 0; part < PARTS; part++) {
        long stop = (part + 1) * positions / PARTS, step = ROWS_IN_FLOAT * repeats;
        for (long from = part * positions / PARTS; from < stop; from += step) {
            float sums[ROOM] = {0}, squares[ROOM] = {0};
            long count = stop - from < step ? stop - from : step;
            add_up(x + from * channels, count * channels, row, sums, squares);
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
                scale[i] = (float)(from_bits((uint32_t)weight[i % channels] << 16) * factor);
                shift[i] = (float)(from_bits((uint32_t)bias[i % channels] << 16) - mean * scale[i]);
            }
    }
#pragma omp parallel for if (positions * channels >= WORTH_A_THREAD)
    for (long part = 0; part < PARTS; part++) {
        long from = part * positions / PARTS * channels, stop = (part + 1) * positions / PARTS * channels;
        scale_and_silu(x + from, y + from, stop - from, row, scale, shift);
    }
}

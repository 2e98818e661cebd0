/* The element-wise parts of a transformer block in bfloat16, one pass each: see ../block.py.
 *
 * Plain C that compilers turn into vector instructions. Arithmetic is float32, rounded to bfloat16 where PyTorch's
 * separate operators round.
 */
#include "native.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif

#define WORTH_A_THREAD 16384 /* elements: below, waking a thread costs more than it saves */

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The bits of the nearest bfloat16, ties to even, in the upper half. NaN stays NaN only if its upper half is. */
static inline uint32_t rounded(float value) {
    uint32_t bits = to_bits(value);
    return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
}

/* One head: pairs (a, b) of neighbouring dimensions turned by (cos, sin); those behind the rotated ones are copied. */
VECTORISED static void turn_head(const bf16 *restrict from, const float *restrict rope, bf16 *restrict to, long head_dim,
                                 long rotated) {
    const uint32_t *pairs = (const uint32_t *)from;
    uint32_t *out = (uint32_t *)to;
#pragma GCC ivdep
    for (long i = 0; i < rotated / 2; i++) {
        float a = from_bits(pairs[i] << 16), b = from_bits(pairs[i] & 0xffff0000u);
        float c = rope[2 * i], s = rope[2 * i + 1];
        out[i] = rounded(a * c - b * s) >> 16 | rounded(b * c + a * s);
    }
    memcpy(to + rotated, from + rotated, (head_dim - rotated) * sizeof(bf16));
}

void rope_split(const bf16 *qkv, const float *rope, bf16 *q, bf16 *k, bf16 *v, long tokens, long streams, long heads,
                long head_dim, long rotated) {
    long rows = tokens * streams, width = heads * head_dim;
#pragma omp parallel for if (3 * rows * width >= WORTH_A_THREAD)
    for (long row = 0; row < rows; row++) {
        const bf16 *from = qkv + 3 * row * width;
        const float *turns = rope + row / streams * rotated;
        for (long head = 0; head < heads; head++) {
            turn_head(from + head * head_dim, turns, q + row * width + head * head_dim, head_dim, rotated);
            turn_head(from + width + head * head_dim, turns, k + row * width + head * head_dim, head_dim, rotated);
        }
        memcpy(v + row * width, from + 2 * width, width * sizeof(bf16));
    }
}

/* exp(x) to within 2 units in the last place for -87 <= x <= 88: 2^n * 2^f, f in [-0.5, 0.5], by its Taylor series. */
static inline float exponential(float x) {
    float scaled = x * 1.44269504f, shifted = scaled + 12582912.0f; /* 1.5 * 2^23: rounds to a whole number */
    float whole = shifted - 12582912.0f;
    float f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f; /* ln 2 in two parts */
    float p = 1.0f + f * (1.0f + f * (0.5f + f * (0.166666667f + f * (0.0416666667f + f * (0.00833333333f + f * 0.00138888889f)))));
    return p * from_bits((uint32_t)((int32_t)whole + 127) << 23);
}

VECTORISED static void silu_and_mul_row(const bf16 *restrict gate, const bf16 *restrict up, bf16 *restrict y,
                                        long columns) {
#pragma GCC ivdep
    for (long i = 0; i < columns; i++) {
        float g = from_bits((uint32_t)gate[i] << 16), u = from_bits((uint32_t)up[i] << 16);
        g = g < -87.0f ? -87.0f : g; /* silu(-87) is -1e-36 */
        float silu = g / (1.0f + exponential(g > 87.0f ? -87.0f : -g));
        y[i] = rounded(from_bits(rounded(silu)) * u) >> 16;
    }
}

void silu_and_mul(const bf16 *x, bf16 *y, long rows, long columns) {
#pragma omp parallel for if (rows * columns >= WORTH_A_THREAD)
    for (long row = 0; row < rows; row++)
        silu_and_mul_row(x + 2 * row * columns, x + (2 * row + 1) * columns, y + row * columns, columns);
}

VECTORISED static float mean_square(const bf16 *restrict x, long columns) {
    float sums[64] = {0}; /* enough for every register to have its own */
    long whole = columns / 64 * 64;
    for (long i = 0; i < whole; i += 64)
        for (int j = 0; j < 64; j++) {
            float value = from_bits((uint32_t)x[i + j] << 16);
            sums[j] += value * value;
        }
    float sum = 0;
    for (long i = whole; i < columns; i++) sum += from_bits((uint32_t)x[i] << 16) * from_bits((uint32_t)x[i] << 16);
    for (int j = 0; j < 64; j++) sum += sums[j];
    return sum / columns;
}

VECTORISED static void scale_row(const bf16 *x, const bf16 *restrict weight, bf16 *y, long columns, float scale) {
#pragma GCC ivdep
    for (long i = 0; i < columns; i++) {
        float normal = from_bits((uint32_t)x[i] << 16) * scale;
        y[i] = rounded(from_bits(rounded(normal)) * from_bits((uint32_t)weight[i] << 16)) >> 16;
    }
}

VECTORISED static void add_row(const bf16 *restrict x, bf16 *restrict sum, long columns) {
#pragma GCC ivdep
    for (long i = 0; i < columns; i++)
        sum[i] = rounded(from_bits((uint32_t)x[i] << 16) + from_bits((uint32_t)sum[i] << 16)) >> 16;
}

/* y may be x. */
void rms_norm(const bf16 *x, const bf16 *weight, bf16 *y, long rows, long columns, float epsilon) {
#pragma omp parallel for if (rows * columns >= WORTH_A_THREAD)
    for (long row = 0; row < rows; row++) {
        const bf16 *from = x + row * columns;
        scale_row(from, weight, y + row * columns, columns, 1.0f / sqrtf(mean_square(from, columns) + epsilon));
    }
}

void add_rms_norm(bf16 *x, bf16 *residual, const bf16 *weight, long rows, long columns, float epsilon) {
#pragma omp parallel for if (rows * columns >= WORTH_A_THREAD)
    for (long row = 0; row < rows; row++) {
        bf16 *sum = residual + row * columns;
        add_row(x + row * columns, sum, columns);
        scale_row(sum, weight, x + row * columns, columns, 1.0f / sqrtf(mean_square(sum, columns) + epsilon));
    }
}

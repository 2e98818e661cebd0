/* The element-wise parts of a transformer block in bfloat16, one pass each: see ../block.py.
 *
 * Plain C that compilers turn into vector instructions. Arithmetic is float32, rounded to bfloat16 where PyTorch's
 * separate operators round.
 */
#include "native.h"

#include "arithmetic.h"

#include <math.h>

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

VECTORISED static void silu_and_mul_row(const bf16 *restrict gate, const bf16 *restrict up, bf16 *restrict y,
                                        long columns) {
#pragma GCC ivdep
    for (long i = 0; i < columns; i++) {
        float g = from_bits((uint32_t)gate[i] << 16), u = from_bits((uint32_t)up[i] << 16);
        y[i] = rounded(from_bits(rounded(silu(g))) * u) >> 16;
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

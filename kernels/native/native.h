/* What the files of this folder share. bfloat16 is the upper half of a float32. */
#pragma once
#include <stdint.h>

typedef uint16_t bf16;

extern const int packed_linear_built; /* whether this compiler and platform have AMX */

void packed_linear(const bf16 *x, const bf16 *w, bf16 *y, bf16 *xs, long M, long N, long K);
void rope_split(const bf16 *qkv, const float *rope, bf16 *q, bf16 *k, bf16 *v, long tokens, long streams, long heads,
                long head_dim, long rotated);
void silu_and_mul(const bf16 *x, bf16 *y, long rows, long columns);

/* What the files of this folder share. bfloat16 is the upper half of a float32. */
#pragma once
#include <stdint.h>

typedef uint16_t bf16;

/* The most that group_norm_silu takes. */
#define GROUP_NORM_CHANNELS 1024
#define GROUP_NORM_GROUPS 64

/* Whether this compiler and platform have the instructions. */
extern const int packed_linear_built;
extern const int decode_attention_built;

void packed_linear(const bf16 *x, const bf16 *w, bf16 *y, bf16 *xs, long M, long N, long K);
void rope_split(const bf16 *qkv, const float *rope, bf16 *q, bf16 *k, bf16 *v, long tokens, long streams, long heads,
                long head_dim, long rotated);
void silu_and_mul(const bf16 *x, bf16 *y, long rows, long columns);
void decode_attention(const bf16 *query, const bf16 *cache, bf16 *out, const int32_t *starts, const int32_t *lengths,
                      const int32_t *tables, long table_stride, long lanes, long heads, long head_dim, long block_size,
                      long block_stride, long head_stride, float scale);
void write_cache(const bf16 *key, const bf16 *value, bf16 *cache, const int64_t *slots, long tokens, long heads,
                 long head_dim, long block_size, long block_stride, long head_stride);
void rms_norm(const bf16 *x, const bf16 *weight, bf16 *y, long rows, long columns, float epsilon);
void add_rms_norm(bf16 *x, bf16 *residual, const bf16 *weight, long rows, long columns, float epsilon);

/* Every member is 8 bytes wide: ../decode_layers.py packs these. */
typedef struct {
    const bf16 *attention_norm, *wqkv, *wo, *ffn_norm, *w13, *w2;
    bf16 *cache;
} decode_layer;

typedef struct {
    bf16 *x, *residual;            /* [rows, dim]; in: the embedded tokens and anything, out: what the last norm adds */
    bf16 *wide, *q, *k, *v;        /* room for [rows, max(3 width, 2 inner)], [rows, max(width, inner)], [rows, width] */
    bf16 *scratch;                 /* room for [rows, max(dim, width, inner)] */
    const float *rope;             /* [tokens, rotated] */
    const int64_t *slots;          /* [slot_count] */
    const int32_t *starts, *lengths, *tables;
    double *seconds;               /* [2]: those spent in matrix products and in attention are added */
    long tokens, streams, heads, head_dim, rotated, dim, inner, slot_count, table_stride, lanes, block_size,
        block_stride, head_stride;
    double scale, epsilon;
} decode_step;

void decode_layers(const decode_layer *layers, long count, const decode_step *step);
void group_norm_silu(const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *y, long positions, long channels,
                     long groups, float epsilon);
void mask_below_top_k(float *logits, const int64_t *k, uint32_t *scratch, long rows, long columns);

/* What the files of this folder share. bfloat16 is the upper half of a float32. */
#pragma once
#include <stdint.h>

typedef uint16_t bf16;

/* The most that group_norm_silu takes. */
#define GROUP_NORM_CHANNELS 1024
#define GROUP_NORM_GROUPS 64

/* The most inputs and outputs that conv3x3 takes, and the outputs whose weights lie together. */
#define CONV3X3_CHANNELS 1024
#define CONV3X3_GROUP 16

/* Instructions: ../native.py's Level. */
enum { LEVEL_NONE, LEVEL_AVX2, LEVEL_AVX512, LEVEL_AVX512_BF16, LEVEL_AMX };

/* How keys and values lie in a block: ../kv_layout.py's "amx" and "vec", in bfloat16, and "vec" in FP8 (e4m3). */
enum { LAYOUT_AMX, LAYOUT_VEC, LAYOUT_VEC_FP8 };

/* One layer's KV cache: [blocks, heads, block_size, 2 * head_dim], each head's share of a block in its layout. Strides
 * are in numbers.
 */
typedef struct {
    void *start;
    long layout, heads, head_dim, block_size, block_stride, head_stride;
} paged_cache;

/* Where a step's tokens are in it: see ../decode_attention.py. */
typedef struct {
    const int32_t *starts, *lengths, *tables;
    long count, table_stride;
} paged_lanes;

static inline long longest_of(const paged_lanes *lanes) {
    long longest = 0;
    for (long lane = 0; lane < lanes->count; lane++)
        longest = lanes->lengths[lane] > longest ? lanes->lengths[lane] : longest;
    return longest;
}

/* Whether this compiler and platform have the instructions of AMX and of AVX-512's bfloat16. */
extern const int amx_built;
/* The best level below LEVEL_AMX that the processor has. */
int vector_level(void);
/* Have the functions below run at a level; not while one of them runs. */
void use_level(int level);
int level_in_use(void);

/* scratch: room for M * K floats. */
void packed_linear(const bf16 *x, const bf16 *w, bf16 *y, float *scratch, long M, long N, long K);
void packed_linear_amx(const bf16 *x, const bf16 *w, bf16 *y, bf16 *xs, long M, long N, long K);
void packed_linear_avx512_bf16(const bf16 *x, const bf16 *w, bf16 *y, float *scratch, long M, long N, long K);
void packed_linear_avx512(const bf16 *x, const bf16 *w, bf16 *y, float *scratch, long M, long N, long K);
void packed_linear_avx2(const bf16 *x, const bf16 *w, bf16 *y, float *scratch, long M, long N, long K);
void rope_split(const bf16 *qkv, const float *rope, bf16 *q, bf16 *k, bf16 *v, long tokens, long streams, long heads,
                long head_dim, long rotated);
void silu_and_mul(const bf16 *x, bf16 *y, long rows, long columns);
void decode_attention(const bf16 *query, const paged_cache *cache, bf16 *out, const paged_lanes *lanes, float scale);
void decode_attention_pairs(const bf16 *query, const paged_cache *cache, bf16 *out, const paged_lanes *lanes,
                            float scale);
void decode_attention_avx512(const bf16 *query, const paged_cache *cache, bf16 *out, const paged_lanes *lanes,
                             float scale);
void decode_attention_avx2(const bf16 *query, const paged_cache *cache, bf16 *out, const paged_lanes *lanes,
                           float scale);
void decode_attention_fp8(const bf16 *query, const paged_cache *cache, bf16 *out, const paged_lanes *lanes,
                          float scale);
/* Puts keys and values [tokens][heads][head_dim] at their slots; negative slots are nowhere. */
void write_cache(const bf16 *key, const bf16 *value, const paged_cache *cache, const int64_t *slots, long tokens);
void rms_norm(const bf16 *x, const bf16 *weight, bf16 *y, long rows, long columns, float epsilon);
void add_rms_norm(bf16 *x, bf16 *residual, const bf16 *weight, long rows, long columns, float epsilon);

/* Every member is 8 bytes wide: ../decode_layers.py packs these. */
typedef struct {
    const bf16 *attention_norm, *wqkv, *wo, *ffn_norm, *w13, *w2;
    void *cache;
} decode_layer;

typedef struct {
    bf16 *x, *residual;            /* [rows, dim]; in: the embedded tokens and anything, out: what the last norm adds */
    bf16 *wide, *q, *k, *v;        /* room for [rows, max(3 width, 2 inner)], [rows, max(width, inner)], [rows, width] */
    float *scratch;                /* room for [rows, max(dim, width, inner)] */
    const float *rope;             /* [tokens, rotated] */
    const int64_t *slots;          /* [slot_count] */
    const int32_t *starts, *lengths, *tables;
    double *seconds;               /* [2]: those spent in matrix products and in attention are added */
    long tokens, streams, heads, head_dim, rotated, dim, inner, slot_count, table_stride, lanes, layout, block_size,
        block_stride, head_stride;
    double scale, epsilon;
} decode_step;

void decode_layers(const decode_layer *layers, long count, const decode_step *step);
/* x and y are float where in_float, else bf16. */
void group_norm_silu(const void *x, const float *weight, const float *bias, void *y, int in_float, long positions,
                     long channels, long groups, float epsilon);

/* A 3x3 convolution of one picture, channels last: see ../conv3x3.py. Every member is 8 bytes wide. */
typedef struct {
    const float *x;                  /* [height][width][inputs], rows row_stride numbers apart */
    const float *weights, *bias;     /* [36][outputs / 16][inputs][16], [outputs] */
    const float *plus;               /* NULL, or what is added to y */
    float *y, *scratch;              /* [out_height][out_width][outputs], [threads][36 * (run * (inputs + outputs) + 32)] */
    long height, width, row_stride, inputs, outputs, out_height, out_width;
    long top, left;                  /* rows above and columns before the input that the first output sees */
    long around, doubled;            /* left and right edge are joined; each position stands for 2 x 2 */
    long run, threads;               /* tiles in a run */
} conv3x3_task;

void conv3x3(const conv3x3_task *task);
void conv3x3_avx512(const conv3x3_task *task);
void conv3x3_avx2(const conv3x3_task *task);
void mask_below_top_k(float *logits, const int64_t *k, uint32_t *scratch, long rows, long columns);
void mask_below_top_p(float *logits, const double *p, uint32_t *keys, float *weights, long rows, long columns);

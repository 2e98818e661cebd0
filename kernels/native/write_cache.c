/* Putting new keys and values where the layout of a paged KV cache has them: see ../decode_attention.py. */
#include "native.h"

#include <string.h>

#define GROUP 16 /* slots, or dims, of a tile of LAYOUT_AMX */

/* One head's key and value at slot `offset` of a block, in LAYOUT_AMX: keys and values in pairs. */
static void put_in_pairs(const bf16 *key, const bf16 *value, bf16 *keys, long offset, long head_dim, long block_size) {
    bf16 *values = keys + block_size * head_dim + offset / 2 * 32 + offset % 2;
    uint32_t *pairs = (uint32_t *)keys + offset / GROUP * GROUP * (head_dim / 2) + offset % GROUP;
    for (long pair = 0; pair < head_dim / 2; pair++) pairs[pair * GROUP] = ((const uint32_t *)key)[pair];
    for (long dim = 0; dim < head_dim; dim++) values[dim / GROUP * block_size * GROUP + dim % GROUP * 2] = value[dim];
}

/* The same in LAYOUT_VEC: keys as [head_dim][slots], values as [slots][head_dim]. */
static void put_plainly(const bf16 *key, const bf16 *value, bf16 *keys, long offset, long head_dim, long block_size) {
    for (long dim = 0; dim < head_dim; dim++) keys[dim * block_size + offset] = key[dim];
    memcpy(keys + block_size * head_dim + offset * head_dim, value, head_dim * sizeof(bf16));
}

/* The nearest number of e4m3, ties to even, at most 448; NaN stays NaN. */
static uint8_t to_fp8(bf16 number) {
    uint32_t bits = (uint32_t)(number & 0x7fff) << 16, sign = number >> 8 & 0x80;
    float magnitude;
    memcpy(&magnitude, &bits, sizeof bits);
    if (bits > 0x7f800000u) return (uint8_t)(sign | 0x7f);
    if (magnitude >= 448) return (uint8_t)(sign | 0x7e);
    if (magnitude < 0x1p-6f) return (uint8_t)(sign | (uint32_t)(magnitude * 512 + 0x1.8p23f - 0x1.8p23f)); /* rounds */
    return (uint8_t)(sign | (((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3)));
}

/* The same in LAYOUT_VEC_FP8. */
static void put_in_fp8(const bf16 *key, const bf16 *value, uint8_t *keys, long offset, long head_dim, long block_size) {
    uint8_t *values = keys + block_size * head_dim + offset * head_dim;
    for (long dim = 0; dim < head_dim; dim++) {
        keys[dim * block_size + offset] = to_fp8(key[dim]);
        values[dim] = to_fp8(value[dim]);
    }
}

void write_cache(const bf16 *key, const bf16 *value, const paged_cache *cache, const int64_t *slots, long tokens) {
    long heads = cache->heads, head_dim = cache->head_dim, block_size = cache->block_size;
#pragma omp parallel for collapse(2)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++) {
            if (slots[token] < 0) continue;
            long row = (token * heads + head) * head_dim, offset = slots[token] % block_size;
            long place = slots[token] / block_size * cache->block_stride + head * cache->head_stride;
            if (cache->layout == LAYOUT_VEC_FP8)
                put_in_fp8(key + row, value + row, (uint8_t *)cache->start + place, offset, head_dim, block_size);
            else
                (cache->layout == LAYOUT_AMX ? put_in_pairs : put_plainly)(
                    key + row, value + row, (bf16 *)cache->start + place, offset, head_dim, block_size);
        }
}

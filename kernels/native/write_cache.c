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

void write_cache(const bf16 *key, const bf16 *value, const paged_cache *cache, const int64_t *slots, long tokens) {
    long heads = cache->heads, head_dim = cache->head_dim, block_size = cache->block_size;
#pragma omp parallel for collapse(2)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++) {
            if (slots[token] < 0) continue;
            long row = (token * heads + head) * head_dim, offset = slots[token] % block_size;
            bf16 *keys = cache->start + slots[token] / block_size * cache->block_stride + head * cache->head_stride;
            (cache->layout == LAYOUT_AMX ? put_in_pairs : put_plainly)(key + row, value + row, keys, offset, head_dim,
                                                                       block_size);
        }
}

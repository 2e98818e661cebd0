/* Putting new keys and values where the layout of a paged KV cache has them: see ../decode_attention.py. */
#include "native.h"

#include <string.h>

#define GROUP 16 /* slots, or dims, of a tile of LAYOUT_AMX */

void write_cache_pairs(const bf16 *key, const bf16 *value, const paged_cache *cache, const int64_t *slots, long tokens) {
    long heads = cache->heads, head_dim = cache->head_dim, block_size = cache->block_size;
#pragma omp parallel for collapse(2)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++) {
            if (slots[token] < 0) continue;
            long row = (token * heads + head) * head_dim, offset = slots[token] % block_size;
            bf16 *keys = cache->start + slots[token] / block_size * cache->block_stride + head * cache->head_stride;
            bf16 *values = keys + block_size * head_dim + offset / 2 * 32 + offset % 2;
            uint32_t *pairs = (uint32_t *)keys + offset / GROUP * GROUP * (head_dim / 2) + offset % GROUP;
            for (long pair = 0; pair < head_dim / 2; pair++) pairs[pair * GROUP] = ((const uint32_t *)(key + row))[pair];
            for (long dim = 0; dim < head_dim; dim++)
                values[dim / GROUP * block_size * GROUP + dim % GROUP * 2] = value[row + dim];
        }
}

void write_cache_plain(const bf16 *key, const bf16 *value, const paged_cache *cache, const int64_t *slots, long tokens) {
    long heads = cache->heads, head_dim = cache->head_dim, block_size = cache->block_size;
#pragma omp parallel for collapse(2)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++) {
            if (slots[token] < 0) continue;
            long row = (token * heads + head) * head_dim, offset = slots[token] % block_size;
            bf16 *keys = cache->start + slots[token] / block_size * cache->block_stride + head * cache->head_stride;
            for (long dim = 0; dim < head_dim; dim++) keys[dim * block_size + offset] = key[row + dim];
            memcpy(keys + block_size * head_dim + offset * head_dim, value + row, head_dim * sizeof(bf16));
        }
}

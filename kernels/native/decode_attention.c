/* Attention of a few new tokens a lane over the paged KV cache in bfloat16, in the layout that vLLM calls "amx": an inner
 * loop of ../decode_attention.py.
 *
 * Every lane has its own keys and values and a query reads each of them once, so a decode step lasts as long as reading
 * the cache does. A thread takes a head's blocks one after another and fetches each line one block ahead. All sums
 * are float32, taken in the order of the slots: a token's result does not depend on the other lanes or threads.
 *
 * A head's share of a block is `block_size * head_dim` keys, then as many values (../kv_layout.py): keys as
 * [slots / 16][head_dim / 2][16 slots][2 dims], values as [head_dim / 16][slots / 2][16 dims][2 slots].
 */
#include "native.h"

#define GROUP 16     /* slots, or dims, in a register */

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>

#define KERNEL __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define INLINE KERNEL static inline __attribute__((always_inline))

#include "exp2_avx512.h"

INLINE __m512 multiply_pairs(__m512 sum, const bf16 *line, int32_t pair) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(line), (__m512bh)_mm512_set1_epi32(pair));
}

/* Scores of all slots of one block, keys [slots / 16][head_dim / 2][16][2], in units of log2. */
INLINE void score_block(const bf16 *keys, const bf16 *next, const int32_t *query, float *scores, long slots,
                        long head_dim, float scale) {
    for (long group = 0; group < slots; group += GROUP) {
        __m512 even = _mm512_setzero_ps(), odd = even, third = even, fourth = even;
        const bf16 *line = keys + group * head_dim, *ahead = next + group * head_dim;
        for (long pair = 0; pair < head_dim / 2; pair += 4, line += 4 * 32, ahead += 4 * 32) {
            for (int i = 0; i < 4; i++) _mm_prefetch((const char *)(ahead + 32 * i), _MM_HINT_T0);
            even = multiply_pairs(even, line, query[pair]);
            odd = multiply_pairs(odd, line + 32, query[pair + 1]);
            third = multiply_pairs(third, line + 64, query[pair + 2]);
            fourth = multiply_pairs(fourth, line + 96, query[pair + 3]);
        }
        __m512 sum = _mm512_add_ps(_mm512_add_ps(even, odd), _mm512_add_ps(third, fourth));
        _mm512_storeu_ps(scores + group, _mm512_mul_ps(sum, _mm512_set1_ps(scale)));
    }
}

/* Replaces `count` scores by weights 2^(score - largest) in bfloat16, zero behind them; returns their sum. */
INLINE float weigh(float *scores, bf16 *weights, long count) {
    __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (long i = count; i < ((count + GROUP - 1) & -GROUP); i++) scores[i] = -INFINITY;
    for (long i = 0; i < count; i += GROUP) top = _mm512_max_ps(top, _mm512_loadu_ps(scores + i));
    __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    for (long i = 0; i < count; i += GROUP) {
        __mmask16 here = count - i < GROUP ? (__mmask16)((1u << (count - i)) - 1) : (__mmask16)0xFFFF;
        __m512 weight = _mm512_maskz_mov_ps(here, exp2_nonpositive(_mm512_sub_ps(_mm512_loadu_ps(scores + i), largest)));
        sum = _mm512_add_ps(sum, weight);
        _mm256_storeu_si256((__m256i *)(weights + i), (__m256i)_mm512_cvtneps_pbh(weight));
    }
    return _mm512_reduce_add_ps(sum);
}

/* Adds the weighted values [head_dim / 16][block_size / 2][16][2] of a block's first `count` slots to 64 dims' sums. */
INLINE void add_values(const bf16 *values, const bf16 *next, const bf16 *weights, __m512 sums[4], long count,
                       long block_size, int groups) {
    long stride = block_size * GROUP, pairs = count / 2;
    for (long pair = 0; pair < pairs; pair++) {
        int32_t both = ((const int32_t *)weights)[pair];
        for (int group = 0; group < groups; group++) {
            _mm_prefetch((const char *)(next + group * stride + pair * 32), _MM_HINT_T0);
            sums[group] = multiply_pairs(sums[group], values + group * stride + pair * 32, both);
        }
    }
    if (count % 2) /* what lies behind the last slot is not a number that may be multiplied by zero */
        for (int group = 0; group < groups; group++) {
            __m512i line = _mm512_and_si512(_mm512_loadu_si512(values + group * stride + pairs * 32),
                                            _mm512_set1_epi32(0xFFFF));
            sums[group] = _mm512_dpbf16_ps(sums[group], (__m512bh)line,
                                           (__m512bh)_mm512_set1_epi32(weights[count - 1]));
        }
}

/* One token's head over the first `count` slots; `head` is the head's share of block 0 in the cache. */
KERNEL static void attend(const bf16 *query, const bf16 *head, bf16 *out, const int32_t *table, long count,
                          long head_dim, long block_size, long block_stride, long head_stride, float scale,
                          float *scores, bf16 *weights) {
    long blocks = (count + block_size - 1) / block_size, half = block_size * head_dim;
    for (long block = 0; block < blocks; block++) {
        const bf16 *keys = head + table[block] * block_stride;
        const bf16 *next = block + 1 < blocks ? head + table[block + 1] * block_stride : head + table[0] * block_stride + half;
        long slots = count - block * block_size < block_size ? count - block * block_size : block_size;
        score_block(keys, next, (const int32_t *)query, scores + block * block_size, slots, head_dim, scale);
    }
    float total = weigh(scores, weights, count);
    for (long dim = 0; dim < head_dim; dim += 4 * GROUP) {
        int groups = head_dim - dim < 4 * GROUP ? (int)((head_dim - dim) / GROUP) : 4;
        __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
        for (long block = 0; block < blocks; block++) {
            const bf16 *values = head + table[block] * block_stride + half + dim * block_size;
            const bf16 *next = block + 1 < blocks ? head + table[block + 1] * block_stride + half + dim * block_size
                                                  : head + head_stride + table[0] * block_stride;
            long slots = count - block * block_size < block_size ? count - block * block_size : block_size;
            if (groups == 4) add_values(values, next, weights + block * block_size, sums, slots, block_size, 4);
            else add_values(values, next, weights + block * block_size, sums, slots, block_size, groups);
        }
        __m512 scaled = _mm512_set1_ps(1.0f / total);
        for (int group = 0; group < groups; group++)
            _mm256_storeu_si256((__m256i *)(out + dim + group * GROUP),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(sums[group], scaled)));
    }
}

KERNEL void decode_attention_pairs(const bf16 *query, const paged_cache *cache, bf16 *out, const paged_lanes *lanes,
                                   float scale) {
    long heads = cache->heads, head_dim = cache->head_dim, block_size = cache->block_size;
    long room = (longest_of(lanes) + block_size + GROUP) & -GROUP;
#pragma omp parallel
    {
        float *scores = aligned_alloc(64, (room * (long)(sizeof(float) + sizeof(bf16)) + 63) & -64);
        bf16 *weights = (bf16 *)(scores + room);
#pragma omp for schedule(dynamic, 4)
        for (long item = 0; item < lanes->count * heads; item++) {
            long lane = item / heads, head = item % heads, tokens = lanes->starts[lane + 1] - lanes->starts[lane];
            for (long token = 0; token < tokens; token++) {
                long row = ((lanes->starts[lane] + token) * heads + head) * head_dim;
                attend(query + row, (const bf16 *)cache->start + head * cache->head_stride, out + row,
                       lanes->tables + lane * lanes->table_stride, lanes->lengths[lane] - tokens + token + 1, head_dim,
                       block_size, cache->block_stride, cache->head_stride, scale * 1.44269504f, scores, weights);
            }
        }
        free(scores);
    }
}
#else
void decode_attention_pairs(const bf16 *query, const paged_cache *cache, bf16 *out, const paged_lanes *lanes,
                            float scale) {}
#endif

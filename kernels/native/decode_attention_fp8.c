/* Attention of a few new tokens a lane over a paged KV cache in FP8 (e4m3), in the layout that vLLM calls "vec": a head's
 * share of a block is keys as [head_dim][slots], then values as [slots][head_dim], a byte each.
 *
 * As in decode_attention_vectors.h, with half the bytes: a thread takes a head's blocks one after another and fetches
 * each line one block ahead; all sums are float32 in the order of the slots.
 */
#include "native.h"

#define LINE 32 /* numbers that are taken at once: two registers of floats */

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define KERNEL __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define INLINE KERNEL static inline __attribute__((always_inline))
#include "exp2_avx512.h"

#define TOO_SMALL 256.0f /* `widen` gives numbers that are this many times too small */

/* 32 numbers as float32. The seven lower bits of an e4m3, moved to where a half has its exponent, are that number
 * divided by 2^8, subnormal ones too. (NaN, which is only stored for NaN, is read as 480.)
 */
INLINE void widen(const uint8_t *line, __m512 *low, __m512 *high) {
    __m512i words = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)line));
    __m512i halves = _mm512_and_si512(_mm512_slli_epi16(words, 7), _mm512_set1_epi16((short)0xBFFF));
    *low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
    *high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
}

/* Scores of one block's slots; query [head_dim] is in units that make them logarithms to base 2. */
INLINE void score_block(const uint8_t *keys, const uint8_t *next, const float *query, float *scores, long slots,
                        long head_dim, long block_size) {
    for (long group = 0; group < slots; group += LINE) {
        __m512 sums[4][2], low, high;
        for (int i = 0; i < 4; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
        const uint8_t *line = keys + group, *ahead = next + group;
        for (long dim = 0; dim < head_dim; dim += 4)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++, line += block_size, ahead += block_size) {
                if (i % 2 == 0 || block_size > LINE) _mm_prefetch((const char *)ahead, _MM_HINT_T0);
                widen(line, &low, &high);
                __m512 factor = _mm512_set1_ps(query[dim + i]);
                sums[i][0] = _mm512_fmadd_ps(low, factor, sums[i][0]);
                sums[i][1] = _mm512_fmadd_ps(high, factor, sums[i][1]);
            }
        for (int half = 0; half < 2; half++)
            _mm512_storeu_ps(scores + group + half * (LINE / 2),
                             _mm512_add_ps(_mm512_add_ps(sums[0][half], sums[1][half]),
                                           _mm512_add_ps(sums[2][half], sums[3][half])));
    }
}

/* Replaces the scores of `count` slots by weights 2^(score - largest), zero behind them; returns their sum. */
INLINE float weigh(float *scores, long count) {
    __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (long i = count; i % LINE; i++) scores[i] = -INFINITY;
    for (long i = 0; i < count; i += LINE / 2) top = _mm512_max_ps(top, _mm512_loadu_ps(scores + i));
    __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    for (long i = 0; i < count; i += LINE / 2) {
        __m512 weight = exp2_nonpositive(_mm512_sub_ps(_mm512_loadu_ps(scores + i), largest));
        sum = _mm512_add_ps(sum, weight);
        _mm512_storeu_ps(scores + i, weight);
    }
    return _mm512_reduce_add_ps(sum);
}

/* Adds the weighted values of a block's first `count` slots to the sums of `lines` lines of dimensions: of the even and
 * the odd slots [2], each of two registers.
 */
INLINE void add_values(const uint8_t *values, const uint8_t *next, const float *weights, __m512 sums[2][2][2],
                       long count, long head_dim, const int lines) {
    for (long slot = 0; slot < count; slot++, values += head_dim, next += head_dim) {
        __m512 weight = _mm512_set1_ps(weights[slot]), low, high;
        _mm_prefetch((const char *)next, _MM_HINT_T0);
#pragma GCC unroll 2
        for (int line = 0; line < lines; line++) {
            widen(values + line * LINE, &low, &high);
            sums[line][slot % 2][0] = _mm512_fmadd_ps(low, weight, sums[line][slot % 2][0]);
            sums[line][slot % 2][1] = _mm512_fmadd_ps(high, weight, sums[line][slot % 2][1]);
        }
    }
}

INLINE void store_rounded(bf16 *out, __m512 values) {
    __m512i bits = _mm512_castps_si512(values), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    _mm256_storeu_si256((__m256i *)out, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}

/* `lines` lines of the output, from `dim` on. */
INLINE void mix_values(const uint8_t *head, bf16 *out, const int32_t *table, long count, long dim, const paged_cache *cache,
                       const float *weights, float total, const int lines) {
    long size = cache->block_size, half = size * cache->head_dim, blocks = (count + size - 1) / size;
    __m512 sums[2][2][2];
    for (int i = 0; i < 8; i++) sums[i / 4][i / 2 % 2][i % 2] = _mm512_setzero_ps();
    for (long block = 0; block < blocks; block++) {
        const uint8_t *values = head + table[block] * cache->block_stride + half + dim;
        const uint8_t *next = block + 1 < blocks ? head + table[block + 1] * cache->block_stride + half + dim
                                                 : head + cache->head_stride + table[0] * cache->block_stride;
        long slots = count - block * size < size ? count - block * size : size;
        add_values(values, next, weights + block * size, sums, slots, cache->head_dim, lines);
    }
    __m512 scaled = _mm512_set1_ps(TOO_SMALL / total);
    for (int line = 0; line < lines; line++)
        for (int i = 0; i < 2; i++)
            store_rounded(out + dim + line * LINE + i * (LINE / 2),
                          _mm512_mul_ps(_mm512_add_ps(sums[line][0][i], sums[line][1][i]), scaled));
}

/* One token's head over the first `count` slots; `head` is the head's share of block 0 in the cache. */
KERNEL static void attend(const bf16 *query, const uint8_t *head, bf16 *out, const int32_t *table, long count,
                          const paged_cache *cache, float scale, float *scores, float *scaled) {
    long size = cache->block_size, head_dim = cache->head_dim, half = size * head_dim, blocks = (count + size - 1) / size;
    for (long dim = 0; dim < head_dim; dim++) {
        uint32_t bits = (uint32_t)query[dim] << 16;
        memcpy(scaled + dim, &bits, sizeof bits);
        scaled[dim] *= scale * TOO_SMALL;
    }
    for (long block = 0; block < blocks; block++) {
        const uint8_t *keys = head + table[block] * cache->block_stride;
        const uint8_t *next = block + 1 < blocks ? head + table[block + 1] * cache->block_stride
                                                 : head + table[0] * cache->block_stride + half;
        long slots = count - block * size < size ? count - block * size : size;
        score_block(keys, next, scaled, scores + block * size, slots, head_dim, size);
    }
    float total = weigh(scores, count);
    for (long dim = 0; dim < head_dim; dim += 2 * LINE)
        if (head_dim - dim >= 2 * LINE) mix_values(head, out, table, count, dim, cache, scores, total, 2);
        else mix_values(head, out, table, count, dim, cache, scores, total, 1);
}

KERNEL void decode_attention_fp8(const bf16 *query, const paged_cache *cache, bf16 *out, const paged_lanes *lanes,
                                 float scale) {
    long heads = cache->heads, head_dim = cache->head_dim;
    long room = (longest_of(lanes) + cache->block_size + LINE) & -LINE;
#pragma omp parallel
    {
        float *scores = aligned_alloc(64, ((room + head_dim) * sizeof(float) + 63) & -64);
#pragma omp for schedule(dynamic, 4)
        for (long item = 0; item < lanes->count * heads; item++) {
            long lane = item / heads, head = item % heads, tokens = lanes->starts[lane + 1] - lanes->starts[lane];
            for (long token = 0; token < tokens; token++) {
                long row = ((lanes->starts[lane] + token) * heads + head) * head_dim;
                attend(query + row, (const uint8_t *)cache->start + head * cache->head_stride, out + row,
                       lanes->tables + lane * lanes->table_stride, lanes->lengths[lane] - tokens + token + 1, cache,
                       scale * 1.44269504f, scores, scores + room);
            }
        }
        free(scores);
    }
}
#else
void decode_attention_fp8(const bf16 *query, const paged_cache *cache, bf16 *out, const paged_lanes *lanes, float scale) {}
#endif

/* Attention of a few new tokens a lane over the paged KV cache in bfloat16, in the layout that vLLM calls "vec"
 * (../kv_layout.py): a head's share of a block is keys as [head_dim][slots], then values as [slots][head_dim].
 * Included by vectors.c.
 *
 * As in decode_attention.c: a thread takes a head's blocks one after another and fetches each line one block ahead;
 * all sums are float32 in the order of the slots, so a token's result does not depend on the other lanes or threads.
 * A line of keys is one dimension of LINE slots. Scores are kept as the even slots of a line, then the odd ones.
 */

#define LINE (2 * WIDE) /* bfloat16 numbers in a line of the cache */

/* 2^x for x <= 0 to about 1e-7, 0 below -126.5: x = n + r with |r| <= 1/2, a polynomial in r, times 2^n. */
INLINE floats NAME(exp2_nonpositive)(floats x) {
    x = LARGER(x, (floats){0} - 127.0f);
    floats n = x + 12582912.0f - 12582912.0f, r = x - n; /* 1.5 * 2^23: rounds to a whole number */
    floats y = r * 1.5403530e-4f + 1.3333558e-3f;
    y = y * r + 9.6181291e-3f;
    y = y * r + 5.5504109e-2f;
    y = y * r + 2.4022651e-1f;
    y = y * r + 6.9314718e-1f;
    y = y * r + 1.0f;
    return y * (floats)((__builtin_convertvector(n, integers) + 127) << 23);
}

/* Scores of one block's slots; query [head_dim] is in units that make them logarithms to base 2. */
INLINE void NAME(score_block)(const bf16 *keys, const bf16 *next, const float *query, float *scores, long slots,
                              long head_dim, long block_size) {
    for (long group = 0; group < slots; group += LINE) {
        floats even[CHAINS], odd[CHAINS];
        for (int i = 0; i < CHAINS; i++) even[i] = odd[i] = (floats){0};
        const bf16 *line = keys + group, *ahead = next + group;
        for (long dim = 0; dim < head_dim; dim += CHAINS)
#pragma GCC unroll 4
            for (int i = 0; i < CHAINS; i++, line += block_size, ahead += block_size) {
                __builtin_prefetch(ahead);
                words pairs = *(const words *)line;
                even[i] += EVEN(pairs) * query[dim + i];
                odd[i] += ODD(pairs) * query[dim + i];
            }
        for (int i = 1; i < CHAINS; i++) even[0] += even[i], odd[0] += odd[i];
        *(floats *)(scores + group) = even[0];
        *(floats *)(scores + group + WIDE) = odd[0];
    }
}

/* Replaces the scores of `count` slots by weights 2^(score - largest), zero behind them; returns their sum. */
INLINE float NAME(weigh)(float *scores, long count) {
    for (long slot = count; slot % LINE; slot++) scores[slot / LINE * LINE + slot % 2 * WIDE + slot % LINE / 2] = -INFINITY;
    floats top = *(floats *)scores, sum = {0};
    for (long i = 0; i < count; i += LINE)
        for (int part = 0; part < LINE; part += WIDE) top = LARGER(*(floats *)(scores + i + part), top);
    float largest = top[0], total = 0;
    for (int i = 1; i < WIDE; i++) largest = top[i] > largest ? top[i] : largest;
    for (long i = 0; i < count; i += LINE)
        for (int part = 0; part < LINE; part += WIDE) {
            floats weight = NAME(exp2_nonpositive)(*(floats *)(scores + i + part) - largest);
            sum += weight;
            *(floats *)(scores + i + part) = weight;
        }
    for (int i = 0; i < WIDE; i++) total += sum[i];
    return total;
}

/* Adds the weighted values of a block's first `count` slots to the sums of `lines` lines of dimensions: of the even and
 * the odd slots [2], each of even and of odd dimensions [2].
 */
INLINE void NAME(add_values)(const bf16 *values, const bf16 *next, const float *weights, floats sums[2][2][2],
                             long count, long head_dim, const int lines) {
    for (long slot = 0; slot < count; slot += 2, values += 2 * head_dim, next += 2 * head_dim) {
        const float *weight = weights + slot / LINE * LINE + slot % LINE / 2;
        int both = slot + 1 < count; /* what lies behind the last slot is not a number that may be multiplied by zero */
#pragma GCC unroll 2
        for (int line = 0; line < lines; line++) {
            __builtin_prefetch(next + line * LINE);
            words pairs = *(const words *)(values + line * LINE);
            sums[line][0][0] += EVEN(pairs) * weight[0];
            sums[line][0][1] += ODD(pairs) * weight[0];
        }
        if (!both) return;
#pragma GCC unroll 2
        for (int line = 0; line < lines; line++) {
            __builtin_prefetch(next + head_dim + line * LINE);
            words pairs = *(const words *)(values + head_dim + line * LINE);
            sums[line][1][0] += EVEN(pairs) * weight[WIDE];
            sums[line][1][1] += ODD(pairs) * weight[WIDE];
        }
    }
}

/* `lines` lines of the output, from `dim` on. */
INLINE void NAME(mix_values)(const bf16 *head, bf16 *out, const int32_t *table, long count, long dim, long head_dim,
                             long block_size, long block_stride, long head_stride, const float *weights, float total,
                             const int lines) {
    long blocks = (count + block_size - 1) / block_size, half = block_size * head_dim;
    floats sums[2][2][2];
    for (int i = 0; i < 8; i++) sums[i / 4][i / 2 % 2][i % 2] = (floats){0};
    for (long block = 0; block < blocks; block++) {
        const bf16 *values = head + table[block] * block_stride + half + dim;
        const bf16 *next = block + 1 < blocks ? head + table[block + 1] * block_stride + half + dim
                                              : head + head_stride + table[0] * block_stride;
        long slots = count - block * block_size < block_size ? count - block * block_size : block_size;
        NAME(add_values)(values, next, weights + block * block_size, sums, slots, head_dim, lines);
    }
    for (int line = 0; line < lines; line++) {
        floats even = (sums[line][0][0] + sums[line][1][0]) / total, odd = (sums[line][0][1] + sums[line][1][1]) / total;
        *(words *)(out + dim + line * LINE) = ROUNDED(even) >> 16 | ROUNDED(odd);
    }
}

/* One token's head over the first `count` slots; `head` is the head's share of block 0 in the cache. */
KERNEL static void NAME(attend)(const bf16 *query, const bf16 *head, bf16 *out, const int32_t *table, long count,
                                long head_dim, long block_size, long block_stride, long head_stride, float scale,
                                float *scores, float *scaled) {
    long blocks = (count + block_size - 1) / block_size, half = block_size * head_dim;
    for (long dim = 0; dim < head_dim; dim++) {
        uint32_t bits = (uint32_t)query[dim] << 16;
        memcpy(scaled + dim, &bits, sizeof bits);
        scaled[dim] *= scale;
    }
    for (long block = 0; block < blocks; block++) {
        const bf16 *keys = head + table[block] * block_stride;
        const bf16 *next = block + 1 < blocks ? head + table[block + 1] * block_stride : head + table[0] * block_stride + half;
        long slots = count - block * block_size < block_size ? count - block * block_size : block_size;
        NAME(score_block)(keys, next, scaled, scores + block * block_size, slots, head_dim, block_size);
    }
    float total = NAME(weigh)(scores, count);
    for (long dim = 0; dim < head_dim; dim += 2 * LINE)
        if (head_dim - dim >= 2 * LINE)
            NAME(mix_values)(head, out, table, count, dim, head_dim, block_size, block_stride, head_stride, scores, total, 2);
        else
            NAME(mix_values)(head, out, table, count, dim, head_dim, block_size, block_stride, head_stride, scores, total, 1);
}

KERNEL void NAME(decode_attention)(const bf16 *query, const paged_cache *cache, bf16 *out, const paged_lanes *lanes,
                                   float scale) {
    long heads = cache->heads, head_dim = cache->head_dim, block_size = cache->block_size;
    long room = (longest_of(lanes) + block_size + LINE) & -LINE;
#pragma omp parallel
    {
        float *scores = aligned_alloc(64, (room + head_dim) * sizeof(float));
#pragma omp for schedule(dynamic, 4)
        for (long item = 0; item < lanes->count * heads; item++) {
            long lane = item / heads, head = item % heads, tokens = lanes->starts[lane + 1] - lanes->starts[lane];
            for (long token = 0; token < tokens; token++) {
                long row = ((lanes->starts[lane] + token) * heads + head) * head_dim;
                NAME(attend)(query + row, (const bf16 *)cache->start + head * cache->head_stride, out + row,
                             lanes->tables + lane * lanes->table_stride, lanes->lengths[lane] - tokens + token + 1,
                             head_dim, block_size, cache->block_stride, cache->head_stride, scale * 1.44269504f, scores,
                             scores + room);
            }
        }
        free(scores);
    }
}
#undef LINE

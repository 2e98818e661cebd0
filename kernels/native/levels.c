/* Which of the compiled variants runs: the best that the processor has, unless a test asks for another. */
#include "native.h"

static int level = LEVEL_NONE;

void use_level(int wanted) { level = wanted; }

int level_in_use(void) { return level; }

void packed_linear(const bf16 *x, const bf16 *w, bf16 *y, float *scratch, long M, long N, long K) {
    if (level == LEVEL_AMX) packed_linear_amx(x, w, y, (bf16 *)scratch, M, N, K);
    else if (level == LEVEL_AVX512_BF16) packed_linear_avx512_bf16(x, w, y, scratch, M, N, K);
    else if (level == LEVEL_AVX512) packed_linear_avx512(x, w, y, scratch, M, N, K);
    else if (level == LEVEL_AVX2) packed_linear_avx2(x, w, y, scratch, M, N, K);
}

void decode_attention(const bf16 *query, const paged_cache *cache, bf16 *out, const paged_lanes *lanes, float scale) {
    if (cache->layout == LAYOUT_AMX) decode_attention_pairs(query, cache, out, lanes, scale);
    else if (cache->layout == LAYOUT_VEC_FP8) decode_attention_fp8(query, cache, out, lanes, scale);
    else if (level >= LEVEL_AVX512) decode_attention_avx512(query, cache, out, lanes, scale);
    else if (level == LEVEL_AVX2) decode_attention_avx2(query, cache, out, lanes, scale);
}

void conv3x3(const conv3x3_task *task) {
    if (level >= LEVEL_AVX512) conv3x3_avx512(task);
    else if (level == LEVEL_AVX2) conv3x3_avx2(task);
}

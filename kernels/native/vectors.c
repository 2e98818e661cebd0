/* The matrix product and the attention of a decode step for processors without AMX, and the convolution of a VQ decoder,
 * with the vector instructions that they have: x86-64-v4 (AVX-512) or x86-64-v3 (AVX2). The arithmetic is float32, but
 * for products with AVX-512's instruction for pairs of bfloat16, whose sums are float32.
 */
#include "native.h"

#include "packed.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed to inlined functions only */

#define INLINE KERNEL static inline __attribute__((always_inline))
#define floats NAME(floats)
#define words NAME(words)
#define integers NAME(integers)
#define halves NAME(halves)

#define EVEN(pairs) ((floats)((pairs) << 16))
#define ODD(pairs) ((floats)((pairs) & 0xffff0000u))
/* The bits of the nearest bfloat16, ties to even, in the upper half of each word. */
#define ROUNDED(values) (((words)(values) + 0x7fffu + (((words)(values) >> 16) & 1u)) & 0xffff0000u)
/* The larger of each pair of numbers. C has no ?: for vectors. */
#define LARGER(a, b) ((floats)(((words)(a) & (words)((a) > (b))) | ((words)(b) & ~(words)((a) > (b)))))

#define NAME(name) name##_avx512
#define KERNEL __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define WIDE 16      /* numbers in a register, of which there are 32 */
#define MOST_ROWS 24 /* of x at once: a register of sums each */
#define CHAINS 4     /* of sums that do not wait for each other */
#include "vectors.h"
#include "packed_linear_vectors.h"
#include "decode_attention_vectors.h"
#include "conv3x3_vectors.h"
#undef NAME
#undef KERNEL

#define NAME(name) name##_avx512_bf16
#define KERNEL __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))
#define PAIRS
#include "vectors.h"
#include "packed_linear_vectors.h"
#undef NAME
#undef KERNEL
#undef PAIRS
#undef WIDE
#undef MOST_ROWS
#undef CHAINS

#define NAME(name) name##_avx2
#define KERNEL __attribute__((target("avx2,fma")))
#define WIDE 8      /* numbers in a register, of which there are 16 */
#define MOST_ROWS 6 /* of x at once: two registers of sums each */
#define CHAINS 4
#include "vectors.h"
#include "packed_linear_vectors.h"
#include "decode_attention_vectors.h"
#include "conv3x3_vectors.h"

int vector_level(void) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return __builtin_cpu_supports("avx512bf16") ? LEVEL_AVX512_BF16 : LEVEL_AVX512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? LEVEL_AVX2 : LEVEL_NONE;
}
#else
int vector_level(void) { return LEVEL_NONE; }
void packed_linear_avx512_bf16(const bf16 *x, const bf16 *w, bf16 *y, float *scratch, long M, long N, long K) {}
#define EMPTY(level)                                                                                            \
    void packed_linear_##level(const bf16 *x, const bf16 *w, bf16 *y, float *scratch, long M, long N, long K) {} \
    void decode_attention_##level(const bf16 *query, const paged_cache *cache, bf16 *out, const paged_lanes *lanes, \
                                  float scale) {}                                                        \
    void conv3x3_##level(const conv3x3_task *task) {}
EMPTY(avx512)
EMPTY(avx2)
#endif

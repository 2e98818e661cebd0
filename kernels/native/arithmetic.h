/* bfloat16 arithmetic that compilers turn into vector instructions, for the element-wise files of this folder. */
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif

#define WORTH_A_THREAD 16384 /* elements: below, waking a thread costs more than it saves */

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The bits of the nearest bfloat16, ties to even, in the upper half. NaN stays NaN only if its upper half is. */
static inline uint32_t rounded(float value) {
    uint32_t bits = to_bits(value);
    return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
}

/* exp(x) to within 2 units in the last place for -87 <= x <= 88: 2^n * 2^f, f in [-0.5, 0.5], by its Taylor series. */
static inline float exponential(float x) {
    float scaled = x * 1.44269504f, shifted = scaled + 12582912.0f; /* 1.5 * 2^23: rounds to a whole number */
    float whole = shifted - 12582912.0f;
    float f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f; /* ln 2 in two parts */
    float p = 1.0f + f * (1.0f + f * (0.5f + f * (0.166666667f + f * (0.0416666667f + f * (0.00833333333f + f * 0.00138888889f)))));
    return p * from_bits((uint32_t)((int32_t)whole + 127) << 23);
}

/* x / (1 + e^-x). */
static inline float silu(float x) {
    x = x < -87.0f ? -87.0f : x; /* silu(-87) is -1e-36 */
    return x / (1.0f + exponential(x > 87.0f ? -87.0f : -x));
}

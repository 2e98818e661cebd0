/* The top-k and top-p masks of sampling: see ../truncation.py.
 *
 * Only the least value that is kept is needed, not the order of those above it. Floats become unsigned numbers of the
 * same order, and three counts of 11, 11 and 10 bits find the value: the first over the whole row, the others over the
 * few that share the bits so far. For top-p it is not the values that are counted, but their probabilities.
 */
#include "native.h"

#include "arithmetic.h"

#include <math.h>

static inline uint32_t ordered(float value) {
    uint32_t bits = to_bits(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static inline float from_ordered(uint32_t key) {
    return from_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* The part of a key that a count is about. */
static const int shifts[3] = {21, 10, 0}, bits[3] = {11, 11, 10};

/* The k-th largest of `count` keys, 1 <= k <= count. Keys are moved about. */
static uint32_t kth_largest(uint32_t *keys, long count, long k) {
    for (int part = 0;; part++) {
        uint32_t histogram[2048] = {0}, mask = (1u << bits[part]) - 1;
        for (long i = 0; i < count; i++) histogram[keys[i] >> shifts[part] & mask]++;
        uint32_t bin = mask;
        while ((long)histogram[bin] < k) k -= histogram[bin--];
        long kept = 0;
        for (long i = 0; i < count; i++)
            if ((keys[i] >> shifts[part] & mask) == bin) keys[kept++] = keys[i];
        count = kept;
        if (part == 2) return keys[0];
    }
}

static void mask_below(float *values, long columns, float least) {
    for (long i = 0; i < columns; i++) values[i] = values[i] < least ? -INFINITY : values[i];
}

void mask_below_top_k(float *logits, const int64_t *k, uint32_t *scratch, long rows, long columns) {
#pragma omp parallel for
    for (long row = 0; row < rows; row++) {
        if (k[row] <= 0 || k[row] >= columns) continue;
        float *values = logits + row * columns;
        uint32_t *keys = scratch + row * columns;
        for (long i = 0; i < columns; i++) keys[i] = ordered(values[i]);
        mask_below(values, columns, from_ordered(kth_largest(keys, columns, k[row])));
    }
}

/* The least of `count` keys that has more than `limit` of the weights at or below it; if rounding leaves none, the
 * largest. Keys and weights are moved about.
 */
static uint32_t least_above(uint32_t *keys, float *weights, long count, double limit) {
    double below = 0;
    for (int part = 0;; part++) {
        double histogram[2048] = {0};
        uint32_t mask = (1u << bits[part]) - 1, bin = 0;
        for (long i = 0; i < count; i++) histogram[keys[i] >> shifts[part] & mask] += weights[i];
        for (uint32_t i = 0; i <= mask; i++) {
            if (histogram[i] == 0) continue;
            below += histogram[bin = i];
            if (below > limit) break;
        }
        below -= histogram[bin];
        long kept = 0;
        for (long i = 0; i < count; i++)
            if ((keys[i] >> shifts[part] & mask) == bin) keys[kept] = keys[i], weights[kept++] = weights[i];
        count = kept;
        if (part == 2) return keys[0];
    }
}

/* weights: e^(value - largest), never 0. Returns their sum. */
VECTORISED static double weigh(const float *values, float *weights, long columns) {
    float largest = values[0];
    double sum = 0;
    for (long i = 1; i < columns; i++) largest = values[i] > largest ? values[i] : largest;
#pragma GCC ivdep
    for (long i = 0; i < columns; i++) {
        float x = values[i] - largest;
        weights[i] = exponential(x > -87.0f ? x : -87.0f); /* e^-87 is 1e-38 */
    }
    for (long i = 0; i < columns; i++) sum += weights[i];
    return sum;
}

void mask_below_top_p(float *logits, const double *p, uint32_t *keys, float *weights, long rows, long columns) {
#pragma omp parallel for
    for (long row = 0; row < rows; row++) {
        if (p[row] >= 1) continue;
        float *values = logits + row * columns, *own = weights + row * columns;
        uint32_t *scratch = keys + row * columns;
        double limit = (1 - p[row]) * weigh(values, own, columns);
        for (long i = 0; i < columns; i++) scratch[i] = ordered(values[i]);
        mask_below(values, columns, from_ordered(least_above(scratch, own, columns, limit)));
    }
}

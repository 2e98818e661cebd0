/* The top-k mask of sampling: see ../top_k.py.
 *
 * Only the k-th largest value is needed, not the order of those above it. Floats become unsigned numbers of the same
 * order, and three counts of 11, 11 and 10 bits find the value: the first over the whole row, the others over the few
 * that share the bits so far.
 */
#include "native.h"

#include <math.h>
#include <string.h>

static inline uint32_t ordered(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static inline float from_ordered(uint32_t key) {
    uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
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

void mask_below_top_k(float *logits, const int64_t *k, uint32_t *scratch, long rows, long columns) {
#pragma omp parallel for
    for (long row = 0; row < rows; row++) {
        if (k[row] <= 0 || k[row] >= columns) continue;
        float *values = logits + row * columns;
        uint32_t *keys = scratch + row * columns;
        for (long i = 0; i < columns; i++) keys[i] = ordered(values[i]);
        float least = from_ordered(kth_largest(keys, columns, k[row]));
        for (long i = 0; i < columns; i++) values[i] = values[i] < least ? -INFINITY : values[i];
    }
}

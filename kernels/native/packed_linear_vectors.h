/* y = x W^T in bfloat16 for few rows of x, on processors without AMX. Included by vectors.c.
 *
 * The weights are in the order of packed_linear.c: a line of 64 bytes holds two inputs of 16 outputs, which each of up
 * to MOST_ROWS rows of x multiplies; their sums stay in registers. Where the processor multiplies pairs of bfloat16
 * (PAIRS), it takes the line as it is; elsewhere the line becomes vectors of float32. x is stored beforehand as the loop
 * reads it, in numbers that are such a pair or a float: [groups of rows][numbers of a row][rows of the group].
 */

#define PARTS (TILE / WIDE)
#ifdef PAIRS
#define number uint32_t
#define INPUTS 2 /* in a number */
#else
#define number float
#define INPUTS 1
#endif
#define GROUPS (PANEL / MOST_ROWS) /* of rows, between two passes over the weights */

static __thread float NAME(sums)[GROUPS * MOST_ROWS * SPAN * TILE] __attribute__((aligned(64)));

/* Adds `lines` lines of weights times `rows` rows of x to their sums [rows][TILE]. */
INLINE void NAME(multiply_rows)(const number *x, const bf16 *w, long lines, float *sums, int first, int fetch,
                                const int rows) {
    floats sum[MOST_ROWS][PARTS];
#pragma GCC unroll 24
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
        for (int part = 0; part < PARTS; part++)
            sum[row][part] = first ? (floats){0} : *(floats *)(sums + row * TILE + part * WIDE);
    for (long line = 0; line < lines; line++, w += 2 * TILE, x += 2 / INPUTS * rows) {
        if (fetch) __builtin_prefetch((const char *)w + AHEAD);
#ifdef PAIRS
        words weights = *(const words *)w;
#pragma GCC unroll 24
        for (int row = 0; row < rows; row++) /* the intrinsic takes x into registers first, of which there are too few */
            __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum[row][0]) : "v"(weights), "m"(x[row]));
#else
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
            floats weights[PARTS];
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; part++) {
                words pairs = *(const words *)(w + 2 * part * WIDE);
                weights[part] = odd ? ODD(pairs) : EVEN(pairs);
            }
#pragma GCC unroll 24
            for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
                for (int part = 0; part < PARTS; part++) sum[row][part] += weights[part] * x[odd * rows + row];
        }
#endif
    }
#pragma GCC unroll 24
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
        for (int part = 0; part < PARTS; part++) *(floats *)(sums + row * TILE + part * WIDE) = sum[row][part];
}

#define ROWS(n) \
    case n: NAME(multiply_rows)(x, w, lines, sums, first, fetch, n); return;

KERNEL static void NAME(multiply)(const number *x, const bf16 *w, long lines, float *sums, int first, int fetch,
                                  long rows) {
    switch (rows) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if MOST_ROWS > 6
        ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12) ROWS(13) ROWS(14) ROWS(15)
        ROWS(16) ROWS(17) ROWS(18) ROWS(19) ROWS(20) ROWS(21) ROWS(22) ROWS(23) ROWS(24)
#endif
    }
}
#undef ROWS

/* One thread's column tiles [low, high) for the rows [start, stop), in groups of `each`. */
KERNEL static void NAME(panel_columns)(const number *xs, const bf16 *w, bf16 *y, long N, long K, long start, long stop,
                                       long each, long low, long high) {
    long tiles = N / TILE, steps = K / DEPTH;
    for (long span = low; span < high; span += SPAN) {
        long last = span + SPAN < high ? span + SPAN : high;
        for (long chunk = 0; chunk < steps; chunk += CHUNK) {
            long depth = steps - chunk < CHUNK ? steps - chunk : CHUNK;
            for (long row = start, group = 0; row < stop; row += each, group++) {
                long rows = stop - row < each ? stop - row : each;
                const number *x = xs + (row * K + chunk * DEPTH * rows) / INPUTS;
                for (long tile = span; tile < last; tile++) {
                    const bf16 *block = w + (chunk * tiles + tile * depth) * TILE * DEPTH;
                    float *sums = NAME(sums) + (group * SPAN + tile - span) * MOST_ROWS * TILE;
                    NAME(multiply)(x, block, depth * DEPTH / 2, sums, chunk == 0, group == 0, rows);
                    if (chunk + CHUNK < steps) continue;
                    for (long r = 0; r < rows; r++)
                        for (int i = 0; i < TILE; i += WIDE)
                            *(halves *)(y + (row + r) * N + tile * TILE + i) =
                                __builtin_convertvector(ROUNDED(*(floats *)(sums + r * TILE + i)) >> 16, halves);
                }
            }
        }
    }
}

KERNEL void NAME(packed_linear)(const bf16 *x, const bf16 *w, bf16 *y, float *scratch, long M, long N, long K) {
    number *xs = (number *)scratch;
    long tiles = N / TILE, groups = (M + MOST_ROWS - 1) / MOST_ROWS, each = groups ? (M + groups - 1) / groups : 1;
#pragma omp parallel
    {
        long thread = omp_get_thread_num(), threads = omp_get_num_threads();
#pragma omp for
        for (long k = 0; k < K; k += TILE)
            for (long row = 0; row < M; row += each) {
                long rows = M - row < each ? M - row : each;
                for (long r = 0; r < rows; r++)
                    for (int i = 0; i < TILE; i += INPUTS) {
                        const bf16 *from = x + (row + r) * K + k + i;
#ifdef PAIRS
                        uint32_t bits;
                        memcpy(&bits, from, sizeof bits);
#else
                        uint32_t bits = (uint32_t)*from << 16;
#endif
                        memcpy(xs + (row * K + (k + i) * rows) / INPUTS + r, &bits, sizeof bits);
                    }
            }
        for (long start = 0; start < M; start += GROUPS * each) {
            long stop = start + GROUPS * each < M ? start + GROUPS * each : M;
            NAME(panel_columns)(xs, w, y, N, K, start, stop, each, tiles * thread / threads,
                                tiles * (thread + 1) / threads);
        }
    }
}
#undef GROUPS
#undef PARTS
#undef number
#undef INPUTS

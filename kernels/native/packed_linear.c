/* y = x W^T in bfloat16 for few rows of x, on AMX tiles: the inner loop of ../packed_linear.py.
 *
 * A decode step multiplies a handful of rows by every weight of the model, so it lasts as long as reading the weights
 * does. The weights are therefore stored in the order in which this loop reads them (see `pack`), one run of memory for
 * each thread, fetched ahead; and x is taken in pieces of CHUNK tiles of columns, which stay in the first-level cache
 * while all the weights that meet them go by. Sums are float32; they wait between chunks in second-level cache.
 * A row's result does not depend on the other rows.
 */
#include "native.h"

#include "packed.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#include <immintrin.h>
#include <omp.h>
#include <string.h>

#define KERNEL __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")))

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

const int amx_built = 1;
static __thread float sums[PANEL / TILE * SPAN * TILE * TILE] __attribute__((aligned(64)));

/* Tiles 0 to 2 hold sums, 3 to 5 rows of x, 6 weights. */
KERNEL static void configure_tiles(const int rows[3]) {
    tile_config config __attribute__((aligned(64)));
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int tile = 0; tile < 7; tile++) {
        config.rows[tile] = tile < 6 ? (rows[tile % 3] ? rows[tile % 3] : 1) : TILE;
        config.row_bytes[tile] = 64;
    }
    _tile_loadconfig(&config);
}

/* Adds `depth` tiles of x (stride bytes apart) times a column tile's weights to the sums of up to three row tiles. */
#define MULTIPLY(TILES)                                                                                      \
    KERNEL static void multiply_##TILES(const bf16 *x, long stride, long rows, const bf16 *w, long depth,    \
                                        float *sum, int first, int fetch) {                                  \
        if (first) {                                                                                         \
            _tile_zero(0);                                                                                   \
            if (TILES > 1) _tile_zero(1);                                                                    \
            if (TILES > 2) _tile_zero(2);                                                                    \
        } else {                                                                                             \
            _tile_loadd(0, sum, 64);                                                                         \
            if (TILES > 1) _tile_loadd(1, sum + TILE * TILE, 64);                                            \
            if (TILES > 2) _tile_loadd(2, sum + 2 * TILE * TILE, 64);                                        \
        }                                                                                                    \
        for (long k = 0; k < depth; k++, x += stride, w += TILE * DEPTH) {                                   \
            if (fetch)                                                                                       \
                for (int line = 0; line < 16; line++)                                                        \
                    _mm_prefetch((const char *)w + AHEAD + 64 * line, _MM_HINT_T0);                          \
            _tile_loadd(6, w, 64);                                                                           \
            _tile_loadd(3, x, 64);                                                                           \
            _tile_dpbf16ps(0, 3, 6);                                                                         \
            if (TILES > 1) {                                                                                 \
                _tile_loadd(4, x + rows * DEPTH, 64);                                                        \
                _tile_dpbf16ps(1, 4, 6);                                                                     \
            }                                                                                                \
            if (TILES > 2) {                                                                                 \
                _tile_loadd(5, x + 2 * rows * DEPTH, 64);                                                    \
                _tile_dpbf16ps(2, 5, 6);                                                                     \
            }                                                                                                \
        }                                                                                                    \
        _tile_stored(0, sum, 64);                                                                            \
        if (TILES > 1) _tile_stored(1, sum + TILE * TILE, 64);                                               \
        if (TILES > 2) _tile_stored(2, sum + 2 * TILE * TILE, 64);                                           \
    }
MULTIPLY(1)
MULTIPLY(2)
MULTIPLY(3)

/* One thread's column tiles [low, high) for the rows [start, stop) of a panel. xs is [K / DEPTH][M][DEPTH]. */
KERNEL static void panel_columns(const bf16 *xs, const bf16 *w, bf16 *y, long M, long N, long K, long start, long stop,
                                 long low, long high) {
    long tiles = N / TILE, steps = K / DEPTH;
    long groups = (stop - start + 3 * TILE - 1) / (3 * TILE), group_rows = (stop - start + groups - 1) / groups;
    for (long span = low; span < high; span += SPAN) {
        long last = span + SPAN < high ? span + SPAN : high;
        for (long chunk = 0; chunk < steps; chunk += CHUNK) {
            long depth = steps - chunk < CHUNK ? steps - chunk : CHUNK;
            int configured = -1;
            for (long group = 0; group < groups; group++) {
                long row = start + group * group_rows, count = stop - row < group_rows ? stop - row : group_rows;
                if (count <= 0) break;
                int used = (int)((count + TILE - 1) / TILE), each = (int)((count + used - 1) / used);
                int rows[3] = {each, used > 1 ? (used > 2 ? each : (int)count - each) : 0,
                               used > 2 ? (int)count - 2 * each : 0};
                if (configured != (int)count) configure_tiles(rows), configured = (int)count;
                const bf16 *x = xs + (chunk * M + row) * DEPTH;
                for (long tile = span; tile < last; tile++) {
                    const bf16 *block = w + (chunk * tiles + tile * depth) * TILE * DEPTH;
                    float *sum = sums + (group * SPAN + tile - span) * 3 * TILE * TILE;
                    if (used == 1) multiply_1(x, M * DEPTH, each, block, depth, sum, chunk == 0, group == 0);
                    else if (used == 2) multiply_2(x, M * DEPTH, each, block, depth, sum, chunk == 0, group == 0);
                    else multiply_3(x, M * DEPTH, each, block, depth, sum, chunk == 0, group == 0);
                    if (chunk + CHUNK < steps) continue;
                    for (int i = 0, r = 0; i < used; i++)
                        for (int j = 0; j < rows[i]; j++, r++)
                            _mm256_storeu_si256(
                                (__m256i *)(y + (row + r) * N + tile * TILE),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(sum + (i * TILE + j) * TILE)));
                }
            }
        }
    }
}

KERNEL void packed_linear_amx(const bf16 *x, const bf16 *w, bf16 *y, bf16 *xs, long M, long N, long K) {
    long tiles = N / TILE, steps = K / DEPTH;
#pragma omp parallel
    {
        long thread = omp_get_thread_num(), threads = omp_get_num_threads();
        tile_config before __attribute__((aligned(64)));
        _tile_storeconfig(&before);
#pragma omp for
        for (long m = 0; m < M; m++)
            for (long k = 0; k < steps; k++)
                _mm512_storeu_si512(xs + (k * M + m) * DEPTH, _mm512_loadu_si512(x + m * K + k * DEPTH));
        for (long start = 0; start < M; start += PANEL)
            panel_columns(xs, w, y, M, N, K, start, start + PANEL < M ? start + PANEL : M, tiles * thread / threads,
                          tiles * (thread + 1) / threads);
        _tile_loadconfig(&before);
    }
}
#else
const int amx_built = 0;
void packed_linear_amx(const bf16 *x, const bf16 *w, bf16 *y, bf16 *xs, long M, long N, long K) {}
#endif

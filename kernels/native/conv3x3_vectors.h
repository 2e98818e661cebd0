/* A 3x3 convolution by Winograd's F(4x4, 3x3). Included by vectors.c; see ../conv3x3.py for the method and the order of
 * the weights.
 *
 * Tiles of 4 x 4 outputs are worked on in runs, which the threads share: transform the 6 x 6 inputs of each tile,
 * multiply each of the 36 planes [tiles, inputs] with its weights [inputs, outputs], transform back. A run's planes stay
 * in the second cache. Nothing depends on how tiles are cut into runs.
 */
#define SIDE 6            /* of a tile's inputs */
#define PLANES (SIDE * SIDE)
#define PLANE_GAP 16      /* numbers between planes, so that they do not fall onto the same lines of the cache */
#define TILE_ROWS (WIDE == 16 ? 12 : 6) /* multiplied together: with two registers of sums each */

/* Six inputs `step` apart, transformed: B' d. */
INLINE void NAME(spread)(const floats *d, floats *out, const long step) {
    floats a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
    out[0] = 4 * d[0] - 5 * d[2] + d[4];
    out[step] = a + b;
    out[2 * step] = a - b;
    out[3 * step] = c + e;
    out[4 * step] = c - e;
    out[5 * step] = 4 * d[1] - 5 * d[3] + d[5];
}

/* Six products, transformed to four outputs: A' m. */
INLINE void NAME(gather)(const floats *m, floats *out) {
    floats a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    out[0] = m[0] + a + c;
    out[1] = b + 2 * e;
    out[2] = a + 4 * c;
    out[3] = b + 8 * e + m[5];
}

/* Where the six rows and columns that a tile sees begin in x; NULL and -1 beyond its edges. */
typedef struct {
    const float *rows[SIDE];
    long columns[SIDE];
    int inside;
} NAME(view);

KERNEL static NAME(view) NAME(look)(const conv3x3_task *task, long row, long column) {
    NAME(view) view = {.inside = 1};
    long height = task->height << task->doubled, width = task->width << task->doubled;
    for (long i = 0; i < SIDE; i++) {
        long y = row + i - task->top, x = column + i - task->left;
        if (task->around) x = x < 0 ? x + width : x < width ? x : x - width;
        view.rows[i] = y >= 0 && y < height ? task->x + (y >> task->doubled) * task->row_stride : NULL;
        view.columns[i] = x >= 0 && x < width ? (x >> task->doubled) * task->inputs : -1;
        view.inside &= view.rows[i] != NULL && view.columns[i] >= 0;
    }
    return view;
}

INLINE void NAME(tile_in_from)(const NAME(view) *view, long inputs, float *planes, long plane, const int inside) {
    for (long i = 0; i < inputs; i += WIDE) {
        floats half[PLANES], d[SIDE], out[SIDE];
        for (int c = 0; c < SIDE; c++) {
#pragma GCC unroll 6
            for (int r = 0; r < SIDE; r++) {
                if (inside || (view->rows[r] != NULL && view->columns[c] >= 0))
                    d[r] = *(const floats *)(view->rows[r] + view->columns[c] + i);
                else d[r] = (floats){0};
            }
            NAME(spread)(d, half + c, SIDE);
        }
        for (int r = 0; r < SIDE; r++) {
            NAME(spread)(half + r * SIDE, out, 1);
#pragma GCC unroll 6
            for (int c = 0; c < SIDE; c++) *(floats *)(planes + (r * SIDE + c) * plane + i) = out[c];
        }
    }
}

/* The inputs of the tile whose first output is at (row, column), transformed into place 0 of every plane. */
KERNEL static void NAME(tile_in)(const conv3x3_task *task, long row, long column, float *planes, long plane) {
    NAME(view) view = NAME(look)(task, row, column);
    if (view.inside) NAME(tile_in_from)(&view, task->inputs, planes, plane, 1);
    else NAME(tile_in_from)(&view, task->inputs, planes, plane, 0);
}

/* The products of one tile, transformed back, with what is added, where they lie in the picture. */
KERNEL static void NAME(tile_out)(const conv3x3_task *task, long row, long column, const float *planes, long plane) {
    long rows = task->out_height - row < 4 ? task->out_height - row : 4;
    long columns = task->out_width - column < 4 ? task->out_width - column : 4;
    for (long o = 0; o < task->outputs; o += WIDE) {
        floats half[4 * SIDE], m[SIDE], out[4], bias = *(const floats *)(task->bias + o);
        for (int c = 0; c < SIDE; c++) {
#pragma GCC unroll 6
            for (int r = 0; r < SIDE; r++) m[r] = *(const floats *)(planes + (r * SIDE + c) * plane + o);
            NAME(gather)(m, out);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) half[r * SIDE + c] = out[r];
        }
        for (long r = 0; r < rows; r++) {
            NAME(gather)(half + r * SIDE, out);
            long place = ((row + r) * task->out_width + column) * task->outputs + o;
            for (long c = 0; c < columns; c++, place += task->outputs) {
                floats sum = out[c] + bias;
                if (task->plus) sum += *(const floats *)(task->plus + place);
                *(floats *)(task->y + place) = sum;
            }
        }
    }
}

/* Products [rows] of one plane's tiles [rows][inputs] with its weights, for `parts` registers of outputs. */
INLINE void NAME(multiply_tiles)(const float *x, const float *w, float *y, long inputs, long outputs, const int rows,
                                 const int parts) {
    floats sum[TILE_ROWS][2];
#pragma GCC unroll 12
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) sum[row][part] = (floats){0};
    for (long i = 0; i < inputs; i++) {
        floats weights[2];
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) {
            long group = part * WIDE / CONV3X3_GROUP, within = part * WIDE % CONV3X3_GROUP;
            weights[part] = *(const floats *)(w + (group * inputs + i) * CONV3X3_GROUP + within);
        }
#pragma GCC unroll 12
        for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
            for (int part = 0; part < parts; part++) sum[row][part] += weights[part] * x[row * inputs + i];
    }
#pragma GCC unroll 12
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) *(floats *)(y + row * outputs + part * WIDE) = sum[row][part];
}

#define ROWS(n)                                                                              \
    case n:                                                                                  \
        if (parts == 2) NAME(multiply_tiles)(x, w, y, inputs, outputs, n, 2);                \
        else NAME(multiply_tiles)(x, w, y, inputs, outputs, n, 1);                           \
        return;

KERNEL static void NAME(multiply_rows_of_tiles)(const float *x, const float *w, float *y, long inputs, long outputs,
                                                long rows, int parts) {
    switch (rows) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if TILE_ROWS > 6
        ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
    }
}
#undef ROWS

/* `count` tiles from number `first` on. */
KERNEL static void NAME(run_of_tiles)(const conv3x3_task *task, long first, long count, float *scratch) {
    long across = (task->out_width + 3) / 4, inputs = task->inputs, outputs = task->outputs;
    long plane_in = count * inputs + PLANE_GAP, plane_out = count * outputs + PLANE_GAP;
    float *products = scratch + PLANES * plane_in;
    long groups = (count + TILE_ROWS - 1) / TILE_ROWS, each = (count + groups - 1) / groups;
    for (long t = 0; t < count; t++)
        NAME(tile_in)(task, (first + t) / across * 4, (first + t) % across * 4, scratch + t * inputs, plane_in);
    for (long k = 0; k < PLANES; k++)
        for (long o = 0; o < outputs;) {
            int parts = outputs - o >= 2 * WIDE ? 2 : 1;
            const float *w = task->weights + (k * outputs + o) * inputs;
            for (long t = 0; t < count; t += each)
                NAME(multiply_rows_of_tiles)(scratch + k * plane_in + t * inputs, w,
                                             products + k * plane_out + t * outputs + o, inputs, outputs,
                                             count - t < each ? count - t : each, parts);
            o += parts * WIDE;
        }
    for (long t = 0; t < count; t++)
        NAME(tile_out)(task, (first + t) / across * 4, (first + t) % across * 4, products + t * outputs, plane_out);
}

KERNEL void NAME(conv3x3)(const conv3x3_task *task) {
    long tiles = ((task->out_height + 3) / 4) * ((task->out_width + 3) / 4);
    long runs = (tiles + task->run - 1) / task->run, most = task->run * (task->inputs + task->outputs) + 2 * PLANE_GAP;
#pragma omp parallel for num_threads(task->threads) schedule(dynamic)
    for (long run = 0; run < runs; run++) {
        long first = run * task->run, count = tiles - first < task->run ? tiles - first : task->run;
        NAME(run_of_tiles)(task, first, count, task->scratch + omp_get_thread_num() * PLANES * most);
    }
}
#undef SIDE
#undef TILE_ROWS
#undef PLANES
#undef PLANE_GAP

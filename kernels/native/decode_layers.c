/* All transformer layers of a decode step, one after another, without Python between them: see ../decode_layers.py. */
#include "native.h"

#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void decode_layers(const decode_layer *layers, long count, const decode_step *s) {
    long rows = s->tokens * s->streams, width = s->heads * s->head_dim;
    paged_lanes lanes = {s->starts, s->lengths, s->tables, s->lanes, s->table_stride};
    double begun, products = 0, attention = 0;
    for (const decode_layer *layer = layers; layer < layers + count; layer++) {
        if (layer == layers) {
            memcpy(s->residual, s->x, rows * s->dim * sizeof(bf16));
            rms_norm(s->x, layer->attention_norm, s->x, rows, s->dim, s->epsilon);
        } else
            add_rms_norm(s->x, s->residual, layer->attention_norm, rows, s->dim, s->epsilon);
        begun = now();
        packed_linear(s->x, layer->wqkv, s->wide, s->scratch, rows, 3 * width, s->dim);
        products += now() - begun;
        rope_split(s->wide, s->rope, s->q, s->k, s->v, s->tokens, s->streams, s->heads, s->head_dim, s->rotated);
        begun = now();
        paged_cache cache = {layer->cache, s->layout, s->streams * s->heads, s->head_dim, s->block_size,
                             s->block_stride, s->head_stride};
        write_cache(s->k, s->v, &cache, s->slots, s->slot_count);
        decode_attention(s->q, &cache, s->k, &lanes, s->scale);
        attention += now() - begun;
        begun = now();
        packed_linear(s->k, layer->wo, s->x, s->scratch, rows, s->dim, width);
        products += now() - begun;
        add_rms_norm(s->x, s->residual, layer->ffn_norm, rows, s->dim, s->epsilon);
        begun = now();
        packed_linear(s->x, layer->w13, s->wide, s->scratch, rows, 2 * s->inner, s->dim);
        products += now() - begun;
        silu_and_mul(s->wide, s->q, rows, s->inner);
        begun = now();
        packed_linear(s->q, layer->w2, s->x, s->scratch, rows, s->dim, s->inner);
        products += now() - begun;
    }
    s->seconds[0] += products;
    s->seconds[1] += attention;
}

/* A made-up model for tests of layouts and plans: all layers alike, a frozen base with adapters, or
 * (full, one embedding block) bf16 weights that are trained, in granules of granule_params
 * parameters. */
#ifndef PS_TESTS_STEP_SHAPE_H
#define PS_TESTS_STEP_SHAPE_H

#include <stdlib.h>
#include <string.h>

#include "runtime/train/step.h"

struct shape_spec {
    int32_t n_layer, embed_blocks;
    uint64_t layer_bytes, embed_block_bytes, head_bytes, x_bytes, saved_bytes;
    double layer_flops;
    bool direct, tied, full;
    uint64_t granule_params; /* 0: a granule a unit */
    int32_t micro_max;
};

struct made_shape {
    struct ps_step_shape shape;
    struct ps_unit_sources sources;
    uint64_t *numbers; /* (5, n_layer + 2) */
    struct ps_granule *granule;
    uint32_t *granule_begin;
};

/* Every unit trained: fp32 gradients, 10 bytes of states a parameter. */
static inline void made_shape_full(struct made_shape *m, const struct shape_spec *s)
{
    size_t n = (size_t)s->n_layer + 2;
    uint64_t *grad = m->numbers + n, *state = m->numbers + 2 * n, *pinned = m->numbers + 3 * n;
    uint64_t *image = m->numbers + 4 * n;
    uint32_t count = 0;
    m->granule_begin = calloc(n + 1, sizeof *m->granule_begin);
    for (int pass = 0; pass < 2; pass++) {
        if (pass)
            m->granule = calloc(count + 1, sizeof *m->granule);
        count = 0;
        for (size_t i = 0; i < n; i++) {
            uint64_t params = pinned[i] / 2, at = 0;
            uint64_t most = s->granule_params ? s->granule_params : params;
            m->numbers[i] = 0;
            grad[i] = params * 4;
            state[i] = params * 10;
            image[i] = 0;
            m->granule_begin[i] = count;
            for (; at < params; at += most, count++) {
                uint64_t k = params - at < most ? params - at : most;
                uint64_t bytes = (k * 10 + 4095) & ~(uint64_t)4095;
                if (pass)
                    m->granule[count] =
                        (struct ps_granule){.weight_offset = at * 2,
                                            .weight_bytes = (k * 2 + 4095) & ~(uint64_t)4095,
                                            .state_offset = image[i],
                                            .state_bytes = bytes,
                                            .grad_begin = at,
                                            .grad_n = k,
                                            .params = k};
                image[i] += bytes;
            }
        }
        m->granule_begin[n] = count;
    }
    m->shape.embed_trained = m->shape.head_trained = true;
    m->shape.grad_rounds = true;
    m->shape.granule = m->granule;
    m->shape.granule_begin = m->granule_begin;
    m->shape.state_image_bytes = image;
    m->shape.workspace_bytes = 4096;
}

static inline void made_shape_unit(struct ps_unit_source *u, int32_t unit, int32_t block,
                                   uint64_t bytes, bool direct)
{
    *u = (struct ps_unit_source){.unit = unit,
                                 .block = block,
                                 .raw_bytes = (bytes + 4095) & ~(uint64_t)4095,
                                 .near_bytes = (bytes + 4095) & ~(uint64_t)4095,
                                 .read_bytes = bytes,
                                 .direct = direct};
}

static inline void made_shape_init(struct made_shape *m, const struct shape_spec *s)
{
    size_t n = (size_t)s->n_layer + 2;
    uint32_t units = (uint32_t)(s->n_layer + s->embed_blocks + 1);
    memset(m, 0, sizeof *m);
    m->numbers = calloc(5 * n, sizeof *m->numbers);
    m->sources.unit = calloc(units, sizeof *m->sources.unit);
    m->sources.unit_count = units;
    m->sources.embed_block_count = (uint32_t)s->embed_blocks;
    m->sources.all_direct = s->direct;
    struct ps_unit_source *u = m->sources.unit;
    for (int32_t b = 0; b < s->embed_blocks; b++)
        made_shape_unit(u++, PS_UNIT_EMBED, b, s->embed_block_bytes, s->direct);
    for (int32_t l = 0; l < s->n_layer; l++)
        made_shape_unit(u++, l, 0, s->layer_bytes, s->direct);
    made_shape_unit(u, PS_UNIT_HEAD, 0, s->head_bytes, s->direct);
    for (int k = 0; k < 3; k++)
        for (size_t i = 1; i + 1 < n; i++)
            m->numbers[(size_t)k * n + i] = s->layer_bytes / 100 + 64;
    uint64_t *pinned = m->numbers + 3 * n;
    pinned[0] = s->embed_block_bytes * (uint64_t)s->embed_blocks;
    for (size_t i = 1; i + 1 < n; i++)
        pinned[i] = s->layer_bytes;
    pinned[n - 1] = s->head_bytes;
    m->shape = (struct ps_step_shape){.n_layer = s->n_layer,
                                      .trains = true,
                                      .frozen = !s->full,
                                      .tied = s->tied,
                                      .x_bytes = s->x_bytes,
                                      .scratch_bytes = 8192,
                                      .head_bytes = 16384,
                                      .batch_bytes = 4096,
                                      .rope_bytes = 4096,
                                      .gemm_bytes = 4096,
                                      .partial_bytes = 4096,
                                      .adapter_bytes = m->numbers,
                                      .grad_bytes = m->numbers + n,
                                      .state_bytes = m->numbers + 2 * n,
                                      .pinned_bytes = pinned,
                                      .source = &m->sources,
                                      .layer_flops = s->layer_flops,
                                      .layer_backward_flops = s->layer_flops,
                                      .head_flops = s->layer_flops,
                                      .head_backward_flops = s->layer_flops,
                                      .micro_max = s->micro_max};
    for (int level = 0; level < PS_RECOMPUTE_COUNT; level++) { /* in even steps */
        uint64_t dropped = (uint64_t)level * s->saved_bytes / (PS_RECOMPUTE_COUNT - 1);
        m->shape.kept_bytes[level] = s->saved_bytes - dropped;
        m->shape.rest_bytes[level] = dropped;
        m->shape.recompute_flops[level] = level * s->layer_flops / (PS_RECOMPUTE_COUNT - 1);
    }
    if (s->full)
        made_shape_full(m, s);
}

static inline void made_shape_fini(struct made_shape *m)
{
    free(m->numbers);
    free(m->granule);
    free(m->granule_begin);
    free(m->sources.unit);
}

#endif

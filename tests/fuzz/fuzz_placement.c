/* Fuzz target: a placement file. What is accepted must build a valid schedule, unless it is large.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "offload/planner.h"
#include "tests/helpers/step_shape.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void build(const struct ps_step_shape *shape, const struct ps_step_layout *l)
{
    struct ps_step_map map;
    struct ps_schedule s;
    struct ps_error err = {0};
    if (ps_step_map_create(&map, shape, l, &err) != 0)
        abort();
    if (l->group <= 16 && l->eval_group <= 16 && l->x_ring <= 64 && l->near_slots <= 64) {
        if (ps_step_build(&s, PS_SEGMENT_TRAIN, shape, l, &map, &err) != 0)
            abort();
        ps_schedule_fini(&s);
        if (ps_step_build(&s, PS_SEGMENT_EVAL, shape, l, &map, &err) != 0)
            abort();
        ps_schedule_fini(&s);
    }
    ps_step_map_fini(&map);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct shape_spec spec = {.n_layer = 2,
                                           .embed_blocks = 2,
                                           .layer_bytes = 8192,
                                           .embed_block_bytes = 4096,
                                           .head_bytes = 4096,
                                           .x_bytes = 4096,
                                           .saved_bytes = 4096,
                                           .layer_flops = 1e6};
    struct made_shape m;
    made_shape_init(&m, &spec);
    for (int discrete = 0; discrete < 2; discrete++) {
        struct ps_step_layout l;
        struct ps_error err = {0};
        int ret =
            ps_placement_parse(&l, (const char *)data, size, "p.json", &m.shape, discrete, &err);
        if (ret == 0) {
            build(&m.shape, &l);
            ps_step_layout_fini(&l);
        } else if (!err.message[0] || err.code != ret || strcmp(err.file, "p.json") != 0) {
            abort();
        }
    }
    made_shape_fini(&m);
    return 0;
}

/* Fewer update granules for the time of plans: see planner_internal.h. The schedule of a model of
 * 70 billion parameters has a hundred thousand tasks of them; some dozens a layer say as much. */
#include <errno.h>
#include <stdlib.h>

#include "offload/planner_internal.h"

/* Granules of all units together that are planned one by one. */
#define GRANULES_MAX 6000

static uint32_t share_of(const struct ps_step_shape *p)
{
    return (p->granule_begin[p->n_layer + 2] + GRANULES_MAX - 1) / GRANULES_MAX;
}

bool ps__coarse_differs(const struct ps_step_shape *p)
{
    return p->granule_begin && share_of(p) > 1;
}

int ps__coarse_init(struct ps__coarse *c, const struct ps_step_shape *p,
                    const struct ps_step_layout *l, bool exact)
{
    size_t units = (size_t)p->n_layer + 2;
    uint32_t count = p->granule_begin[units];
    uint32_t share = exact ? 1 : share_of(p);
    *c = (struct ps__coarse){.shape = *p, .layout = *l};
    if (share <= 1)
        return 0;
    int32_t least = l->state_slots < 2 ? l->state_slots : 2;
    c->layout.state_slots = (l->state_slots + (int32_t)share - 1) / (int32_t)share;
    if (c->layout.state_slots < least)
        c->layout.state_slots = least;
    c->granule = calloc((size_t)count / share + units + 1, sizeof *c->granule);
    c->granule_begin = calloc(units + 1, sizeof *c->granule_begin);
    if (!c->granule || !c->granule_begin) {
        ps__coarse_fini(c);
        return -ENOMEM;
    }
    uint32_t at = 0;
    for (size_t i = 0; i < units; i++) {
        c->granule_begin[i] = at;
        for (uint32_t g = p->granule_begin[i]; g < p->granule_begin[i + 1]; g++) {
            const struct ps_granule *from = &p->granule[g];
            if ((g - p->granule_begin[i]) % share == 0) {
                c->granule[at++] = *from;
                continue;
            }
            struct ps_granule *to = &c->granule[at - 1];
            to->weight_bytes = from->weight_offset + from->weight_bytes - to->weight_offset;
            to->state_bytes = from->state_offset + from->state_bytes - to->state_offset;
            to->grad_n = from->grad_begin + from->grad_n - to->grad_begin;
            to->slice_count += from->slice_count;
            to->params += from->params;
            to->flops += from->flops;
        }
    }
    c->granule_begin[units] = at;
    c->shape.granule = c->granule;
    c->shape.granule_begin = c->granule_begin;
    return 0;
}

void ps__coarse_fini(struct ps__coarse *c)
{
    free(c->granule);
    free(c->granule_begin);
}

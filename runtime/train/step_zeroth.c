/* The passes of methods without gradients, by forward alone at two points: see step.h. */
#include "runtime/train/step_build_internal.h"

/* Units that the host updates and moves while the device has only their images. */
static bool images_only(const struct ps__build *b, int32_t unit)
{
    return b->l->discrete && b->streams && ps__trained(b, unit);
}

/* Parameters of a unit. */
static double params_of(const struct ps__build *b, int32_t unit)
{
    return (double)(b->p->grad_bytes[ps_step_unit_idx(b->p, unit)] / sizeof(float));
}

/* Move a unit's trained weights both ways, with the update of the step before where that is
 * streamed. The pair that holds them goes to b->image; -1: nothing of it is trained. */
static void perturb(struct ps__build *b, int32_t unit)
{
    bool own = b->m->image_own_bytes > 0 && unit == PS_UNIT_EMBED;
    b->image = -1;
    if (b->streams && unit == PS_UNIT_HEAD && !ps__trained(b, unit))
        ps__update_before(b, unit); /* the commit comes with the head */
    if (!ps__trained(b, unit))
        return;
    b->image = own ? b->m->image_pairs : b->image_next++ % b->m->image_pairs;
    if (b->streams) {
        ps__update_before(b, unit);
    } else {
        enum ps_lane lane = b->l->discrete ? PS_LANE_CPU_OPTIM : PS_LANE_COMPUTE;
        double params = PS_ZEROTH_PASSES * params_of(b, unit);
        ps__emit(b, PS_TASK_PERTURB, lane, unit, -1);
        ps__arg(b, PS_ARG_IMAGE, b->image);
        ps__cost(b, b->l->discrete ? 0 : params, b->l->discrete ? (uint64_t)params : 0);
        ps__done(b);
    }
    if (!b->l->discrete)
        return;
    ps__emit(b, PS_TASK_COPY_PERTURBED, PS_LANE_H2D, unit, -1);
    ps__arg(b, PS_ARG_IMAGE, b->image);
    ps__cost(b, 0, 2 * ps_step_image_bytes(b->p, ps_step_unit_idx(b->p, unit)));
    ps__done(b);
}

static int32_t slot_of(struct ps__build *b, int32_t unit, int32_t block)
{
    return images_only(b, unit) ? -1 : ps__use_unit(b, unit, block);
}

static void embed(struct ps__build *b)
{
    bool whole = images_only(b, PS_UNIT_EMBED) ||
                 b->m->stream_idx[ps__source_number(b->p, PS_UNIT_EMBED, 0)] < 0;
    int32_t blocks = whole ? 1 : (int32_t)b->p->source->embed_block_count;
    perturb(b, PS_UNIT_EMBED);
    for (int32_t block = 0; block < blocks; block++) {
        int32_t slot = slot_of(b, PS_UNIT_EMBED, block);
        for (int32_t m = 0; m < b->l->group; m++) {
            ps__emit(b, PS_TASK_EMBED, PS_LANE_COMPUTE, PS_UNIT_EMBED, m);
            ps__arg(b, PS_ARG_SLOT, slot);
            ps__arg(b, PS_ARG_BLOCK, whole ? -1 : block);
            ps__arg(b, PS_ARG_X_OUT, m);
            ps__arg(b, PS_ARG_IMAGE, b->image);
            ps__done(b);
        }
    }
}

static void layer(struct ps__build *b, int32_t l)
{
    perturb(b, l);
    int32_t slot = slot_of(b, l, 0);
    for (int32_t m = 0; m < b->l->group; m++) {
        ps__emit(b, PS_TASK_LAYER_FORWARD, PS_LANE_COMPUTE, l, m);
        ps__arg(b, PS_ARG_SLOT, slot);
        ps__arg(b, PS_ARG_X_IN, m);
        ps__arg(b, PS_ARG_X_OUT, m);
        ps__arg(b, PS_ARG_IMAGE, b->image);
        ps__cost(b, b->p->layer_flops, 0);
        ps__done(b);
    }
}

void ps__zeroth_pass(struct ps__build *b)
{
    b->image_next = 0;
    embed(b);
    for (int32_t l = 0; l < b->p->n_layer; l++)
        layer(b, l);
    perturb(b, PS_UNIT_HEAD);
    int32_t slot = slot_of(b, PS_UNIT_HEAD, 0);
    for (int32_t m = 0; m < b->l->group; m++) {
        ps__emit(b, PS_TASK_HEAD, PS_LANE_COMPUTE, PS_UNIT_HEAD, m);
        ps__arg(b, PS_ARG_SLOT, slot);
        ps__arg(b, PS_ARG_X_IN, m);
        ps__arg(b, PS_ARG_IMAGE, b->image);
        ps__cost(b, b->p->head_flops, 0);
        ps__done(b);
    }
    b->image = -1;
}

/* AdamW with both moments in 8 bits, in blocks of 256 elements.
 *
 *   m = value(code_m) * scale_m,  v = value(code_v) * scale_v              (dynamic_map.h)
 *   p <- p - (lr * decay) p
 *   m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2         (g = grad * grad_scale)
 *   p <- p - lr / c1 * m / (sqrt(v) / sqrt(c2) + eps)                      by m and v before
 * rounding scale_m = max |m| of the block, scale_v = max v, codes anew
 *
 * Each operator is rounded once, nothing is fused. The last block of a tensor may be shorter.
 * Matrices of 4096 elements and more are kept so; smaller ones, vectors, embedding and head have
 * fp32 moments and AdamW's own update.
 *
 * Source: Dettmers et al. 2022, arXiv:2110.02861; decay before the step as torchao has it. */
#include "optim/adamw.h"
#include "optim/dynamic_map_internal.h"
#include "optim/optimizers.h"

#define SMALLEST 4096

enum { M_CODE, M_SCALE, V_CODE, V_SCALE };

static bool is_small(const struct ps_opt_tensor *x)
{
    return x->n < SMALLEST || x->rank != 2 || x->layer < 0;
}

static int adamw8bit_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                            struct ps_opt_layout *out, struct ps_error *err)
{
    if (is_small(tensor))
        return ps_adamw_ops.layout(h, tensor, out, err);
    *out = (struct ps_opt_layout){
        .state_count = 4,
        .state = {{.name = "exp_avg", .dtype = PS_DTYPE_U8, .per = 1},
                  {.name = "exp_avg_scale", .dtype = PS_DTYPE_F32, .per = PS_BLOCK8},
                  {.name = "exp_avg_sq", .dtype = PS_DTYPE_U8, .per = 1},
                  {.name = "exp_avg_sq_scale", .dtype = PS_DTYPE_F32, .per = PS_BLOCK8}},
        .granule = PS_BLOCK8,
        .remainder = !h->stochastic_rounding,
    };
    return 0;
}

/* Decode or encode the blocks of a tile: moment 0 or 1. */
PS__INLINE void decode_tile(const struct ps_update *u, int moment, size_t at, size_t n,
                            float *restrict x)
{
    const uint8_t *code = (const uint8_t *)u->state[moment ? V_CODE : M_CODE] + at;
    const float *scale = (const float *)u->state[moment ? V_SCALE : M_SCALE] + at / PS_BLOCK8;
    for (size_t b = 0; b < n; b += PS_BLOCK8)
        ps__decode(code + b, scale[b / PS_BLOCK8], n - b < PS_BLOCK8 ? n - b : PS_BLOCK8, !moment,
                   x + b);
}

PS__INLINE void encode_tile(const struct ps_update *u, int moment, size_t at, size_t n,
                            const float *restrict x)
{
    uint8_t *code = (uint8_t *)u->state[moment ? V_CODE : M_CODE] + at;
    float *scale = (float *)u->state[moment ? V_SCALE : M_SCALE] + at / PS_BLOCK8;
    for (size_t b = 0; b < n; b += PS_BLOCK8)
        ps__encode(x + b, n - b < PS_BLOCK8 ? n - b : PS_BLOCK8, !moment, code + b,
                   scale + b / PS_BLOCK8);
}

PS__INLINE void update_tile(PS__TILE_ARGS)
{
    const struct ps_adamw_scalars s = *(const struct ps_adamw_scalars *)arg;
    float w[PS_TILE], g[PS_TILE], m[PS_TILE], v[PS_TILE];
    ps__weight_load(u, at, n, w);
    ps__grad_load(u, at, n, g);
    decode_tile(u, 0, at, n, m);
    decode_tile(u, 1, at, n, v);
    for (size_t i = 0; i < n; i++) {
        m[i] = s.beta1 * m[i] + s.one_minus_beta1 * g[i];
        v[i] = s.beta2 * v[i] + (s.one_minus_beta2 * g[i]) * g[i];
        float step = m[i] / (__builtin_sqrtf(v[i]) * s.rsqrt_c2 + s.eps);
        w[i] = (w[i] - s.decay * w[i]) - s.step_size * step;
    }
    ps__weight_store(u, at, n, w);
    encode_tile(u, 0, at, n, m);
    encode_tile(u, 1, at, n, v);
}
PS__TILE_VARIANTS(update_tile)

static int adamw8bit_update(const struct ps_update *u, struct ps_error *err)
{
    if (is_small(u->tensor))
        return ps_adamw_ops.update(u, err);
    struct ps_adamw_scalars s;
    const struct ps_optimizer_hyper *h = u->hyper;
    assert(u->begin % PS_BLOCK8 == 0);
    ps_adamw_prepare(&s, u->lr, h->beta1, h->beta2, h->eps, u->decay ? h->weight_decay : 0, u->t,
                     u->grad_scale);
    ps_update_tiles(u, PS_TILE, update_tile_for(u->isa), &s);
    return 0;
}

static bool adamw8bit_on_device(const struct ps_compute *cx, const struct ps_opt_layout *layout)
{
    return layout->state_count == 2 && ps_adamw_ops.on_device(cx, layout);
}

static const struct ps_optimizer_option adamw8bit_options[] = {
    {"beta1", 0.9}, {"beta2", 0.999}, {"eps", 1e-8}, {NULL, 0}};

const struct ps_optimizer_ops ps_adamw8bit_ops = {
    .name = "adamw8bit",
    .options = adamw8bit_options,
    .states = "8bit",
    .layout = adamw8bit_layout,
    .update = adamw8bit_update,
    .on_device = adamw8bit_on_device,
};

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
#include "optim/adamw8bit_internal.h"
#include "optim/dynamic_map_variants.h"
#include "optim/optimizers.h"
#include "optim/tile_internal.h"

#define SMALLEST 4096
#define TASK_ELEMS 16384 /* a multiple of PS_BLOCK8 */

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

struct pass {
    struct ps_adamw_scalars s;
    ps__block8_encode_fn encode;
    ps__block8_decode_fn decode;
    struct ps__map_planes planes; /* AVX-512 */
};

/* One block: n <= PS_BLOCK8. */
PS__INLINE void update_block(PS__TILE_ARGS)
{
    const struct pass *a = arg;
    const struct ps_adamw_scalars s = a->s;
    float w[PS_BLOCK8], g[PS_BLOCK8], m[PS_BLOCK8], v[PS_BLOCK8];
    uint8_t *m_code = (uint8_t *)u->state[PS__M_CODE] + at,
            *v_code = (uint8_t *)u->state[PS__V_CODE] + at;
    float *m_scale = (float *)u->state[PS__M_SCALE] + at / PS_BLOCK8;
    float *v_scale = (float *)u->state[PS__V_SCALE] + at / PS_BLOCK8;
    a->decode(m_code, *m_scale, n, true, m);
    a->decode(v_code, *v_scale, n, false, v);
    ps__weight_load(u, at, n, w);
    ps__grad_load(u, at, n, g);
    for (size_t i = 0; i < n; i++) {
        m[i] = s.beta1 * m[i] + s.one_minus_beta1 * g[i];
        v[i] = s.beta2 * v[i] + (s.one_minus_beta2 * g[i]) * g[i];
        float step = m[i] / (__builtin_sqrtf(v[i]) * s.rsqrt_c2 + s.eps);
        w[i] = (w[i] - s.decay * w[i]) - s.step_size * step;
    }
    ps__weight_store(u, at, n, w);
    a->encode(m, n, true, m_code, m_scale);
    a->encode(v, n, false, v_code, v_scale);
}

PS__TILE_VARIANTS(update_block)

/* Blocks of a task; a short one at the tensor's end by the loop above. */
static void update_blocks_avx512(PS__TILE_ARGS)
{
    size_t whole = n / PS_BLOCK8 * PS_BLOCK8;
    ps__adamw8bit_avx512(u, &((const struct pass *)arg)->s, &((const struct pass *)arg)->planes, at,
                         whole);
    if (whole < n)
        update_block_avx512(u, arg, at + whole, n - whole);
}

static int adamw8bit_update(const struct ps_update *u, struct ps_error *err)
{
    if (is_small(u->tensor))
        return ps_adamw_ops.update(u, err);
    struct pass a;
    a.encode = ps__block8_encode_for(u->isa);
    a.decode = ps__block8_decode_for(u->isa);
    const struct ps_optimizer_hyper *h = u->hyper;
    assert(u->begin % PS_BLOCK8 == 0);
    ps_adamw_prepare(&a.s, u->lr, h->beta1, h->beta2, h->eps, u->decay ? h->weight_decay : 0, u->t,
                     u->grad_scale);
    if (u->isa >= PS_ISA_AVX512)
        ps__map_planes_fill(&a.planes);
    if (u->isa >= PS_ISA_AVX512)
        ps_update_tiles(u, TASK_ELEMS, update_blocks_avx512, &a);
    else
        ps_update_tiles(u, PS_BLOCK8, update_block_for(u->isa), &a);
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

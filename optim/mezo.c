/* MeZO: the slope along one random direction, by two forward passes; no gradient, no state.
 *
 *   f+ = loss(p + zo_eps z), f- = loss(p - zo_eps z), slope = (f+ - f-) / (2 zo_eps)
 *   p <- p - lr (slope z + decay p)
 *
 * z is standard normal, a function of (seed, step, tensor id, element), made anew each time it is
 * needed: four elements take one random block, two words a pair, by Box and Muller's transform with
 * polynomials of its own in fp32 (each operator rounded once), so that every machine makes the
 * same. Source: Malladi et al. 2023, arXiv:2305.17333. */
#include "optim/mezo.h"

#include "optim/optimizers.h"
#include "optim/tile_internal.h"

/* ln x of a normal x in (0, 1]: x = 2^e m, m in [sqrt(1/2), sqrt(2)), by the series of artanh. */
PS__INLINE float log_of(float x)
{
    uint32_t b = ps__bits_of(x) - 0x3f3504f3u; /* sqrt(1/2) */
    int32_t e = (int32_t)b >> 23;
    float m = ps__float_of((b & 0x007fffffu) + 0x3f3504f3u);
    float t = (m - 1) / (m + 1), s = t * t;
    float series = 1 + s * (1 / 3.0f + s * (1 / 5.0f + s * (1 / 7.0f + s * (1 / 9.0f))));
    return (float)e * 0.69314718f + 2 * t * series;
}

/* cos and sin of 2 pi v, v in [0, 1): by the nearest quarter and Taylor's polynomials around it. */
PS__INLINE void circle(float v, float *cosine, float *sine)
{
    int32_t quarter = (int32_t)(4 * v + 0.5f);
    float r = (v - (float)quarter * 0.25f) * 6.2831853f, s = r * r;
    float c = 1 + s * (-0.5f + s * (1 / 24.0f + s * (-1 / 720.0f + s * (1 / 40320.0f))));
    float d = r * (1 + s * (-1 / 6.0f + s * (1 / 120.0f + s * (-1 / 5040.0f))));
    int32_t odd = quarter & 1;
    float a = odd ? -d : c, b = odd ? c : d;
    *cosine = quarter & 2 ? -a : a;
    *sine = quarter & 2 ? -b : b;
}

/* Two numbers of each of `count` pairs of words. */
PS__INLINE void pairs(const uint32_t *restrict a, const uint32_t *restrict b, size_t count,
                      float *restrict first, float *restrict second)
{
    for (size_t i = 0; i < count; i++) {
        float length = ((float)(int32_t)(a[i] >> 8) + 0.5f) * 0x1p-24f;
        float angle = (float)(int32_t)(b[i] >> 8) * 0x1p-24f;
        float size = __builtin_sqrtf(-2 * log_of(length)), c, s;
        circle(angle, &c, &s);
        first[i] = size * c;
        second[i] = size * s;
    }
}

/* z of elements [e, e + n) of the tensor, n <= PS_TILE. */
PS__INLINE void direction(const struct ps_update *u, uint64_t e, size_t n, float *restrict z)
{
    struct ps_rng_key key = {
        .seed = u->hyper->seed, .step = u->step, .layer = u->tensor->id, .site = PS_RNG_PERTURB};
    struct ps__random_wide r;
    float part[4][PS__WIDE]; /* element 4 i + k in part[k][i] */
    size_t skip = (size_t)(e % 4), blocks = (skip + n + 3) / 4;
    ps__random_fill(r.word[0], PS__WIDE, &key, e / 4, blocks);
    pairs(r.word[0], r.word[1], blocks, part[0], part[1]);
    pairs(r.word[2], r.word[3], blocks, part[2], part[3]);
    float whole[4 * PS__WIDE];
    for (size_t i = 0; i < blocks; i++)
        for (size_t k = 0; k < 4; k++)
            whole[4 * i + k] = part[k][i];
    memcpy(z, whole + skip, n * sizeof *z);
}

struct shift {
    const void *from; /* the unperturbed weights, in the layout of u->weight */
    void *to[2];      /* NULL: none */
    float scale[2];
};

PS__INLINE void shifted(enum ps_dtype dtype, void *to, size_t at, size_t n, float scale,
                        const float *restrict w, const float *restrict z)
{
    if (dtype == PS_DTYPE_F32) {
        float *restrict out = (float *)to + at;
        for (size_t i = 0; i < n; i++)
            out[i] = w[i] + scale * z[i];
    } else {
        uint16_t *restrict out = (uint16_t *)to + at;
        for (size_t i = 0; i < n; i++)
            out[i] = ps_f32_to_bf16(w[i] + scale * z[i]);
    }
}

PS__INLINE void shift_tile(PS__TILE_ARGS)
{
    const struct shift *s = arg;
    float w[PS_TILE], z[PS_TILE];
    struct ps_update original = *u;
    original.weight = (void *)(uintptr_t)s->from;
    ps__weight_load(&original, at, n, w);
    direction(u, u->begin + at, n, z);
    for (int k = 0; k < 2; k++)
        if (s->to[k])
            shifted(u->tensor->dtype, s->to[k], at, n, s->scale[k], w, z);
}
PS__TILE_VARIANTS(shift_tile)

static void mezo_perturb(const struct ps_update *u, const void *from, double scale)
{
    struct shift s = {
        .from = from, .to = {u->weight}, .scale = {(float)(u->hyper->zo_eps * scale)}};
    ps_update_tiles(u, PS_TILE, shift_tile_for(u->isa), &s);
}

static void mezo_perturb_pair(const struct ps_update *u, const void *from, void *up, void *down)
{
    float eps = (float)u->hyper->zo_eps;
    struct shift s = {.from = from, .to = {up, down}, .scale = {eps, -eps}};
    ps_update_tiles(u, PS_TILE, shift_tile_for(u->isa), &s);
}

void ps_mezo_direction(const struct ps_update *u, float *z)
{
    for (size_t at = 0; at < u->n; at += PS_TILE)
        direction(u, u->begin + at, u->n - at < PS_TILE ? u->n - at : PS_TILE, z + at);
}

struct step {
    float lr, slope, decay;
};

PS__INLINE void step_tile(PS__TILE_ARGS)
{
    const struct step s = *(const struct step *)arg;
    float w[PS_TILE], z[PS_TILE];
    ps__weight_load(u, at, n, w);
    direction(u, u->begin + at, n, z);
    for (size_t i = 0; i < n; i++)
        w[i] = w[i] - s.lr * (s.slope * z[i] + s.decay * w[i]);
    ps__weight_store(u, at, n, w);
}
PS__TILE_VARIANTS(step_tile)

static int mezo_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                       struct ps_opt_layout *out, struct ps_error *err)
{
    (void)tensor;
    (void)err;
    *out = (struct ps_opt_layout){.granule = 1, .remainder = !h->stochastic_rounding};
    return 0;
}

/* The slope is u->grad_scale: the gradient would be grad_scale z. */
static int mezo_update(const struct ps_update *u, struct ps_error *err)
{
    (void)err;
    struct step s = {.lr = (float)u->lr,
                     .slope = u->grad_scale,
                     .decay = (float)(u->decay ? u->hyper->weight_decay : 0)};
    ps_update_tiles(u, PS_TILE, step_tile_for(u->isa), &s);
    return 0;
}

static const struct ps_optimizer_option mezo_options[] = {{"zo-eps", 1e-3}, {NULL, 0}};

const struct ps_optimizer_ops ps_mezo_ops = {
    .name = "mezo",
    .options = mezo_options,
    .layout = mezo_layout,
    .update = mezo_update,
    .perturb = mezo_perturb,
    .perturb_pair = mezo_perturb_pair,
};

/* Muon: momentum, orthogonalised by a Newton-Schulz iteration, for hidden matrices (rows: outputs).
 *
 *   M <- beta M + (1 - beta) G;   D = (1 - beta) G + beta M (nesterov), else M
 *   X = D, transposed if rows > cols;   X <- X / (|X| + 1e-7)
 *   ns-steps times:  A = X X^T,  B = b A + c A A,  X <- a X + B X     (a, b, c) = (3.4445,
 * -4.7750, 2.0315) W <- W - lr decay W;   W <- W - lr k X
 *
 * k by adjust-lr-fn: `original` sqrt(max(1, rows / cols)), `match_rms_adamw` 0.2 sqrt(max(rows,
 * cols)), with which AdamW's rates carry over.
 *
 * X is kept in bf16 between products, which accumulate in fp32, as in the authors' code. Its
 * singular values come near 1, not to 1: 0.68 to 1.14 where those of D were above 0.01 |D|. The
 * iteration runs on multiples of X, A and B, whose factors go into the products' own:
 *
 *   X = s Y:   A' = Y Y^T,   B' = A' + (c s^2 / b) A' A',   Y <- Y + (b s^2 / a) B' Y,   s <- a s
 *
 * Other tensors: AdamW, T-form, at lr * aux-lr-ratio (the authors: 3e-4 beside 0.02, 0.015).
 *
 * State: M, fp32. FLOPs of an update: ns-steps (4 min^2 max + 2 min^3): five steps of a square
 * matrix cost as much as a forward pass of it over 15 times its side in tokens. Scratch: X twice in
 * bf16, A and B. Sources: Jordan 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025,
 * arXiv:2502.16982; torch.optim.Muon. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "optim/adamw.h"
#include "optim/optimizers.h"
#include "optim/tile_internal.h"

#define ALIGN 64
#define LANES 16
#define NORM_EPS 1e-7

static const double NS_A = 3.4445, NS_B = -4.7750, NS_C = 2.0315;

static bool orthogonalises(const struct ps_opt_tensor *t)
{
    return t->hidden && t->rank == 2;
}

static int32_t thread_count(const struct ps_optimizer_hyper *h)
{
    return h->thread_count > 0 ? h->thread_count : 1;
}

struct scratch {
    void *gemm;
    uint16_t *x[2];  /* (rows, cols) bf16, the matrix's own orientation */
    float *a, *b;    /* (side, side), side the shorter */
    double *row_sum; /* (rows,) */
};

static void *take(void *base, size_t *used, size_t bytes)
{
    void *at = base ? (unsigned char *)base + *used : NULL;
    *used += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return at;
}

static size_t carve(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *t,
                    struct scratch *s, void *base)
{
    size_t rows = (size_t)t->rows, cols = (size_t)t->cols, side = rows < cols ? rows : cols;
    size_t used = 0;
    s->gemm = take(base, &used, ps_gemm_workspace_bytes(thread_count(h)));
    s->x[0] = take(base, &used, rows * cols * sizeof(uint16_t));
    s->x[1] = take(base, &used, rows * cols * sizeof(uint16_t));
    s->a = take(base, &used, side * side * sizeof(float));
    s->b = take(base, &used, side * side * sizeof(float));
    s->row_sum = take(base, &used, rows * sizeof(double));
    return used;
}

static int muon_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                       struct ps_opt_layout *out, struct ps_error *err)
{
    (void)err;
    struct scratch s;
    *out = (struct ps_opt_layout){
        .state_count = 2,
        .state = {{.name = "exp_avg", .dtype = PS_DTYPE_F32, .per = 1},
                  {.name = "exp_avg_sq", .dtype = PS_DTYPE_F32, .per = 1}},
        .granule = 1,
        .remainder = !h->stochastic_rounding,
    };
    if (!orthogonalises(tensor))
        return 0;
    out->state_count = 1;
    out->state[0].name = "momentum_buffer";
    out->granule = 0;
    double m = (double)tensor->rows, n = (double)tensor->cols, least = m < n ? m : n;
    /* at half: bf16 products run twice as fast */
    out->flops = 0.5 * h->ns_steps * (4 * least * m * n + 2 * least * least * least);
    out->workspace_bytes = carve(h, tensor, &s, NULL);
    return 0;
}

/* ---- momentum ------------------------------------------------------------------------------- */

struct momentum {
    float beta, one_minus_beta;
    bool nesterov;
    float *out; /* (n,) D */
};

/* n <= PS_TILE */
PS__INLINE void momentum_tile(PS__TILE_ARGS)
{
    const struct momentum a = *(const struct momentum *)arg;
    float *restrict m = (float *)u->state[0] + at;
    float *restrict d = a.out;
    float g[PS_TILE];
    ps__grad_load(u, at, n, g);
    for (size_t i = 0; i < n; i++) {
        m[i] = a.beta * m[i] + a.one_minus_beta * g[i];
        d[i] = a.nesterov ? a.one_minus_beta * g[i] + a.beta * m[i] : m[i];
    }
}
PS__TILE_VARIANTS(momentum_tile)

static uint16_t to_bf16(float x)
{
    uint32_t b = ps__bits_of(x);
    return (uint16_t)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
}

struct row_job {
    const struct ps_update *u;
    const struct scratch *s;
    ps__tile_fn fn;
    struct momentum momentum;
    float scale; /* of D */
    size_t cols;
};

/* First M and the squares of D; X cannot be rounded before its norm is known. */
static void momentum_row(void *arg, size_t row, int thread)
{
    (void)thread;
    const struct row_job *job = arg;
    float d[PS_TILE];
    double lane[LANES] = {0};
    struct momentum m = job->momentum;
    m.out = d;
    for (size_t at = 0; at < job->cols; at += PS_TILE) {
        size_t n = job->cols - at < PS_TILE ? job->cols - at : PS_TILE;
        job->fn(job->u, &m, row * job->cols + at, n);
        for (size_t i = 0; i < n; i += LANES)
            for (size_t l = 0; l < LANES && i + l < n; l++)
                lane[l] += (double)d[i + l] * (double)d[i + l];
    }
    for (size_t width = LANES / 2; width > 0; width /= 2)
        for (size_t l = 0; l < width; l++)
            lane[l] += lane[l + width];
    job->s->row_sum[row] = lane[0];
}

/* D again, of the M that is new now, scaled and rounded. */
static void scale_row(void *arg, size_t row, int thread)
{
    (void)thread;
    const struct row_job *job = arg;
    const struct momentum *a = &job->momentum;
    const float *m = (const float *)job->u->state[0] + row * job->cols;
    uint16_t *x = job->s->x[0] + row * job->cols;
    float g[PS_TILE];
    for (size_t at = 0; at < job->cols; at += PS_TILE) {
        size_t n = job->cols - at < PS_TILE ? job->cols - at : PS_TILE;
        ps_grad_load(job->u, row * job->cols + at, n, g);
        for (size_t i = 0; i < n; i++) {
            float d = a->nesterov ? a->one_minus_beta * g[i] + a->beta * m[at + i] : m[at + i];
            x[at + i] = to_bf16(d * job->scale);
        }
    }
}

/* ---- Newton-Schulz -------------------------------------------------------------------------- */

static struct ps_gemm_mat mat(const void *data, size_t ld, enum ps_dtype dtype, bool trans)
{
    return (struct ps_gemm_mat){.data = data, .ld = ld, .dtype = dtype, .trans = trans};
}

static void gemm(const struct ps_update *u, const struct scratch *s, struct ps_gemm_args *g)
{
    struct ps_pool *pool = u->pool;
    if (ps_pool_thread_count(pool) > thread_count(u->hyper))
        pool = NULL; /* the scratch is for fewer */
    g->math = PS_GEMM_BF16;
    ps_gemm(pool, u->isa, g, s->gemm);
}

/* From Y in x[0]; returns s, the factor that is missing in what is then in x[0]. The tall matrix is
 * Y^T throughout: products take it as it lies. */
static double newton_schulz(const struct ps_update *u, struct scratch *s)
{
    size_t rows = (size_t)u->tensor->rows, cols = (size_t)u->tensor->cols;
    bool tall = rows > cols;
    size_t side = tall ? cols : rows, length = tall ? rows : cols;
    double factor = 1;
    for (int32_t step = 0; step < u->hyper->ns_steps; step++) {
        double square = factor * factor;
        struct ps_gemm_mat y = mat(s->x[0], cols, PS_DTYPE_BF16, tall);
        struct ps_gemm_mat yt = mat(s->x[0], cols, PS_DTYPE_BF16, !tall);
        struct ps_gemm_mat a = mat(s->a, side, PS_DTYPE_F32, false);
        struct ps_gemm_mat b = mat(s->b, side, PS_DTYPE_F32, false);
        struct ps_gemm_args g = {.m = side,
                                 .n = side,
                                 .k = length,
                                 .a = y,
                                 .b = yt,
                                 .alpha = 1,
                                 .c = s->a,
                                 .c_ld = side,
                                 .c_dtype = PS_DTYPE_F32};
        gemm(u, s, &g);
        g = (struct ps_gemm_args){.m = side,
                                  .n = side,
                                  .k = side,
                                  .a = a,
                                  .b = a,
                                  .alpha = (float)(NS_C * square / NS_B),
                                  .residual = s->a,
                                  .residual_ld = side,
                                  .residual_dtype = PS_DTYPE_F32,
                                  .c = s->b,
                                  .c_ld = side,
                                  .c_dtype = PS_DTYPE_F32};
        gemm(u, s, &g);
        /* B is symmetric: Y^T B is (B Y)^T */
        g = (struct ps_gemm_args){.m = rows,
                                  .n = cols,
                                  .k = side,
                                  .a = tall ? mat(s->x[0], cols, PS_DTYPE_BF16, false) : b,
                                  .b = tall ? b : mat(s->x[0], cols, PS_DTYPE_BF16, false),
                                  .alpha = (float)(NS_B * square / NS_A),
                                  .residual = s->x[0],
                                  .residual_ld = cols,
                                  .residual_dtype = PS_DTYPE_BF16,
                                  .c = s->x[1],
                                  .c_ld = cols,
                                  .c_dtype = PS_DTYPE_BF16};
        gemm(u, s, &g);
        uint16_t *swap = s->x[0];
        s->x[0] = s->x[1];
        s->x[1] = swap;
        factor *= NS_A;
    }
    return factor;
}

/* ---- weights -------------------------------------------------------------------------------- */

struct apply {
    const uint16_t *x;
    float step, decay;
};

PS__INLINE void apply_tile(PS__TILE_ARGS)
{
    const struct apply a = *(const struct apply *)arg;
    const uint16_t *x = a.x + at;
    float w[PS_TILE];
    ps__weight_load(u, at, n, w);
    for (size_t i = 0; i < n; i++) {
        w[i] = w[i] - a.decay * w[i];
        w[i] = w[i] - a.step * ps__float_of((uint32_t)x[i] << 16);
    }
    ps__weight_store(u, at, n, w);
}
PS__TILE_VARIANTS(apply_tile)

static void update_matrix(const struct ps_update *u)
{
    const struct ps_optimizer_hyper *h = u->hyper;
    size_t rows = (size_t)u->tensor->rows, cols = (size_t)u->tensor->cols;
    struct scratch s;
    assert(u->begin == 0 && u->n == u->tensor->n);
    carve(h, u->tensor, &s, u->workspace);
    struct row_job job = {.u = u,
                          .s = &s,
                          .fn = momentum_tile_for(u->isa),
                          .momentum = {.beta = (float)h->momentum,
                                       .one_minus_beta = (float)(1 - h->momentum),
                                       .nesterov = h->nesterov},
                          .cols = cols};
    ps_pool_run(u->pool, momentum_row, &job, rows);
    double sum = 0;
    for (size_t i = 0; i < rows; i++)
        sum += s.row_sum[i];
    job.scale = (float)(1 / (sqrt(sum) + NORM_EPS));
    ps_pool_run(u->pool, scale_row, &job, rows);
    double factor = newton_schulz(u, &s);
    double r = (double)rows, c = (double)cols;
    double adjust = h->match_rms_adamw ? 0.2 * sqrt(r > c ? r : c) : sqrt(r > c ? r / c : 1);
    struct apply apply = {.x = s.x[0],
                          .step = (float)(u->lr * adjust * factor),
                          .decay = (float)(u->decay ? u->lr * h->weight_decay : 0)};
    ps_update_tiles(u, PS_TILE, apply_tile_for(u->isa), &apply);
}

/* ---- other tensors -------------------------------------------------------------------------- */

static void plain_tile(const struct ps_update *u, const void *arg, size_t at, size_t n)
{
    float w[PS_TILE], g[PS_TILE];
    struct ps_adamw_scalars s = *(const struct ps_adamw_scalars *)arg;
    ps_weight_load(u, at, n, w);
    ps_grad_load(u, at, n, g);
    s.grad_scale = 1; /* is in g */
    struct ps_adamw_slice slice = {.weight = w,
                                   .grad = g,
                                   .exp_avg = (float *)u->state[0] + at,
                                   .exp_avg_sq = (float *)u->state[1] + at,
                                   .weight_dtype = PS_DTYPE_F32,
                                   .grad_dtype = PS_DTYPE_F32,
                                   .n = n};
    ps_adamw_update(NULL, u->isa, &s, &slice);
    ps_weight_store(u, at, n, w);
}

static void update_plain(const struct ps_update *u)
{
    const struct ps_optimizer_hyper *h = u->hyper;
    struct ps_adamw_scalars s;
    ps_adamw_prepare(&s, u->lr * h->aux_lr_ratio, h->beta1, h->beta2, h->eps,
                     u->decay ? h->weight_decay : 0, u->t, u->grad_scale);
    ps_update_tiles(u, PS_TILE, plain_tile, &s);
}

static int muon_update(const struct ps_update *u, struct ps_error *err)
{
    (void)err;
    if (orthogonalises(u->tensor))
        update_matrix(u);
    else
        update_plain(u);
    return 0;
}

static const struct ps_optimizer_option options[] = {
    {"momentum", 0.95},     {"nesterov", 1},     {"ns-steps", 5},
    {"match-rms-adamw", 0}, {"beta1", 0.9},      {"beta2", 0.95},
    {"eps", 1e-10},         {"aux-lr-ratio", 1}, {NULL, 0}};

const struct ps_optimizer_ops ps_muon_ops = {
    .name = "muon",
    .options = options,
    .layout = muon_layout,
    .update = muon_update,
};

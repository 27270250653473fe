/* Natural GaLore: GaLore on a gradient preconditioned by the empirical Fisher matrix of the last
 * projected gradients.
 *
 *   Gamma: the projected gradients of the last `history` updates of this basis, this one included,
 *   as columns;   g = vec(R), the last of them
 *   g' = (damping I + Gamma Gamma^T)^-1 g;   then Adam on g' and back as GaLore
 *
 * As g is a column of Gamma, g = Gamma e, the inverse need not be formed: g' = Gamma x with
 * (damping I + Gamma^T Gamma) x = e, of the history's size, solved in fp64 by Cholesky. The
 * Woodbury form of the authors' code computes the same as a difference of large numbers. Without
 * history (0), g' = g / damping.
 *
 * The history begins anew with every basis: gradients in different coordinates do not mix (the
 * authors keep it). No 1/history normalisation, as published. Other tensors: AdamW, same form.
 *
 * State: GaLore's, `history` times R, and the inner products. FLOPs of an update: 4 m n r +
 * 4 history r max(m, n). Source: Das 2024, arXiv:2410.16029. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "optim/low_rank_adam.h"
#include "optim/optimizers.h"
#include "optim/tile_internal.h"

enum { HISTORY_MAX = 64 };
#define LANES 16

static const struct ps_low_rank_method method = {.rank = 128, .update_gap = 200, .products = 2};

static int natural_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                          struct ps_opt_layout *out, struct ps_error *err)
{
    uint64_t s = (uint64_t)h->history, low = 0;
    if (h->history < 0 || h->history > HISTORY_MAX)
        return ps_error_full(err, PS_EUSAGE, NULL, "optim-history", "take 0 to 64 gradients",
                             "--optim-history %d: at most %d gradients can be remembered",
                             h->history, HISTORY_MAX);
    if (ps_low_rank_projects(tensor)) {
        struct ps_projector p;
        int ret = ps_projector_plan(h, tensor, method.rank, method.update_gap, &p, err);
        if (ret < 0)
            return ret;
        low = p.rank * p.length;
    }
    const struct ps_opt_state own[] = {
        {.name = "history", .dtype = PS_DTYPE_F32, .count = s * low},
        {.name = "history_products", .dtype = PS_DTYPE_F64, .count = s * s}};
    return ps_low_rank_layout(&method, h, tensor, own, s > 0 ? 2 : 0, out, err);
}

/* What the tasks over pieces of R share. */
struct job {
    const float *history;
    float *low;
    size_t n, count, slot; /* slot: the one that R goes to */
    double x[HISTORY_MAX];
    double *product; /* row of the slot */
};

static void inner_product(void *arg, size_t i, int thread)
{
    (void)thread;
    const struct job *job = arg;
    const float *a = job->history + i * job->n, *b = job->history + job->slot * job->n;
    double lane[LANES] = {0};
    size_t k = 0;
    for (; k + LANES <= job->n; k += LANES)
        for (size_t l = 0; l < LANES; l++)
            lane[l] += (double)a[k + l] * (double)b[k + l];
    for (size_t l = 0; k + l < job->n; l++)
        lane[l] += (double)a[k + l] * (double)b[k + l];
    for (size_t width = LANES / 2; width > 0; width /= 2)
        for (size_t l = 0; l < width; l++)
            lane[l] += lane[l + width];
    job->product[i] = lane[0];
}

static void combine(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct job *job = arg;
    size_t at = task * PS_TILE, n = job->n - at < PS_TILE ? job->n - at : PS_TILE;
    double sum[PS_TILE] = {0};
    for (size_t i = 0; i < job->count; i++) {
        const float *g = job->history + i * job->n + at;
        for (size_t k = 0; k < n; k++)
            sum[k] += job->x[i] * (double)g[k];
    }
    for (size_t k = 0; k < n; k++)
        job->low[at + k] = (float)sum[k];
}

/* Solve (damping I + K) x = e_slot for the leading (count, count) part of K (rows of `stride`). */
static void solve(const double *product, size_t stride, size_t count, double damping, size_t slot,
                  double *x)
{
    double l[HISTORY_MAX][HISTORY_MAX];
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j <= i; j++) {
            double sum = product[i * stride + j] + (i == j ? damping : 0);
            for (size_t k = 0; k < j; k++)
                sum -= l[i][k] * l[j][k];
            /* positive but for rounding, which the damping outweighs or which is noise */
            l[i][j] = i == j ? sqrt(sum > 0 ? sum : damping) : sum / l[j][j];
        }
    }
    for (size_t i = 0; i < count; i++) {
        double sum = i == slot ? 1 : 0;
        for (size_t k = 0; k < i; k++)
            sum -= l[i][k] * x[k];
        x[i] = sum / l[i][i];
    }
    for (size_t i = count; i-- > 0;) {
        for (size_t k = i + 1; k < count; k++)
            x[i] -= l[k][i] * x[k];
        x[i] /= l[i][i];
    }
}

/* Replace R by the preconditioned gradient, and remember it. */
static void precondition(const struct ps_update *u, const struct ps_low_rank *l)
{
    size_t n = l->p.rank * l->p.length, s = (size_t)u->hyper->history;
    double damping = u->hyper->damping;
    if (s == 0) {
        for (size_t i = 0; i < n; i++)
            l->low[i] = (float)((double)l->low[i] / damping);
        return;
    }
    uint64_t age = ps_projector_age(&l->p, u->t);
    float *history = u->state[l->own];
    double *product = u->state[l->own + 1], row[HISTORY_MAX];
    struct job job = {.history = history,
                      .low = l->low,
                      .n = n,
                      .count = age < s ? (size_t)age : s,
                      .slot = (size_t)((age - 1) % s),
                      .product = row};
    memcpy(history + job.slot * n, l->low, n * sizeof *history);
    ps_pool_run(u->pool, inner_product, &job, job.count);
    for (size_t i = 0; i < job.count; i++) {
        product[job.slot * s + i] = row[i];
        product[i * s + job.slot] = row[i];
    }
    solve(product, s, job.count, damping, job.slot, job.x);
    ps_pool_run(u->pool, combine, &job, (n + PS_TILE - 1) / PS_TILE);
}

static int natural_update(const struct ps_update *u, struct ps_error *err)
{
    struct ps_low_rank l;
    if (!ps_low_rank_projects(u->tensor))
        return ps_low_rank_plain(u, err);
    int ret = ps_low_rank_begin(&method, u, &l, err);
    if (ret < 0)
        return ret;
    precondition(u, &l);
    ret = ps_low_rank_adam(u, &l, err);
    if (ret < 0)
        return ret;
    ps_low_rank_apply(u, &l, l.direction, l.rate * u->hyper->scale, 0);
    return 0;
}

static const struct ps_optimizer_option options[] = {{"beta1", 0.9},
                                                     {"beta2", 0.999},
                                                     {"eps", 1e-6},
                                                     {"optim-rank", 0},
                                                     {"optim-update-gap", 200},
                                                     {"optim-scale", 0.25},
                                                     {"optim-proj-type", PS_PROJECTION_STD},
                                                     {"optim-basis", PS_BASIS_RANDOMIZED},
                                                     {"optim-moments", PS_MOMENTS_KEEP},
                                                     {"optim-refresh-together", 0},
                                                     {"optim-history", 20},
                                                     {"optim-damping", 1e-3},
                                                     {NULL, 0}};

const struct ps_optimizer_ops ps_natural_galore_ops = {
    .name = "natural-galore",
    .options = options,
    .states = "fp32|bf16|8bit",
    .layout = natural_layout,
    .update = natural_update,
};

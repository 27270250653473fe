/* Norms over channels and what becomes of the weights: see low_rank_adam.h.
 *
 * Sums run in LANES partial sums, added in one order; rows and blocks of channels are tasks, whose
 * sums are added in their order. */
#include <math.h>
#include <string.h>

#include "optim/low_rank_adam.h"
#include "optim/tile_internal.h"

#define NORM_EPS 1e-8
#define LANES 16

/* ---- norms ---------------------------------------------------------------------------------- */

static double add_lanes(double lane[LANES])
{
    for (size_t width = LANES / 2; width > 0; width /= 2)
        for (size_t l = 0; l < width; l++)
            lane[l] += lane[l + width];
    return lane[0];
}

static double square_sum(const float *x, size_t n)
{
    double lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t k = 0; k < LANES; k++)
            lane[k] += (double)x[i + k] * (double)x[i + k];
    for (size_t k = 0; i + k < n; k++)
        lane[k] += (double)x[i + k] * (double)x[i + k];
    return add_lanes(lane);
}

/* Squares over the rank of `count` channels from j on: rows of (length, rank), or columns of
 * (rank, length). */
static void channel_square_sums(const struct ps_projector *p, const float *low, size_t j,
                                size_t count, double *sum)
{
    memset(sum, 0, count * sizeof *sum);
    for (size_t c = 0; p->right && c < count; c++)
        sum[c] = square_sum(low + (j + c) * p->rank, p->rank);
    for (size_t k = 0; !p->right && k < p->rank; k++) {
        const float *row = low + k * p->length + j;
        for (size_t c = 0; c < count; c++)
            sum[c] += (double)row[c] * (double)row[c];
    }
}

/* Channels, PS_LOW_RANK_CHANNELS of them a task. */
struct channel_job {
    const struct ps_low_rank *l;
    double *n_sum, *r_sum; /* by task */
};

static void channel_task(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct channel_job *job = arg;
    const struct ps_low_rank *l = job->l;
    size_t j = task * PS_LOW_RANK_CHANNELS, left = l->p.length - j,
           count = left < PS_LOW_RANK_CHANNELS ? left : PS_LOW_RANK_CHANNELS;
    double n[PS_LOW_RANK_CHANNELS], r[PS_LOW_RANK_CHANNELS], n_sum = 0, r_sum = 0;
    channel_square_sums(&l->p, l->direction, j, count, n);
    channel_square_sums(&l->p, l->low, j, count, r);
    for (size_t c = 0; c < count; c++) {
        l->channel[j + c] = (float)(sqrt(n[c]) / (sqrt(r[c]) + NORM_EPS));
        n_sum += n[c];
        r_sum += r[c];
    }
    job->n_sum[task] = n_sum;
    job->r_sum[task] = r_sum;
}

void ps_low_rank_channels(const struct ps_low_rank *l, bool whole)
{
    size_t tasks = (l->p.length + PS_LOW_RANK_CHANNELS - 1) / PS_LOW_RANK_CHANNELS;
    struct channel_job job = {.l = l, .n_sum = l->task_sum, .r_sum = l->task_sum + tasks};
    double n_sum = 0, r_sum = 0;
    ps_pool_run(l->cx.pool, channel_task, &job, tasks);
    for (size_t i = 0; i < tasks; i++) {
        n_sum += job.n_sum[i];
        r_sum += job.r_sum[i];
    }
    for (size_t j = 0; whole && j < l->p.length; j++)
        l->channel[j] = (float)(sqrt(n_sum) / (sqrt(r_sum) + NORM_EPS));
}

/* A tile within one row. */
struct residual {
    const float *back;    /* (n,) or NULL */
    const float *channel; /* (n,) factors of columns, or NULL */
    float alpha;          /* of the back projection */
    double *lane;         /* (LANES,) squares so far */
};

PS__INLINE void residual_tile(PS__TILE_ARGS)
{
    const struct residual a = *(const struct residual *)arg;
    float g[PS_TILE];
    double lane[LANES];
    ps__grad_load(u, at, n, g);
    memcpy(lane, a.lane, sizeof lane);
    if (a.back)
        for (size_t i = 0; i < n; i++)
            g[i] = g[i] - a.alpha * a.back[i];
    if (a.channel)
        for (size_t i = 0; i < n; i++)
            g[i] *= a.channel[i];
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t k = 0; k < LANES; k++)
            lane[k] += (double)g[i + k] * (double)g[i + k];
    for (size_t k = 0; i + k < n; k++)
        lane[k] += (double)g[i + k] * (double)g[i + k];
    memcpy(a.lane, lane, sizeof lane);
}
PS__TILE_VARIANTS(residual_tile)

/* Rows of the matrix, a task each. */
struct row_job {
    const struct ps_update *u;
    const struct ps_low_rank *l;
    ps__tile_fn fn;
    size_t row;  /* first */
    float alpha; /* of the back projection in l->back */
};

static void residual_row(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct row_job *job = arg;
    const struct ps_low_rank *l = job->l;
    size_t cols = l->p.cols, row = job->row + task;
    double lane[LANES] = {0};
    for (size_t at = 0; at < cols; at += PS_TILE) {
        struct residual a = {.back = job->alpha != 0 ? l->back + task * cols + at : NULL,
                             .channel = l->p.right ? NULL : l->channel + at,
                             .alpha = job->alpha,
                             .lane = lane};
        job->fn(job->u, &a, row * cols + at, cols - at < PS_TILE ? cols - at : PS_TILE);
    }
    double sum = add_lanes(lane), factor = l->p.right ? (double)l->channel[row] : 1;
    l->row_sum[row] = sum * factor * factor;
}

double ps_low_rank_residual_norm(const struct ps_update *u, const struct ps_low_rank *l,
                                 float alpha)
{
    const struct ps_projector *p = &l->p;
    for (size_t row = 0; row < p->rows; row += l->back_rows) {
        size_t count = p->rows - row < l->back_rows ? p->rows - row : l->back_rows;
        struct row_job job = {
            .u = u, .l = l, .fn = residual_tile_for(u->isa), .row = row, .alpha = alpha};
        if (alpha != 0)
            ps_projector_back(p, &l->cx, l->basis, l->low, row, count, l->back);
        ps_pool_run(u->pool, residual_row, &job, count);
    }
    double sum = 0;
    for (size_t row = 0; row < p->rows; row++)
        sum += l->row_sum[row];
    return sqrt(sum);
}

double ps_low_rank_limit(double norm, double growth_max, float *kept)
{
    double factor = 1, before = (double)*kept;
    if (growth_max > 0 && before > 0) {
        double growth = norm / (before + NORM_EPS);
        factor = growth > growth_max ? growth_max / growth : 1;
    }
    if (norm > 0)
        *kept = (float)(norm * factor);
    return factor;
}

/* ---- weights -------------------------------------------------------------------------------- */

/* A tile within one row. */
struct apply {
    const float *back;    /* (n,) or NULL */
    const float *channel; /* (n,) factors of columns, or NULL: `along` has the row's */
    float toward, along, decay;
};

PS__INLINE void apply_tile(PS__TILE_ARGS)
{
    const struct apply a = *(const struct apply *)arg;
    float w[PS_TILE], g[PS_TILE];
    ps__weight_load(u, at, n, w);
    if (a.back)
        for (size_t i = 0; i < n; i++)
            w[i] = w[i] + a.toward * a.back[i];
    if (a.along != 0) {
        ps__grad_load(u, at, n, g);
        if (a.channel)
            for (size_t i = 0; i < n; i++)
                g[i] = g[i] * a.channel[i];
        for (size_t i = 0; i < n; i++)
            w[i] = w[i] - a.along * g[i];
    }
    for (size_t i = 0; i < n; i++)
        w[i] = w[i] - a.decay * w[i];
    ps__weight_store(u, at, n, w);
}
PS__TILE_VARIANTS(apply_tile)

struct apply_job {
    const struct ps_update *u;
    const struct ps_low_rank *l;
    ps__tile_fn fn;
    size_t row;
    bool projected;
    float toward, along;
};

static void apply_row(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct apply_job *job = arg;
    const struct ps_low_rank *l = job->l;
    size_t cols = l->p.cols, row = job->row + task;
    for (size_t at = 0; at < cols; at += PS_TILE) {
        struct apply a = {.back = job->projected ? l->back + task * cols + at : NULL,
                          .channel = l->p.right ? NULL : l->channel + at,
                          .toward = job->toward,
                          .along = job->along,
                          .decay = l->decay};
        if (l->p.right && job->along != 0)
            a.along = job->along * l->channel[row];
        job->fn(job->u, &a, row * cols + at, cols - at < PS_TILE ? cols - at : PS_TILE);
    }
}

void ps_low_rank_apply(const struct ps_update *u, const struct ps_low_rank *l, const float *low,
                       double toward, double along)
{
    const struct ps_projector *p = &l->p;
    struct apply_job job = {.u = u,
                            .l = l,
                            .fn = apply_tile_for(u->isa),
                            .projected = low != NULL,
                            .toward = (float)toward,
                            .along = (float)along};
    for (size_t row = 0; row < p->rows; row += l->back_rows) {
        size_t count = p->rows - row < l->back_rows ? p->rows - row : l->back_rows;
        if (low)
            ps_projector_back(p, &l->cx, l->basis, low, row, count, l->back);
        job.row = row;
        ps_pool_run(u->pool, apply_row, &job, count);
    }
}

/* Adafactor: second moments of a matrix as one row and one column.
 *
 *   b = 1 - t^-decay_rate;  q = g^2 + eps                                 (g = grad * grad_scale)
 *   r_i <- b r_i + (1 - b) mean_j q_ij;   c_j <- b c_j + (1 - b) mean_i q_ij
 *   u_ij = g_ij / sqrt(r_i / mean(r)) / sqrt(c_j)                          matrices
 *   v <- b v + (1 - b) q;  u = g / sqrt(v)                                 vectors
 *   u <- u / max(1, RMS(u) / clip_threshold)
 *   a = rate * (max(eps2, RMS(p)) with scale_parameter, else 1)
 *   rate = lr, or with relative_step min(1e-2 (1e-6 t with warmup_init), 1 / sqrt(t))
 *   m <- beta1 m + (1 - beta1) a u, a u = m                                where beta1 > 0
 *   p <- p - (decay * a) p;   p <- p - a u
 *
 * Three passes over the tensor: r and c; RMS(u) and RMS(p); the step. Sums are in fp64 and in an
 * order that depends on the shape alone.
 * Source: Shazeer & Stern 2018, arXiv:1804.04235; fairseq's and transformers' Adafactor. */
#include <math.h>

#include "optim/optimizers.h"
#include "optim/tile_internal.h"

#define LANES 16  /* partial sums of a row */
#define WIDTH 256 /* columns of a task of column sums */

/* A vector is taken as rows of PS_TILE elements. */
struct shape {
    size_t rows, cols, n;
    bool matrix;
};

static struct shape shape_of(const struct ps_opt_tensor *x)
{
    struct shape s = {.n = x->n, .matrix = x->rank == 2};
    s.cols = s.matrix ? (size_t)x->cols : PS_TILE;
    s.rows = s.matrix ? (size_t)x->rows : (s.n + PS_TILE - 1) / PS_TILE;
    return s;
}

/* Lies in the workspace. */
struct parts {
    double *row, *row_w; /* (rows,): sums of squares of a row */
    double *col;         /* (cols,) */
    float *row_factor, *col_factor;
};

static size_t carve(struct parts *p, void *base, const struct shape *s)
{
    size_t rows = (s->rows * 8 + 63) / 64 * 64, cols = s->matrix ? (s->cols * 8 + 63) / 64 * 64 : 0;
    if (p) {
        unsigned char *at = base;
        p->row = (double *)(void *)at;
        p->row_w = (double *)(void *)(at + rows);
        p->col = (double *)(void *)(at + 2 * rows);
        p->row_factor = (float *)(void *)(at + 2 * rows + cols);
        p->col_factor = (float *)(void *)(at + 3 * rows + cols);
    }
    return 3 * rows + 2 * cols;
}

enum { ROW = 0, COL = 1, FULL = 0 };

static int adafactor_layout(const struct ps_optimizer_hyper *h, const struct ps_opt_tensor *tensor,
                            struct ps_opt_layout *out, struct ps_error *err)
{
    if (h->warmup_init && !h->relative_step)
        return ps_error_full(err, PS_EUSAGE, NULL, "warmup-init",
                             "give --relative-step true, or --warmup-steps",
                             "`warmup-init` has no effect without `relative-step`");
    if (h->state_dtype == PS_DTYPE_BF16 && !(h->beta1 > 0))
        return ps_error_full(err, PS_EUSAGE, NULL, "optim-state", "give --beta1, or remove it",
                             "`optim-state` is that of adafactor's momentum, which needs `beta1`");
    struct shape s = shape_of(tensor);
    *out = (struct ps_opt_layout){.granule = 0,
                                  .workspace_bytes = carve(NULL, NULL, &s),
                                  .remainder = !h->stochastic_rounding};
    int k = 0;
    if (s.matrix) {
        out->state[k++] =
            (struct ps_opt_state){.name = "exp_avg_sq_row", .dtype = PS_DTYPE_F32, .count = s.rows};
        out->state[k++] =
            (struct ps_opt_state){.name = "exp_avg_sq_col", .dtype = PS_DTYPE_F32, .count = s.cols};
    } else {
        out->state[k++] =
            (struct ps_opt_state){.name = "exp_avg_sq", .dtype = PS_DTYPE_F32, .per = 1};
    }
    if (h->beta1 > 0)
        out->state[k++] = (struct ps_opt_state){
            .name = "exp_avg",
            .dtype = h->state_dtype == PS_DTYPE_BF16 ? PS_DTYPE_BF16 : PS_DTYPE_F32,
            .per = 1};
    out->state_count = k;
    return 0;
}

struct pass {
    const struct ps_update *u;
    struct shape s;
    struct parts p;
    float eps, beta2, one_minus_beta2, beta1, one_minus_beta1;
    float decay, step; /* a * weight_decay; a / max(1, RMS(u) / threshold) */
};

/* Elements of row i: the last one of a vector may be shorter. */
PS__INLINE size_t width_of(const struct shape *s, size_t i)
{
    return s->matrix || (i + 1) * s->cols <= s->n ? s->cols : s->n - i * s->cols;
}

/* Elements of the tile that begins `from` elements into a row. */
PS__INLINE size_t piece(size_t width, size_t from)
{
    return width - from < PS_TILE ? width - from : PS_TILE;
}

PS__INLINE double sum_lanes(const double lane[LANES])
{
    double sum = 0;
    for (int k = 0; k < LANES; k++)
        sum += lane[k];
    return sum;
}

PS__INLINE void add_squares(double lane[LANES], const float *x, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t k = 0; k < LANES; k++)
            lane[k] += (double)x[i + k] * (double)x[i + k];
    for (; i < n; i++)
        lane[i % LANES] += (double)x[i] * (double)x[i];
}

/* Sums of squares of row i of the gradient. */
static void row_sums(void *arg, size_t i, int thread)
{
    (void)thread;
    struct pass *a = arg;
    double lane[LANES] = {0};
    float g[PS_TILE];
    for (size_t from = 0; from < a->s.cols; from += PS_TILE) {
        size_t n = piece(a->s.cols, from);
        ps_grad_load(a->u, i * a->s.cols + from, n, g);
        add_squares(lane, g, n);
    }
    a->p.row[i] = sum_lanes(lane);
}

static void col_sums(void *arg, size_t task, int thread)
{
    (void)thread;
    struct pass *a = arg;
    size_t begin = task * WIDTH, n = a->s.cols - begin < WIDTH ? a->s.cols - begin : WIDTH;
    double sum[WIDTH] = {0};
    float g[WIDTH];
    for (size_t i = 0; i < a->s.rows; i++) {
        ps_grad_load(a->u, i * a->s.cols + begin, n, g);
        for (size_t j = 0; j < n; j++)
            sum[j] += (double)g[j] * (double)g[j];
    }
    memcpy(a->p.col + begin, sum, n * sizeof *sum);
}

/* The vector's second moments, in place. */
static void full_moments(void *arg, size_t i, int thread)
{
    (void)thread;
    struct pass *a = arg;
    float g[PS_TILE];
    size_t at = i * PS_TILE, n = width_of(&a->s, i);
    float *v = (float *)a->u->state[FULL] + at;
    ps_grad_load(a->u, at, n, g);
    for (size_t k = 0; k < n; k++)
        v[k] = a->beta2 * v[k] + a->one_minus_beta2 * (g[k] * g[k] + a->eps);
}

/* The update before clipping: of n elements from column `from` of row i. */
static void direction(const struct pass *a, size_t i, size_t from, size_t n, float *g)
{
    ps_grad_load(a->u, i * a->s.cols + from, n, g);
    if (a->s.matrix) {
        const float *c = a->p.col_factor + from, r = a->p.row_factor[i];
        for (size_t k = 0; k < n; k++)
            g[k] = g[k] * (r * c[k]);
    } else {
        const float *v = (const float *)a->u->state[FULL] + i * a->s.cols + from;
        for (size_t k = 0; k < n; k++)
            g[k] = g[k] / __builtin_sqrtf(v[k]);
    }
}

static void row_norms(void *arg, size_t i, int thread)
{
    (void)thread;
    struct pass *a = arg;
    double lane[LANES] = {0}, lane_w[LANES] = {0};
    float x[PS_TILE];
    size_t width = width_of(&a->s, i);
    for (size_t from = 0; from < width; from += PS_TILE) {
        size_t n = piece(width, from);
        direction(a, i, from, n, x);
        add_squares(lane, x, n);
        if (a->u->hyper->scale_parameter) {
            ps_weight_load(a->u, i * a->s.cols + from, n, x);
            add_squares(lane_w, x, n);
        }
    }
    a->p.row[i] = sum_lanes(lane);
    a->p.row_w[i] = sum_lanes(lane_w);
}

static void row_step(void *arg, size_t i, int thread)
{
    (void)thread;
    struct pass *a = arg;
    float x[PS_TILE], w[PS_TILE], m[PS_TILE];
    size_t width = width_of(&a->s, i);
    int momentum = a->u->hyper->beta1 > 0 ? a->u->layout->state_count - 1 : -1;
    for (size_t from = 0; from < width; from += PS_TILE) {
        size_t n = piece(width, from), at = i * a->s.cols + from;
        direction(a, i, from, n, x);
        ps_weight_load(a->u, at, n, w);
        for (size_t k = 0; k < n; k++)
            x[k] = x[k] * a->step;
        if (momentum >= 0) {
            ps_state_load(a->u, momentum, at, n, m);
            for (size_t k = 0; k < n; k++)
                x[k] = m[k] = a->beta1 * m[k] + a->one_minus_beta1 * x[k];
            ps_state_store(a->u, momentum, at, n, m);
        }
        for (size_t k = 0; k < n; k++)
            w[k] = (w[k] - a->decay * w[k]) - x[k];
        ps_weight_store(a->u, at, n, w);
    }
}

/* r and c, and what they scale a gradient by. */
static void factors(struct pass *a)
{
    float *r = a->u->state[ROW], *c = a->u->state[COL];
    double sum = 0;
    for (size_t i = 0; i < a->s.rows; i++) {
        float q = (float)(a->p.row[i] / (double)a->s.cols + (double)a->eps);
        r[i] = a->beta2 * r[i] + a->one_minus_beta2 * q;
        sum += (double)r[i];
    }
    double mean = sum / (double)a->s.rows;
    for (size_t i = 0; i < a->s.rows; i++)
        a->p.row_factor[i] = (float)(1 / sqrt((double)r[i] / mean));
    for (size_t j = 0; j < a->s.cols; j++) {
        float q = (float)(a->p.col[j] / (double)a->s.rows + (double)a->eps);
        c[j] = a->beta2 * c[j] + a->one_minus_beta2 * q;
        a->p.col_factor[j] = (float)(1 / sqrt((double)c[j]));
    }
}

static double total(const double *part, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += part[i];
    return sum;
}

static double rate_of(const struct ps_update *u)
{
    const struct ps_optimizer_hyper *h = u->hyper;
    double t = (double)u->t, most = h->warmup_init ? 1e-6 * t : 1e-2;
    if (!h->relative_step)
        return u->lr;
    return most < 1 / sqrt(t) ? most : 1 / sqrt(t);
}

static int adafactor_update(const struct ps_update *u, struct ps_error *err)
{
    (void)err;
    const struct ps_optimizer_hyper *h = u->hyper;
    double beta2 = 1 - pow((double)u->t, -h->decay_rate);
    struct pass a = {.u = u,
                     .s = shape_of(u->tensor),
                     .eps = (float)h->eps,
                     .beta2 = (float)beta2,
                     .one_minus_beta2 = (float)(1 - beta2),
                     .beta1 = (float)h->beta1,
                     .one_minus_beta1 = (float)(1 - h->beta1)};
    assert(u->begin == 0 && u->n == u->tensor->n);
    carve(&a.p, u->workspace, &a.s);
    if (a.s.matrix) {
        ps_pool_run(u->pool, row_sums, &a, a.s.rows);
        ps_pool_run(u->pool, col_sums, &a, (a.s.cols + WIDTH - 1) / WIDTH);
        factors(&a);
    } else {
        ps_pool_run(u->pool, full_moments, &a, a.s.rows);
    }
    ps_pool_run(u->pool, row_norms, &a, a.s.rows);
    double n = (double)a.s.n, rms = sqrt(total(a.p.row, a.s.rows) / n);
    double clip = rms / h->clip_threshold, rate = rate_of(u);
    if (h->scale_parameter) {
        double size = sqrt(total(a.p.row_w, a.s.rows) / n);
        rate *= size > h->eps2 ? size : h->eps2;
    }
    a.step = (float)(rate / (clip > 1 ? clip : 1));
    a.decay = (float)(rate * (u->decay ? h->weight_decay : 0));
    ps_pool_run(u->pool, row_step, &a, a.s.rows);
    return 0;
}

static const struct ps_optimizer_option adafactor_options[] = {
    {"beta1", 0},          {"eps", 1e-30},      {"eps2", 1e-3},
    {"clip-threshold", 1}, {"decay-rate", 0.8}, {"scale-parameter", 0},
    {"relative-step", 0},  {"warmup-init", 0},  {NULL, 0}};

const struct ps_optimizer_ops ps_adafactor_ops = {
    .name = "adafactor",
    .options = adafactor_options,
    .states = "fp32|bf16",
    .layout = adafactor_layout,
    .update = adafactor_update,
};

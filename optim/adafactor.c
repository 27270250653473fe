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
 * Three passes over the tensor: r and c; RMS(u) and RMS(p); the step. The rule needs them: u wants
 * all of r and c, the step wants RMS(u), and RMS(u) = mean_ij g_ij^2 R_i C_j is no function of sums
 * that the first pass could have kept. So a matrix larger than the caches costs 12 bytes a
 * parameter for an fp32 gradient (6 for bf16) and once 4 (rounded bf16 weights) or 8 (fp32, or bf16
 * with remainder), 8 more with fp32 momentum, 2 or 4 more reading with scale_parameter: that is the
 * bound of memory. The second pass goes backwards over the rows: it begins with what the caches
 * still have of the first.
 *
 * Sums are in fp64 (squares of fp32 are exact there), in an order that depends on the shape alone:
 * a row in 16 lanes, element j in lane j mod 16, then the lanes in order; a column by blocks of
 * rows (a 32nd of the rows, at least 16), in order in a block, then the blocks in order. Source:
 * Shazeer & Stern 2018, arXiv:1804.04235; fairseq's and transformers' Adafactor. */
#include <math.h>

#include "optim/adafactor_internal.h"
#include "optim/optimizers.h"
#include "optim/tile_internal.h"

#define LANES PS__ADAFACTOR_LANES
#define BLOCKS 32        /* of rows, at most */
#define BLOCK_LEAST 16   /* rows of a block */
#define COL_TASK 1024    /* columns of a task */
#define TASK_ELEMS 16384 /* of a task of rows */

static struct ps__adafactor_shape shape_of(const struct ps_opt_tensor *x)
{
    struct ps__adafactor_shape s = {.n = x->n, .matrix = x->rank == 2};
    s.cols = s.matrix ? (size_t)x->cols : PS_TILE;
    s.rows = s.matrix ? (size_t)x->rows : (s.n + PS_TILE - 1) / PS_TILE;
    s.block = (s.rows + BLOCKS - 1) / BLOCKS;
    s.block = s.block < BLOCK_LEAST ? BLOCK_LEAST : s.block;
    return s;
}

static size_t block_count(const struct ps__adafactor_shape *s)
{
    return (s->rows + s->block - 1) / s->block;
}

static size_t line(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static size_t carve(struct ps__adafactor_parts *p, void *base, const struct ps__adafactor_shape *s)
{
    size_t rows = line(s->rows * 8), cols = s->matrix ? line(s->cols * 8) : 0;
    size_t part = s->matrix ? line(block_count(s) * s->cols * 8) : 0;
    if (p) {
        unsigned char *at = base;
        p->row = (double *)(void *)at;
        p->row_w = (double *)(void *)(at + rows);
        p->row_factor = (float *)(void *)(at + 2 * rows);
        p->col_factor = (float *)(void *)(at + 3 * rows);
        p->col = (double *)(void *)(at + 3 * rows + cols);
    }
    return 3 * rows + cols + part;
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
    struct ps__adafactor_shape s = shape_of(tensor);
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

/* Elements of row i: the last one of a vector may be shorter. */
PS__INLINE size_t width_of(const struct ps__adafactor_shape *s, size_t i)
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

#define ROWS_ARGS const struct ps__adafactor *a, size_t begin, size_t end
#define ROWS_VARIANTS(body)                                                                        \
    static void body##_portable(ROWS_ARGS)                                                         \
    {                                                                                              \
        body(a, begin, end);                                                                       \
    }                                                                                              \
    PS__AVX2 static void body##_avx2(ROWS_ARGS)                                                    \
    {                                                                                              \
        body(a, begin, end);                                                                       \
    }

PS__INLINE void sums(ROWS_ARGS)
{
    double *restrict col = a->p.col + begin / a->s.block * a->s.cols;
    memset(col, 0, a->s.cols * sizeof *col);
    for (size_t i = begin; i < end; i++) {
        double lane[LANES] = {0};
        float g[PS_TILE];
        for (size_t from = 0; from < a->s.cols; from += PS_TILE) {
            size_t n = piece(a->s.cols, from);
            ps__grad_load(a->u, i * a->s.cols + from, n, g);
            add_squares(lane, g, n);
            for (size_t j = 0; j < n; j++)
                col[from + j] += (double)g[j] * (double)g[j];
        }
        a->p.row[i] = sum_lanes(lane);
    }
}
ROWS_VARIANTS(sums)

/* The vector's second moments, in place. */
PS__INLINE void moments(ROWS_ARGS)
{
    for (size_t i = begin; i < end; i++) {
        float g[PS_TILE];
        size_t at = i * PS_TILE, n = width_of(&a->s, i);
        float *restrict v = (float *)a->u->state[FULL] + at;
        ps__grad_load(a->u, at, n, g);
        for (size_t k = 0; k < n; k++)
            v[k] = a->beta2 * v[k] + a->one_minus_beta2 * (g[k] * g[k] + a->eps);
    }
}
ROWS_VARIANTS(moments)

/* The update before clipping: of n elements from column `from` of row i. */
PS__INLINE void direction(const struct ps__adafactor *a, size_t i, size_t from, size_t n,
                          float *restrict g)
{
    ps__grad_load(a->u, i * a->s.cols + from, n, g);
    if (a->s.matrix) {
        const float *restrict c = a->p.col_factor + from;
        float r = a->p.row_factor[i];
        for (size_t k = 0; k < n; k++)
            g[k] = g[k] * (r * c[k]);
    } else {
        const float *restrict v = (const float *)a->u->state[FULL] + i * a->s.cols + from;
        for (size_t k = 0; k < n; k++)
            g[k] = g[k] / __builtin_sqrtf(v[k]);
    }
}

PS__INLINE void norms(ROWS_ARGS)
{
    for (size_t i = begin; i < end; i++) {
        double lane[LANES] = {0}, lane_w[LANES] = {0};
        float x[PS_TILE];
        size_t width = width_of(&a->s, i);
        for (size_t from = 0; from < width; from += PS_TILE) {
            size_t n = piece(width, from);
            direction(a, i, from, n, x);
            add_squares(lane, x, n);
            if (a->u->hyper->scale_parameter) {
                ps__weight_load(a->u, i * a->s.cols + from, n, x);
                add_squares(lane_w, x, n);
            }
        }
        a->p.row[i] = sum_lanes(lane);
        a->p.row_w[i] = sum_lanes(lane_w);
    }
}
ROWS_VARIANTS(norms)

PS__INLINE void step_piece(const struct ps__adafactor *a, size_t i, size_t from, size_t n)
{
    float x[PS_TILE], w[PS_TILE], m[PS_TILE];
    size_t at = i * a->s.cols + from;
    direction(a, i, from, n, x);
    ps__weight_load(a->u, at, n, w);
    for (size_t k = 0; k < n; k++)
        x[k] = x[k] * a->step;
    if (a->momentum >= 0) {
        ps__state_load(a->u, a->momentum, at, n, m);
        for (size_t k = 0; k < n; k++)
            x[k] = m[k] = a->beta1 * m[k] + a->one_minus_beta1 * x[k];
        ps__state_store(a->u, a->momentum, at, n, m);
    }
    for (size_t k = 0; k < n; k++)
        w[k] = (w[k] - a->decay * w[k]) - x[k];
    ps__weight_store(a->u, at, n, w);
}

PS__INLINE void step(ROWS_ARGS)
{
    for (size_t i = begin; i < end; i++) {
        size_t width = width_of(&a->s, i);
        for (size_t from = 0; from < width; from += PS_TILE)
            step_piece(a, i, from, piece(width, from));
    }
}
ROWS_VARIANTS(step)

/* AVX-512 has matrices; a vector is never what takes long. */
#define ROWS_FOR(body)                                                                             \
    (a->s.matrix && a->u->isa >= PS_ISA_AVX512 ? ps__adafactor_##body##_avx512                     \
     : a->u->isa >= PS_ISA_AVX2                ? body##_avx2                                       \
                                               : body##_portable)

struct task {
    const struct ps__adafactor *a;
    ps__adafactor_rows_fn rows;
    size_t count, of_task; /* rows; of a task */
    bool backwards;
};

static void run_rows(void *arg, size_t i, int thread)
{
    (void)thread;
    const struct task *t = arg;
    size_t tasks = (t->count + t->of_task - 1) / t->of_task;
    size_t begin = (t->backwards ? tasks - 1 - i : i) * t->of_task;
    t->rows(t->a, begin, begin + t->of_task < t->count ? begin + t->of_task : t->count);
}

static void each_row(const struct ps__adafactor *a, ps__adafactor_rows_fn rows, size_t of_task,
                     bool backwards)
{
    struct task t = {
        .a = a, .rows = rows, .count = a->s.rows, .of_task = of_task, .backwards = backwards};
    ps_pool_run(a->u->pool, run_rows, &t, (t.count + of_task - 1) / of_task);
}

static void row_factors(const struct ps__adafactor *a)
{
    float *r = a->u->state[ROW];
    double sum = 0;
    for (size_t i = 0; i < a->s.rows; i++) {
        float q = (float)(a->p.row[i] / (double)a->s.cols + (double)a->eps);
        r[i] = a->beta2 * r[i] + a->one_minus_beta2 * q;
        sum += (double)r[i];
    }
    double mean = sum / (double)a->s.rows;
    for (size_t i = 0; i < a->s.rows; i++)
        a->p.row_factor[i] = (float)(1 / sqrt((double)r[i] / mean));
}

static void col_factors(void *arg, size_t task, int thread)
{
    (void)thread;
    const struct ps__adafactor *a = arg;
    float *c = a->u->state[COL];
    size_t begin = task * COL_TASK, blocks = block_count(&a->s);
    size_t end = begin + COL_TASK < a->s.cols ? begin + COL_TASK : a->s.cols;
    double sum[COL_TASK] = {0};
    for (size_t b = 0; b < blocks; b++)
        for (size_t j = begin; j < end; j++)
            sum[j - begin] += a->p.col[b * a->s.cols + j];
    for (size_t j = begin; j < end; j++) {
        float q = (float)(sum[j - begin] / (double)a->s.rows + (double)a->eps);
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
    struct ps__adafactor pass = {.u = u,
                                 .s = shape_of(u->tensor),
                                 .eps = (float)h->eps,
                                 .beta2 = (float)beta2,
                                 .one_minus_beta2 = (float)(1 - beta2),
                                 .beta1 = (float)h->beta1,
                                 .one_minus_beta1 = (float)(1 - h->beta1),
                                 .momentum = h->beta1 > 0 ? u->layout->state_count - 1 : -1};
    struct ps__adafactor *a = &pass;
    size_t of_task = a->s.cols < TASK_ELEMS ? TASK_ELEMS / a->s.cols : 1;
    assert(u->begin == 0 && u->n == u->tensor->n);
    carve(&a->p, u->workspace, &a->s);
    if (a->s.matrix) {
        each_row(a, ROWS_FOR(sums), a->s.block, false);
        row_factors(a);
        ps_pool_run(u->pool, col_factors, a, (a->s.cols + COL_TASK - 1) / COL_TASK);
    } else {
        each_row(a, u->isa >= PS_ISA_AVX2 ? moments_avx2 : moments_portable, of_task, false);
    }
    each_row(a, ROWS_FOR(norms), of_task, true);
    double n = (double)a->s.n, rms = sqrt(total(a->p.row, a->s.rows) / n);
    double clip = rms / h->clip_threshold, rate = rate_of(u);
    if (h->scale_parameter) {
        double size = sqrt(total(a->p.row_w, a->s.rows) / n);
        rate *= size > h->eps2 ? size : h->eps2;
    }
    a->step = (float)(rate / (clip > 1 ? clip : 1));
    a->decay = (float)(rate * (u->decay ? h->weight_decay : 0));
    each_row(a, ROWS_FOR(step), of_task, false);
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

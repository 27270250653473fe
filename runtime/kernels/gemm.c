/* General matrix multiplication: see gemm.h. Choice of kernel, blocking and threads.
 *
 * Design: C is cut into tiles of at most MC x NC, one task each. A task walks K in blocks; for each
 * it packs its rows of A once, which then stay in the second-level cache, and its columns of B a
 * panel at a time into the first. The accumulators of the whole tile stay in scratch as fp32
 * between blocks, so that a bf16 output is rounded once; the epilogue runs on each micro-tile while
 * it is in the first-level cache, after the last block. Tasks share nothing: no barrier, and a slow
 * thread delays one tile. Packing waits for memory (it took 9 to 20% of the time when all of a
 * block was packed at once), so each micro-tile fetches a share of what is packed next.
 *
 * The second operand pair is more K: its units follow those of the first in the packed panels.
 *
 * Invariants
 *  1. An element's chain runs over units in ascending order, starts from +0 and is fp32 throughout;
 *     tiles, blocks and tasks only decide where it is computed.
 *  2. Kernels compute every lane alike: a lane's result depends on its a and b units only.
 *  3. Padding is +0 in both operands along K; along M and N its results are never stored. */
#include "runtime/kernels/gemm_internal.h"

#include <assert.h>

/* Most rows and columns of a task's tile. */
#define MC_MAX 480
#define NC_MAX 1024
/* Units of a block of K: a panel of 32 columns is 24 KiB (first-level cache), the panels of MC_MAX
 * rows 360 KiB (second level). With few rows B is read from memory for little work, so that long
 * runs along its rows matter more. */
#define UNITS_MAX 192
#define UNITS_MAX_FEW_ROWS 768
#define FEW_ROWS 48
/* Time to pack one value, in products; and how many ways to cut M, and N, are considered. */
#define PACK_COST 12
#define CUTS_TRIED 12
/* Units between panels: packing along memory writes to all panels in turn, whose lines must not
 * fall into the same cache sets. */
#define PANEL_PAD 32
#define PANEL_ROWS_MIN 4  /* least mr of a kernel */
#define PANEL_COLS_MAX 32 /* most nr of a kernel */
#define A_UNITS ((size_t)MC_MAX * UNITS_MAX + (size_t)MC_MAX / PANEL_ROWS_MIN * PANEL_PAD)
#define B_UNITS ((size_t)PANEL_COLS_MAX * UNITS_MAX_FEW_ROWS + 4 * PANEL_PAD)
#define ACC_UNITS ((size_t)MC_MAX * NC_MAX + PS__GEMM_TILE_MAX)

static_assert(FEW_ROWS * UNITS_MAX_FEW_ROWS <= MC_MAX * UNITS_MAX, "few rows need no larger A");

struct job {
    const struct ps_gemm_args *args;
    const struct ps__gemm_kernel *kernel;
    struct ps__gemm_view a, b, a2, b2;
    size_t units_first, units; /* of the first pair, and of both */
    size_t block_units;
    size_t mc, nc;    /* tile; multiples of mr and nr */
    size_t tile_rows; /* tiles along M */
    size_t group;     /* columns of B packed at a time, a multiple of nr */
    int round_bf16;   /* operands are rounded while packed */
    unsigned char *workspace;
};

/* Lines of memory that will be packed soon: rows of `bytes` bytes, fetched a few at a time. */
struct fetch {
    const char *row, *at;
    size_t stride, rows, bytes;
    size_t share; /* lines for each micro-tile */
};

/* One block of K of one task's tile. */
struct block {
    size_t i0, rows, j0, cols; /* the tile */
    size_t u0, u1;
    int first, last;
    float *a, *b, *acc; /* the thread's scratch */
    struct fetch next_a, next_b;
};

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static size_t ceil_div(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t panel_stride(size_t units, size_t width)
{
    return units * width + PANEL_PAD;
}

/* Bytes of scratch for one thread, a little over, so that the threads' buffers do not start at the
 * same cache set. */
static size_t thread_bytes(void)
{
    return (A_UNITS + B_UNITS + ACC_UNITS) * sizeof(float) + 4096 + 128;
}

size_t ps_gemm_workspace_bytes(int thread_count)
{
    assert(thread_count >= 1);
    return (size_t)thread_count * thread_bytes();
}

/* ---- packing -------------------------------------------------------------------------------- */

/* Pack units [u0, u1) of rows [r0, r0 + r_count): the first pair's, then the second's. */
static void pack_units(const struct job *job, const struct ps__gemm_view *first,
                       const struct ps__gemm_view *second, size_t width, size_t r0, size_t r_count,
                       size_t u0, size_t u1, float *dst)
{
    const struct ps__gemm_kernel *kernel = job->kernel;
    size_t per = kernel->k_per_unit;
    size_t stride = panel_stride(u1 - u0, width);
    size_t split = job->units_first;
    struct ps__gemm_range range = {r0, r_count, 0, 0};
    if (u0 < split) {
        range.k0 = u0 * per;
        range.k_count = min_size(job->args->k, u1 * per) - range.k0;
        kernel->pack(dst, stride, width, first, &range, job->round_bf16);
    }
    if (u1 > split) {
        size_t u = u0 > split ? u0 : split;
        range.k0 = (u - split) * per;
        range.k_count = min_size(job->args->k2, (u1 - split) * per) - range.k0;
        kernel->pack(dst + (u - u0) * width, stride, width, second, &range, job->round_bf16);
    }
}

/* Plan to fetch what units [u0, u1) of rows [r0, r0 + r_count) of a first pair's operand need, in
 * `steps` shares. The second pair is short: it is left to the hardware. */
static void fetch_start(const struct job *job, const struct ps__gemm_view *v, size_t r0,
                        size_t r_count, size_t u0, size_t u1, size_t steps, struct fetch *f)
{
    size_t size = ps_dtype_size(v->dtype);
    size_t k0 = min_size(job->args->k, u0 * job->kernel->k_per_unit);
    size_t k_count = min_size(job->args->k, u1 * job->kernel->k_per_unit) - k0;
    int along_k = v->k_stride == 1;
    f->row = (const char *)v->data + (r0 * v->r_stride + k0 * v->k_stride) * size;
    f->at = f->row;
    f->stride = (along_k ? v->r_stride : v->k_stride) * size;
    f->rows = k_count == 0 ? 0 : along_k ? r_count : k_count;
    f->bytes = (along_k ? k_count : r_count) * size;
    f->share = ceil_div(f->rows * (f->bytes / 64 + 1), steps);
}

static void fetch_step(struct fetch *f)
{
    for (size_t i = 0; i < f->share && f->rows; i++) {
        __builtin_prefetch(f->at, 0, 2);
        f->at += 64;
        if (f->at >= f->row + f->bytes) {
            f->row += f->stride;
            f->at = f->row;
            f->rows--;
        }
    }
}

/* Fetch the lines of C that a micro-tile will write while it is computed. */
static void prefetch_output(const struct ps_gemm_args *args, size_t i0, size_t j0, size_t rows,
                            size_t cols)
{
    size_t size = ps_dtype_size(args->c_dtype);
    char *c = (char *)args->c + (i0 * args->c_ld + j0) * size;
    for (size_t i = 0; i < rows; i++, c += args->c_ld * size)
        for (size_t at = 0; at < cols * size; at += 64)
            __builtin_prefetch(c + at, 1);
}

static void prefetch_acc(const float *acc, size_t count)
{
    for (size_t i = 0; i < count; i += 16)
        __builtin_prefetch(acc + i, 1);
}

/* ---- tiles ---------------------------------------------------------------------------------- */

/* The micro-tiles of one packed panel of B, at columns [j, j + cols) of the tile. Returns where the
 * accumulators of the next panel are. */
static float *multiply_panel(const struct job *job, struct block *t, const float *b, size_t j,
                             size_t cols, float *acc)
{
    const struct ps__gemm_kernel *kernel = job->kernel;
    size_t mr = kernel->mr;
    size_t units = t->u1 - t->u0;
    size_t acc_step = t->first && t->last ? 0 : mr * kernel->nr; /* one block: one micro-tile */
    const float *a = t->a;
    for (size_t i = 0; i < t->rows; i += mr, a += panel_stride(units, mr)) {
        size_t rows = min_size(mr, t->rows - i);
        fetch_step(&t->next_a);
        fetch_step(&t->next_b);
        if (!t->first)
            prefetch_acc(acc + acc_step, acc_step);
        if (t->last)
            prefetch_output(job->args, t->i0 + i, t->j0 + j, rows, cols);
        kernel->multiply(units, a, b, acc, rows, cols, t->first);
        if (t->last)
            kernel->finish(job->args, acc, t->i0 + i, t->j0 + j, rows, cols);
        acc += acc_step;
    }
    return acc;
}

/* Plan the fetch of the columns of B that follow the group at j: the next ones of this block, or
 * the first ones of the next. With few rows and long runs the hardware does better (17 against 15
 * GB/s for one row). */
static void plan_next_columns(const struct job *job, struct block *t, size_t j)
{
    if (job->mc <= FEW_ROWS && job->b.k_stride == 1)
        return;
    size_t next = j + job->group;
    size_t panels = ceil_div(min_size(job->group, t->cols - j), job->kernel->nr);
    size_t steps = panels * ceil_div(t->rows, job->kernel->mr);
    if (next < t->cols) {
        fetch_start(job, &job->b, t->j0 + next, min_size(job->group, t->cols - next), t->u0, t->u1,
                    steps, &t->next_b);
    } else {
        size_t u1 = min_size(job->units, t->u1 + job->block_units);
        fetch_start(job, &job->b, t->j0, min_size(job->group, t->cols), t->u1, u1, steps,
                    &t->next_b);
    }
}

static void run_block(const struct job *job, struct block *t)
{
    size_t nr = job->kernel->nr;
    size_t micro_tiles = ceil_div(t->rows, job->kernel->mr) * ceil_div(t->cols, nr);
    size_t stride = panel_stride(t->u1 - t->u0, nr);
    float *acc = t->acc;
    pack_units(job, &job->a, &job->a2, job->kernel->mr, t->i0, t->rows, t->u0, t->u1, t->a);
    fetch_start(job, &job->a, t->i0, t->rows, t->u1, min_size(job->units, t->u1 + job->block_units),
                micro_tiles, &t->next_a);
    for (size_t j = 0; j < t->cols; j += job->group) {
        size_t cols = min_size(job->group, t->cols - j);
        pack_units(job, &job->b, &job->b2, nr, t->j0 + j, cols, t->u0, t->u1, t->b);
        plan_next_columns(job, t, j);
        for (size_t p = 0; p < cols; p += nr)
            acc =
                multiply_panel(job, t, t->b + p / nr * stride, j + p, min_size(nr, cols - p), acc);
    }
}

static void run_tile(void *arg, size_t task_idx, int thread_idx)
{
    const struct job *job = arg;
    struct block t = {0};
    void *scratch = job->workspace + (size_t)thread_idx * thread_bytes();
    t.a = scratch;
    t.b = t.a + A_UNITS;
    t.acc = t.b + B_UNITS;
    t.i0 = task_idx % job->tile_rows * job->mc;
    t.j0 = task_idx / job->tile_rows * job->nc;
    t.rows = min_size(job->mc, job->args->m - t.i0);
    t.cols = min_size(job->nc, job->args->n - t.j0);
    for (t.u0 = 0; t.u0 < job->units; t.u0 = t.u1) {
        t.u1 = min_size(job->units, t.u0 + job->block_units);
        t.first = t.u0 == 0;
        t.last = t.u1 == job->units;
        run_block(job, &t);
    }
}

/* Choose the tile that finishes first, all threads being equal: a task costs its products and its
 * packing, and about a tenth of one is lost when threads run out of tasks. */
static void choose_tiles(struct job *job, size_t thread_count)
{
    const struct ps__gemm_kernel *kernel = job->kernel;
    size_t m = job->args->m;
    size_t n = job->args->n;
    size_t cut_m_min = ceil_div(m, MC_MAX);
    size_t cut_n_min = ceil_div(n, NC_MAX);
    size_t cost_best = SIZE_MAX;
    for (size_t i = 0; i < CUTS_TRIED && cut_m_min + i <= ceil_div(m, kernel->mr); i++) {
        size_t mc = round_up(ceil_div(m, cut_m_min + i), kernel->mr);
        for (size_t j = 0; j < CUTS_TRIED && cut_n_min + j <= ceil_div(n, kernel->nr); j++) {
            size_t nc = round_up(ceil_div(n, cut_n_min + j), kernel->nr);
            size_t rounds = ceil_div(ceil_div(m, mc) * ceil_div(n, nc), thread_count);
            size_t cost = (10 * rounds + 1) * (mc * nc + PACK_COST * (mc + nc));
            if (cost < cost_best) {
                cost_best = cost;
                job->mc = mc;
                job->nc = nc;
            }
        }
    }
    job->tile_rows = ceil_div(m, job->mc);
}

/* Blocks of K and groups of columns of B; see UNITS_MAX. */
static void choose_blocks(struct job *job)
{
    size_t nr = job->kernel->nr;
    size_t few = job->mc <= FEW_ROWS;
    size_t units_max = few && job->b.k_stride == 1 ? UNITS_MAX_FEW_ROWS : UNITS_MAX;
    job->block_units = round_up(ceil_div(job->units, ceil_div(job->units, units_max)), 16);
    job->group = few && job->b.k_stride != 1 ? 4 * nr : nr;
}

static const struct ps__gemm_kernel *choose_kernel(enum ps_isa isa, enum ps_gemm_math math)
{
    switch (isa) {
    case PS_ISA_AVX512_BF16:
        return math == PS_GEMM_BF16 ? &ps__gemm_avx512_bf16 : &ps__gemm_avx512;
    case PS_ISA_AVX512:
        return &ps__gemm_avx512;
    case PS_ISA_AVX2:
        return &ps__gemm_avx2;
    case PS_ISA_PORTABLE:
        break;
    }
    return &ps__gemm_portable;
}

static struct ps__gemm_view view(const struct ps_gemm_mat *mat, int rows_are_r)
{
    int r_contiguous = rows_are_r ? mat->trans != 0 : mat->trans == 0;
    struct ps__gemm_view v = {mat->data, r_contiguous ? 1 : mat->ld, r_contiguous ? mat->ld : 1,
                              mat->dtype};
    return v;
}

static void check_args(const struct ps_gemm_args *args, const void *workspace)
{
    assert(args->m >= 1);
    assert(args->n >= 1);
    assert(args->k >= 1);
    assert(args->c_dtype == PS_DTYPE_F32 || args->c_dtype == PS_DTYPE_BF16);
    assert(!args->accumulate || args->c_dtype == PS_DTYPE_F32);
    assert(args->a.dtype <= PS_DTYPE_F16);
    assert(args->b.dtype <= PS_DTYPE_F16);
    assert(args->k2 == 0 || args->a2.dtype <= PS_DTYPE_F16);
    assert(args->k2 == 0 || args->b2.dtype <= PS_DTYPE_F16);
    assert((uintptr_t)workspace % 64 == 0);
}

void ps_gemm(struct ps_pool *pool, enum ps_isa isa, const struct ps_gemm_args *args,
             void *workspace)
{
    check_args(args, workspace);
    const struct ps__gemm_kernel *kernel = choose_kernel(isa, args->math);
    struct job job = {
        .args = args,
        .kernel = kernel,
        .a = view(&args->a, 1),
        .b = view(&args->b, 0),
        .a2 = view(&args->a2, 1),
        .b2 = view(&args->b2, 0),
        .units_first = ceil_div(args->k, kernel->k_per_unit),
        .round_bf16 = args->math == PS_GEMM_BF16,
        .workspace = workspace,
    };
    job.units = job.units_first + ceil_div(args->k2, kernel->k_per_unit);
    choose_tiles(&job, (size_t)ps_pool_thread_count(pool));
    choose_blocks(&job);
    ps_pool_run(pool, run_tile, &job, job.tile_rows * ceil_div(args->n, job.nc));
}

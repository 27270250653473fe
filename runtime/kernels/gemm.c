/* General matrix multiplication: see gemm.h. Choice of kernel, blocking and threads.
 *
 * Design: C is cut into tiles of at most MC x NC, one task each. A task walks K in blocks; for each
 * it packs its rows of A and columns of B into its thread's scratch and multiplies the panels. The
 * accumulators of the whole tile stay in scratch as fp32 between blocks, so that a bf16 output is
 * rounded once; the epilogue runs on each micro-tile while it is in the first-level cache, after
 * the last block. Tasks share nothing: no barrier, and a slow thread delays one tile. Packing twice
 * what neighbours also pack costs about 4 (MC + NC) / (MC NC), under 2% at 480 x 512.
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

#include "runtime/base/checked.h"

/* Most rows and columns of a task's tile and units of a block of K. A panel of 32 columns and 192
 * units is 24 KiB (first-level cache), a tile's panels of A 360 KiB (second level). */
#define MC_MAX 480
#define NC_MAX 512
#define UNITS_MAX 192
/* Tasks that each thread should find, if tiles can be cut so small. */
#define TASKS_PER_THREAD 4

struct job {
    const struct ps_gemm_args *args;
    const struct ps__gemm_kernel *kernel;
    struct ps__gemm_view a, b, a2, b2;
    size_t units_first, units; /* of the first pair, and of both */
    size_t block_units;
    size_t mc, nc;    /* tile; multiples of mr and nr */
    size_t tile_rows; /* tiles along M */
    int round_bf16;   /* operands are rounded while packed */
    unsigned char *workspace;
};

/* A thread's scratch. */
struct scratch {
    float *a, *b, *acc;
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

#define A_UNITS ((size_t)MC_MAX * UNITS_MAX)
#define B_UNITS ((size_t)NC_MAX * UNITS_MAX)
#define ACC_UNITS ((size_t)MC_MAX * NC_MAX)

/* Bytes of scratch for one thread; 64 bytes over, so that threads never share a cache line pair and
 * their buffers do not start at the same cache set. */
static size_t thread_bytes(void)
{
    return (A_UNITS + B_UNITS + ACC_UNITS) * sizeof(float) + 4096 + 128;
}

size_t ps_gemm_workspace_bytes(int thread_count)
{
    assert(thread_count >= 1);
    return (size_t)thread_count * thread_bytes();
}

static struct scratch thread_scratch(const struct job *job, int thread_idx)
{
    void *base = job->workspace + (size_t)thread_idx * thread_bytes();
    struct scratch s;
    s.a = base;
    s.b = s.a + A_UNITS;
    s.acc = s.b + B_UNITS;
    return s;
}

/* Pack units [u0, u1) of rows [r0, r0 + r_count): the first pair's, then the second's. */
static void pack_units(const struct job *job, const struct ps__gemm_view *first,
                       const struct ps__gemm_view *second, size_t width, size_t r0, size_t r_count,
                       size_t u0, size_t u1, float *dst)
{
    const struct ps__gemm_kernel *kernel = job->kernel;
    size_t per = kernel->k_per_unit;
    size_t stride = (u1 - u0) * width;
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

/* All micro-tiles of the tile at (i0, j0) over one packed block of K. Column panels outermost: one
 * stays in the first-level cache while the panels of A pass. */
static void multiply_block(const struct job *job, const struct scratch *s, size_t i0, size_t rows,
                           size_t j0, size_t cols, size_t units, int first, int last)
{
    const struct ps__gemm_kernel *kernel = job->kernel;
    size_t mr = kernel->mr;
    size_t nr = kernel->nr;
    float *acc = s->acc;
    size_t acc_step = first && last ? 0 : mr * nr; /* a single block needs one micro-tile only */
    for (size_t j = 0; j < cols; j += nr) {
        size_t tile_cols = min_size(nr, cols - j);
        const float *b = s->b + j * units;
        for (size_t i = 0; i < rows; i += mr) {
            size_t tile_rows = min_size(mr, rows - i);
            kernel->multiply(units, s->a + i * units, b, acc, tile_rows, tile_cols, first);
            if (last)
                kernel->finish(job->args, acc, i0 + i, j0 + j, tile_rows, tile_cols);
            acc += acc_step;
        }
    }
}

static void run_tile(void *arg, size_t task_idx, int thread_idx)
{
    const struct job *job = arg;
    const struct ps__gemm_kernel *kernel = job->kernel;
    struct scratch s = thread_scratch(job, thread_idx);
    size_t i0 = task_idx % job->tile_rows * job->mc;
    size_t j0 = task_idx / job->tile_rows * job->nc;
    size_t rows = min_size(job->mc, job->args->m - i0);
    size_t cols = min_size(job->nc, job->args->n - j0);
    for (size_t u0 = 0; u0 < job->units; u0 += job->block_units) {
        size_t u1 = min_size(job->units, u0 + job->block_units);
        pack_units(job, &job->a, &job->a2, kernel->mr, i0, rows, u0, u1, s.a);
        pack_units(job, &job->b, &job->b2, kernel->nr, j0, cols, u0, u1, s.b);
        multiply_block(job, &s, i0, rows, j0, cols, u1 - u0, u0 == 0, u1 == job->units);
    }
}

/* Tiles as large as they may be, of equal size, and enough of them for the threads as long as they
 * stay large enough for packing to be cheap. */
static void choose_tiles(struct job *job, size_t thread_count)
{
    const struct ps__gemm_kernel *kernel = job->kernel;
    size_t m = job->args->m;
    size_t n = job->args->n;
    size_t cut_m = ceil_div(m, MC_MAX);
    size_t cut_n = ceil_div(n, NC_MAX);
    size_t wanted = thread_count == 1 ? 1 : thread_count * TASKS_PER_THREAD;
    while (cut_m * cut_n < wanted) {
        size_t mc = ceil_div(m, cut_m);
        size_t nc = ceil_div(n, cut_n);
        if (mc >= nc && mc > 8 * kernel->mr)
            cut_m++;
        else if (nc > 4 * kernel->nr)
            cut_n++;
        else
            break;
    }
    job->mc = round_up(ceil_div(m, cut_m), kernel->mr);
    job->nc = round_up(ceil_div(n, cut_n), kernel->nr);
    job->tile_rows = ceil_div(m, job->mc);
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
    job.block_units = round_up(ceil_div(job.units, ceil_div(job.units, UNITS_MAX)), 16);
    choose_tiles(&job, (size_t)ps_pool_thread_count(pool));
    ps_pool_run(pool, run_tile, &job, job.tile_rows * ceil_div(args->n, job.nc));
}

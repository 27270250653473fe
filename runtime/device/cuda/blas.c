/* Matrix products on the CUDA device: see cuda_blas.h.
 *
 * The library (blas_lt.c) writes the output itself where it can do so with one rounding: one pair
 * of operands, bias and residual of the output's type; an fp32 output also holds the sum of two
 * pairs. All else goes through an fp32 accumulator in scratch and the project's own epilogue.
 * Operands that are not of the math's type are copied to scratch in that type.
 *
 * What does not fit into scratch is done in tiles, columns outermost, then rows. Every element of C
 * belongs to one tile, and how a shape is cut depends on the shape and the scratch alone. */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/device/cuda/blas_internal.h"
#include "runtime/device/cuda/cuda_internal.h"
#include "runtime/kernels/kernels_cuda.h"

#define ALIGN ((size_t)256)
/* For copies of operands. */
#define SCRATCH_MIN ((size_t)4 << 20)
/* For accumulators. About the second-level cache of a large card: accumulators are read again while
 * they are there. */
#define SCRATCH_MAX ((size_t)64 << 20)
#define LD_MULTIPLE 8
#define ROWS_MULTIPLE ((size_t)128)

struct ps_cuda_blas {
    struct ps__blas_lt *lt;
    unsigned char *scratch;
    size_t scratch_bytes;
};

/* How one product is done. */
struct plan {
    const struct ps_gemm_args *g;
    enum ps_dtype operand; /* the math's */
    bool direct;           /* the library writes C */
    size_t rows, cols;     /* of a tile */
};

/* Rows [m0, m0 + m) and columns [n0, n0 + n) of C; where the scratch begins that is still free. */
struct tile {
    size_t m0, m, n0, n;
    unsigned char *free;
};

static size_t align_up(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

size_t ps_cuda_blas_workspace_bytes(size_t mn_max)
{
    size_t most = SCRATCH_MAX / sizeof(float);
    return PS__BLAS_LT_BYTES + SCRATCH_MIN +
           align_up((mn_max < most ? mn_max : most) * sizeof(float));
}

int ps_cuda_blas_open(struct ps_cuda_blas **out, void *workspace, size_t workspace_bytes,
                      struct ps_error *err)
{
    if (!workspace || (uintptr_t)workspace % ALIGN != 0 ||
        workspace_bytes < ps_cuda_blas_workspace_bytes(0))
        return ps_error_set(err, PS_ECUDA, "%zu bytes are no workspace for matrix products",
                            workspace ? workspace_bytes : 0);
    struct ps_cuda_blas *b = calloc(1, sizeof *b);
    if (!b)
        return ps_error_set(err, -ENOMEM, "no memory for matrix products");
    int ret = ps__blas_lt_open(&b->lt, workspace, err);
    if (ret) {
        free(b);
        return ret;
    }
    b->scratch = (unsigned char *)workspace + PS__BLAS_LT_BYTES;
    b->scratch_bytes = workspace_bytes - PS__BLAS_LT_BYTES;
    *out = b;
    return 0;
}

void ps_cuda_blas_close(struct ps_cuda_blas *b)
{
    if (!b)
        return;
    ps__blas_lt_close(b->lt);
    free(b);
}

/* Whether the library can add the bias and the residual with the output's one rounding. */
static bool is_direct(const struct ps_gemm_args *g)
{
    if (g->bias && g->bias_dtype != g->c_dtype)
        return false;
    if (g->residual &&
        (g->residual_dtype != g->c_dtype || g->residual_ld != g->c_ld || g->accumulate))
        return false;
    return g->c_dtype == PS_DTYPE_F32 || (g->math == PS_GEMM_BF16 && g->k2 == 0);
}

/* As stored: rows and columns of the part of op(x) with r rows and c columns. */
static size_t stored_rows(const struct ps_gemm_mat *x, size_t r, size_t c)
{
    return x->trans ? c : r;
}

/* Leading dimension and bytes of a copy in the math's type; 0 bytes: none is needed. */
static size_t copy_ld(const struct ps_gemm_mat *x, size_t r, size_t c)
{
    size_t n = stored_rows(x, c, r);
    return (n + LD_MULTIPLE - 1) / LD_MULTIPLE * LD_MULTIPLE;
}

static size_t copy_bytes(const struct plan *p, const struct ps_gemm_mat *x, size_t r, size_t c)
{
    if (c == 0 || r == 0 || x->dtype == p->operand)
        return 0;
    return align_up(stored_rows(x, r, c) * copy_ld(x, r, c) * ps_dtype_size(p->operand));
}

/* Scratch of one tile. */
static size_t tile_bytes(const struct plan *p, size_t rows, size_t cols)
{
    const struct ps_gemm_args *g = p->g;
    return copy_bytes(p, &g->b, g->k, cols) + copy_bytes(p, &g->b2, g->k2, cols) +
           copy_bytes(p, &g->a, rows, g->k) + copy_bytes(p, &g->a2, rows, g->k2) +
           (p->direct ? 0 : align_up(rows * cols * sizeof(float)));
}

/* Rows of a tile: as many as fit, spread evenly, a multiple of 128 where that many fit. 0: none
 * fits. */
static size_t rows_that_fit(const struct plan *p, size_t cols, size_t scratch)
{
    size_t low = 0, high = p->g->m;
    while (low < high) {
        size_t middle = low + (high - low + 1) / 2;
        if (tile_bytes(p, middle, cols) <= scratch)
            low = middle;
        else
            high = middle - 1;
    }
    if (low == p->g->m || low < ROWS_MULTIPLE)
        return low;
    size_t most = low / ROWS_MULTIPLE * ROWS_MULTIPLE, tiles = (p->g->m + most - 1) / most;
    size_t even = (p->g->m + tiles - 1) / tiles;
    return (even + ROWS_MULTIPLE - 1) / ROWS_MULTIPLE * ROWS_MULTIPLE;
}

/* As few columns of tiles as leave at least 128 rows, or any, to each. */
static int cut(struct plan *p, size_t scratch)
{
    size_t m = p->g->m;
    size_t enough = m < ROWS_MULTIPLE ? m : ROWS_MULTIPLE;
    for (size_t cols = p->g->n;; cols = (cols + 1) / 2) {
        size_t rows = rows_that_fit(p, cols, scratch);
        if (rows >= enough || (cols <= ROWS_MULTIPLE && rows > 0)) {
            p->rows = rows;
            p->cols = cols;
            return 0;
        }
        if (cols == 1)
            return -EINVAL;
    }
}

/* Rows from r0 and columns from c0 of op(x). */
static struct ps_gemm_mat part(const struct ps_gemm_mat *x, size_t r0, size_t c0)
{
    struct ps_gemm_mat y = *x;
    size_t at = x->trans ? c0 * x->ld + r0 : r0 * x->ld + c0;
    y.data = (const unsigned char *)x->data + at * ps_dtype_size(x->dtype);
    return y;
}

/* The part of op(x) with r rows and c columns from (r0, c0), copied where its type is another. */
static int operand(const struct plan *p, void *stream, struct tile *t, const struct ps_gemm_mat *x,
                   size_t r0, size_t r, size_t c0, size_t c, struct ps_gemm_mat *out)
{
    *out = part(x, r0, c0);
    size_t bytes = copy_bytes(p, x, r, c);
    if (bytes == 0)
        return 0;
    size_t ld = copy_ld(x, r, c);
    int ret = ps__cuda_pack(stream, t->free, ld, p->operand, out->data, out->ld, out->dtype,
                            stored_rows(x, r, c), stored_rows(x, c, r));
    out->data = t->free;
    out->ld = ld;
    out->dtype = p->operand;
    t->free += bytes;
    return ret;
}

static void *element(const void *base, size_t ld, enum ps_dtype dtype, const struct tile *t)
{
    return (unsigned char *)base + (t->m0 * ld + t->n0) * ps_dtype_size(dtype);
}

static const void *bias_part(const struct ps_gemm_args *g, const struct tile *t)
{
    return g->bias ? (const unsigned char *)g->bias + t->n0 * ps_dtype_size(g->bias_dtype) : NULL;
}

/* What the accumulator still lacks, and the rounding. */
static int end_tile(void *stream, const struct ps_gemm_args *g, const struct tile *t,
                    const float *acc)
{
    struct ps_gemm_args e = *g;
    e.m = t->m;
    e.n = t->n;
    e.bias = bias_part(g, t);
    e.c = element(g->c, g->c_ld, g->c_dtype, t);
    if (g->residual)
        e.residual = element(g->residual, g->residual_ld, g->residual_dtype, t);
    return ps_gemm_epilogue_cuda(stream, &e, acc);
}

/* b[0] and b[1] are the columns of op(B) and op(B2), already in the math's type. */
static int do_tile(struct ps_cuda_blas *b, void *stream, const struct plan *p, struct tile t,
                   const struct ps_gemm_mat column[2])
{
    const struct ps_gemm_args *g = p->g;
    struct ps__product x = {.m = t.m, .n = t.n, .k = g->k, .b = column[0]};
    struct ps_gemm_mat a2;
    int ret = operand(p, stream, &t, &g->a, t.m0, t.m, 0, g->k, &x.a);
    if (!ret && g->k2 > 0)
        ret = operand(p, stream, &t, &g->a2, t.m0, t.m, 0, g->k2, &a2);
    if (ret)
        return ret;
    x.alpha = g->alpha == 0 ? 1 : g->alpha;
    x.d = p->direct ? element(g->c, g->c_ld, g->c_dtype, &t) : (void *)t.free;
    x.ld = p->direct ? g->c_ld : t.n;
    x.dtype = p->direct ? g->c_dtype : PS_DTYPE_F32;
    x.c = x.d;
    if (p->direct) {
        x.bias = bias_part(g, &t);
        x.beta = g->residual || g->accumulate;
        if (g->residual)
            x.c = element(g->residual, g->residual_ld, g->residual_dtype, &t);
    }
    ret = ps__blas_lt_multiply(b->lt, stream, &x);
    if (!ret && g->k2 > 0) {
        x.k = g->k2;
        x.a = a2;
        x.b = column[1];
        x.beta = 1;
        x.c = x.d;
        x.bias = NULL;
        ret = ps__blas_lt_multiply(b->lt, stream, &x);
    }
    if (!ret && !p->direct)
        ret = end_tile(stream, g, &t, x.d);
    return ret;
}

static int do_columns(struct ps_cuda_blas *b, void *stream, const struct plan *p, struct tile t)
{
    const struct ps_gemm_args *g = p->g;
    struct ps_gemm_mat column[2] = {{.data = NULL}, {.data = NULL}};
    int ret = operand(p, stream, &t, &g->b, 0, g->k, t.n0, t.n, &column[0]);
    if (!ret && g->k2 > 0)
        ret = operand(p, stream, &t, &g->b2, 0, g->k2, t.n0, t.n, &column[1]);
    for (t.m0 = 0; !ret && t.m0 < g->m; t.m0 += p->rows) {
        t.m = g->m - t.m0 < p->rows ? g->m - t.m0 : p->rows;
        ret = do_tile(b, stream, p, t, column);
    }
    return ret;
}

int ps_cuda_gemm(struct ps_cuda_blas *b, void *stream, const struct ps_gemm_args *args)
{
    struct plan p = {.g = args,
                     .operand = args->math == PS_GEMM_BF16 ? PS_DTYPE_BF16 : PS_DTYPE_F32,
                     .direct = is_direct(args)};
    if (args->m == 0 || args->n == 0 || args->k == 0 ||
        (args->accumulate && args->c_dtype != PS_DTYPE_F32))
        return -EINVAL;
    int ret = cut(&p, b->scratch_bytes);
    struct tile t = {.free = b->scratch};
    for (t.n0 = 0; !ret && t.n0 < args->n; t.n0 += p.cols) {
        t.n = args->n - t.n0 < p.cols ? args->n - t.n0 : p.cols;
        ret = do_columns(b, stream, &p, t);
    }
    return ret;
}

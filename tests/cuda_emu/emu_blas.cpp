/* runtime/device/cuda_blas.h by the CPU's own product, as an operation of the stream. */
#include "runtime/device/cuda_blas.h"
#include "runtime/base/isa.h"
#include "tests/cuda_emu/emu_internal.h"

#include <errno.h>

#include <mutex>

/* One product at a time: the pool and the scratch are shared. */
struct ps_cuda_blas {
    std::mutex lock;
    struct ps_pool *pool;
    void *scratch;
    enum ps_isa isa;
    int workspace_given;
};

namespace
{

/* Addresses of a matrix of rows x columns elements, of which the last row may be shorter than ld.
 */
void *matrix_view(const char *what, const void *data, size_t rows, size_t columns, size_t ld,
                  enum ps_dtype dtype)
{
    size_t n = rows && columns ? ((rows - 1) * ld + columns) * ps_dtype_size(dtype) : 0;
    void *v = emu::device_view(data, n);
    if (!v)
        emu::die("gemm: operand %s (%zu bytes) is not inside device or pinned memory", what, n);
    return v;
}

void map_operand(const char *what, struct ps_gemm_mat *m, size_t rows, size_t columns)
{
    m->data = m->trans ? matrix_view(what, m->data, columns, rows, m->ld, m->dtype)
                       : matrix_view(what, m->data, rows, columns, m->ld, m->dtype);
}

void touch(const struct ps_gemm_mat *m, size_t rows, size_t columns)
{
    if (!__tsan_read_range)
        return;
    size_t r = m->trans ? columns : rows, c = m->trans ? rows : columns;
    for (size_t i = 0; i < r; i++)
        emu::tsan_read(static_cast<const char *>(m->data) + i * m->ld * ps_dtype_size(m->dtype),
                       c * ps_dtype_size(m->dtype));
}

void touch_output(const struct ps_gemm_args *x)
{
    const size_t size = ps_dtype_size(x->c_dtype);
    if (__tsan_write_range)
        for (size_t i = 0; i < x->m; i++)
            emu::tsan_write(static_cast<char *>(x->c) + i * x->c_ld * size, x->n * size);
}

} // namespace

extern "C" {

size_t ps_cuda_blas_workspace_bytes(size_t)
{
    return 256;
}

int ps_cuda_blas_open(struct ps_cuda_blas **out, void *workspace, size_t workspace_bytes,
                      struct ps_error *err)
{
    if (emu::injected())
        return ps_error_set(err, PS_ECUDA, "the matrix library cannot be opened");
    if (!emu::is_device(workspace) || !emu::device_view(workspace, workspace_bytes) ||
        reinterpret_cast<uintptr_t>(workspace) % 256 != 0)
        emu::die("gemm: the workspace is not aligned device memory");
    auto b = new ps_cuda_blas();
    b->isa = ps_isa_detect() < PS_ISA_AVX512 ? ps_isa_detect() : PS_ISA_AVX512;
    int threads = 1;
    b->scratch = aligned_alloc(64, (ps_gemm_workspace_bytes(threads) + 63) / 64 * 64);
    int ret = b->scratch ? ps_pool_create(&b->pool, threads) : -ENOMEM;
    if (ret < 0) {
        ps_cuda_blas_close(b);
        return ps_error_set(err, ret, "no memory for the matrix library");
    }
    *out = b;
    return 0;
}

void ps_cuda_blas_close(struct ps_cuda_blas *b)
{
    if (!b)
        return;
    ps_pool_destroy(b->pool);
    free(b->scratch);
    delete b;
}

int ps_cuda_gemm(struct ps_cuda_blas *b, void *stream, const struct ps_gemm_args *args)
{
    if (emu::injected())
        return PS_ECUDA;
    emu::count(&emu::counts.gemms);
    struct ps_gemm_args x = *args;
    if (x.m == 0 || x.n == 0 || x.k == 0 || (x.accumulate && x.c_dtype != PS_DTYPE_F32))
        return -EINVAL;
    map_operand("a", &x.a, x.m, x.k);
    map_operand("b", &x.b, x.k, x.n);
    if (x.k2) {
        map_operand("a2", &x.a2, x.m, x.k2);
        map_operand("b2", &x.b2, x.k2, x.n);
    }
    if (x.bias)
        x.bias = matrix_view("bias", x.bias, 1, x.n, x.n, x.bias_dtype);
    if (x.residual)
        x.residual = matrix_view("residual", x.residual, x.m, x.n, x.residual_ld, x.residual_dtype);
    x.c = matrix_view("c", x.c, x.m, x.n, x.c_ld, x.c_dtype);
    emu::enqueue(stream, [b, x] {
        std::lock_guard<std::mutex> lock(b->lock);
        touch(&x.a, x.m, x.k);
        touch(&x.b, x.k, x.n);
        if (x.k2) {
            touch(&x.a2, x.m, x.k2);
            touch(&x.b2, x.k2, x.n);
        }
        touch_output(&x);
        ps_gemm(b->pool, b->isa, &x, b->scratch);
    });
    return 0;
}

} // extern "C"

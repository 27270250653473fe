/* The part of cuBLASLt that the plug-in uses, column-major as its manual has it: for the tests of
 * runtime/device/cuda/blas*.c.
 *
 * The heuristic offers four algorithms: one that splits k, one that wants too much workspace, one
 * that refuses to run, and one that runs. Combinations of types that the library does not have are
 * refused, and what a caller promised (alignments, workspace, layouts inside their memory) is
 * checked. */
#include "tests/cuda_emu/emu_cublaslt.h"
#include "tests/cuda_emu/emu_internal.h"

#include "runtime/kernels/gemm.h"

#include <cublasLt.h>

#include <atomic>

namespace
{

struct desc {
    cublasComputeType_t compute;
    cudaDataType_t scale, bias_type;
    cublasOperation_t op_a, op_b;
    cublasLtEpilogue_t epilogue;
    const void *bias;
};
struct layout {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld;
};
struct preference {
    uint64_t workspace;
    uint32_t scheme, align[4];
};
enum kind { SPLITS, HUNGRY, REFUSES, RUNS };
struct algorithm {
    uint32_t kind;
    uint32_t align[4];
    uint64_t m, n, k;
};
static_assert(sizeof(desc) <= sizeof(cublasLtMatmulDescOpaque_t), "");
static_assert(sizeof(layout) <= sizeof(cublasLtMatrixLayoutOpaque_t), "");
static_assert(sizeof(preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t), "");
static_assert(sizeof(algorithm) <= sizeof(cublasLtMatmulAlgo_t), "");

std::atomic<uint64_t> heuristics, products, refused, handles, fail_in;

template <class T, class O> T &as(O *o)
{
    return *reinterpret_cast<T *>(o);
}
template <class T, class O> const T &as(const O *o)
{
    return *reinterpret_cast<const T *>(o);
}

size_t size_of(cudaDataType_t t)
{
    return t == CUDA_R_32F ? 4 : 2;
}

/* The memory of a matrix as kernels see it. */
unsigned char *view(const char *what, const void *p, const layout &l, uint32_t align)
{
    size_t bytes = ((l.cols - 1) * (size_t)l.ld + l.rows) * size_of(l.type);
    void *v = emu::device_view(p, bytes);
    if (!v)
        emu::die("cublasLtMatmul: %s (%zu bytes) is not inside device memory", what, bytes);
    if ((uintptr_t)p % align != 0)
        emu::die("cublasLtMatmul: %s is not aligned to %u bytes as promised", what, align);
    if ((uint64_t)l.ld < l.rows)
        emu::die("cublasLtMatmul: leading dimension of %s below its rows", what);
    return static_cast<unsigned char *>(v);
}

bool supported(const desc &d, const layout &a, const layout &b, const layout &c, const layout &o)
{
    bool outputs = c.type == o.type && c.rows == o.rows && c.cols == o.cols;
    bool types = a.type == b.type &&
                 ((a.type == CUDA_R_32F && o.type == CUDA_R_32F) ||
                  (a.type == CUDA_R_16BF && (o.type == CUDA_R_16BF || o.type == CUDA_R_32F)));
    bool bias = d.epilogue == CUBLASLT_EPILOGUE_DEFAULT ||
                (d.epilogue == CUBLASLT_EPILOGUE_BIAS && d.bias && d.bias_type == o.type);
    return outputs && types && bias && d.compute == CUBLAS_COMPUTE_32F && d.scale == CUDA_R_32F;
}

struct product {
    desc d;
    layout a, b, c;
    const unsigned char *pa, *pb, *pc, *bias;
    unsigned char *po;
    float alpha, beta;
    uint64_t k;
};

enum ps_dtype type_of(cudaDataType_t t)
{
    return t == CUDA_R_32F ? PS_DTYPE_F32 : PS_DTYPE_BF16;
}

/* Tell ThreadSanitizer of the elements of a matrix. */
void touch(const unsigned char *p, const layout &l, void (*how)(const void *, size_t))
{
    if (__tsan_read_range)
        for (uint64_t j = 0; j < l.cols; j++)
            how(p + j * (size_t)l.ld * size_of(l.type), l.rows * size_of(l.type));
}

void touch_write(const void *p, size_t bytes)
{
    emu::tsan_write(const_cast<void *>(p), bytes);
}

/* Column-major: o (m, n) = alpha op(a) op(b) + beta c + bias, bias by row. By the CPU's product of
 * the transposed matrices, which are row-major; beta is 0 or 1. */
void run(const product &x)
{
    touch(x.pa, x.a, emu::tsan_read);
    touch(x.pb, x.b, emu::tsan_read);
    touch(x.po, x.c, touch_write);
    void *scratch = aligned_alloc(64, (ps_gemm_workspace_bytes(1) + 63) / 64 * 64);
    struct ps_gemm_args g = {};
    g.m = x.c.cols;
    g.n = x.c.rows;
    g.k = x.k;
    g.a = {x.pb, (size_t)x.b.ld, type_of(x.b.type), x.d.op_b != CUBLAS_OP_N};
    g.b = {x.pa, (size_t)x.a.ld, type_of(x.a.type), x.d.op_a != CUBLAS_OP_N};
    g.alpha = x.alpha;
    g.bias = x.bias;
    g.bias_dtype = type_of(x.c.type);
    g.residual = x.beta != 0 ? x.pc : nullptr;
    g.residual_ld = (size_t)x.c.ld;
    g.residual_dtype = type_of(x.c.type);
    g.c = x.po;
    g.c_ld = (size_t)x.c.ld;
    g.c_dtype = type_of(x.c.type);
    g.math = PS_GEMM_F32;
    enum ps_isa isa = ps_isa_detect();
    ps_gemm(nullptr, isa < PS_ISA_AVX512 ? isa : PS_ISA_AVX512, &g, scratch);
    free(scratch);
}

} // namespace

extern "C" {

void ps_emu_lt_get_counts(struct ps_emu_lt_counts *out)
{
    out->heuristics = heuristics;
    out->products = products;
    out->refused = refused;
    out->handles = handles;
}

void ps_emu_lt_fail_product(uint64_t n)
{
    fail_in = n;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *out)
{
    handles++;
    *out = reinterpret_cast<cublasLtHandle_t>(&handles);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t)
{
    handles--;
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasLtGetStatusString(cublasStatus_t)
{
    return "emulated status";
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t o, size_t size,
                                               cublasComputeType_t compute, cudaDataType_t scale)
{
    memset(o, 0xAA, size);
    as<desc>(o) =
        desc{compute, scale, scale, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t o,
                                              cublasLtMatmulDescAttributes_t a, const void *value,
                                              size_t bytes)
{
    desc &d = as<desc>(o);
    void *to = nullptr;
    size_t want = 4;
    switch (a) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        to = &d.op_a;
        break;
    case CUBLASLT_MATMUL_DESC_TRANSB:
        to = &d.op_b;
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        to = &d.epilogue;
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        to = &d.bias_type;
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        to = &d.bias;
        want = sizeof d.bias;
        break;
    default:
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (bytes != want)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t o, size_t size,
                                                 cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t ld)
{
    memset(o, 0xAA, size);
    as<layout>(o) = layout{type, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}

/* The library's defaults: no workspace, every reduction scheme, 256-byte alignment. */
cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t o, size_t size)
{
    memset(o, 0xAA, size);
    as<preference>(o) = preference{0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t o,
                                                    cublasLtMatmulPreferenceAttributes_t a,
                                                    const void *value, size_t bytes)
{
    preference &p = as<preference>(o);
    if (a == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && bytes == 8)
        memcpy(&p.workspace, value, bytes);
    else if (a == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK && bytes == 4)
        memcpy(&p.scheme, value, bytes);
    else if (a >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
             a <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES && bytes == 4)
        memcpy(&p.align[a - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
    else
        return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t o,
                                              cublasLtMatmulPreference_t pref, int asked,
                                              cublasLtMatmulHeuristicResult_t *out, int *count)
{
    heuristics++;
    const preference &p = as<preference>(pref);
    *count = 0;
    if (!supported(as<desc>(d), as<layout>(a), as<layout>(b), as<layout>(c), as<layout>(o)))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    for (uint32_t k = SPLITS; k <= RUNS && *count < asked; k++) {
        cublasLtMatmulHeuristicResult_t &r = out[(*count)++];
        memset(&r, 0, sizeof r);
        as<algorithm>(&r.algo) = algorithm{k,
                                           {p.align[0], p.align[1], p.align[2], p.align[3]},
                                           as<layout>(o).rows,
                                           as<layout>(o).cols,
                                           0};
        r.workspaceSize = k == HUNGRY ? p.workspace + 1 : p.workspace;
        r.state = CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *o,
                                                    cublasLtMatmulAlgoConfigAttributes_t a,
                                                    void *value, size_t bytes, size_t *written)
{
    uint32_t v = 0;
    if (a == CUBLASLT_ALGO_CONFIG_SPLITK_NUM)
        v = as<algorithm>(o).kind == SPLITS ? 4 : 1;
    else if (a != CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (bytes != sizeof v)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(value, &v, bytes);
    *written = bytes;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc_, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t la, const void *b,
                              cublasLtMatrixLayout_t lb, const void *beta, const void *c,
                              cublasLtMatrixLayout_t lc, void *o, cublasLtMatrixLayout_t lo,
                              const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream)
{
    product x;
    x.d = as<desc>(desc_);
    x.a = as<layout>(la);
    x.b = as<layout>(lb);
    x.c = as<layout>(lo);
    const algorithm &with = as<algorithm>(algo);
    if (!supported(x.d, x.a, x.b, as<layout>(lc), x.c))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (with.kind != RUNS) {
        refused++;
        if (with.kind != REFUSES)
            emu::die("cublasLtMatmul: an algorithm that splits k or lacks workspace");
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    uint64_t n = fail_in;
    if (n && fail_in.exchange(n - 1) == 1)
        return CUBLAS_STATUS_EXECUTION_FAILED;
    products++;
    uint64_t m = x.d.op_a == CUBLAS_OP_N ? x.a.rows : x.a.cols;
    x.k = x.d.op_a == CUBLAS_OP_N ? x.a.cols : x.a.rows;
    uint64_t k_b = x.d.op_b == CUBLAS_OP_N ? x.b.rows : x.b.cols;
    uint64_t n_b = x.d.op_b == CUBLAS_OP_N ? x.b.cols : x.b.rows;
    if (m != x.c.rows || n_b != x.c.cols || k_b != x.k || with.m != m || with.n != n_b)
        emu::die("cublasLtMatmul: shapes do not agree");
    if (!emu::device_view(workspace, workspace_bytes) || (uintptr_t)workspace % 256 != 0)
        emu::die("cublasLtMatmul: workspace");
    x.alpha = *static_cast<const float *>(alpha);
    x.beta = *static_cast<const float *>(beta);
    if (x.alpha == 0 || (x.beta != 0 && x.beta != 1))
        emu::die("cublasLtMatmul: alpha %g or beta %g is not modelled", x.alpha, x.beta);
    x.pa = view("A", a, x.a, with.align[0]);
    x.pb = view("B", b, x.b, with.align[1]);
    x.pc = view("C", c, as<layout>(lc), with.align[2]);
    x.po = view("D", o, x.c, with.align[3]);
    if (c != o && as<layout>(lc).ld != x.c.ld)
        emu::die("cublasLtMatmul: leading dimensions of C and D");
    x.bias = nullptr;
    if (x.d.epilogue == CUBLASLT_EPILOGUE_BIAS) {
        layout one = {x.c.type, m, 1, (int64_t)m};
        x.bias = view("bias", x.d.bias, one, 1);
    }
    emu::count(&emu::counts.gemms);
    emu::enqueue(stream, [x] { run(x); });
    return CUBLAS_STATUS_SUCCESS;
}

} // extern "C"

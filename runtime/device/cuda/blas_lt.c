/* Calls of cuBLASLt: see blas_internal.h.
 *
 * Row-major D (m, n) = op(A) op(B) is the column-major (n, m) = op(B) op(A) of the same bytes.
 *
 * One algorithm for each shape: the heuristic's first that does not split k and that the library
 * accepts, kept in a table. A full table is emptied: the heuristic gives the same again. */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cublasLt.h>

#include "runtime/device/cuda/blas_internal.h"

#define TABLE_SLOTS 512
#define TABLE_FULL 384
#define CANDIDATES 16

/* Compared byte by byte: no padding. */
struct key {
    uint64_t m, n, k, a_ld, b_ld, ld;
    uint32_t ab_dtype, dtype;
    uint8_t a_trans, b_trans, beta, bias;
    uint8_t a_align, b_align, c_align, d_align; /* log2 */
};
_Static_assert(sizeof(struct key) == 64, "padding in a key");

struct slot {
    struct key key; /* m is 0: empty */
    cublasLtMatmulAlgo_t algo;
};

struct ps__blas_lt {
    cublasLtHandle_t handle;
    void *workspace;
    size_t slot_count;
    struct slot slot[TABLE_SLOTS];
};

/* What the library is told of one call. */
struct call {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a, b, d;
};

int ps__blas_lt_open(struct ps__blas_lt **out, void *workspace, struct ps_error *err)
{
    struct ps__blas_lt *lt = calloc(1, sizeof *lt);
    if (!lt)
        return ps_error_set(err, -ENOMEM, "no memory for matrix products");
    cublasStatus_t s = cublasLtCreate(&lt->handle);
    if (s != CUBLAS_STATUS_SUCCESS) {
        free(lt);
        return ps_error_set(err, PS_ECUDA, "cublasLtCreate: %s", cublasLtGetStatusString(s));
    }
    lt->workspace = workspace;
    *out = lt;
    return 0;
}

void ps__blas_lt_close(struct ps__blas_lt *lt)
{
    if (!lt)
        return;
    PS_IGNORE(cublasLtDestroy(lt->handle), "it is going away");
    free(lt);
}

static cudaDataType_t cuda_type(enum ps_dtype t)
{
    return t == PS_DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* log2 of the alignment of an address, at most 8. */
static uint8_t alignment(const void *p)
{
    uint8_t shift = 0;
    while (shift < 8 && ((uintptr_t)p >> shift & 1) == 0)
        shift++;
    return shift;
}

static struct key key_of(const struct ps__product *p)
{
    struct key k;
    memset(&k, 0, sizeof k);
    k.m = p->m;
    k.n = p->n;
    k.k = p->k;
    k.a_ld = p->a.ld;
    k.b_ld = p->b.ld;
    k.ld = p->ld;
    k.ab_dtype = (uint32_t)p->a.dtype;
    k.dtype = (uint32_t)p->dtype;
    k.a_trans = p->a.trans != 0;
    k.b_trans = p->b.trans != 0;
    k.beta = p->beta != 0;
    k.bias = p->bias ? (uint8_t)(1 + alignment(p->bias)) : 0;
    k.a_align = alignment(p->a.data);
    k.b_align = alignment(p->b.data);
    k.c_align = alignment(p->c);
    k.d_align = alignment(p->d);
    return k;
}

/* Its slot, or the empty one where it belongs. */
static struct slot *find(struct ps__blas_lt *lt, const struct key *key)
{
    const unsigned char *byte = (const unsigned char *)key;
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < sizeof *key; i++)
        h = (h ^ byte[i]) * 0x100000001B3u;
    for (size_t i = (size_t)h;; i++) {
        struct slot *s = &lt->slot[i % TABLE_SLOTS];
        if (s->key.m == 0 || memcmp(&s->key, key, sizeof *key) == 0)
            return s;
    }
}

static bool set(struct call *c, cublasLtMatmulDescAttributes_t a, const void *value, size_t bytes)
{
    return cublasLtMatmulDescSetAttribute(&c->desc, a, value, bytes) == CUBLAS_STATUS_SUCCESS;
}

/* Stored rows are the library's columns. */
static bool layout(cublasLtMatrixLayout_t l, enum ps_dtype dtype, size_t rows, size_t cols,
                   size_t ld)
{
    return cublasLtMatrixLayoutInit(l, cuda_type(dtype), cols, rows, (int64_t)ld) ==
           CUBLAS_STATUS_SUCCESS;
}

static bool describe(struct call *c, const struct ps__product *p)
{
    const cublasOperation_t op_a = p->b.trans ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t op_b = p->a.trans ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    const int32_t type = (int32_t)cuda_type(p->dtype);
    bool ok =
        cublasLtMatmulDescInit(&c->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS;
    ok = ok && set(c, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a);
    ok = ok && set(c, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b);
    if (ok && p->bias)
        ok = set(c, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) &&
             set(c, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias) &&
             set(c, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type);
    ok = ok &&
         layout(&c->a, p->b.dtype, p->b.trans ? p->n : p->k, p->b.trans ? p->k : p->n, p->b.ld);
    ok = ok &&
         layout(&c->b, p->a.dtype, p->a.trans ? p->k : p->m, p->a.trans ? p->m : p->k, p->a.ld);
    return ok && layout(&c->d, p->dtype, p->m, p->n, p->ld);
}

static bool prefer(cublasLtMatmulPreference_t pref, const struct key *k)
{
    const uint64_t bytes = PS__BLAS_LT_BYTES;
    const uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        uint32_t bytes;
    } least[] = {
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, 1u << k->b_align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, 1u << k->a_align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, 1u << k->c_align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, 1u << k->d_align},
    };
    bool ok = cublasLtMatmulPreferenceInit(pref) == CUBLAS_STATUS_SUCCESS &&
              cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                   &bytes, sizeof bytes) == CUBLAS_STATUS_SUCCESS &&
              cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                   &scheme, sizeof scheme) == CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; ok && i < sizeof least / sizeof *least; i++)
        ok = cublasLtMatmulPreferenceSetAttribute(pref, least[i].attribute, &least[i].bytes,
                                                  sizeof least[i].bytes) == CUBLAS_STATUS_SUCCESS;
    return ok;
}

/* Sums over k in one piece: whatever the mask said. */
static bool splits_k(const cublasLtMatmulAlgo_t *algo)
{
    int32_t pieces = 0;
    uint32_t scheme = 0;
    size_t written = 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &pieces,
                                             sizeof pieces, &written) != CUBLAS_STATUS_SUCCESS ||
        cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme,
                                             sizeof scheme, &written) != CUBLAS_STATUS_SUCCESS)
        return true;
    return pieces > 1 || scheme != CUBLASLT_REDUCTION_SCHEME_NONE;
}

static cublasStatus_t launch(struct ps__blas_lt *lt, void *stream, struct call *c,
                             const struct ps__product *p, const cublasLtMatmulAlgo_t *algo)
{
    return cublasLtMatmul(lt->handle, &c->desc, &p->alpha, p->b.data, &c->a, p->a.data, &c->b,
                          &p->beta, p->c, &c->d, p->d, &c->d, algo, lt->workspace,
                          PS__BLAS_LT_BYTES, (cudaStream_t)stream);
}

/* The first call of a shape: queue it by the first candidate that the library takes, and keep that.
 */
static int choose(struct ps__blas_lt *lt, void *stream, struct call *c, const struct ps__product *p,
                  const struct key *key, struct slot *slot)
{
    cublasLtMatmulPreferenceOpaque_t pref;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    int count = 0;
    if (!prefer(&pref, key) ||
        cublasLtMatmulAlgoGetHeuristic(lt->handle, &c->desc, &c->a, &c->b, &c->d, &c->d, &pref,
                                       CANDIDATES, found, &count) != CUBLAS_STATUS_SUCCESS)
        return PS_ECUDA;
    for (int i = 0; i < count; i++) {
        if (found[i].state != CUBLAS_STATUS_SUCCESS || found[i].workspaceSize > PS__BLAS_LT_BYTES ||
            splits_k(&found[i].algo))
            continue;
        cublasStatus_t s = launch(lt, stream, c, p, &found[i].algo);
        if (s == CUBLAS_STATUS_SUCCESS) {
            slot->key = *key;
            slot->algo = found[i].algo;
            lt->slot_count++;
            return 0;
        }
        if (s != CUBLAS_STATUS_NOT_SUPPORTED && s != CUBLAS_STATUS_ARCH_MISMATCH &&
            s != CUBLAS_STATUS_INVALID_VALUE)
            break;
    }
    return PS_ECUDA;
}

int ps__blas_lt_multiply(struct ps__blas_lt *lt, void *stream, const struct ps__product *p)
{
    struct call c;
    struct key key = key_of(p);
    if (!describe(&c, p))
        return PS_ECUDA;
    struct slot *slot = find(lt, &key);
    if (slot->key.m > 0)
        return launch(lt, stream, &c, p, &slot->algo) == CUBLAS_STATUS_SUCCESS ? 0 : PS_ECUDA;
    if (lt->slot_count >= TABLE_FULL) {
        memset(lt->slot, 0, sizeof lt->slot);
        lt->slot_count = 0;
        slot = find(lt, &key);
    }
    return choose(lt, stream, &c, p, &key, slot);
}

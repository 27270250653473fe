/* Loading and calling the system's LAPACK: see lapack.h.
 *
 * Nothing is remembered between calls: loading a library that is loaded already is a look-up of
 * some microseconds, beside decompositions of milliseconds and more. The library stays loaded. */
#include "optim/lapack.h"

#include <assert.h>
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

/* Columns of a block in LAPACK's reductions, for which scratch is kept. */
#define BLOCK_MAX 64

/* Fortran's calling convention: everything by address, lengths of strings last. */
typedef void (*dsyrk_fn)(const char *uplo, const char *trans, const int *n, const int *k,
                         const double *alpha, const double *a, const int *lda, const double *beta,
                         double *c, const int *ldc, size_t uplo_len, size_t trans_len);
typedef void (*dsyevr_fn)(const char *jobz, const char *range, const char *uplo, const int *n,
                          double *a, const int *lda, const double *vl, const double *vu,
                          const int *il, const int *iu, const double *abstol, int *found, double *w,
                          double *z, const int *ldz, int *isuppz, double *work, const int *lwork,
                          int *iwork, const int *liwork, int *info, size_t jobz_len,
                          size_t range_len, size_t uplo_len);

struct lapack {
    dsyrk_fn dsyrk;
    dsyevr_fn dsyevr;
};

static bool find(void *library, const char *name, void *fn)
{
    void *at = dlsym(library, name);
    memcpy(fn, &at, sizeof at);
    return at != NULL;
}

static int load(struct lapack *out, struct ps_error *err)
{
    static const char *const names[] = {"libopenblas.so.0", "liblapack.so.3", NULL};
    for (size_t i = 0; names[i]; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (!library)
            continue;
        if (!find(library, "dsyrk_", &out->dsyrk) || !find(library, "dsyevr_", &out->dsyevr))
            continue;
        void (*set_threads)(int);
        if (find(library, "openblas_set_num_threads", &set_threads))
            set_threads(1);
        return 0;
    }
    return ps_error_full(err, PS_EUSAGE, NULL, "optim-basis",
                         "install LAPACK (Debian: libopenblas0), or take --optim-basis randomized",
                         "--optim-basis svd needs LAPACK: neither libopenblas.so.0 nor "
                         "liblapack.so.3 can be loaded");
}

int ps_lapack_check(struct ps_error *err)
{
    struct lapack lapack;
    return load(&lapack, err);
}

static size_t work_count(size_t n)
{
    return (BLOCK_MAX + 26) * n;
}

size_t ps_lapack_gram_eigen_bytes(size_t n, size_t count)
{
    return (n + work_count(n)) * sizeof(double) + (2 * count + 10 * n) * sizeof(int);
}

int ps_lapack_gram_add(double *gram, size_t n, const double *x, size_t k, struct ps_error *err)
{
    struct lapack lapack;
    int ret = load(&lapack, err);
    if (ret < 0)
        return ret;
    const int rows = (int)n, columns = (int)k;
    const double one = 1;
    lapack.dsyrk("L", "N", &rows, &columns, &one, x, &rows, &one, gram, &rows, 1, 1);
    return 0;
}

int ps_lapack_gram_eigen(double *gram, size_t n, size_t count, double *vector, void *workspace,
                         struct ps_error *err)
{
    struct lapack lapack;
    int ret = load(&lapack, err);
    if (ret < 0)
        return ret;
    assert(n >= 1 && n <= INT32_MAX / (BLOCK_MAX + 26));
    assert(count >= 1 && count <= n);
    double *value = workspace, *work = value + n;
    int *isuppz = (int *)(void *)(work + work_count(n)), *iwork = isuppz + 2 * count;
    const int size = (int)n, first = (int)(n - count + 1), work_size = (int)work_count(n),
              iwork_size = (int)(10 * n);
    const double tolerance = 0, none = 0;
    int found = 0, info = 0;
    lapack.dsyevr("V", "I", "L", &size, gram, &size, &none, &none, &first, &size, &tolerance,
                  &found, value, vector, &size, isuppz, work, &work_size, iwork, &iwork_size, &info,
                  1, 1, 1);
    if (info == 0 && found == (int)count)
        return 0;
    return ps_error_full(err, PS_ENUMERIC, NULL, "optim-basis",
                         "take --optim-basis randomized, which needs no LAPACK",
                         "LAPACK's dsyevr failed (info %d, %d of %zu vectors)", info, found, count);
}

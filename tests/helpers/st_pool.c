/* Error of gradients over several runs, tensor by tensor.
 *
 *   st_pool LIMITS PREFIX FACTOR NORM_RATIO EXPECTED1 ACTUAL1 [EXPECTED2 ACTUAL2 ...]
 *
 * With sums over the pairs of files, for each tensor of EXPECTED1:
 *
 *   sqrt(sum |actual - expected|^2 / sum |expected|^2) <= FACTOR * (the only element of PREFIX +
 * name in LIMITS) | sqrt(sum |actual|^2 / sum |expected|^2) - 1 |    <= NORM_RATIO
 *
 * All files must hold the same tensors, and LIMITS the limits of those alone. Exit 0 if all hold, 1
 * if not, 2 for bad usage or files. The last line names the worst tensor. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/model/safetensors.h"

static struct ps_st_file *open_file(const char *path)
{
    struct ps_st_file *f = NULL;
    struct ps_error err = {0};
    if (ps_st_open(&f, path, &err) < 0) {
        fprintf(stderr, "st_pool: %s: %s\n", path, err.message);
        exit(2);
    }
    return f;
}

/* All elements of tensor `name` as fp32; elements must be `n` unless that is negative. */
static float *read_tensor(const struct ps_st_file *f, const char *name, int64_t n)
{
    const struct ps_st_tensor *t = ps_st_find(f, name);
    struct ps_error err = {0};
    if (t == NULL || (n >= 0 && t->elements != n)) {
        fprintf(stderr, "st_pool: %s: %s %s\n", ps_st_path(f), name,
                t == NULL ? "is missing" : "has another size");
        exit(2);
    }
    float *data = malloc((size_t)t->elements * sizeof *data + 1);
    if (data == NULL || ps_st_read_as(f, t, PS_DTYPE_F32, data, &err) < 0) {
        fprintf(stderr, "st_pool: %s: %s\n", name, err.message);
        exit(2);
    }
    return data;
}

static size_t count_prefix(const struct ps_st_file *f, const char *prefix)
{
    size_t n = 0;
    for (size_t i = 0; i < ps_st_count(f); i++)
        n += strncmp(ps_st_at(f, i)->name, prefix, strlen(prefix)) == 0;
    return n;
}

int main(int argc, char **argv)
{
    if (argc < 7 || argc % 2 == 0) {
        fprintf(stderr, "usage: st_pool LIMITS PREFIX FACTOR NORM_RATIO EXPECTED ACTUAL ...\n");
        return 2;
    }
    struct ps_st_file *limits = open_file(argv[1]);
    double factor = atof(argv[3]), ratio_limit = atof(argv[4]);
    int files = argc - 5, bad = 0;
    struct ps_st_file **f = malloc((size_t)files * sizeof(*f));
    if (f == NULL)
        return 2;
    for (int i = 0; i < files; i++)
        f[i] = open_file(argv[5 + i]);
    size_t count = ps_st_count(f[0]);
    if (count_prefix(limits, argv[2]) != count || ps_st_count(f[1]) != count) {
        printf("%zu limits for %zu and %zu tensors\n", count_prefix(limits, argv[2]), count,
               ps_st_count(f[1]));
        bad++;
    }
    double worst = -1, worst_ratio = -1;
    const char *worst_name = "none", *worst_ratio_name = "none";
    for (size_t k = 0; k < count; k++) {
        const struct ps_st_tensor *t = ps_st_at(f[0], k);
        double diff = 0, e_sq = 0, a_sq = 0;
        for (int i = 0; i < files; i += 2) {
            float *e = read_tensor(f[i], t->name, t->elements);
            float *a = read_tensor(f[i + 1], t->name, t->elements);
            for (int64_t j = 0; j < t->elements; j++) {
                double x = (double)a[j] - (double)e[j];
                diff += x * x;
                e_sq += (double)e[j] * (double)e[j];
                a_sq += (double)a[j] * (double)a[j];
            }
            free(e);
            free(a);
        }
        char name[PS_ST_NAME_MAX + 128];
        snprintf(name, sizeof name, "%s%s", argv[2], t->name);
        float *limit = read_tensor(limits, name, 1);
        double error = sqrt(diff / e_sq), rel = error / (double)limit[0];
        double ratio = sqrt(a_sq / e_sq);
        free(limit);
        if (!(rel <= factor) || !(fabs(ratio - 1) <= ratio_limit)) {
            printf("%s: error %.4f, %.3f times the reference's, norm ratio %.5f BAD\n", t->name,
                   error, rel, ratio);
            bad++;
        }
        if (!(rel <= worst)) {
            worst = rel;
            worst_name = t->name;
        }
        if (!(fabs(ratio - 1) <= worst_ratio)) {
            worst_ratio = fabs(ratio - 1);
            worst_ratio_name = t->name;
        }
    }
    printf("%zu tensors, %d bad, largest error %.3f times the reference's (%s), largest norm "
           "deviation %.5f (%s)\n",
           count, bad, worst, worst_name, worst_ratio, worst_ratio_name);
    for (int i = 0; i < files; i++)
        ps_st_close(f[i]);
    ps_st_close(limits);
    free(f);
    return bad == 0 ? 0 : 1;
}

/* Compare two safetensors files tensor by tensor.
 *
 *   st_compare EXPECTED ACTUAL [--expected-prefix P] [--actual-prefix P] [--rtol R] [--atol A]
 *              [--limits P --factor F] [--norm-ratio R] [--subset] [--verbose]
 *
 * Only tensors whose names begin with the prefixes take part (default: all); what follows the
 * prefix must be the same list in both files, with --subset ACTUAL may hold more. Checked for each
 * tensor, in double:
 *
 *   --rtol R        |actual - expected| / |expected| <= R, Euclidean norms
 *   --atol A        max |actual - expected| <= A
 *   --limits P      the same as --rtol with R = F * (the only element of tensor P + name in
 * EXPECTED)
 *   --norm-ratio R  ||actual| / |expected| - 1| <= R
 *
 * Exit 0 if all hold, 1 if not, 2 for bad usage or files. The last line names the worst tensor. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/model/safetensors.h"

struct options {
    const char *expected, *actual;
    const char *expected_prefix, *actual_prefix, *limits;
    double rtol, atol, factor, norm_ratio; /* negative: not checked */
    bool subset, verbose;
};

/* What a pair of tensors differs by. */
struct difference {
    double relative, max_abs, norm_ratio;
    size_t max_idx;
};

static void usage(const char *why)
{
    fprintf(stderr, "st_compare: %s\n", why);
    exit(2);
}

static void parse(struct options *o, int argc, char **argv)
{
    *o = (struct options){.expected_prefix = "", .actual_prefix = "", .rtol = -1, .atol = -1};
    o->factor = 1.0;
    o->norm_ratio = -1;
    int files = 0;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (strcmp(a, "--subset") == 0) {
            o->subset = true;
        } else if (strcmp(a, "--verbose") == 0) {
            o->verbose = true;
        } else if (strncmp(a, "--", 2) == 0) {
            if (++i >= argc)
                usage("a value is missing");
            const char *v = argv[i];
            if (strcmp(a, "--expected-prefix") == 0)
                o->expected_prefix = v;
            else if (strcmp(a, "--actual-prefix") == 0)
                o->actual_prefix = v;
            else if (strcmp(a, "--limits") == 0)
                o->limits = v;
            else if (strcmp(a, "--rtol") == 0)
                o->rtol = atof(v);
            else if (strcmp(a, "--atol") == 0)
                o->atol = atof(v);
            else if (strcmp(a, "--factor") == 0)
                o->factor = atof(v);
            else if (strcmp(a, "--norm-ratio") == 0)
                o->norm_ratio = atof(v);
            else
                usage("unknown option");
        } else if (files == 0) {
            o->expected = a;
            files++;
        } else if (files == 1) {
            o->actual = a;
            files++;
        } else {
            usage("more than two files");
        }
    }
    if (files != 2)
        usage("two files are needed");
    if (o->rtol < 0 && o->atol < 0 && o->norm_ratio < 0 && o->limits == NULL)
        usage("nothing to check: give --rtol, --atol, --limits or --norm-ratio");
}

static struct ps_st_file *open_file(const char *path)
{
    struct ps_st_file *f = NULL;
    struct ps_error err = {0};
    if (ps_st_open(&f, path, &err) < 0) {
        fprintf(stderr, "st_compare: %s: %s (%s)\n", path, err.message, err.field);
        exit(2);
    }
    return f;
}

static float *read_floats(const struct ps_st_file *f, const struct ps_st_tensor *t)
{
    struct ps_error err = {0};
    float *data = malloc((size_t)t->elements * sizeof *data + 1);
    if (data == NULL || ps_st_read_as(f, t, PS_DTYPE_F32, data, &err) < 0) {
        fprintf(stderr, "st_compare: %s: %s\n", t->name, err.message);
        exit(2);
    }
    return data;
}

static bool same_shape(const struct ps_st_tensor *a, const struct ps_st_tensor *b)
{
    if (a->rank != b->rank)
        return false;
    for (int i = 0; i < a->rank; i++)
        if (a->shape[i] != b->shape[i])
            return false;
    return true;
}

static struct difference compare(const float *e, const float *a, size_t n)
{
    struct difference d = {0};
    double diff_sq = 0, e_sq = 0, a_sq = 0;
    for (size_t i = 0; i < n; i++) {
        double x = (double)a[i] - (double)e[i];
        diff_sq += x * x;
        e_sq += (double)e[i] * (double)e[i];
        a_sq += (double)a[i] * (double)a[i];
        if (!(fabs(x) <= d.max_abs)) { /* a NaN counts as the largest */
            d.max_abs = fabs(x);
            d.max_idx = i;
        }
    }
    d.relative = diff_sq > 0 || isnan(diff_sq) ? sqrt(diff_sq) / sqrt(e_sq) : 0;
    d.norm_ratio = a_sq == e_sq ? 1 : sqrt(a_sq) / sqrt(e_sq);
    return d;
}

/* The relative limit of a tensor: --rtol, or from the file; negative for none. */
static double relative_limit(const struct options *o, const struct ps_st_file *expected,
                             const char *name)
{
    if (o->limits == NULL)
        return o->rtol;
    char full[PS_ST_NAME_MAX + 128];
    snprintf(full, sizeof full, "%s%s", o->limits, name);
    const struct ps_st_tensor *t = ps_st_find(expected, full);
    if (t == NULL || t->elements != 1) {
        fprintf(stderr, "st_compare: no limit %s\n", full);
        exit(2);
    }
    float *v = read_floats(expected, t);
    double limit = o->factor * (double)v[0];
    free(v);
    return limit;
}

/* How far the difference is from what is allowed: above 1 is a failure. */
static double badness(const struct options *o, const struct difference *d, double rtol)
{
    double worst = 0;
    if (rtol >= 0)
        worst = d->relative == 0 ? 0 : d->relative / rtol;
    if (o->atol >= 0 && !(d->max_abs / o->atol <= worst) && d->max_abs != 0)
        worst = d->max_abs / o->atol;
    if (o->norm_ratio >= 0 && !(fabs(d->norm_ratio - 1) / o->norm_ratio <= worst))
        worst = fabs(d->norm_ratio - 1) / o->norm_ratio;
    return isnan(worst) ? INFINITY : worst;
}

/* Names in ACTUAL that EXPECTED does not have. */
static int count_extra(const struct options *o, const struct ps_st_file *expected,
                       const struct ps_st_file *actual)
{
    int extra = 0;
    size_t skip = strlen(o->actual_prefix);
    for (size_t i = 0; i < ps_st_count(actual); i++) {
        const struct ps_st_tensor *t = ps_st_at(actual, i);
        if (strncmp(t->name, o->actual_prefix, skip) != 0)
            continue;
        char full[PS_ST_NAME_MAX + 128];
        snprintf(full, sizeof full, "%s%s", o->expected_prefix, t->name + skip);
        if (ps_st_find(expected, full) == NULL) {
            printf("only in %s: %s\n", o->actual, t->name);
            extra++;
        }
    }
    return extra;
}

int main(int argc, char **argv)
{
    struct options o;
    parse(&o, argc, argv);
    struct ps_st_file *expected = open_file(o.expected), *actual = open_file(o.actual);
    int bad = 0, count = 0;
    double worst = -1;
    struct difference worst_d = {0};
    const char *worst_name = "none";
    size_t skip = strlen(o.expected_prefix);
    for (size_t i = 0; i < ps_st_count(expected); i++) {
        const struct ps_st_tensor *te = ps_st_at(expected, i);
        if (strncmp(te->name, o.expected_prefix, skip) != 0)
            continue;
        const char *name = te->name + skip;
        char full[PS_ST_NAME_MAX + 128];
        snprintf(full, sizeof full, "%s%s", o.actual_prefix, name);
        const struct ps_st_tensor *ta = ps_st_find(actual, full);
        count++;
        if (ta == NULL || !same_shape(te, ta)) {
            printf("%s: %s in %s\n", full, ta == NULL ? "missing" : "another shape", o.actual);
            bad++;
            continue;
        }
        float *e = read_floats(expected, te), *a = read_floats(actual, ta);
        struct difference d = compare(e, a, (size_t)te->elements);
        double limit = relative_limit(&o, expected, name), b = badness(&o, &d, limit);
        if (b > 1)
            bad++;
        if (b > 1 || o.verbose)
            printf(
                "%s: relative %.3g (limit %.3g), max abs %.3g at %zu (%.9g for %.9g), norm ratio "
                "%.6f%s\n",
                name, d.relative, limit, d.max_abs, d.max_idx, (double)a[d.max_idx],
                (double)e[d.max_idx], d.norm_ratio, b > 1 ? " BAD" : "");
        if (b > worst) {
            worst = b;
            worst_d = d;
            worst_name = te->name;
        }
        free(e);
        free(a);
    }
    if (!o.subset)
        bad += count_extra(&o, expected, actual);
    if (count == 0) {
        printf("no tensor begins with '%s'\n", o.expected_prefix);
        bad++;
    }
    printf("%d tensors, %d bad, worst %s: relative %.3g, max abs %.3g, norm ratio %.6f\n", count,
           bad, worst_name, worst_d.relative, worst_d.max_abs, worst_d.norm_ratio);
    ps_st_close(expected);
    ps_st_close(actual);
    return bad == 0 ? 0 : 1;
}

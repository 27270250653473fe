/* Print what a safetensors file holds, for shell tests.
 *
 *   st_print FILE              one line a tensor, sorted by name: NAME DTYPE d0,d1,...
 *   st_print FILE TENSOR ROW   one row of a two-dimensional tensor, one number a line; -1 is the
 * last
 *
 * Exit 1 if there is no such tensor or row, 2 for a bad file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/model/safetensors.h"

static int by_name(const void *a, const void *b)
{
    const struct ps_st_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int print_list(const struct ps_st_file *f)
{
    size_t n = ps_st_count(f);
    const struct ps_st_tensor **t = malloc((n + 1) * sizeof(*t));
    if (t == NULL)
        return 2;
    for (size_t i = 0; i < n; i++)
        t[i] = ps_st_at(f, i);
    qsort(t, n, sizeof(*t), by_name);
    for (size_t i = 0; i < n; i++) {
        printf("%s %s ", t[i]->name, t[i]->dtype_text);
        for (int k = 0; k < t[i]->rank; k++)
            printf("%s%lld", k == 0 ? "" : ",", (long long)t[i]->shape[k]);
        putchar('\n');
    }
    free(t);
    return 0;
}

static int print_row(const struct ps_st_file *f, const char *name, long long row)
{
    const struct ps_st_tensor *t = ps_st_find(f, name);
    if (t == NULL || t->rank != 2)
        return 1;
    if (row < 0)
        row += t->shape[0];
    if (row < 0 || row >= t->shape[0])
        return 1;
    struct ps_error err = {0};
    float *data = malloc((size_t)t->elements * sizeof *data);
    if (data == NULL || ps_st_read_as(f, t, PS_DTYPE_F32, data, &err) < 0) {
        fprintf(stderr, "st_print: %s\n", err.message);
        free(data);
        return 2;
    }
    for (long long i = 0; i < t->shape[1]; i++)
        printf("%.9g\n", (double)data[row * t->shape[1] + i]);
    free(data);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 2 && argc != 4) {
        fprintf(stderr, "usage: st_print FILE [TENSOR ROW]\n");
        return 2;
    }
    struct ps_st_file *f = NULL;
    struct ps_error err = {0};
    if (ps_st_open(&f, argv[1], &err) < 0) {
        fprintf(stderr, "st_print: %s: %s\n", argv[1], err.message);
        return 2;
    }
    int rc = argc == 2 ? print_list(f) : print_row(f, argv[2], strtoll(argv[3], NULL, 10));
    ps_st_close(f);
    return rc;
}

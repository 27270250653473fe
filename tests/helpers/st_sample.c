/* st_sample FILE OUT PREFIX: of every tensor of FILE (a safetensors file, or a model directory) elements 0, s, 2 s,
 * ..., at most 256 of them with s = max(1, elements / 256), as fp32, named PREFIX + name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/dtype.h"
#include "runtime/model/safetensors.h"

#define SAMPLES 256

static int fail(const struct ps_error *err)
{
    fprintf(stderr, "st_sample: %s: %s\n", err->file, err->message);
    return 1;
}

int main(int argc, char **argv)
{
    struct ps_error err = {0};
    struct ps_st_file *f = NULL;
    if (argc != 4) {
        fprintf(stderr, "usage: st_sample FILE OUT PREFIX\n");
        return 2;
    }
    if (ps_st_open(&f, argv[1], &err) < 0)
        return fail(&err);
    size_t count = ps_st_count(f);
    struct ps_st_spec *spec = calloc(count + 1, sizeof *spec);
    char(*name)[256] = calloc(count + 1, sizeof *name);
    float(*value)[SAMPLES] = calloc(count + 1, sizeof *value);
    if (!spec || !name || !value)
        return 1;
    for (size_t i = 0; i < count; i++) {
        const struct ps_st_tensor *t = ps_st_at(f, i);
        size_t size = ps_dtype_size((enum ps_dtype)t->dtype);
        size_t stride = t->elements / SAMPLES > 0 ? (size_t)t->elements / SAMPLES : 1;
        int64_t n = 0;
        for (uint64_t at = 0; at < (uint64_t)t->elements && n < SAMPLES; at += stride, n++) {
            unsigned char raw[8];
            if (ps_st_read(f, t, at * size, size, raw, &err) < 0)
                return fail(&err);
            ps_dtype_convert(&value[i][n], PS_DTYPE_F32, raw, (enum ps_dtype)t->dtype, 1);
        }
        snprintf(name[i], sizeof name[i], "%s%s", argv[3], t->name);
        spec[i] = (struct ps_st_spec){
            .name = name[i], .dtype = PS_DTYPE_F32, .rank = 1, .shape = {n}};
    }
    struct ps_st_writer *w;
    if (ps_st_writer_create(&w, argv[2], spec, count, &err) < 0)
        return fail(&err);
    for (size_t i = 0; i < count; i++)
        if (ps_st_writer_append(w, value[i], (size_t)spec[i].shape[0] * sizeof(float), &err) < 0)
            return fail(&err);
    if (ps_st_writer_close(w, &err) < 0)
        return fail(&err);
    ps_st_close(f);
    free(spec);
    free(name);
    free(value);
    return 0;
}

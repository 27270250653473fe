/* Merged export: values, dtypes, split, order, index and side files of the written model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/base/file.h"
#include "runtime/model/safetensors.h"
#include "session/penstock.h"

#define INDEX "model.safetensors.index.json"

static const char *golden(char *buf, size_t size, const char *rest)
{
    const char *root = getenv("PENSTOCK_ROOT");
    int len =
        snprintf(buf, size, "%s/tests/golden/models/llama_untied/%s", root ? root : ".", rest);
    assert_true(len > 0 && (size_t)len < size);
    return buf;
}

/* Tensors [begin, begin + n) of the golden model, in reverse order of their names' file, as dtype.
 * `extra` adds a tensor that no model has. */
static void write_part(const char *path, const struct ps_st_file *from, size_t begin, size_t n,
                       enum ps_dtype dtype, bool extra)
{
    struct ps_error err = {0};
    struct ps_st_spec *spec = calloc(n + 1, sizeof *spec);
    assert_non_null(spec);
    for (size_t i = 0; i < n; i++) {
        const struct ps_st_tensor *t = ps_st_at(from, begin + n - 1 - i);
        spec[i] = (struct ps_st_spec){.name = t->name, .dtype = dtype, .rank = t->rank};
        memcpy(spec[i].shape, t->shape, sizeof spec[i].shape);
    }
    spec[n] = (struct ps_st_spec){
        .name = "model.layers.0.rotary.inv_freq", .dtype = PS_DTYPE_F32, .rank = 1, .shape = {2}};
    struct ps_st_writer *w;
    assert_int_equal(ps_st_writer_create(&w, path, spec, n + (extra ? 1 : 0), &err), 0);
    for (size_t i = 0; i < n; i++) {
        const struct ps_st_tensor *t = ps_st_at(from, begin + n - 1 - i);
        void *raw = malloc((size_t)t->elements * 4);
        assert_non_null(raw);
        assert_int_equal(ps_st_read_as(from, t, dtype, raw, &err), 0);
        assert_int_equal(
            ps_st_writer_append(w, raw, (size_t)t->elements * ps_dtype_size(dtype), &err), 0);
        free(raw);
    }
    if (extra)
        assert_int_equal(ps_st_writer_append(w, "12345678", 8, &err), 0);
    assert_int_equal(ps_st_writer_close(w, &err), 0);
    free(spec);
}

/* The golden model again in `dir`: one file (shards 0), or so many shards under an index. */
static void make_base(const char *dir, enum ps_dtype dtype, int shards, bool extra)
{
    char path[1024];
    struct ps_error err = {0};
    struct ps_st_file *f;
    assert_int_equal(ps_file_make_dirs(dir, &err), 0);
    assert_int_equal(ps_st_open(&f, golden(path, sizeof path, "model/model.safetensors"), &err), 0);
    size_t count = ps_st_count(f);
    json_t *map = json_object();
    for (int s = 0; s < (shards ? shards : 1); s++) {
        char name[64] = "model.safetensors";
        char to[128];
        if (shards)
            snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", s + 1, shards);
        snprintf(to, sizeof to, "%s/%s", dir, name);
        size_t all = (size_t)(shards ? shards : 1);
        size_t begin = count * (size_t)s / all;
        size_t n = count * (size_t)(s + 1) / all - begin;
        write_part(to, f, begin, n, dtype, extra && s == 0);
        for (size_t i = 0; i < n; i++)
            json_object_set_new(map, ps_st_at(f, begin + i)->name, json_string(name));
        if (extra && s == 0)
            json_object_set_new(map, "model.layers.0.rotary.inv_freq", json_string(name));
    }
    ps_st_close(f);
    if (shards) {
        json_t *root = json_pack("{s:{s:i}, s:O}", "metadata", "total_size", 1, "weight_map", map);
        snprintf(path, sizeof path, "%s/" INDEX, dir);
        assert_int_equal(json_dump_file(root, path, 0), 0);
        json_decref(root);
    }
    json_decref(map);
    char to[128];
    snprintf(to, sizeof to, "%s/config.json", dir);
    assert_int_equal(ps_file_copy(golden(path, sizeof path, "model/config.json"), to, &err), 0);
}

static int warnings;
static void count_warnings(void *arg, enum ps_log_level level, const char *text)
{
    (void)arg;
    if (level == PS_LOG_WARN && strstr(text, "inv_freq"))
        warnings++;
}

/* Export base (with the golden adapter when `adapter`) to `out`; returns the status. */
static int export(const char *base, const char *adapter, const char *out, struct ps_error *err)
{
    struct ps_options o;
    struct ps_session *s = NULL;
    struct ps_log log = {.fn = count_warnings};
    memset(err, 0, sizeof *err);
    ps_options_init(&o, PS_CMD_EXPORT);
    const char *const pair[][2] = {
        {"model", base}, {"adapter", adapter}, {"output", out}, {"format", "hf"}, {"threads", "1"}};
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < sizeof pair / sizeof pair[0]; i++)
        ret = ps_options_set(&o, pair[i][0], pair[i][1], "test", err);
    if (ret == 0)
        ret = ps_options_resolve(&o, err);
    if (ret == 0)
        ret = ps_session_open(&s, &o, &log, err);
    if (ret == 0)
        ret = ps_session_export(s, "hf", out, err);
    ps_session_close(s);
    ps_options_fini(&o);
    return ret;
}

static void export_ok(const char *base, const char *out)
{
    char adapter[1024];
    struct ps_error err;
    if (export(base, golden(adapter, sizeof adapter, "adapter"), out, &err) < 0)
        fail_msg("%s (%s %s)", err.message, err.file, err.field);
}

static float *read_tensor(const struct ps_st_set *set, const char *name, enum ps_dtype dtype,
                          size_t *n)
{
    struct ps_error err = {0};
    const struct ps_st_file *f;
    const struct ps_st_tensor *t = ps_st_set_find(set, name, &f);
    if (!t)
        fail_msg("no tensor %s", name);
    assert_int_equal(t->dtype, dtype);
    float *x = malloc((size_t)t->elements * sizeof *x);
    assert_non_null(x);
    assert_int_equal(ps_st_read_as(f, t, PS_DTYPE_F32, x, &err), 0);
    *n = (size_t)t->elements;
    return x;
}

/* What merging adds to a linear, in double: scale 8 / 4; zero for everything else. */
static double *delta_of(const struct ps_st_file *adapter, const char *weight, size_t n)
{
    char name[256];
    struct ps_error err = {0};
    double *delta = calloc(n, sizeof *delta);
    assert_non_null(delta);
    const struct ps_st_tensor *t[2];
    for (int k = 0; k < 2; k++) {
        snprintf(name, sizeof name, "base_model.model.%.*s.lora_%s.weight",
                 (int)(strlen(weight) - strlen(".weight")), weight, k ? "B" : "A");
        t[k] = ps_st_find(adapter, name);
    }
    if (!t[0])
        return delta;
    float *a = malloc((size_t)t[0]->elements * sizeof *a);
    float *b = malloc((size_t)t[1]->elements * sizeof *b);
    assert_int_equal(ps_st_read_as(adapter, t[0], PS_DTYPE_F32, a, &err), 0);
    assert_int_equal(ps_st_read_as(adapter, t[1], PS_DTYPE_F32, b, &err), 0);
    size_t r = (size_t)t[0]->shape[0];
    size_t in = (size_t)t[0]->shape[1];
    assert_int_equal(r, 4);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < r; k++)
            delta[i] += 2.0 * (double)b[i / in * r + k] * (double)a[k * in + i % in];
    free(a);
    free(b);
    return delta;
}

/* Every tensor of `out` is that of `base` plus its delta, rounded once to the stored type. */
static void compare(const char *base, const char *out, enum ps_dtype dtype)
{
    char path[1024];
    struct ps_error err = {0};
    struct ps_st_set *from;
    struct ps_st_set *to;
    struct ps_st_file *adapter;
    size_t merged = 0;
    assert_int_equal(ps_st_set_open(&from, base, &err), 0);
    assert_int_equal(ps_st_set_open(&to, out, &err), 0);
    golden(path, sizeof path, "adapter/adapter_model.safetensors");
    assert_int_equal(ps_st_open(&adapter, path, &err), 0);
    assert_int_equal(ps_st_set_file_count(from), ps_st_set_file_count(to));
    for (size_t i = 0; i < ps_st_set_file_count(from); i++) {
        const struct ps_st_file *f = ps_st_set_file(from, i);
        const struct ps_st_file *g = ps_st_set_file(to, i);
        assert_string_equal(strrchr(ps_st_path(f), '/'), strrchr(ps_st_path(g), '/'));
        size_t at = 0;
        for (size_t k = 0; k < ps_st_count(f); k++) {
            const char *name = ps_st_at(f, k)->name;
            if (strstr(name, "inv_freq")) {
                assert_null(ps_st_find(g, name));
                continue;
            }
            assert_string_equal(ps_st_at(g, at++)->name, name); /* order kept */
            size_t n;
            size_t m;
            float *x = read_tensor(from, name, dtype, &n);
            float *y = read_tensor(to, name, dtype, &m);
            assert_int_equal(n, m);
            double *d = delta_of(adapter, name, n);
            double share = dtype == PS_DTYPE_F32 ? 1e-7 : dtype == PS_DTYPE_F16 ? 5e-4 : 4e-3;
            bool moved = false;
            for (size_t j = 0; j < n; j++) {
                double want = (double)x[j] + d[j];
                moved |= d[j] != 0;
                if (d[j] == 0)
                    assert_true(x[j] == y[j]);
                if (!(fabs((double)y[j] - want) <= share * fabs(want) + 1e-7))
                    fail_msg("%s[%zu]: %.9g, expected %.9g", name, j, (double)y[j], want);
            }
            merged += moved;
            free(x);
            free(y);
            free(d);
        }
        assert_int_equal(at, ps_st_count(g));
    }
    assert_int_equal(merged, 2 * 7);
    ps_st_close(adapter);
    ps_st_set_close(from);
    ps_st_set_close(to);
}

static bool exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

static void merging_keeps_type_names_and_order(void **state)
{
    (void)state;
    static const enum ps_dtype type[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};
    for (int i = 0; i < 3; i++) {
        char base[16];
        char out[16];
        snprintf(base, sizeof base, "base%d", i);
        snprintf(out, sizeof out, "out%d", i);
        make_base(base, type[i], 0, false);
        export_ok(base, out);
        compare(base, out, type[i]);
    }
    assert_false(exists("out0/" INDEX));
}

static void check_index(const char *base, const char *out)
{
    char path[128];
    struct ps_error err = {0};
    struct ps_st_set *set;
    snprintf(path, sizeof path, "%s/" INDEX, out);
    json_t *root = json_load_file(path, 0, NULL);
    assert_non_null(root);
    snprintf(path, sizeof path, "%s/" INDEX, base);
    json_t *old = json_load_file(path, 0, NULL);
    assert_non_null(old);
    json_object_del(json_object_get(old, "weight_map"), "model.layers.0.rotary.inv_freq");
    assert_true(
        json_equal(json_object_get(root, "weight_map"), json_object_get(old, "weight_map")));
    uint64_t bytes = 0;
    assert_int_equal(ps_st_set_open(&set, out, &err), 0);
    for (size_t i = 0; i < ps_st_set_file_count(set); i++)
        for (size_t k = 0; k < ps_st_count(ps_st_set_file(set, i)); k++)
            bytes += ps_st_at(ps_st_set_file(set, i), k)->bytes;
    ps_st_set_close(set);
    json_t *total = json_object_get(json_object_get(root, "metadata"), "total_size");
    assert_true((uint64_t)json_integer_value(total) == bytes);
    json_decref(root);
    json_decref(old);
}

static void shards_stay_and_the_index_is_made_anew(void **state)
{
    (void)state;
    make_base("base", PS_DTYPE_BF16, 3, false);
    export_ok("base", "out");
    compare("base", "out", PS_DTYPE_BF16);
    check_index("base", "out");
}

static void one_shard_under_an_index_keeps_its_index(void **state)
{
    (void)state;
    make_base("single", PS_DTYPE_F32, 1, false);
    export_ok("single", "single-out");
    compare("single", "single-out", PS_DTYPE_F32);
    check_index("single", "single-out");
}

static void unknown_tensors_are_left_out_with_a_warning(void **state)
{
    (void)state;
    make_base("extra", PS_DTYPE_F32, 2, true);
    warnings = 0;
    export_ok("extra", "extra-out");
    assert_int_equal(warnings, 1);
    compare("extra", "extra-out", PS_DTYPE_F32);
    check_index("extra", "extra-out");
}

static void put(const char *path, const char *text)
{
    struct ps_error err = {0};
    assert_int_equal(ps_file_write(path, text, strlen(text), &err), 0);
}

static void side_files_are_copied_byte_for_byte_and_other_weights_are_not(void **state)
{
    (void)state;
    struct ps_error err = {0};
    make_base("side", PS_DTYPE_F32, 0, false);
    put("side/README.md", "a\r\nb");
    put("side/chat_template.jinja", "{{ x }}");
    put("side/pytorch_model.bin", "weights");
    put("side/model.gguf", "weights");
    put("side/.cache", "hidden");
    put("side/"
        "other.safetensors.index.json",
        "{}");
    assert_int_equal(ps_file_make_dirs("side/original", &err), 0);
    export_ok("side", "side-out");
    static const char *const same[] = {"config.json", "README.md", "chat_template.jinja"};
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        char path[2][128];
        char *text[2];
        size_t len[2];
        for (int k = 0; k < 2; k++) {
            snprintf(path[k], sizeof path[k], "%s/%s", k ? "side-out" : "side", same[i]);
            assert_int_equal(ps_file_read(path[k], 1 << 20, &text[k], &len[k], &err), 0);
        }
        assert_int_equal(len[0], len[1]);
        assert_memory_equal(text[0], text[1], len[0]);
        free(text[0]);
        free(text[1]);
    }
    assert_false(exists("side-out/pytorch_model.bin"));
    assert_false(exists("side-out/model.gguf"));
    assert_false(exists("side-out/.cache"));
    assert_false(exists("side-out/other.safetensors.index.json"));
    assert_false(exists("side-out/original"));
}

static void an_existing_model_is_not_written_over(void **state)
{
    (void)state;
    char adapter[1024];
    struct ps_error err = {0};
    make_base("keep", PS_DTYPE_F32, 0, false);
    assert_int_equal(ps_file_make_dirs("taken", &err), 0);
    put("taken/config.json", "mine");
    golden(adapter, sizeof adapter, "adapter");
    assert_int_equal(export("keep", adapter, "taken", &err), PS_EUSAGE);
    assert_string_equal(err.field, "output");
    assert_false(exists("taken/model.safetensors"));
}

static void a_merge_that_overflows_the_stored_type_is_refused_by_name(void **state)
{
    (void)state;
    enum { N = 1 << 14 };
    char path[1024];
    struct ps_error err = {0};
    struct ps_st_file *f;
    /* the golden adapter with an enormous B in one place, over an F16 base */
    make_base("small", PS_DTYPE_F16, 0, false);
    assert_int_equal(ps_file_make_dirs("big", &err), 0);
    golden(path, sizeof path, "adapter/adapter_config.json");
    assert_int_equal(ps_file_copy(path, "big/adapter_config.json", &err), 0);
    golden(path, sizeof path, "adapter/adapter_model.safetensors");
    assert_int_equal(ps_st_open(&f, path, &err), 0);
    size_t count = ps_st_count(f);
    struct ps_st_spec *spec = calloc(count, sizeof *spec);
    assert_non_null(spec);
    for (size_t i = 0; i < count; i++) {
        const struct ps_st_tensor *t = ps_st_at(f, i);
        spec[i] = (struct ps_st_spec){
            .name = t->name, .rank = t->rank, .shape = {t->shape[0], t->shape[1]}};
    }
    struct ps_st_writer *w;
    assert_int_equal(ps_st_writer_create(&w, "big/adapter_model.safetensors", spec, count, &err),
                     0);
    for (size_t i = 0; i < count; i++) {
        static float x[N];
        const struct ps_st_tensor *t = ps_st_at(f, i);
        assert_true(t->elements <= N);
        assert_int_equal(ps_st_read_as(f, t, PS_DTYPE_F32, x, &err), 0);
        if (strstr(t->name, "layers.1.mlp.up_proj.lora_B"))
            for (int64_t k = 0; k < t->elements; k++)
                x[k] = 1e8f;
        assert_int_equal(ps_st_writer_append(w, x, (size_t)t->elements * 4, &err), 0);
    }
    assert_int_equal(ps_st_writer_close(w, &err), 0);
    free(spec);
    ps_st_close(f);
    assert_int_equal(export("small", "big", "big-out", &err), PS_ENUMERIC);
    assert_string_equal(err.field, "model.layers.1.mlp.up_proj.weight");
    assert_false(exists("big-out/model.safetensors"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merging_keeps_type_names_and_order),
        cmocka_unit_test(shards_stay_and_the_index_is_made_anew),
        cmocka_unit_test(one_shard_under_an_index_keeps_its_index),
        cmocka_unit_test(unknown_tensors_are_left_out_with_a_warning),
        cmocka_unit_test(side_files_are_copied_byte_for_byte_and_other_weights_are_not),
        cmocka_unit_test(an_existing_model_is_not_written_over),
        cmocka_unit_test(a_merge_that_overflows_the_stored_type_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

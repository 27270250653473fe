/* Loading weights: every mismatch names its file and tensor; conversion and exact masters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <unistd.h>

#include "runtime/model/weights.h"
#include "tests/helpers/tiny_model.h"

static const struct ps_param_info info = {
    .name = "model.layers.0.mlp.up_proj.weight", .role = PS_ROLE_UP, .rank = 2, .shape = {3, 4}};

/* A model directory with one tensor. */
static struct ps_st_set *one_tensor(const char *name, enum ps_dtype dtype, int rank, int64_t a,
                                    int64_t b, const void *data)
{
    struct ps_error err = {0};
    struct ps_st_spec spec = {.name = name, .dtype = dtype, .rank = rank, .shape = {a, b}};
    struct ps_st_writer *w;
    struct ps_st_set *set;
    assert_int_equal(ps_file_make_dirs("d", &err), 0);
    assert_int_equal(ps_st_writer_create(&w, "d/model.safetensors", &spec, 1, &err), 0);
    size_t n = (size_t)(a * (rank == 2 ? b : 1)) * ps_dtype_size(dtype);
    assert_int_equal(ps_st_writer_append(w, data, n, &err), 0);
    assert_int_equal(ps_st_writer_close(w, &err), 0);
    assert_int_equal(ps_st_set_open(&set, "d", &err), 0);
    return set;
}

static int find(const struct ps_st_set *set, const struct ps_param_info *p, struct ps_error *err)
{
    const struct ps_st_tensor *t;
    const struct ps_st_file *f;
    memset(err, 0, sizeof *err);
    return ps_weights_find(set, "d", p, &t, &f, err);
}

static void a_missing_tensor_names_directory_and_tensor(void **state)
{
    (void)state;
    static const float data[12];
    struct ps_error err;
    struct ps_st_set *set = one_tensor("other", PS_DTYPE_F32, 2, 3, 4, data);
    assert_int_equal(find(set, &info, &err), PS_EFORMAT);
    assert_string_equal(err.file, "d");
    assert_string_equal(err.field, info.name);
    assert_true(strlen(err.advice) > 0);
    struct ps_param_info head = info;
    head.role = PS_ROLE_HEAD;
    assert_int_equal(find(set, &head, &err), PS_EFORMAT);
    assert_non_null(strstr(err.advice, "tie_word_embeddings"));
    ps_st_set_close(set);
}

static void a_wrong_shape_names_both_shapes(void **state)
{
    (void)state;
    static const float data[12];
    static const struct {
        int rank;
        int64_t a, b;
        const char *text;
    } bad[] = {{2, 4, 3, "[4, 3]"}, {1, 12, 0, "[12]"}, {2, 3, 3, "[3, 3]"}, {2, 1, 4, "[1, 4]"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct ps_error err;
        struct ps_st_set *set =
            one_tensor(info.name, PS_DTYPE_F32, bad[i].rank, bad[i].a, bad[i].b, data);
        assert_int_equal(find(set, &info, &err), PS_EFORMAT);
        assert_string_equal(err.file, "d/model.safetensors");
        assert_string_equal(err.field, info.name);
        assert_non_null(strstr(err.message, bad[i].text));
        assert_non_null(strstr(err.message, "[3, 4]"));
        ps_st_set_close(set);
    }
    struct ps_error err;
    struct ps_param_info norm = {.name = "n", .role = PS_ROLE_FINAL_NORM, .rank = 1, .shape = {5}};
    struct ps_st_set *set = one_tensor("n", PS_DTYPE_F32, 1, 4, 0, data);
    assert_int_equal(find(set, &norm, &err), PS_EFORMAT);
    assert_non_null(strstr(err.message, "[5]"));
    ps_st_set_close(set);
}

static void a_type_without_arithmetic_is_unsupported_by_name(void **state)
{
    (void)state;
    static const char *const type[] = {"I64", "F8_E4M3", "F64"};
    static const unsigned size[] = {8, 1, 8};
    for (int i = 0; i < 3; i++) {
        char header[256];
        unsigned char file[512] = {0};
        struct ps_error err = {0};
        int len = snprintf(header, sizeof header,
                           "{\"%s\":{\"dtype\":\"%s\",\"shape\":[3,4],\"data_offsets\":[0,%u]}}",
                           info.name, type[i], 12 * size[i]);
        file[0] = (unsigned char)len;
        memcpy(file + 8, header, (size_t)len);
        assert_int_equal(ps_file_make_dirs("d", &err), 0);
        assert_int_equal(
            ps_file_write("d/model.safetensors", file, 8 + (size_t)len + 12 * size[i], &err), 0);
        struct ps_st_set *set;
        assert_int_equal(ps_st_set_open(&set, "d", &err), 0);
        assert_int_equal(find(set, &info, &err), PS_EUNSUPPORTED);
        assert_string_equal(err.file, "d/model.safetensors");
        assert_string_equal(err.field, info.name);
        assert_non_null(strstr(err.message, type[i]));
        ps_st_set_close(set);
    }
}

/* Read the one tensor of a set. */
static int read_as(struct ps_st_set *set, void *dst, enum ps_dtype dtype, uint16_t *remainder,
                   struct ps_error *err)
{
    const struct ps_st_file *f = ps_st_set_file(set, 0);
    memset(err, 0, sizeof *err);
    return ps_weights_read(f, ps_st_at(f, 0), dst, dtype, remainder, ps_master_split, err);
}

enum { N = 40000 }; /* more than two pieces */

static void exact_masters_give_back_every_value(void **state)
{
    (void)state;
    static float x[N];
    static unsigned char raw[4 * N];
    static uint16_t hi[N + 1];
    static uint16_t lo[N + 1];
    static const enum ps_dtype from[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};
    for (int i = 0; i < 3; i++) {
        struct ps_error err;
        tiny_fill(x, N, 1, 0, 3);
        x[0] = 0;
        x[1] = -0.0f;
        x[2] = from[i] == PS_DTYPE_F32 ? FLT_MIN / 8 : 0x1p-16f;
        x[N - 1] = from[i] == PS_DTYPE_F16 ? 65504.0f : 3e38f;
        ps_dtype_convert(raw, from[i], x, PS_DTYPE_F32, N);
        ps_dtype_convert(x, PS_DTYPE_F32, raw, from[i], N);
        struct ps_st_set *set = one_tensor("w", from[i], 1, N, 0, raw);
        hi[N] = lo[N] = 0x1234; /* canaries */
        assert_int_equal(read_as(set, hi, PS_DTYPE_BF16, lo, &err), 0);
        for (size_t k = 0; k < N; k++) {
            float back = ps_master_join(hi[k], lo[k]);
            if (memcmp(&back, &x[k], sizeof back) != 0)
                fail_msg("element %zu: %.9g, read back %.9g", k, (double)x[k], (double)back);
        }
        assert_int_equal(hi[N], 0x1234);
        assert_int_equal(lo[N], 0x1234);
        ps_st_set_close(set);
    }
}

static void reading_without_remainder_rounds_to_nearest(void **state)
{
    (void)state;
    static const float x[4] = {1.0f, 1.00390625f, 1.01171875f, -2.0000001f};
    static const float want[4] = {1.0f, 1.0f, 1.015625f, -2.0f}; /* ties to even */
    struct ps_error err;
    uint16_t h[4];
    float f[4];
    struct ps_st_set *set = one_tensor("w", PS_DTYPE_F32, 1, 4, 0, x);
    assert_int_equal(read_as(set, h, PS_DTYPE_BF16, NULL, &err), 0);
    for (int i = 0; i < 4; i++)
        assert_true(ps_bf16_to_f32(h[i]) == want[i]);
    assert_int_equal(read_as(set, f, PS_DTYPE_F32, NULL, &err), 0);
    assert_memory_equal(f, x, sizeof x);
    ps_st_set_close(set);
}

static void values_that_are_not_finite_name_file_and_tensor(void **state)
{
    (void)state;
    static float x[N];
    static unsigned char raw[4 * N];
    static float dst[N];
    static uint16_t lo[N];
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const enum ps_dtype type[] = {PS_DTYPE_F32, PS_DTYPE_BF16, PS_DTYPE_F16};
    for (int k = 0; k < 3; k++)
        for (int from = 0; from < 3; from++) {
            memset(x, 0, sizeof x);
            x[k ? N - 1 : 17] = bad[k];
            ps_dtype_convert(raw, type[from], x, PS_DTYPE_F32, N);
            struct ps_st_set *set = one_tensor("w", type[from], 1, N, 0, raw);
            for (int to = 0; to < 4; to++) {
                struct ps_error err;
                if (to == 2 && from != 2) /* F16 only as stored */
                    continue;
                int ret = read_as(set, dst, to == 3 ? PS_DTYPE_BF16 : type[to], to == 3 ? lo : NULL,
                                  &err);
                assert_int_equal(ret, PS_EFORMAT);
                assert_string_equal(err.file, "d/model.safetensors");
                assert_string_equal(err.field, "w");
            }
            ps_st_set_close(set);
        }
}

static void a_file_cut_after_opening_is_an_error(void **state)
{
    (void)state;
    static float x[N];
    static float dst[N];
    struct ps_error err;
    struct ps_st_set *set = one_tensor("w", PS_DTYPE_F32, 1, N, 0, x);
    FILE *f = fopen("d/model.safetensors", "r+");
    assert_non_null(f);
    assert_int_equal(ftruncate(fileno(f), 1000), 0);
    fclose(f);
    assert_int_equal(read_as(set, dst, PS_DTYPE_F32, NULL, &err), PS_EFORMAT);
    assert_string_equal(err.file, "d/model.safetensors");
    ps_st_set_close(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_tensor_names_directory_and_tensor),
        cmocka_unit_test(a_wrong_shape_names_both_shapes),
        cmocka_unit_test(a_type_without_arithmetic_is_unsupported_by_name),
        cmocka_unit_test(exact_masters_give_back_every_value),
        cmocka_unit_test(reading_without_remainder_rounds_to_nearest),
        cmocka_unit_test(values_that_are_not_finite_name_file_and_tensor),
        cmocka_unit_test(a_file_cut_after_opening_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

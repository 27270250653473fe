/* Hardware profiles: files, shapes, cost models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "offload/profile.h"
#include "runtime/base/file.h"
#include "runtime/base/rng.h"
#include "runtime/model/config.h"

static void near_at(double got, double want, double tolerance, int line)
{
    if (!(fabs(got - want) <= tolerance * (fabs(want) > 1 ? fabs(want) : 1)))
        fail_msg("line %d: %.12g, expected %.12g", line, got, want);
}
#define assert_near(got, want, tolerance) near_at(got, want, tolerance, __LINE__)

static void load(struct ps_profile *p, const char *path)
{
    struct ps_error err = {0};
    if (ps_profile_load(p, path, &err) < 0)
        fail_msg("%s: %s", path, err.message);
}

static void assert_same(const struct ps_profile *a, const struct ps_profile *b)
{
    /* both were zeroed before they were filled, text and padding included */
    assert_memory_equal(a, b, sizeof *a);
}

static const char *hardware(const char *name)
{
    static char path[1024];
    const char *root = getenv("PENSTOCK_ROOT");
    snprintf(path, sizeof path, "%s/examples/hardware/%s", root ? root : ".", name);
    return path;
}

static void the_conservative_file_is_the_built_in_one(void **state)
{
    (void)state;
    static struct ps_profile file, built_in;
    load(&file, hardware("conservative.json"));
    ps_profile_conservative(&built_in);
    assert_same(&file, &built_in);
}

static void example_files_load_and_say_what_they_are(void **state)
{
    (void)state;
    static struct ps_profile p;
    load(&p, hardware("rtx4090-nvme7.json"));
    assert_string_equal(p.device, "cuda");
    assert_non_null(strstr(p.machine, "assumed from data sheets, not measured"));
    assert_near(p.disk[0].sustained_read, 7e9, 0);
    assert_near(ps_profile_gemm_flops(&p, PS_DTYPE_BF16, 4096, 14336, 4096), 160e12, 0.02);
    load(&p, hardware("rtx4090-nvme3.json"));
    assert_non_null(strstr(p.machine, "assumed from data sheets, not measured"));
    assert_near(p.disk[0].read, 3e9, 0);
}

static void fill(struct ps_profile *p)
{
    struct ps_rng_key key = {.seed = 5};
    ps_profile_conservative(p);
    memset(p->machine, 0, sizeof p->machine);
    snprintf(p->machine, sizeof p->machine, "a \"quoted\" name, \\ and \t tab, \xc3\xa9");
    p->gemm_count = PS_PROFILE_GEMM_MAX;
    for (int i = 0; i < p->gemm_count; i++)
        p->gemm[i] = (struct ps_profile_gemm){
            .m = 1 + ps_rng_u32(&key, 3 * (uint64_t)i) % 10000,
            .n = 1 + ps_rng_u32(&key, 3 * (uint64_t)i + 1) % 10000,
            .k = INT32_MAX,
            .dtype = i % 3 == 0   ? PS_DTYPE_F16
                     : i % 3 == 1 ? PS_DTYPE_BF16
                                  : PS_DTYPE_F32,
            .flops = 1e12 * (double)ps_rng_uniform(&key, 3 * (uint64_t)i + 2) + 1};
    p->disk_count = PS_PROFILE_DISK_MAX;
    for (int i = 0; i < p->disk_count; i++) {
        p->disk[i] = p->disk[0];
        snprintf(p->disk[i].path, sizeof p->disk[i].path, "/mnt/disk %d", i);
        p->disk[i].read = 1e9 / 3 + i;
        p->disk[i].latency_s = 1e-4 / 7;
    }
    p->host_memory = (uint64_t)1 << 40;
    p->copy_h2d = 1e300 / 1e285 / 3;
    p->compute_by_disk = 1 + 1e-15;
}

static void what_is_saved_is_loaded_bit_for_bit(void **state)
{
    (void)state;
    static struct ps_profile p, q;
    struct ps_error err = {0};
    fill(&p);
    assert_int_equal(ps_profile_save(&p, "profile.json", &err), 0);
    load(&q, "profile.json");
    assert_same(&p, &q);
}

static void a_figure_that_load_would_refuse_is_not_saved(void **state)
{
    (void)state;
    static struct ps_profile p;
    const struct {
        double *at, value;
    } cases[] = {{&p.compute_by_copy, 0.5},
                 {&p.copy_host, (double)INFINITY},
                 {&p.memory, 0},
                 {&p.disk[0].write, (double)NAN},
                 {&p.gemm[1].flops, -1},
                 {&p.disk[0].mixed_read, -1e9},
                 {&p.step_overhead_s, 1e6}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ps_error err = {0};
        ps_profile_conservative(&p);
        *cases[i].at = cases[i].value;
        assert_int_equal(ps_profile_save(&p, "refused.json", &err), PS_ENUMERIC);
        assert_true(err.field[0]);
        assert_int_equal(access("refused.json", F_OK), -1);
    }
}

static void a_directory_that_is_missing_is_an_error(void **state)
{
    (void)state;
    static struct ps_profile p;
    struct ps_error err = {0};
    ps_profile_conservative(&p);
    assert_int_equal(ps_profile_save(&p, "no/such/dir/p.json", &err), -ENOENT);
    assert_int_equal(ps_profile_load(&p, "no/such/dir/p.json", &err), -ENOENT);
    assert_non_null(strstr(err.file, "p.json"));
    assert_non_null(strstr(err.advice, "penstock bench"));
}

static const char small[] =
    "{\"version\":1,\"gemm\":[{\"m\":1,\"n\":2,\"k\":3,\"dtype\":\"f32\",\"flops\":1e9}],"
    "\"disk\":[{\"read\":5,\"write\":6}],\"copy\":{\"host\":7,\"memory\":8},"
    "\"cpu_optim\":{\"params\":9}}";

/* The small profile with `from` replaced by `to`; loads it and returns the status. */
static int load_with(const char *from, const char *to, struct ps_profile *p, struct ps_error *err)
{
    static char text[4096];
    const char *at = strstr(small, from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - small), small, to, at + strlen(from));
    memset(err, 0, sizeof *err);
    assert_int_equal(ps_file_write("small.json", text, strlen(text), err), 0);
    return ps_profile_load(p, "small.json", err);
}

static void members_that_are_left_out_have_careful_values(void **state)
{
    (void)state;
    static struct ps_profile p;
    struct ps_error err;
    assert_int_equal(load_with("{", "{", &p, &err), 0);
    assert_string_equal(p.device, "cpu");
    assert_int_equal(p.threads, 1);
    assert_int_equal(p.gemm_count, 1);
    assert_int_equal(p.disk_count, 1);
    assert_near(p.disk[0].read, 5, 0);
    assert_near(p.disk[0].mixed_read, 0, 0);
    assert_near(p.memory, 8, 0);
    assert_near(p.cpu_optim_params, 9, 0);
    assert_near(p.compute_by_disk, 1, 0);
    assert_near(p.copy_by_compute, 1, 0);
}

static void hostile_members_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *field;
    } cases[] = {
        {"\"version\":1", "\"version\":2", "version"},
        {"\"version\":1", "\"version\":0", "version"},
        {"\"version\":1", "\"version\":1.0", "version"},
        {"\"version\":1", "\"version\":\"1\"", "version"},
        {"\"version\":1,", "", "version"},
        {"\"version\":1", "\"version\":1,\"device\":\"gpu\"", "device"},
        {"\"version\":1", "\"version\":1,\"device\":7", "device"},
        {"\"version\":1", "\"version\":1,\"device\":\"cuda\"", "copy.h2d"},
        {"\"memory\":8", "\"memory\":8,\"h2d\":1e9},\"device\":\"cuda\",\"attention\":{",
         "copy.d2h"},
        {"\"version\":1", "\"version\":1,\"threads\":0", "threads"},
        {"\"version\":1", "\"version\":1,\"threads\":1e3", "threads"},
        {"\"version\":1", "\"version\":1,\"memory\":{\"host\":-1}", "memory.host"},
        {"\"version\":1", "\"version\":1,\"memory\":{\"disk\":1}", "memory.disk"},
        {"\"version\":1", "\"version\":1,\"memory\":[]", "memory"},
        {"\"version\":1", "\"version\":1,\"interferance\":{}", "interferance"},
        {"\"version\":1", "\"version\":1,\"interference\":{\"compute_by_net\":1}",
         "interference.compute_by_net"},
        {"\"version\":1", "\"version\":1,\"interference\":{\"compute_by_disk\":0.9}",
         "interference.compute_by_disk"},
        {"\"version\":1", "\"version\":1,\"interference\":3", "interference"},
        {"\"version\":1", "\"version\":1,\"overhead\":{\"task_s\":-1}", "overhead.task_s"},
        {"[{\"m\":1,\"n\":2,\"k\":3,\"dtype\":\"f32\",\"flops\":1e9}]", "[]", "gemm"},
        {"\"gemm\":[{", "\"gem\":[{", "gem"},
        {"\"m\":1,", "", "gemm[0].m"},
        {"\"m\":1", "\"m\":0", "gemm[0].m"},
        {"\"n\":2", "\"n\":-2", "gemm[0].n"},
        {"\"k\":3", "\"k\":1e3", "gemm[0].k"},
        {"\"k\":3", "\"k\":9223372036854775807", "gemm[0].k"},
        {"\"dtype\":\"f32\"", "\"dtype\":\"fp32\"", "gemm[0].dtype"},
        {"\"dtype\":\"f32\",", "", "gemm[0].dtype"},
        {"\"flops\":1e9", "\"flops\":0", "gemm[0].flops"},
        {"\"flops\":1e9", "\"flops\":-1e9", "gemm[0].flops"},
        {"\"flops\":1e9", "\"flops\":1e25", "gemm[0].flops"},
        {"\"flops\":1e9", "\"flops\":\"fast\"", "gemm[0].flops"},
        {"\"flops\":1e9", "\"flops\":1e9,\"tops\":1", "gemm[0].tops"},
        {"[{\"read\":5,\"write\":6}]", "[]", "disk"},
        {"[{\"read\":5,\"write\":6}]", "{}", "disk"},
        {"[{\"read\":5,\"write\":6}]", "[5]", "disk[0].read"},
        {"\"read\":5,", "", "disk[0].read"},
        {"\"read\":5", "\"read\":0", "disk[0].read"},
        {"\"write\":6", "\"write\":6,\"mixed\":{\"read\":-1}", "disk[0].mixed.read"},
        {"\"write\":6", "\"write\":6,\"mixed\":{\"reads\":1}", "disk[0].mixed.reads"},
        {"\"write\":6", "\"write\":6,\"mixed\":5", "disk[0].mixed"},
        {"\"write\":6", "\"write\":6,\"depth\":-1", "disk[0].depth"},
        {"\"write\":6", "\"write\":6,\"chunk_bytes\":4294967296", "disk[0].chunk_bytes"},
        {"\"write\":6", "\"write\":6,\"path\":3", "disk[0].path"},
        {"\"write\":6}]", "\"write\":6},{\"read\":1}]", "disk[1].write"},
        {"\"host\":7,", "", "copy.host"},
        {"\"host\":7", "\"host\":null", "copy.host"},
        {",\"copy\":{\"host\":7,\"memory\":8}", "", "copy.host"},
        {"\"params\":9", "\"params\":0", "cpu_optim.params"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static struct ps_profile p;
        struct ps_error err;
        memset(&p, 0x5a, sizeof p);
        int ret = load_with(cases[i].from, cases[i].to, &p, &err);
        if (ret != PS_EFORMAT || strcmp(err.field, cases[i].field) != 0 || !err.file[0] ||
            !err.advice[0])
            fail_msg("%s: status %d, field \"%s\", message \"%s\"", cases[i].to, ret, err.field,
                     err.message);
        for (size_t b = 0; b < sizeof p; b++)
            assert_int_equal(((unsigned char *)&p)[b], 0x5a);
    }
}

static void files_that_are_no_profile_are_refused(void **state)
{
    (void)state;
    static const char *const text[] = {
        "", "{", "null", "[]", "3", "{\"version\":1,\"version\":1}", "{\"version\":1}"};
    static struct ps_profile p;
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        struct ps_error err = {0};
        assert_int_equal(ps_file_write("odd.json", text[i], strlen(text[i]), &err), 0);
        assert_int_equal(ps_profile_load(&p, "odd.json", &err), PS_EFORMAT);
        assert_non_null(strstr(err.file, "odd.json"));
    }
}

static void too_many_entries_and_long_names_are_refused(void **state)
{
    (void)state;
    static struct ps_profile p;
    static char text[65536];
    struct ps_error err;
    size_t len = 0;
    for (int i = 0; i <= PS_PROFILE_GEMM_MAX; i++)
        len += (size_t)snprintf(text + len, sizeof text - len,
                                "{\"m\":1,\"n\":2,\"k\":%d,\"dtype\":\"f32\",\"flops\":1},", i + 1);
    static char many[sizeof text + 64];
    snprintf(many, sizeof many, "\"gemm\":[%s{", text);
    /* load_with's buffer is small on purpose: write this one here */
    static char whole[sizeof many + 1024];
    const char *at = strstr(small, "\"gemm\":[{");
    assert_non_null(at);
    snprintf(whole, sizeof whole, "%.*s%s%s", (int)(at - small), small, many, at + 9);
    memset(&err, 0, sizeof err);
    assert_int_equal(ps_file_write("many.json", whole, strlen(whole), &err), 0);
    assert_int_equal(ps_profile_load(&p, "many.json", &err), PS_EFORMAT);
    assert_string_equal(err.field, "gemm");
    char name[400];
    snprintf(name, sizeof name, "\"machine\":\"%0300d\",\"version\":1", 0);
    assert_int_equal(load_with("\"version\":1", name, &p, &err), PS_EFORMAT);
    assert_string_equal(err.field, "machine");
}

/* --- shapes --- */

static void a_measured_shape_has_its_own_rate_and_others_lie_between(void **state)
{
    (void)state;
    static struct ps_profile p;
    p.gemm_count = 3;
    p.gemm[0] = (struct ps_profile_gemm){1, 1024, 1024, PS_DTYPE_BF16, 10};
    p.gemm[1] = (struct ps_profile_gemm){1024, 1024, 1024, PS_DTYPE_BF16, 100};
    p.gemm[2] = (struct ps_profile_gemm){1024, 1024, 1024, PS_DTYPE_F32, 40};
    assert_near(ps_profile_gemm_flops(&p, PS_DTYPE_BF16, 1, 1024, 1024), 10, 0);
    assert_near(ps_profile_gemm_flops(&p, PS_DTYPE_BF16, 1024, 1024, 1024), 100, 0);
    assert_near(ps_profile_gemm_flops(&p, PS_DTYPE_F32, 7, 8, 9), 40, 1e-12);
    /* half way in the logarithm: the mean of 1/10 and 1/100 */
    assert_near(ps_profile_gemm_flops(&p, PS_DTYPE_BF16, 32, 1024, 1024), 2 / (0.1 + 0.01), 1e-12);
    /* 512: distances 9 and 1 in log2, weights 1/81 and 1 */
    assert_near(ps_profile_gemm_flops(&p, PS_DTYPE_BF16, 512, 1024, 1024),
                (1.0 / 81 + 1) / (0.1 / 81 + 0.01), 1e-12);
    double last = 0;
    for (int64_t m = 1; m <= 1 << 20; m *= 2) {
        double f = ps_profile_gemm_flops(&p, PS_DTYPE_BF16, m, 1024, 1024);
        assert_true(f >= 10);
        assert_true(f <= 100);
        if (m <= 1024)
            assert_true(f > last);
        last = f;
    }
}

static void only_the_three_nearest_shapes_count(void **state)
{
    (void)state;
    static struct ps_profile p;
    p.gemm_count = 5;
    for (int i = 0; i < 5; i++) /* worst order: the farthest first */
        p.gemm[i] = (struct ps_profile_gemm){(int64_t)1 << (20 - 4 * i), 64, 64, PS_DTYPE_F32,
                                             i < 2 ? 1e-6 : 100};
    assert_near(ps_profile_gemm_flops(&p, PS_DTYPE_F32, 8, 64, 64), 100, 1e-9);
    for (int i = 0; i < 5; i++)
        p.gemm[i].m = (int64_t)1 << (4 + 4 * i);
    for (int i = 0; i < 5; i++)
        p.gemm[i].flops = i > 2 ? 1e-6 : 100;
    assert_near(ps_profile_gemm_flops(&p, PS_DTYPE_F32, 8, 64, 64), 100, 1e-9);
}

static void a_dtype_that_was_not_measured_is_guessed_low(void **state)
{
    (void)state;
    static struct ps_profile p;
    p.gemm_count = 1;
    p.gemm[0] = (struct ps_profile_gemm){64, 64, 64, PS_DTYPE_F32, 40};
    assert_near(ps_profile_gemm_flops(&p, PS_DTYPE_BF16, 64, 64, 64), 40, 0);
    p.gemm[0].dtype = PS_DTYPE_BF16;
    assert_near(ps_profile_gemm_flops(&p, PS_DTYPE_F16, 64, 64, 64), 40, 0);
    assert_near(ps_profile_gemm_flops(&p, PS_DTYPE_F32, 64, 64, 64), 20, 0);
    p.gemm_count = 0;
    assert_true(ps_profile_gemm_flops(&p, PS_DTYPE_F32, 64, 64, 64) > 1e9);
}

/* --- cost models --- */

static const struct ps_cost_query query = {
    .dtype = PS_DTYPE_BF16, .tokens = 2048, .hidden_size = 4096, .intermediate_size = 4096};

static struct ps_cost_model cost(const struct ps_profile *p, const struct ps_cost_query *q)
{
    struct ps_cost_model m;
    ps_profile_cost(p, q, &m);
    for (int l = 0; l < PS_LANE_COUNT; l++)
        for (int r = 0; r < PS_RESOURCE_COUNT; r++) {
            assert_true(m.use[l][r] >= 0);
            assert_true(m.use[l][r] <= 1);
        }
    return m;
}

static void rates_come_from_the_profile(void **state)
{
    (void)state;
    static struct ps_profile p;
    ps_profile_conservative(&p);
    struct ps_cost_query q = query;
    q.throttle[PS_LANE_H2D] = 123;
    struct ps_cost_model m = cost(&p, &q);
    assert_near(m.flop_rate[PS_TASK_LAYER_FORWARD], 100e9, 1e-9);
    assert_near(m.flop_rate[PS_TASK_LAYER_BACKWARD], 100e9, 1e-9);
    assert_near(m.flop_rate[PS_TASK_HEAD], 100e9, 1e-9);
    assert_near(m.byte_rate[PS_LANE_DISK_WEIGHTS], 500e6, 1e-9);
    assert_near(m.byte_rate[PS_LANE_DISK_WRITE], 400e6, 1e-9);
    assert_near(m.byte_rate[PS_LANE_H2D], 7e9, 1e-9);
    assert_near(m.overhead_s[PS_TASK_CLIP], 200e-6, 1e-12);
    assert_near(m.overhead_s[PS_TASK_READ_WEIGHTS], 200e-6, 1e-12);
    assert_near(m.throttle[PS_LANE_H2D], 123, 0);
    assert_near(m.throttle[PS_LANE_D2H], 0, 0);
    /* element-wise: 2048 tokens * 2 bytes * (8.5 + 3) * 4096 at 15 GB/s */
    assert_near(m.overhead_s[PS_TASK_LAYER_FORWARD], 200e-6 + 4096 * 11.5 * 4096 / 15e9, 1e-12);
    q.sustained = true;
    m = cost(&p, &q);
    assert_near(m.byte_rate[PS_LANE_DISK_WRITE], 100e6, 1e-9);
    assert_near(m.byte_rate[PS_LANE_DISK_STATE], 500e6, 1e-9);
    p.disk[0].sustained_read = 0; /* not known */
    assert_near(cost(&p, &q).byte_rate[PS_LANE_DISK_STATE], 500e6, 1e-9);
    p.disk[0].sustained_read = 1e9; /* a warm cache is no promise */
    assert_near(cost(&p, &q).byte_rate[PS_LANE_DISK_STATE], 500e6, 1e-9);
}

static void layer_rates_weigh_each_product_with_its_time(void **state)
{
    (void)state;
    static struct ps_profile p;
    ps_profile_conservative(&p);
    p.gemm_count = 3;
    p.gemm[0] = (struct ps_profile_gemm){64, 100, 100, PS_DTYPE_BF16, 5};  /* square */
    p.gemm[1] = (struct ps_profile_gemm){64, 300, 100, PS_DTYPE_BF16, 10}; /* up */
    p.gemm[2] = (struct ps_profile_gemm){64, 100, 300, PS_DTYPE_BF16, 20}; /* down */
    struct ps_cost_query q = {
        .dtype = PS_DTYPE_BF16, .tokens = 64, .hidden_size = 100, .intermediate_size = 300};
    struct ps_cost_model m = cost(&p, &q);
    assert_near(m.flop_rate[PS_TASK_LAYER_FORWARD], 11.5 / (2.5 / 5 + 6.0 / 10 + 3.0 / 20), 1e-12);
    assert_near(m.flop_rate[PS_TASK_LAYER_BACKWARD], 11.5 / (2.5 / 5 + 6.0 / 20 + 3.0 / 10), 1e-12);
    double forward = m.flop_rate[PS_TASK_LAYER_FORWARD];
    double backward = m.flop_rate[PS_TASK_LAYER_BACKWARD];
    q.attention_share = 0.25;
    p.attention_flops = 2;
    m = cost(&p, &q);
    assert_near(1 / m.flop_rate[PS_TASK_LAYER_RECOMPUTE], 0.75 / forward + 0.25 / 2, 1e-12);
    q.linear_flops = 60;
    q.attention_flops = 20;
    q.down_flops = 15;
    q.adapter_flops = 6;
    m = cost(&p, &q);
    assert_near(80 / m.flop_rate[PS_TASK_LAYER_FORWARD], 60 / forward + 20.0 / 2 + 3 * 6 / forward,
                1e-12);
    assert_near(80 / m.flop_rate[PS_TASK_LAYER_RECOMPUTE],
                45 / forward + 20.0 / 2 + 3 * 6 / forward, 1e-12);
    assert_near(m.recompute_rate[PS_RECOMPUTE_R4], 0, 0); /* not known: as the kind's */
    q.recompute_flops[PS_RECOMPUTE_R1] = 30;
    q.recompute_flops[PS_RECOMPUTE_R4] = 45;
    struct ps_cost_model by_level = cost(&p, &q);
    assert_near(30 / by_level.recompute_rate[PS_RECOMPUTE_R1], 30 / forward + 3 * 3 / forward,
                1e-12);
    assert_near(65 / by_level.recompute_rate[PS_RECOMPUTE_R4],
                45 / forward + 20.0 / 2 + 3 * 4.5 / forward, 1e-12);
    struct ps_task again = {.kind = PS_TASK_LAYER_RECOMPUTE, .flops = 30};
    again.arg[PS_ARG_LEVEL] = PS_RECOMPUTE_R1;
    assert_near(ps_cost_solo_s(&by_level, &again),
                by_level.recompute_overhead_s[PS_RECOMPUTE_R1] + 39 / forward, 1e-12);
    again.arg[PS_ARG_LEVEL] = PS_RECOMPUTE_R2;
    assert_near(ps_cost_solo_s(&by_level, &again), ps_cost_solo_s(&m, &again), 1e-12);
    assert_near(110 / m.flop_rate[PS_TASK_LAYER_BACKWARD],
                60 / backward + 50.0 / 2 + 3 * 12 / backward, 1e-12);
    q.full = true;
    q.adapter_flops = 0;
    p.attention_flops = 0; /* as the products */
    assert_near(170 / cost(&p, &q).flop_rate[PS_TASK_LAYER_BACKWARD], 170 / backward, 1e-12);
    q.vocab_size = 300;
    assert_near(cost(&p, &q).flop_rate[PS_TASK_HEAD], 10, 1e-12);
}

static void a_model_gives_its_flops(void **state)
{
    (void)state;
    struct ps_model_config cfg = {.hidden_size = 10,
                                  .intermediate_size = 30,
                                  .n_head = 4,
                                  .n_kv_head = 2,
                                  .head_dim = 3,
                                  .vocab_size = 77};
    struct ps_cost_query q = {.dtype = PS_DTYPE_F32, .sustained = true};
    ps_cost_query_model(&q, &cfg, 100, 50, 7, true);
    assert_int_equal(q.hidden_size, 10);
    assert_int_equal(q.intermediate_size, 30);
    assert_int_equal(q.vocab_size, 77);
    assert_int_equal(q.tokens, 100);
    /* q and o 12 x 10, k and v 6 x 10, gate, up and down 30 x 10 */
    assert_near(q.linear_flops, 2 * 100 * (2 * 120 + 2 * 60 + 3 * 300), 1e-12);
    /* scores and sums over on average 25 keys, 4 heads of 3 */
    assert_near(q.attention_flops, 100 * 25 * 2 * 2 * 12, 1e-12);
    assert_near(q.down_flops, 2 * 100 * 300, 1e-12);
    assert_near(q.adapter_flops, 2 * 100 * 7, 1e-12);
    assert_near(q.recompute_flops[PS_RECOMPUTE_R0], 0, 0);
    assert_near(q.recompute_flops[PS_RECOMPUTE_R1], 2 * 100 * (2 * 300), 1e-12);
    assert_near(q.recompute_flops[PS_RECOMPUTE_R2], 2 * 100 * (2 * 300 + 120 + 2 * 60), 1e-12);
    assert_near(q.recompute_flops[PS_RECOMPUTE_R3], q.linear_flops - q.down_flops, 1e-12);
    assert_near(q.recompute_flops[PS_RECOMPUTE_R4], q.linear_flops - q.down_flops, 1e-12);
    assert_true(q.full);
    assert_true(q.sustained);
    ps_cost_query_model(&q, &cfg, 100, 2000, 0, false);
    assert_near(q.attention_flops, 100 * 50 * 2 * 2 * 12, 1e-12);
}

static double load_of(const struct ps_cost_model *m, enum ps_lane a, enum ps_lane b)
{
    double most = 1;
    for (int r = 0; r < PS_RESOURCE_COUNT; r++)
        if (m->use[a][r] > 0 && m->use[b][r] > 0)
            most = fmax(most, m->use[a][r] + m->use[b][r]);
    return most;
}

static void interference_becomes_shares_that_do_as_much_work(void **state)
{
    (void)state;
    static struct ps_profile p;
    ps_profile_conservative(&p);
    p.memory = 1e15;
    p.compute_by_disk = p.disk_by_compute = 1.25;
    p.compute_by_copy = 1.5, p.copy_by_compute = 3;     /* 1 of 2 units of work a second */
    p.compute_by_optim = 100, p.optim_by_compute = 100; /* worse than one after the other */
    struct ps_cost_model m = cost(&p, &query);
    assert_near(load_of(&m, PS_LANE_COMPUTE, PS_LANE_DISK_WEIGHTS), 1.25, 1e-12);
    assert_near(load_of(&m, PS_LANE_COMPUTE, PS_LANE_H2D), 2, 1e-12);
    assert_near(load_of(&m, PS_LANE_COMPUTE, PS_LANE_CPU_OPTIM), 2, 1e-12);
    p.compute_by_disk = p.disk_by_compute = 1;
    m = cost(&p, &query);
    assert_near(load_of(&m, PS_LANE_COMPUTE, PS_LANE_DISK_WEIGHTS), 1, 0);
}

static void reads_share_the_disk_and_writes_as_measured(void **state)
{
    (void)state;
    static struct ps_profile p;
    ps_profile_conservative(&p);
    struct ps_cost_model m = cost(&p, &query);
    assert_near(load_of(&m, PS_LANE_DISK_WEIGHTS, PS_LANE_DISK_STATE), 2, 1e-12);
    assert_near(load_of(&m, PS_LANE_DISK_WEIGHTS, PS_LANE_DISK_WRITE), 2, 1e-12);
    p.disk[0].mixed_read = 500e6; /* both at full speed */
    p.disk[0].mixed_write = 400e6;
    m = cost(&p, &query);
    assert_near(load_of(&m, PS_LANE_DISK_WEIGHTS, PS_LANE_DISK_STATE), 2, 1e-12);
    assert_near(load_of(&m, PS_LANE_DISK_WEIGHTS, PS_LANE_DISK_WRITE), 1, 1e-12);
    p.disk[0].mixed_read = 400e6; /* 0.8 and 0.8 */
    p.disk[0].mixed_write = 320e6;
    assert_near(load_of((m = cost(&p, &query), &m), PS_LANE_DISK_STATE, PS_LANE_DISK_WRITE), 1.25,
                1e-12);
    p.disk[0].mixed_read = p.disk[0].mixed_write = 0; /* not measured: one resource */
    assert_near(load_of((m = cost(&p, &query), &m), PS_LANE_DISK_STATE, PS_LANE_DISK_WRITE), 2,
                1e-12);
    p.disk_count = 0;
    assert_true(cost(&p, &query).byte_rate[PS_LANE_DISK_WEIGHTS] > 0);
}

static void a_gpu_has_its_own_cores_and_a_link(void **state)
{
    (void)state;
    static struct ps_profile p;
    struct ps_cost_query q = query;
    q.discrete = true;
    load(&p, hardware("rtx4090-nvme7.json"));
    struct ps_cost_model m = cost(&p, &q);
    assert_near(m.byte_rate[PS_LANE_H2D], 25e9, 1e-12);
    assert_near(m.use[PS_LANE_COMPUTE][PS_RESOURCE_CORES], 0, 0);
    assert_near(load_of(&m, PS_LANE_COMPUTE, PS_LANE_CPU_OPTIM), 1, 0);
    assert_near(load_of(&m, PS_LANE_COMPUTE, PS_LANE_DISK_WEIGHTS), 1, 0);
    assert_near(load_of(&m, PS_LANE_H2D, PS_LANE_D2H), 4.0 / 3, 1e-12);
    assert_near(m.overhead_s[PS_TASK_LAYER_FORWARD], p.step_overhead_s, 0);
    /* a discrete device that the host plays copies in host memory */
    ps_profile_conservative(&p);
    m = cost(&p, &q);
    assert_near(m.byte_rate[PS_LANE_D2H], 7e9, 1e-12);
    assert_true(m.use[PS_LANE_H2D][PS_RESOURCE_CORES] > 0);
}

static void weights_are_decoded_instead_of_copied_and_before_a_link(void **state)
{
    (void)state;
    static struct ps_profile p;
    struct ps_cost_query q = query;
    q.decode_rate = 1e9;
    q.decode_share = 0.25;
    ps_profile_conservative(&p);
    struct ps_cost_model m = cost(&p, &q);
    assert_near(m.byte_rate[PS_LANE_H2D], 1e9, 0);
    assert_near(m.use[PS_LANE_H2D][PS_RESOURCE_CORES],
                fmax(0.25, cost(&p, &query).use[PS_LANE_H2D][PS_RESOURCE_CORES]), 0);
    assert_near(m.byte_rate[PS_LANE_D2H], cost(&p, &query).byte_rate[PS_LANE_D2H], 0);
    load(&p, hardware("rtx4090-nvme7.json"));
    q.discrete = true;
    m = cost(&p, &q);
    assert_near(m.byte_rate[PS_LANE_H2D], 1 / (1 / 1e9 + 1 / 25e9), 1e-12);
    assert_near(m.use[PS_LANE_H2D][PS_RESOURCE_CORES], 0.25, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_conservative_file_is_the_built_in_one),
        cmocka_unit_test(example_files_load_and_say_what_they_are),
        cmocka_unit_test(what_is_saved_is_loaded_bit_for_bit),
        cmocka_unit_test(a_figure_that_load_would_refuse_is_not_saved),
        cmocka_unit_test(a_directory_that_is_missing_is_an_error),
        cmocka_unit_test(members_that_are_left_out_have_careful_values),
        cmocka_unit_test(hostile_members_are_refused_by_name),
        cmocka_unit_test(files_that_are_no_profile_are_refused),
        cmocka_unit_test(too_many_entries_and_long_names_are_refused),
        cmocka_unit_test(a_measured_shape_has_its_own_rate_and_others_lie_between),
        cmocka_unit_test(only_the_three_nearest_shapes_count),
        cmocka_unit_test(a_dtype_that_was_not_measured_is_guessed_low),
        cmocka_unit_test(rates_come_from_the_profile),
        cmocka_unit_test(layer_rates_weigh_each_product_with_its_time),
        cmocka_unit_test(a_model_gives_its_flops),
        cmocka_unit_test(interference_becomes_shares_that_do_as_much_work),
        cmocka_unit_test(reads_share_the_disk_and_writes_as_measured),
        cmocka_unit_test(a_gpu_has_its_own_cores_and_a_link),
        cmocka_unit_test(weights_are_decoded_instead_of_copied_and_before_a_link),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

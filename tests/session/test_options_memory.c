/* Options of budgets, placement, experiments and of plan, bench and doctor. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/train/step.h"
#include "session/catalog.h"
#include "session/options.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define ARGS(...) ((const char *[]){__VA_ARGS__, NULL})

/* Parse and resolve; train gets what it needs besides. */
static int parse(struct ps_options *opt, enum ps_command c, const char *const *args,
                 struct ps_error *err)
{
    static const char *const needed[] = {"--model", "m", "--data", "d", "--output", "o"};
    char *argv[64];
    int argc = 0;
    for (size_t i = 0; c == PS_CMD_TRAIN && i < COUNT(needed); i++)
        argv[argc++] = (char *)(uintptr_t)needed[i];
    for (; *args; args++)
        argv[argc++] = (char *)(uintptr_t)*args;
    bool help;
    memset(err, 0, sizeof *err);
    ps_options_init(opt, c);
    int ret = ps_options_parse_args(opt, argc, argv, &help, err);
    return ret ? ret : ps_options_resolve(opt, err);
}

static void assert_contains(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" does not contain \"%s\"", text, part);
}

static void nothing_given_means_the_planner_chooses(void **state)
{
    (void)state;
    static const enum ps_command command[] = {PS_CMD_TRAIN, PS_CMD_PLAN};
    for (size_t i = 0; i < COUNT(command); i++) {
        struct ps_options o;
        struct ps_error err;
        assert_int_equal(parse(&o, command[i], ARGS("--model", "m"), &err), 0);
        assert_string_equal(o.strategy, "auto");
        assert_string_equal(o.storage, "auto");
        assert_string_equal(o.emu_clock, "real");
        assert_int_equal(o.host_mem, -1);
        assert_int_equal(o.gpu_mem, -1);
        assert_int_equal(o.nvme_mem, -1);
        assert_int_equal(o.offload_weights, -1);
        assert_int_equal(o.offload_optimizer, -1);
        assert_int_equal(o.offload_activations, PS_ACT_AUTO);
        assert_int_equal(o.prefetch_depth, 0);
        assert_int_equal(o.queue_depth, 0);
        assert_int_equal(o.ablate, 0);
        assert_int_equal(o.delay_seed, 0);
        assert_false(o.serial);
        assert_null(o.nvme_path);
        assert_null(o.hardware);
        assert_null(o.placement);
        assert_null(o.schedule);
        assert_null(o.trace);
        for (int l = 0; l < PS_LANE_COUNT; l++)
            assert_true(o.throttle[l] == 0);
        assert_false(ps_options_discrete(&o));
        ps_options_fini(&o);
    }
}

static void values_arrive_typed(void **state)
{
    (void)state;
    struct ps_options o;
    struct ps_error err;
    int ret = parse(&o, PS_CMD_TRAIN,
                    ARGS("--device", "emu", "--gpu-mem", "8GiB", "--nvme-mem", "1.5TB",
                         "--strategy", "stream-lora", "--offload-weights", "device",
                         "--offload-activations", "device", "--offload-optimizer", "host",
                         "--prefetch-depth", "3", "--serial", "--queue-depth", "64", "--delay-seed",
                         "7", "--trace", "t.json", "--storage", "null"),
                    &err);
    if (ret)
        fail_msg("%s", err.message);
    assert_true(ps_options_discrete(&o));
    assert_int_equal(o.gpu_mem, 8LL << 30);
    assert_int_equal(o.nvme_mem, 1500000000000LL);
    assert_int_equal(o.offload_weights, PS_TIER_DEVICE);
    assert_int_equal(o.offload_activations, PS_ACT_DEVICE);
    assert_int_equal(o.offload_optimizer, PS_TIER_HOST);
    assert_int_equal(o.prefetch_depth, 3);
    assert_int_equal(o.queue_depth, 64);
    assert_int_equal(o.delay_seed, 7);
    assert_true(o.serial);
    assert_string_equal(o.trace, "t.json");
    ps_options_fini(&o);
}

static void host_activations_are_kept_where_they_arise_on_cpu(void **state)
{
    (void)state;
    struct ps_options o;
    struct ps_error err;
    assert_int_equal(parse(&o, PS_CMD_TRAIN, ARGS("--offload-activations", "host"), &err), 0);
    assert_int_equal(o.offload_activations, PS_ACT_KEEP);
    ps_options_fini(&o);
    assert_int_equal(parse(&o, PS_CMD_TRAIN, ARGS("--offload-activations=disk"), &err), 0);
    assert_int_equal(o.offload_activations, PS_ACT_DISK);
    ps_options_fini(&o);
}

static void throttles_are_read_by_lane_and_unit(void **state)
{
    (void)state;
    struct ps_options o;
    struct ps_error err;
    assert_int_equal(
        parse(&o, PS_CMD_TRAIN,
              ARGS("--throttle", "disk_weights=200MiB,compute=5e9,disk-write=1.5GB,cpu_optim=1e6"),
              &err),
        0);
    assert_true(o.throttle[PS_LANE_DISK_WEIGHTS] == 200.0 * 1048576);
    assert_true(o.throttle[PS_LANE_COMPUTE] == 5e9);
    assert_true(o.throttle[PS_LANE_DISK_WRITE] == 1.5e9);
    assert_true(o.throttle[PS_LANE_CPU_OPTIM] == 1e6);
    assert_true(o.throttle[PS_LANE_H2D] == 0 && o.throttle[PS_LANE_DISK_STATE] == 0);
    ps_options_fini(&o);

    static const char *const bad[][2] = {
        {"disc_weights=1", "disk_weights, disk_state"},
        {"compute", "LANE=RATE"},
        {"", "LANE=RATE"},
        {"compute=5e9,", "LANE=RATE"},
        {",compute=5e9", "LANE=RATE"},
        {"compute=5e9=3", "rates above 0"},
        {"compute=", "rates above 0"},
        {"compute=0", "rates above 0"},
        {"compute=-1", "rates above 0"},
        {"compute=nan", "rates above 0"},
        {"compute=1,compute=2", "twice"},
        {"compute=5e9 ", "rates above 0"},
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        ps_options_init(&o, PS_CMD_TRAIN);
        memset(&err, 0, sizeof err);
        if (ps_options_set(&o, "throttle", bad[i][0], "--throttle", &err) != PS_EUSAGE)
            fail_msg("accepted %s", bad[i][0]);
        assert_contains(err.message, bad[i][1]);
        for (int l = 0; l < PS_LANE_COUNT; l++)
            assert_true(o.throttle[l] == 0);
        ps_options_fini(&o);
    }
}

static void ablations_are_bits_by_name(void **state)
{
    (void)state;
    struct ps_options o;
    struct ps_error err;
    assert_int_equal(
        parse(&o, PS_CMD_TRAIN, ARGS("--ablate", "turns,cross_step,layer-major"), &err), 0);
    assert_int_equal(o.ablate, PS_ABLATE_TURNS | PS_ABLATE_CROSS_STEP | PS_ABLATE_LAYER_MAJOR);
    ps_options_fini(&o);
    static const char *const bad[] = {"turn", "turns,", "", "turns prefetch"};
    for (size_t i = 0; i < COUNT(bad); i++) {
        ps_options_init(&o, PS_CMD_TRAIN);
        memset(&err, 0, sizeof err);
        if (ps_options_set(&o, "ablate", bad[i], "--ablate", &err) != PS_EUSAGE)
            fail_msg("accepted %s", bad[i]);
        assert_contains(err.message, "prefetch, turns, cross-step, forwarding, layer-major");
        ps_options_fini(&o);
    }
}

static void paths_add_up_over_flags_and_a_flag_replaces_the_files(void **state)
{
    (void)state;
    FILE *f = fopen("run.yaml", "w");
    assert_non_null(f);
    assert_true(fputs("nvme_path: [/x, /y]\nablate: [turns, prefetch]\n", f) >= 0);
    assert_int_equal(fclose(f), 0);
    struct ps_options o;
    struct ps_error err;
    char path[16];
    assert_int_equal(parse(&o, PS_CMD_TRAIN, ARGS("run.yaml"), &err), 0);
    assert_string_equal(o.nvme_path, "/x,/y");
    assert_int_equal(o.ablate, PS_ABLATE_TURNS | PS_ABLATE_PREFETCH);
    ps_options_fini(&o);
    assert_int_equal(
        parse(&o, PS_CMD_TRAIN, ARGS("--nvme-path", "/a", "run.yaml", "--nvme-path=/b"), &err), 0);
    assert_true(ps_options_list_item(o.nvme_path, 0, path, sizeof path));
    assert_string_equal(path, "/a");
    assert_true(ps_options_list_item(o.nvme_path, 1, path, sizeof path));
    assert_string_equal(path, "/b");
    assert_false(ps_options_list_item(o.nvme_path, 2, path, sizeof path));
    assert_false(ps_options_list_item(o.nvme_path, 0, path, 2)); /* "/a" needs 3 */
    assert_false(ps_options_list_item(NULL, 0, path, sizeof path));
    ps_options_fini(&o);
}

static void listed_strategies_are_accepted_and_others_refused(void **state)
{
    (void)state;
    const char *names[PS_CATALOG_MAX];
    size_t count;
    struct ps_options o;
    struct ps_error err;
    assert_int_equal(ps_catalog_list("strategies", names, &count, &err), 0);
    assert_in_range(count, 4, PS_CATALOG_MAX);
    for (size_t i = 0; i < count; i++) {
        if (parse(&o, PS_CMD_TRAIN, ARGS("--strategy", names[i]), &err))
            fail_msg("%s: %s", names[i], err.message);
        ps_options_fini(&o);
    }
    assert_int_equal(parse(&o, PS_CMD_TRAIN, ARGS("--strategy", "stream_lorra"), &err), PS_EUSAGE);
    assert_contains(err.message, "resident, ");
    assert_contains(err.advice, "`stream-lora`");
    assert_string_equal(err.field, "strategy");
    ps_options_fini(&o);
}

static void what_has_no_effect_is_refused_with_the_reason(void **state)
{
    (void)state;
    static const struct {
        enum ps_command command;
        const char *args[10];
        const char *names[2];
    } cases[] = {
        {PS_CMD_TRAIN, {"--gpu-mem", "8GiB"}, {"gpu-mem", "cpu"}},
        {PS_CMD_TRAIN, {"--device", "cpu", "--gpu-mem", "auto"}, {"gpu-mem", "cpu"}},
        {PS_CMD_PLAN, {"--model", "m", "--device", "cpu", "--gpu-mem", "1GiB"}, {"gpu-mem", "cpu"}},
        {PS_CMD_TRAIN, {"--offload-weights", "device"}, {"offload-weights", "cpu"}},
        {PS_CMD_TRAIN, {"--offload-activations", "device"}, {"offload-activations", "cpu"}},
        {PS_CMD_TRAIN, {"--throttle", "h2d=1e9"}, {"throttle", "cpu"}},
        {PS_CMD_TRAIN, {"--throttle", "d2h=1e9"}, {"throttle", "cpu"}},
        {PS_CMD_TRAIN, {"--emu-clock", "virtual"}, {"emu-clock", "--device emu"}},
        {PS_CMD_TRAIN,
         {"--strategy", "resident", "--prefetch-depth", "2"},
         {"prefetch-depth", "resident"}},
        {PS_CMD_TRAIN,
         {"--strategy", "resident", "--offload-weights", "disk"},
         {"offload-weights", "resident"}},
        {PS_CMD_TRAIN,
         {"--strategy", "resident", "--queue-depth", "2"},
         {"queue-depth", "resident"}},
        {PS_CMD_TRAIN, {"--strategy", "resident", "--ablate", "turns"}, {"ablate", "resident"}},
        {PS_CMD_TRAIN,
         {"--placement", "p.json", "--strategy", "horizontal"},
         {"strategy", "--placement"}},
        {PS_CMD_TRAIN,
         {"--placement", "p.json", "--offload-activations", "host"},
         {"offload-activations", "--placement"}},
        {PS_CMD_TRAIN, {"--storage", "null"}, {"null", "strategy"}},
        {PS_CMD_TRAIN, {"--strategy", "auto", "--storage", "null"}, {"null", "auto"}},
        {PS_CMD_TRAIN, {"--disk-size", "1GiB"}, {"disk-size", "`train`"}},
        {PS_CMD_EVAL, {"--offload-activations", "host"}, {"offload-activations", "`eval`"}},
        {PS_CMD_EVAL, {"--trace", "t"}, {"trace", "`eval`"}},
        {PS_CMD_EXPORT, {"--throttle", "compute=1"}, {"throttle", "`export`"}},
        {PS_CMD_PLAN, {"--model", "m", "--dry-run"}, {"dry-run", "`plan`"}},
        {PS_CMD_BENCH, {"gemm", "--disk-size", "1GiB"}, {"disk-size", "bench disk"}},
        {PS_CMD_BENCH, {"disk", "--simulate-only"}, {"simulate-only", "bench sweep"}},
        {PS_CMD_BENCH, {"disk", "grid.yaml"}, {"grid", "bench sweep"}},
        {PS_CMD_BENCH, {"sweep"}, {"sweep", "grid"}},
        {PS_CMD_BENCH, {"sweep", "grid.yaml", "--threads", "2"}, {"threads", "bench sweep"}},
        {PS_CMD_BENCH, {"sweep", "grid.yaml", "gemm"}, {"sweep", "alone"}},
        {PS_CMD_BENCH, {"gem"}, {"`gem`", "measure"}},
        {PS_CMD_BENCH, {"gemm,"}, {"``", "measure"}},
        {PS_CMD_DOCTOR, {"--threads", "2"}, {"threads", "`doctor`"}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct ps_options o;
        struct ps_error err;
        int ret = parse(&o, cases[i].command, cases[i].args, &err);
        if (ret != PS_EUSAGE)
            fail_msg("case %zu (%s %s): %d", i, cases[i].args[0], cases[i].args[1], ret);
        assert_contains(err.message, cases[i].names[0]);
        assert_contains(err.message, cases[i].names[1]);
        ps_options_fini(&o);
    }
}

static void what_has_an_effect_is_accepted(void **state)
{
    (void)state;
    static const struct {
        enum ps_command command;
        const char *args[12];
    } cases[] = {
        {PS_CMD_PLAN, {"--model", "m"}},
        {PS_CMD_PLAN, {"--model", "m", "--gpu-mem", "24GiB", "--offload-weights", "device"}},
        {PS_CMD_PLAN, {"--model", "m", "--hardware", "h", "--gpu-mem", "auto"}},
        {PS_CMD_PLAN, {"--model", "m", "--gpu-mem", "24GiB", "--throttle", "h2d=1e9"}},
        {PS_CMD_TRAIN,
         {"--strategy", "resident", "--offload-activations", "disk", "--nvme-path", "x"}},
        {PS_CMD_TRAIN, {"--strategy", "resident", "--ablate", "forwarding,layer-major"}},
        {PS_CMD_TRAIN, {"--strategy", "horizontal", "--storage", "null"}},
        {PS_CMD_TRAIN, {"--placement", "p", "--schedule", "s", "--storage", "null"}},
        {PS_CMD_TRAIN, {"--offload-weights", "host"}},
        {PS_CMD_EVAL,
         {"--model", "m", "--data", "d", "--strategy", "stream-lora", "--host-mem", "1GiB"}},
        {PS_CMD_GENERATE, {"--model", "m", "--prompt", "p", "--nvme-path", "x", "--serial"}},
        {PS_CMD_EXPORT,
         {"--model", "m", "--adapter", "a", "--format", "hf", "--output", "o", "--host-mem",
          "1GiB"}},
        {PS_CMD_BENCH, {"--disk-seconds", "5", "--disk-size", "1GiB", "--nvme-path", "x"}},
        {PS_CMD_BENCH, {"sweep", "grid.yaml", "--simulate-only", "--output", "x.csv"}},
        {PS_CMD_DOCTOR, {"--nvme-path", "x", "--json"}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct ps_options o;
        struct ps_error err;
        if (parse(&o, cases[i].command, cases[i].args, &err))
            fail_msg("case %zu (%s %s): %s", i, cases[i].args[0], cases[i].args[1], err.message);
        ps_options_fini(&o);
    }
}

static void planning_for_a_gpu_needs_none(void **state)
{
    (void)state;
    struct ps_options o;
    struct ps_error err;
    assert_int_equal(parse(&o, PS_CMD_PLAN, ARGS("--model", "m", "--gpu-mem", "24GiB"), &err), 0);
    assert_true(ps_options_discrete(&o));
    ps_options_fini(&o);
}

static void bench_measures_all_parts_unless_told(void **state)
{
    (void)state;
    struct ps_options o;
    struct ps_error err;
    bool help;
    ps_options_init(&o, PS_CMD_BENCH);
    assert_int_equal(ps_options_parse_args(&o, 0, NULL, &help, &err), 0);
    assert_int_equal(ps_options_resolve(&o, &err), 0);
    assert_string_equal(o.bench_parts, "gemm,copy,disk,cpu-optim");
    assert_int_equal(o.disk_seconds, -1);
    assert_int_equal(o.disk_size, -1);
    ps_options_fini(&o);
    assert_int_equal(parse(&o, PS_CMD_BENCH, ARGS("gemm", "--json", "cpu-optim"), &err), 0);
    assert_string_equal(o.bench_parts, "gemm,cpu-optim");
    ps_options_fini(&o);
    assert_int_equal(parse(&o, PS_CMD_BENCH, ARGS("sweep", "grid.yaml"), &err), 0);
    assert_string_equal(o.bench_parts, "sweep");
    assert_string_equal(o.grid, "grid.yaml");
    ps_options_fini(&o);
}

static void hidden_options_stay_out_of_help_and_configuration(void **state)
{
    (void)state;
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    assert_non_null(f);
    ps_options_print_help(f, PS_CMD_TRAIN);
    assert_int_equal(fclose(f), 0);
    assert_null(strstr(text, "delay-seed"));
    assert_contains(text, "--queue-depth ");
    free(text);
    struct ps_options o;
    struct ps_error err;
    assert_int_equal(parse(&o, PS_CMD_TRAIN, ARGS("--delay-seed", "3"), &err), 0);
    assert_int_equal(o.delay_seed, 3);
    text = ps_options_to_yaml(&o);
    assert_non_null(text);
    assert_null(strstr(text, "delay"));
    free(text);
    ps_options_fini(&o);
}

/* A run goes on with another plan: what its configuration says of one is what was given. */
static void a_configuration_holds_only_the_planning_that_was_given(void **state)
{
    (void)state;
    static const char *const left_out[] = {"strategy",  "host_mem",       "nvme_mem", "offload_",
                                           "storage",   "queue_depth",    "serial",   "gpu_mem",
                                           "emu_clock", "prefetch_depth", "ablate",   "throttle"};
    struct ps_options o;
    struct ps_error err;
    assert_int_equal(parse(&o, PS_CMD_TRAIN, ARGS("--lora-r", "4"), &err), 0);
    char *text = ps_options_to_yaml(&o);
    assert_non_null(text);
    assert_contains(text, "lora_r: 4");
    for (size_t i = 0; i < COUNT(left_out); i++)
        if (strstr(text, left_out[i]))
            fail_msg("%s stands in\n%s", left_out[i], text);
    FILE *f = fopen("given.yaml", "w");
    assert_true(f && fputs(text, f) >= 0 && fclose(f) == 0);
    free(text);
    ps_options_fini(&o);
    static const char *const other[][3] = {
        {"--strategy", "resident", NULL}, {"--strategy", "stream-lora", NULL}, {"--serial", NULL}};
    for (size_t i = 0; i < COUNT(other); i++) {
        const char *args[5] = {"given.yaml", "--resume", other[i][0], other[i][1], NULL};
        if (parse(&o, PS_CMD_TRAIN, args, &err))
            fail_msg("%s: %s", other[i][0], err.message);
        ps_options_fini(&o);
    }
    assert_int_equal(parse(&o, PS_CMD_TRAIN, ARGS("--nvme-mem", "8GiB", "--storage", "ram"), &err),
                     0);
    text = ps_options_to_yaml(&o);
    assert_non_null(text);
    assert_contains(text, "nvme_mem: 8589934592");
    assert_contains(text, "storage: \"ram\"");
    free(text);
    ps_options_fini(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_given_means_the_planner_chooses),
        cmocka_unit_test(values_arrive_typed),
        cmocka_unit_test(host_activations_are_kept_where_they_arise_on_cpu),
        cmocka_unit_test(throttles_are_read_by_lane_and_unit),
        cmocka_unit_test(ablations_are_bits_by_name),
        cmocka_unit_test(paths_add_up_over_flags_and_a_flag_replaces_the_files),
        cmocka_unit_test(listed_strategies_are_accepted_and_others_refused),
        cmocka_unit_test(what_has_no_effect_is_refused_with_the_reason),
        cmocka_unit_test(what_has_an_effect_is_accepted),
        cmocka_unit_test(planning_for_a_gpu_needs_none),
        cmocka_unit_test(bench_measures_all_parts_unless_told),
        cmocka_unit_test(hidden_options_stay_out_of_help_and_configuration),
        cmocka_unit_test(a_configuration_holds_only_the_planning_that_was_given),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

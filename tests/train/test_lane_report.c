/* What the lanes did, as JSON and as text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/train/lane_report.h"

static const struct ps_lane_stats sample[PS_LANE_COUNT] = {
    [PS_LANE_COMPUTE] =
        {.busy_ns = 3000000000u,
         .stall_ns = {[PS_LANE_DISK_WEIGHTS] = 900000000u, [PS_LANE_D2H] = 1500000u},
         .tasks = 20},
    [PS_LANE_DISK_WEIGHTS] = {.busy_ns = 3900000000u,
                              .stall_ns = {[PS_LANE_COMPUTE] = 12345678u},
                              .bytes = (uint64_t)4 << 30,
                              .tasks = 40},
};

static json_t *parse(const char *fragment)
{
    char text[PS_LANE_JSON_BYTES + 2];
    json_error_t e;
    assert_true(snprintf(text, sizeof text, "{%s}", fragment) < (int)sizeof text);
    json_t *root = json_loads(text, 0, &e);
    if (!root)
        fail_msg("%s in %s", e.text, text);
    return root;
}

static double number(const json_t *root, const char *lane, const char *on)
{
    const json_t *l = json_object_get(json_object_get(root, "lanes"), lane);
    const json_t *v =
        on ? json_object_get(json_object_get(l, "stall_on"), on) : json_object_get(l, "busy_s");
    return v ? json_number_value(v) : -1;
}

static void json_has_busy_and_stall_of_the_lanes_at_work(void **state)
{
    (void)state;
    char buf[PS_LANE_JSON_BYTES];
    json_t *root = parse(ps_lane_report_json(sample, buf));
    assert_int_equal(json_object_size(json_object_get(root, "lanes")), 2);
    assert_true(number(root, "compute", NULL) == 3.0);
    assert_true(number(root, "compute", "disk_weights") == 0.9);
    assert_true(number(root, "compute", "d2h") == 0.0015);
    assert_true(number(root, "compute", "h2d") == -1);
    assert_true(number(root, "disk_weights", NULL) == 3.9);
    assert_true(number(root, "disk_weights", "compute") == 0.012345);
    json_decref(root);
}

static void an_idle_run_still_has_its_compute_lane(void **state)
{
    (void)state;
    static const struct ps_lane_stats none[PS_LANE_COUNT];
    char buf[PS_LANE_JSON_BYTES];
    json_t *root = parse(ps_lane_report_json(none, buf));
    assert_true(number(root, "compute", NULL) == 0);
    json_decref(root);
}

static void the_longest_report_fits_and_ignores_the_locale(void **state)
{
    (void)state;
    struct ps_lane_stats full[PS_LANE_COUNT];
    double predicted[PS_LANE_COUNT];
    memset(full, 0xff, sizeof full); /* every number at its largest */
    for (int l = 0; l < PS_LANE_COUNT; l++)
        predicted[l] = 1.23456789e300;
    char buf[PS_LANE_JSON_BYTES + 8];
    memset(buf, 'x', sizeof buf);
    bool comma = setlocale(LC_NUMERIC, "de_DE.UTF-8") != NULL; /* may be missing */
    ps_lane_report_json(full, buf);
    if (comma)
        setlocale(LC_NUMERIC, "C");
    assert_memory_equal(buf + PS_LANE_JSON_BYTES, "xxxxxxxx", 8);
    json_t *root = parse(buf);
    assert_int_equal(json_object_size(json_object_get(root, "lanes")), PS_LANE_COUNT);
    assert_true(number(root, "commit", "cpu_optim") > 1e10);
    json_decref(root);
    struct ps_lane_report r = {.steps = UINT64_MAX,
                               .seconds = 1e300,
                               .stats = full,
                               .disk_read_bytes = UINT64_MAX,
                               .disk_write_bytes = UINT64_MAX,
                               .predicted_step_s = 1e-300,
                               .predicted_busy_s = predicted,
                               .predicted_read_bytes = UINT64_MAX,
                               .predicted_write_bytes = UINT64_MAX};
    char text[PS_LANE_TEXT_BYTES + 8];
    memset(text, 'x', sizeof text);
    ps_lane_report_text(&r, text);
    assert_memory_equal(text + PS_LANE_TEXT_BYTES, "xxxxxxxx", 8);
}

static void sums_and_bottleneck_follow_the_numbers(void **state)
{
    (void)state;
    struct ps_lane_stats total[PS_LANE_COUNT];
    memcpy(total, sample, sizeof total);
    ps_lane_stats_add(total, sample);
    assert_int_equal(total[PS_LANE_COMPUTE].busy_ns, 6000000000u);
    assert_int_equal(total[PS_LANE_COMPUTE].stall_ns[PS_LANE_DISK_WEIGHTS], 1800000000u);
    assert_int_equal(total[PS_LANE_DISK_WEIGHTS].bytes, (uint64_t)8 << 30);
    assert_int_equal(total[PS_LANE_DISK_WEIGHTS].tasks, 80);
    assert_int_equal(ps_lane_bottleneck(total), PS_LANE_DISK_WEIGHTS);
    total[PS_LANE_COMPUTE].busy_ns = total[PS_LANE_DISK_WEIGHTS].busy_ns + 1;
    assert_int_equal(ps_lane_bottleneck(total), PS_LANE_COMPUTE);
    assert_true(fabs(ps_lane_stall_s(&sample[PS_LANE_COMPUTE]) - 0.9015) < 1e-12);
}

static void assert_contains(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in:\n%s", part, text);
}

static void the_summary_puts_prediction_beside_run(void **state)
{
    (void)state;
    static const double busy[PS_LANE_COUNT] = {
        [PS_LANE_COMPUTE] = 1.4, [PS_LANE_DISK_WEIGHTS] = 1.9};
    struct ps_lane_report r = {.steps = 2,
                               .seconds = 4.0,
                               .stats = sample,
                               .disk_read_bytes = (uint64_t)4 << 30,
                               .predicted_step_s = 1.9,
                               .predicted_busy_s = busy,
                               .predicted_read_bytes = (uint64_t)2 << 30};
    char text[PS_LANE_TEXT_BYTES];
    ps_lane_report_text(&r, text);
    assert_contains(text, "2 s measured over 2 steps, 1.9 s predicted (measured is +5.3%)\n");
    assert_contains(text, "compute      busy       1.5 s/step  75.0%  predicted       1.4 s\n");
    assert_contains(text, "disk_weights busy      1.95 s/step  97.5%  predicted       1.9 s  "
                          "2.00 GiB/step at 1.03 GiB/s\n");
    assert_contains(text, "compute waited 0.451 s/step (22.5%): 0.00075 s for d2h, 0.45 s for "
                          "disk_weights\n");
    assert_contains(text, "bottleneck disk_weights, busy 97.5% of the time\n");
    assert_contains(text, "read 2.00 GiB/step (2.00 GiB predicted), written 0 B/step\n");
    assert_null(strstr(text, "h2d  "));
    r.steps = 0;
    assert_string_equal(ps_lane_report_text(&r, text), "");
}

static void without_prediction_and_disk_only_the_run_is_told(void **state)
{
    (void)state;
    struct ps_lane_report r = {.steps = 1, .seconds = 4.0, .stats = sample};
    char text[PS_LANE_TEXT_BYTES];
    ps_lane_report_text(&r, text);
    assert_null(strstr(text, "predicted"));
    assert_null(strstr(text, "disk   "));
    assert_contains(text, "4 s measured over 1 step\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_has_busy_and_stall_of_the_lanes_at_work),
        cmocka_unit_test(an_idle_run_still_has_its_compute_lane),
        cmocka_unit_test(the_longest_report_fits_and_ignores_the_locale),
        cmocka_unit_test(sums_and_bottleneck_follow_the_numbers),
        cmocka_unit_test(the_summary_puts_prediction_beside_run),
        cmocka_unit_test(without_prediction_and_disk_only_the_run_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The Chrome trace: what is read back is what was recorded. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "runtime/train/trace.h"
#include "tests/helpers/random_schedule.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define N 6

/* A read of layer 0 and of layer 1 into two slots, a forward of each, a backward of each; the read
 * for the next period trails. */
static void build(struct ps_schedule *s)
{
    ps_schedule_init(s, "train");
    uint32_t slots = ps_schedule_buffer(s, PS_TIER_DEVICE, 2000, "slots");
    uint32_t x = ps_schedule_buffer(s, PS_TIER_DEVICE, 300, "x");
    uint32_t disk = ps_schedule_buffer(s, PS_TIER_DISK, 5000, "files");
    uint32_t t = ps_schedule_task(s, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, 1);
    s->task[t].bytes = 1000;
    ps_schedule_access(s, disk, false, 1000, 1000);
    ps_schedule_access(s, slots, true, 1000, 1000);
    t = ps_schedule_task(s, PS_TASK_LAYER_FORWARD, PS_LANE_COMPUTE, 0);
    s->task[t].flops = 5e9;
    s->task[t].micro = 2;
    ps_schedule_access(s, slots, false, 0, 1000);
    ps_schedule_access(s, x, true, 0, 100);
    ps_schedule_dep(s, 5, 1);
    t = ps_schedule_task(s, PS_TASK_LAYER_FORWARD, PS_LANE_COMPUTE, 1);
    s->task[t].micro = 2;
    ps_schedule_access(s, slots, false, 1000, 1000);
    ps_schedule_access(s, x, false, 0, 100);
    ps_schedule_access(s, x, true, 100, 200);
    ps_schedule_dep(s, 0, 0);
    t = ps_schedule_task(s, PS_TASK_LAYER_BACKWARD, PS_LANE_COMPUTE, 1);
    ps_schedule_access(s, slots, false, 1000, 1000);
    ps_schedule_access(s, x, true, 100, 200);
    t = ps_schedule_task(s, PS_TASK_CLIP, PS_LANE_COMPUTE, PS_UNIT_ALL);
    t = ps_schedule_task(s, PS_TASK_READ_WEIGHTS, PS_LANE_DISK_WEIGHTS, 0);
    s->task[t].bytes = 1000;
    s->task[t].flags = PS_TASK_TRAILS;
    ps_schedule_access(s, disk, false, 0, 1000);
    ps_schedule_access(s, slots, true, 0, 1000);
    ps_schedule_dep(s, 1, 0);
    assert_int_equal(s->fault, 0);
    assert_int_equal(s->task_count, N);
}

/* ns from the beginning of a period; the second read was queued while the first was under way */
static void fill(struct ps_task_record *r, uint64_t at)
{
    static const uint64_t time[N][2] = {{100, 4100},  {0, 2000},    {4200, 6200},
                                        {6200, 8200}, {8200, 8200}, {2500, 9100}};
    memset(r, 0, N * sizeof *r);
    for (int i = 0; i < N; i++) {
        r[i].start_ns = at + time[i][0];
        r[i].end_ns = at + time[i][1];
        r[i].ready_ns = r[i].start_ns;
        r[i].waited_on = -1;
    }
    r[2].ready_ns = at + 2000;
    r[2].waited_on = 0;
    r[0].throttle_ns = 1500;
}

static json_t *load(const char *path)
{
    json_error_t e;
    json_t *root = json_load_file(path, 0, &e);
    if (!root)
        fail_msg("%s: line %d: %s", path, e.line, e.text);
    assert_true(json_is_array(root));
    return root;
}

static const char *text_of(const json_t *event, const char *key)
{
    const char *v = json_string_value(json_object_get(event, key));
    return v ? v : "";
}

/* Microseconds in the file, ns here. */
static int64_t ns_of(const json_t *event, const char *key)
{
    const json_t *v = json_object_get(event, key);
    assert_true(json_is_number(v));
    return llround(json_number_value(v) * 1000);
}

static int64_t int_of(const json_t *event, const char *key)
{
    const json_t *v = json_object_get(event, key);
    assert_true(json_is_integer(v));
    return (int64_t)json_integer_value(v);
}

static bool is_phase(const json_t *event, const char *phase)
{
    return !strcmp(text_of(event, "ph"), phase);
}

static bool is_task(const json_t *event)
{
    return is_phase(event, "X") && int_of(event, "tid") > 0;
}

static const json_t *find_task(const json_t *root, const char *name, int pid, int nth)
{
    for (size_t i = 0; i < json_array_size(root); i++) {
        const json_t *e = json_array_get(root, i);
        if (is_task(e) && int_of(e, "pid") == pid && !strcmp(text_of(e, "name"), name) &&
            nth-- == 0)
            return e;
    }
    fail_msg("no event %s", name);
    return NULL;
}

/* Two actual periods with their predictions. */
static json_t *two_periods(void)
{
    struct ps_schedule s;
    struct ps_task_record actual[N];
    struct ps_task_record predicted[N];
    struct ps_trace *t = NULL;
    struct ps_error err = {0};
    build(&s);
    fill(predicted, 0);
    PS_IGNORE(unlink("trace.json"), "another test's, or none");
    assert_int_equal(ps_trace_open(&t, "trace.json", &err), 0);
    for (uint64_t p = 0; p < 2; p++) {
        fill(actual, 1000000 + p * 10000);
        assert_int_equal(ps_trace_period(t, &s, actual, 7 + p, false, &err), 0);
        assert_int_equal(ps_trace_period(t, &s, actual, 7 + p, false, &err),
                         0); /* again: ignored */
        assert_int_equal(ps_trace_period(t, &s, predicted, 7 + p, true, &err), 0);
    }
    assert_int_not_equal(access("trace.json", F_OK), 0);
    assert_int_equal(ps_trace_close(t, &err), 0);
    ps_schedule_fini(&s);
    return load("trace.json");
}

static void every_task_is_an_event_and_lane_sums_are_those_of_the_records(void **state)
{
    (void)state;
    json_t *root = two_periods();
    int64_t sum[2][PS_LANE_COUNT] = {{0}};
    int events[2] = {0};
    int64_t base[2] = {0, 0};
    for (size_t i = 0; i < json_array_size(root); i++) {
        const json_t *e = json_array_get(root, i);
        if (!is_task(e))
            continue;
        int64_t pid = int_of(e, "pid");
        assert_in_range(pid, 1, 2);
        sum[pid - 1][int_of(e, "tid") - 1] += ns_of(e, "dur");
        events[pid - 1]++;
        assert_true(ns_of(e, "ts") >= base[pid - 1]);
    }
    for (int p = 0; p < 2; p++) {
        assert_int_equal(events[p], 2 * N);
        /* compute: 2000 + 2000 + 2000, and the clip that took no time is drawn as 1 */
        assert_int_equal(sum[p][PS_LANE_COMPUTE], 2 * 6001);
        /* disk: 4000, then 5000 from the end of the first read */
        assert_int_equal(sum[p][PS_LANE_DISK_WEIGHTS], 2 * 9000);
        assert_int_equal(sum[p][PS_LANE_H2D], 0);
    }
    json_decref(root);
}

static void events_say_what_their_task_is(void **state)
{
    (void)state;
    json_t *root = two_periods();
    const json_t *e = find_task(root, "forward 1.2", 1, 1);
    const json_t *args = json_object_get(e, "args");
    assert_int_equal(ns_of(e, "ts"), 14200);
    assert_int_equal(ns_of(e, "dur"), 2000);
    assert_string_equal(text_of(args, "kind"), "forward");
    assert_int_equal(int_of(args, "unit"), 1);
    assert_int_equal(int_of(args, "micro"), 2);
    assert_int_equal(int_of(args, "step"), 8);
    assert_int_equal(ns_of(args, "wait_us"), 2200);
    assert_string_equal(text_of(args, "waited_for"), "read_weights 1");
    assert_string_equal(text_of(args, "waited_lane"), "disk_weights");
    assert_null(json_object_get(args, "bytes"));
    args = json_object_get(find_task(root, "forward 0.2", 1, 0), "args");
    assert_true(json_number_value(json_object_get(args, "flops")) == 5e9);
    assert_null(json_object_get(args, "waited_for"));
    args = json_object_get(find_task(root, "read_weights 0", 1, 0), "args");
    assert_int_equal(int_of(args, "bytes"), 1000);
    assert_int_equal(ns_of(args, "queued_us"), 1600);
    args = json_object_get(find_task(root, "read_weights 1", 1, 0), "args");
    assert_int_equal(ns_of(args, "throttle_us"), 1500);
    find_task(root, "clip", 2, 1);
    json_decref(root);
}

static bool inside_an_event(const json_t *root, const json_t *point)
{
    for (size_t i = 0; i < json_array_size(root); i++) {
        const json_t *e = json_array_get(root, i);
        if (is_phase(e, "X") && int_of(e, "pid") == int_of(point, "pid") &&
            int_of(e, "tid") == int_of(point, "tid") && ns_of(e, "ts") <= ns_of(point, "ts") &&
            ns_of(point, "ts") < ns_of(e, "ts") + ns_of(e, "dur"))
            return true;
    }
    return false;
}

static void arrows_come_in_pairs_between_lanes(void **state)
{
    (void)state;
    json_t *root = two_periods();
    const json_t *begin[64] = {NULL};
    const json_t *end[64] = {NULL};
    int count = 0;
    for (size_t i = 0; i < json_array_size(root); i++) {
        const json_t *e = json_array_get(root, i);
        bool s = is_phase(e, "s");
        if (!s && !is_phase(e, "f"))
            continue;
        int64_t id = int_of(e, "id");
        assert_in_range(id, 1, COUNT(begin) - 1);
        const json_t **slot = s ? &begin[id] : &end[id];
        assert_null(*slot);
        *slot = e;
        count += s;
        assert_true(inside_an_event(root, e));
    }
    /* a process: two of each period, and one from the first period to the second */
    assert_int_equal(count, 2 * 5);
    int over = 0;
    for (int i = 0; i < (int)COUNT(begin); i++) {
        assert_true(!begin[i] == !end[i]);
        if (!begin[i])
            continue;
        assert_int_equal(int_of(begin[i], "pid"), int_of(end[i], "pid"));
        assert_int_not_equal(int_of(begin[i], "tid"), int_of(end[i], "tid"));
        assert_true(ns_of(begin[i], "ts") < ns_of(end[i], "ts"));
        over += int_of(begin[i], "pid") == 1 && ns_of(begin[i], "ts") == 9099 &&
                ns_of(end[i], "ts") == 10000;
    }
    assert_int_equal(over, 1);
    json_decref(root);
}

static void a_prediction_begins_where_its_period_began(void **state)
{
    (void)state;
    json_t *root = two_periods();
    for (int nth = 0; nth < 2; nth++) {
        const json_t *a = find_task(root, "forward 0.2", 1, nth);
        const json_t *p = find_task(root, "forward 0.2", 2, nth);
        assert_int_equal(ns_of(a, "ts"), 10000 * nth);
        assert_int_equal(ns_of(p, "ts"), ns_of(a, "ts"));
    }
    json_decref(root);
}

static void predictions_alone_follow_one_another(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_task_record r[N];
    struct ps_trace *t = NULL;
    struct ps_error err = {0};
    build(&s);
    fill(r, 500);
    assert_int_equal(ps_trace_open(&t, "plan.json", &err), 0);
    assert_int_equal(ps_trace_period(t, &s, r, 1, true, &err), 0);
    assert_int_equal(ps_trace_period(t, &s, r, 1, true, &err), 0);
    assert_int_equal(ps_trace_close(t, &err), 0);
    json_t *root = load("plan.json");
    assert_int_equal(ns_of(find_task(root, "forward 0.2", 2, 0), "ts"), 0);
    /* the first ends with the clip, at 8201; its trailing read goes on until 9100 */
    assert_int_equal(ns_of(find_task(root, "forward 0.2", 2, 1), "ts"), 8201);
    json_decref(root);
    ps_schedule_fini(&s);
}

static void processes_and_tracks_have_names(void **state)
{
    (void)state;
    json_t *root = two_periods();
    int processes = 0;
    int lanes = 0;
    for (size_t i = 0; i < json_array_size(root); i++) {
        const json_t *e = json_array_get(root, i);
        if (!is_phase(e, "M"))
            continue;
        const char *name = text_of(json_object_get(e, "args"), "name");
        if (!strcmp(text_of(e, "name"), "process_name")) {
            assert_string_equal(name, int_of(e, "pid") == 1 ? "actual" : "predicted");
            processes++;
        } else if (!strcmp(text_of(e, "name"), "thread_name") && int_of(e, "tid") > 0) {
            assert_string_equal(name, ps_lane_name((enum ps_lane)(int_of(e, "tid") - 1)));
            lanes++;
        }
    }
    assert_int_equal(processes, 2);
    assert_int_equal(lanes, 4); /* compute and disk_weights of both */
    json_decref(root);
}

static int64_t level_at(const json_t *root, const char *name, int64_t ns)
{
    int64_t level = -1;
    int64_t last = -1;
    for (size_t i = 0; i < json_array_size(root); i++) {
        const json_t *e = json_array_get(root, i);
        if (!is_phase(e, "C") || strcmp(text_of(e, "name"), name) || int_of(e, "pid") != 1)
            continue;
        assert_true(ns_of(e, "ts") >= last);
        last = ns_of(e, "ts");
        if (last <= ns)
            level = int_of(json_object_get(e, "args"), "bytes");
    }
    return level;
}

static void levels_are_the_bytes_that_are_still_needed(void **state)
{
    (void)state;
    json_t *root = two_periods();
    /* layer 0 from the read before until its forward; layer 1 from 100 to 8200; x[0] 0 to 6200 and
     * x[1] from 4200 to 8200; layer 0 again from the read that begins at 4100 */
    static const int64_t at[][2] = {{50, 1000 + 100}, {1000, 2100},       {3000, 1000 + 100},
                                    {4150, 2100},     {5000, 2000 + 300}, {7000, 2000 + 200},
                                    {8201, 1000},     {9500, 1000},       {10050, 1000 + 100},
                                    {15000, 2300}};
    for (size_t i = 0; i < COUNT(at); i++)
        if (level_at(root, "bytes device", at[i][0]) != at[i][1])
            fail_msg("at %lld: %lld, not %lld", (long long)at[i][0],
                     (long long)level_at(root, "bytes device", at[i][0]), (long long)at[i][1]);
    assert_int_equal(level_at(root, "bytes disk", 5000), 2000);
    assert_int_equal(level_at(root, "bytes host", 5000), -1);
    json_decref(root);
}

static void live_ranges_are_by_piece_and_tier(void **state)
{
    (void)state;
    struct ps_schedule s;
    build(&s);
    struct ps_live_range *range = NULL;
    uint32_t count = 0;
    assert_int_equal(ps_schedule_live_ranges(&s, &range, &count), 0);
    static const struct ps_live_range want[] = {
        {0, 3, PS_TIER_DEVICE, 1000},          {1, 2, PS_TIER_DEVICE, 100},
        {2, 3, PS_TIER_DEVICE, 200},           {5, UINT32_MAX, PS_TIER_DEVICE, 1000},
        {UINT32_MAX, 1, PS_TIER_DEVICE, 1000}, {UINT32_MAX, UINT32_MAX, PS_TIER_DISK, 2000},
    };
    assert_int_equal(count, COUNT(want));
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(range[i].from, want[i].from);
        assert_int_equal(range[i].to, want[i].to);
        assert_int_equal(range[i].tier, want[i].tier);
        assert_int_equal(range[i].bytes, want[i].bytes);
    }
    free(range);
    ps_schedule_fini(&s);
}

/* Bytes of a tier that are live while task `at` runs, tasks running one by one. */
static uint64_t live_at(const struct ps_live_range *r, uint32_t count, enum ps_tier tier,
                        uint32_t at)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++)
        if (r[i].tier == tier && (r[i].from == UINT32_MAX || r[i].from <= at) &&
            (r[i].to == UINT32_MAX || r[i].to >= at))
            bytes += r[i].bytes;
    return bytes;
}

/* Distinct bytes of a tier that a task declares. Buffers of random schedules are at most 24 bytes.
 */
static uint64_t touched(const struct ps_schedule *s, const struct ps_task *task, enum ps_tier tier)
{
    uint64_t bytes = 0;
    for (uint32_t b = 0; b < s->buffer_count; b++)
        for (uint64_t at = 0; at < s->buffer[b].bytes && s->buffer[b].tier == tier; at++) {
            bool hit = false;
            for (uint32_t k = 0; k < task->access_count; k++) {
                const struct ps_access *a = &s->access[task->access_begin + k];
                hit = hit || (a->buffer == b && a->offset <= at && at < a->offset + a->bytes);
            }
            bytes += hit;
        }
    return bytes;
}

static void what_a_task_touches_is_live_and_no_more_than_there_is(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        uint64_t random = seed;
        struct ps_schedule s;
        struct ps_live_range *range = NULL;
        uint32_t count = 0;
        random_schedule(&s, "random", &random, 20);
        assert_int_equal(ps_schedule_live_ranges(&s, &range, &count), 0);
        for (int tier = 0; tier < PS_TIER_COUNT; tier++) {
            uint64_t all = 0;
            for (uint32_t b = 0; b < s.buffer_count; b++)
                all += s.buffer[b].tier == (enum ps_tier)tier ? s.buffer[b].bytes : 0;
            for (uint32_t i = 0; i < s.task_count; i++) {
                uint64_t live = live_at(range, count, (enum ps_tier)tier, i);
                if (live > all || live < touched(&s, &s.task[i], (enum ps_tier)tier))
                    fail_msg("seed %llu, task %u: %llu live", (unsigned long long)seed, i,
                             (unsigned long long)live);
            }
        }
        free(range);
        ps_schedule_fini(&s);
    }
}

static int work(void *ctx, const struct ps_task *task, struct ps_error *err)
{
    (void)ctx;
    (void)err;
    usleep((useconds_t)(task->bytes % 200));
    return 0;
}

/* Real records: what is drawn of a lane is the busy time that the executor counts. */
static void drawn_times_are_the_executors_busy_times(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        uint64_t random = seed;
        struct ps_schedule s;
        struct ps_executor *ex = NULL;
        struct ps_trace *t = NULL;
        struct ps_error err = {0};
        struct ps_executor_options opt = {0};
        for (int k = 0; k < PS_TASK_KIND_COUNT; k++)
            opt.ops[k] = (struct ps_task_ops){work, work, work};
        random_schedule(&s, "random", &random, 30);
        assert_int_equal(ps_schedule_derive(&s, &err), 0);
        assert_int_equal(ps_executor_create(&ex, &opt, &err), 0);
        assert_int_equal(ps_executor_bind(ex, &s), 0);
        assert_int_equal(ps_trace_open(&t, "real.json", &err), 0);
        for (uint64_t p = 0; p < 3; p++) {
            assert_int_equal(ps_executor_run(ex, 0, &err), 0);
            assert_int_equal(ps_executor_drain(ex, &err), 0);
            assert_int_equal(ps_trace_period(t, &s, ps_executor_records(ex, 0), p + 1, false, &err),
                             0);
        }
        struct ps_lane_stats stats[PS_LANE_COUNT];
        ps_executor_stats(ex, stats);
        ps_executor_destroy(ex);
        assert_int_equal(ps_trace_close(t, &err), 0);
        json_t *root = load("real.json");
        uint64_t sum[PS_LANE_COUNT] = {0};
        uint64_t events[PS_LANE_COUNT] = {0};
        for (size_t i = 0; i < json_array_size(root); i++) {
            const json_t *e = json_array_get(root, i);
            if (!is_task(e))
                continue;
            sum[int_of(e, "tid") - 1] += (uint64_t)ns_of(e, "dur");
            events[int_of(e, "tid") - 1]++;
        }
        for (int l = 0; l < PS_LANE_COUNT; l++) {
            assert_int_equal(events[l], stats[l].tasks);
            assert_in_range(sum[l], stats[l].busy_ns, stats[l].busy_ns + events[l]);
        }
        json_decref(root);
        ps_schedule_fini(&s);
    }
}

static void a_full_disk_is_reported_and_leaves_no_file(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_task_record r[N];
    struct ps_trace *t = NULL;
    struct ps_error err = {0};
    struct rlimit old;
    build(&s);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    struct rlimit small = {.rlim_cur = 100000, .rlim_max = old.rlim_max};
    assert_true(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_int_equal(ps_trace_open(&t, "full.json", &err), 0);
    int ret = 0;
    uint64_t p = 0;
    for (; p < 300 && ret == 0; p++) {
        fill(r, 1 + p * 10000);
        ret = ps_trace_period(t, &s, r, p, false, &err);
    }
    int again = ps_trace_period(t, &s, r, p, false, NULL);
    struct ps_error closing = {0};
    int closed = ps_trace_close(t, &closing);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_true(ret < 0 && again == ret && closed == ret);
    assert_true(p < 300);
    assert_string_equal(err.file, "full.json");
    assert_string_equal(closing.message, err.message);
    assert_int_not_equal(access("full.json", F_OK), 0);
    ps_schedule_fini(&s);
}

static void tasks_that_did_not_run_are_left_out(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_task_record r[N];
    struct ps_trace *t = NULL;
    struct ps_error err = {0};
    build(&s);
    fill(r, 1000);
    memset(&r[5], 0, sizeof r[5]);
    assert_int_equal(ps_trace_open(&t, "part.json", &err), 0);
    assert_int_equal(ps_trace_period(t, &s, r, 1, false, &err), 0);
    memset(r, 0, sizeof r);
    assert_int_equal(ps_trace_period(t, &s, r, 2, false, &err), 0);
    assert_int_equal(ps_trace_period(t, &s, NULL, 2, false, &err), 0);
    assert_int_equal(ps_trace_close(t, &err), 0);
    json_t *root = load("part.json");
    int events = 0;
    for (size_t i = 0; i < json_array_size(root); i++)
        events += is_task(json_array_get(root, i));
    assert_int_equal(events, N - 1);
    assert_int_equal(level_at(root, "bytes device", 8201), 1000); /* the read is still to come */
    json_decref(root);
    ps_schedule_fini(&s);
}

static void long_traces_are_whole(void **state)
{
    (void)state;
    struct ps_schedule s;
    struct ps_task_record r[N];
    struct ps_trace *t = NULL;
    struct ps_error err = {0};
    build(&s);
    assert_int_equal(ps_trace_open(&t, "long.json", &err), 0);
    for (uint64_t p = 0; p < 300; p++) { /* several buffers */
        fill(r, 1 + p * 10000);
        assert_int_equal(ps_trace_period(t, &s, r, p, false, &err), 0);
    }
    assert_int_equal(ps_trace_close(t, &err), 0);
    json_t *root = load("long.json");
    int events = 0;
    for (size_t i = 0; i < json_array_size(root); i++)
        events += is_task(json_array_get(root, i));
    assert_int_equal(events, 300 * N);
    json_decref(root);
    ps_schedule_fini(&s);
}

static void a_trace_without_periods_is_valid_and_a_discarded_one_is_none(void **state)
{
    (void)state;
    struct ps_trace *t = NULL;
    struct ps_error err = {0};
    assert_int_equal(ps_trace_open(&t, "empty.json", &err), 0);
    assert_int_equal(ps_trace_close(t, &err), 0);
    json_t *root = load("empty.json");
    assert_int_equal(json_array_size(root), 0);
    json_decref(root);
    assert_int_equal(ps_trace_open(&t, "gone.json", &err), 0);
    ps_trace_discard(t);
    assert_int_not_equal(access("gone.json", F_OK), 0);
    assert_true(ps_trace_open(&t, "absent/trace.json", &err) < 0);
    assert_non_null(strstr(err.file, "absent"));
    assert_int_equal(ps_trace_close(NULL, &err), 0);
    ps_trace_discard(NULL);
}

static void labels_name_kind_unit_and_micro_batch(void **state)
{
    (void)state;
    static const struct {
        enum ps_task_kind kind;
        int32_t unit, micro;
        const char *label;
    } cases[] = {
        {PS_TASK_LAYER_FORWARD, 3, 1, "forward 3.1"},
        {PS_TASK_LAYER_BACKWARD, 79, -1, "backward 79"},
        {PS_TASK_HEAD, PS_UNIT_HEAD, 0, "head #0"},
        {PS_TASK_EMBED, PS_UNIT_EMBED, -1, "embed"},
        {PS_TASK_READ_WEIGHTS, PS_UNIT_HEAD, -1, "read_weights head"},
        {PS_TASK_COPY_BATCH, PS_UNIT_ALL, 2, "copy_batch #2"},
        {PS_TASK_CLIP, PS_UNIT_ALL, -1, "clip"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct ps_task task = {
            .kind = cases[i].kind, .unit = cases[i].unit, .micro = cases[i].micro};
        char buf[80];
        assert_string_equal(ps_task_label(&task, buf, sizeof buf), cases[i].label);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_is_an_event_and_lane_sums_are_those_of_the_records),
        cmocka_unit_test(events_say_what_their_task_is),
        cmocka_unit_test(arrows_come_in_pairs_between_lanes),
        cmocka_unit_test(a_prediction_begins_where_its_period_began),
        cmocka_unit_test(predictions_alone_follow_one_another),
        cmocka_unit_test(processes_and_tracks_have_names),
        cmocka_unit_test(levels_are_the_bytes_that_are_still_needed),
        cmocka_unit_test(live_ranges_are_by_piece_and_tier),
        cmocka_unit_test(what_a_task_touches_is_live_and_no_more_than_there_is),
        cmocka_unit_test(drawn_times_are_the_executors_busy_times),
        cmocka_unit_test(a_full_disk_is_reported_and_leaves_no_file),
        cmocka_unit_test(tasks_that_did_not_run_are_left_out),
        cmocka_unit_test(long_traces_are_whole),
        cmocka_unit_test(a_trace_without_periods_is_valid_and_a_discarded_one_is_none),
        cmocka_unit_test(labels_name_kind_unit_and_micro_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Lanes that launch ahead of a device's queues: order, bounds, failures, records. The device is
 * three threads, each of which does what was launched on it in order, some of it late. */
#include "tests/train/executor_recorder.h"

enum { OPS = 512 };

enum op_kind { OP_WORK, OP_WAIT, OP_MARK };

struct op {
    enum op_kind kind;
    const struct ps_task *task; /* OP_WORK */
    enum ps_queue on;           /* OP_WAIT */
    uint64_t count;             /* OP_WAIT: that many marks of `on` passed */
};

/* guarded by the recorder's m, but for what is set before */
struct ps_queues {
    struct recorder r;
    struct fake_queue {
        struct ps_queues *all;
        pthread_t thread;
        struct op op[OPS]; /* ring */
        uint64_t queued, done;
        uint64_t marks, passed;              /* set, passed */
        uint64_t mark_at[PS_EXECUTOR_MARKS]; /* number of the mark set last in this place */
        uint32_t ahead, ahead_max;           /* works launched and not done */
    } queue[PS_QUEUE_COUNT];
    bool quit, stuck; /* stuck: the device does nothing */
    /* set before the run */
    bool no_waits; /* the bug: queues do not wait for one another */
    int fail_sync; /* the n-th sync fails; 0: none */
    int syncs;
    uint64_t seed;
    uint64_t duration_ns; /* what sync says */
    int (*run)(void *ctx, const struct ps_task *t, struct ps_error *err);
};

static void *device(void *arg)
{
    struct fake_queue *f = arg;
    struct ps_queues *q = f->all;
    uint64_t x = q->seed + (uint64_t)(f - q->queue);
    struct ps_error err = {0};
    pthread_mutex_lock(&q->r.m);
    while (true) {
        while (!q->quit && (f->done == f->queued || q->stuck))
            pthread_cond_wait(&q->r.changed, &q->r.m);
        if (f->done == f->queued)
            break;
        struct op op = f->op[f->done % OPS];
        while (op.kind == OP_WAIT && q->queue[op.on].passed < op.count)
            pthread_cond_wait(&q->r.changed, &q->r.m);
        pthread_mutex_unlock(&q->r.m);
        if (q->seed && mix(&x) % 4 == 0)
            sleep_ns(mix(&x) % 100000);
        if (op.kind == OP_WORK)
            (void)!run_task(&q->r, op.task, &err);
        pthread_mutex_lock(&q->r.m);
        f->passed += op.kind == OP_MARK;
        f->ahead -= op.kind == OP_WORK;
        f->done++;
        pthread_cond_broadcast(&q->r.changed);
    }
    pthread_mutex_unlock(&q->r.m);
    return NULL;
}

/* Locked. */
static void push(struct fake_queue *f, struct op op)
{
    if (f->queued - f->done >= OPS)
        abort();
    f->op[f->queued++ % OPS] = op;
    pthread_cond_broadcast(&f->all->r.changed);
}

static int fake_begin(struct ps_queues *q, enum ps_queue queue, uint32_t mark, struct ps_error *err)
{
    (void)q;
    (void)queue;
    (void)err;
    return mark < PS_EXECUTOR_MARKS ? 0 : -EINVAL;
}

static int fake_end(struct ps_queues *q, enum ps_queue queue, uint32_t mark, struct ps_error *err)
{
    (void)err;
    pthread_mutex_lock(&q->r.m);
    struct fake_queue *f = &q->queue[queue];
    f->mark_at[mark] = ++f->marks;
    push(f, (struct op){.kind = OP_MARK});
    pthread_mutex_unlock(&q->r.m);
    return 0;
}

static int fake_wait(struct ps_queues *q, enum ps_queue queue, enum ps_queue on, uint32_t mark,
                     struct ps_error *err)
{
    (void)err;
    if (q->no_waits)
        return 0;
    pthread_mutex_lock(&q->r.m);
    push(&q->queue[queue],
         (struct op){.kind = OP_WAIT, .on = on, .count = q->queue[on].mark_at[mark]});
    pthread_mutex_unlock(&q->r.m);
    return 0;
}

static int fake_sync(struct ps_queues *q, enum ps_queue queue, uint32_t mark, uint64_t *ns,
                     struct ps_error *err)
{
    pthread_mutex_lock(&q->r.m);
    struct fake_queue *f = &q->queue[queue];
    uint64_t count = f->mark_at[mark];
    while (f->passed < count)
        pthread_cond_wait(&q->r.changed, &q->r.m);
    bool fails = q->fail_sync && ++q->syncs == q->fail_sync;
    if (q->duration_ns)
        *ns = q->duration_ns;
    pthread_mutex_unlock(&q->r.m);
    return fails ? ps_error_set(err, PS_ECUDA, "the card fell off") : 0;
}

static const struct ps_queue_ops fake_ops = {
    .begin = fake_begin, .end = fake_end, .wait = fake_wait, .sync = fake_sync};

static enum ps_queue queue_of(enum ps_lane lane)
{
    return lane == PS_LANE_COMPUTE ? PS_QUEUE_COMPUTE
           : lane == PS_LANE_H2D   ? PS_QUEUE_H2D
           : lane == PS_LANE_D2H   ? PS_QUEUE_D2H
                                   : PS_QUEUE_COUNT;
}

/* Tasks of the device's lanes only launch. */
static int launch_task(void *ctx, const struct ps_task *t, struct ps_error *err)
{
    struct ps_queues *q = ctx;
    enum ps_queue queue = queue_of(t->lane);
    if (queue == PS_QUEUE_COUNT)
        return run_task(&q->r, t, err);
    pthread_mutex_lock(&q->r.m);
    struct fake_queue *f = &q->queue[queue];
    push(f, (struct op){.kind = OP_WORK, .task = t});
    if (++f->ahead > f->ahead_max)
        f->ahead_max = f->ahead;
    pthread_mutex_unlock(&q->r.m);
    return 0;
}

static int start_task(void *ctx, const struct ps_task *t, struct ps_error *err)
{
    return begin(&((struct ps_queues *)ctx)->r, t, err);
}

static int finish_task(void *ctx, const struct ps_task *t, struct ps_error *err)
{
    return end(&((struct ps_queues *)ctx)->r, t, err);
}

static struct ps_queues *device_open(const struct ps_schedule *s, uint64_t seed)
{
    struct ps_queues *q = calloc(1, sizeof *q);
    assert_non_null(q);
    recorder_init(&q->r, s);
    q->seed = seed;
    for (int i = 0; i < PS_QUEUE_COUNT; i++) {
        q->queue[i].all = q;
        assert_int_equal(pthread_create(&q->queue[i].thread, NULL, device, &q->queue[i]), 0);
    }
    return q;
}

static void device_stop(struct ps_queues *q)
{
    pthread_mutex_lock(&q->r.m);
    q->quit = true;
    q->stuck = false;
    pthread_cond_broadcast(&q->r.changed);
    pthread_mutex_unlock(&q->r.m);
    for (int i = 0; i < PS_QUEUE_COUNT; i++)
        pthread_join(q->queue[i].thread, NULL);
}

static struct ps_executor *ahead(struct ps_queues *q, struct ps_executor_options *opt)
{
    struct ps_executor *ex = NULL;
    struct ps_error err = {0};
    for (int k = 0; k < PS_TASK_KIND_COUNT; k++)
        opt->ops[k] = (struct ps_task_ops){
            .run = q->run ? q->run : launch_task, .start = start_task, .finish = finish_task};
    opt->ctx = q;
    opt->queue_ops = &fake_ops;
    opt->queues = q;
    assert_int_equal(ps_executor_create(&ex, opt, &err), 0);
    return ex;
}

static void on_the_device_order_holds_in_200_random_graphs(void **state)
{
    (void)state;
    size_t checked = 0;
    uint32_t ahead_max = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct ps_schedule s;
        random_schedule(&s, seed);
        struct ps_queues *q = device_open(&s, seed);
        struct ps_executor_options opt = {
            .delay_seed = seed % 2 ? seed : 0, .delay_max_ns = 20000, .serial = seed % 10 == 0};
        struct ps_executor *ex = ahead(q, &opt);
        int h = ps_executor_bind(ex, &s);
        struct ps_error err = {0};
        for (uint32_t p = 0; p < 4; p++) {
            assert_int_equal(ps_executor_run(ex, h, &err), 0);
            returned(&q->r, p);
        }
        assert_int_equal(ps_executor_drain(ex, &err), 0);
        checked += check_order(&q->r, 4);
        const struct ps_task_record *r = ps_executor_records(ex, h);
        for (uint32_t i = 0; i < s.task_count; i++) {
            assert_true(r[i].ready_ns <= r[i].start_ns);
            assert_true(r[i].start_ns <= r[i].end_ns);
        }
        ps_executor_destroy(ex);
        device_stop(q);
        for (int i = 0; i < PS_QUEUE_COUNT; i++)
            if (q->queue[i].ahead_max > ahead_max)
                ahead_max = q->queue[i].ahead_max;
        free(q);
        ps_schedule_fini(&s);
    }
    assert_true(checked > 100000);
    assert_true(ahead_max > 2);
    assert_true(ahead_max <= PS_EXECUTOR_AHEAD);
}

/* h2d 0 .. n-1, each before the compute task of its number. */
static void copies_then_compute(struct ps_schedule *s, uint32_t n)
{
    ps_schedule_init(s, "pairs");
    for (uint32_t i = 0; i < n; i++) {
        uint32_t copy = add(s, PS_LANE_H2D, 0);
        add(s, PS_LANE_COMPUTE, 0);
        ps_schedule_dep(s, copy, 0);
    }
}

/* The negative control of the test before. */
static void a_queue_that_does_not_wait_is_seen(void **state)
{
    (void)state;
    for (int broken = 0; broken < 2; broken++) {
        struct ps_schedule s;
        copies_then_compute(&s, 6);
        struct ps_queues *q = device_open(&s, 0);
        q->no_waits = broken;
        for (uint32_t i = 0; i < 12; i += 2)
            q->r.sleep_ns[i] = 3000000;
        struct ps_executor_options opt = {0};
        struct ps_executor *ex = ahead(q, &opt);
        int h = ps_executor_bind(ex, &s);
        struct ps_error err = {0};
        assert_int_equal(ps_executor_run(ex, h, &err), 0);
        uint32_t early = 0;
        for (uint32_t i = 0; i < 12; i += 2)
            early += q->r.began[0][i + 1] < q->r.ended[0][i];
        assert_true(broken ? early > 0 : early == 0);
        ps_executor_destroy(ex);
        device_stop(q);
        free(q);
        ps_schedule_fini(&s);
    }
}

struct runner {
    struct ps_executor *ex;
    int handle, ret;
    struct ps_error err;
};

static void *run_it(void *arg)
{
    struct runner *x = arg;
    x->ret = ps_executor_run(x->ex, x->handle, &x->err);
    return NULL;
}

/* The host goes on although the device does nothing: 8 tasks on each lane, then it stands. */
static void the_host_goes_ahead_by_eight_tasks_a_lane(void **state)
{
    (void)state;
    struct ps_schedule s;
    copies_then_compute(&s, 20);
    struct ps_queues *q = device_open(&s, 0);
    q->stuck = true;
    struct ps_executor_options opt = {0};
    struct runner x = {.ex = ahead(q, &opt)};
    x.handle = ps_executor_bind(x.ex, &s);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_it, &x), 0);
    uint32_t compute = 0;
    uint32_t h2d = 0;
    for (int i = 0; i < 2000 && (compute < PS_EXECUTOR_AHEAD || h2d < PS_EXECUTOR_AHEAD); i++) {
        sleep_ns(1000000);
        pthread_mutex_lock(&q->r.m);
        compute = q->queue[PS_QUEUE_COMPUTE].ahead;
        h2d = q->queue[PS_QUEUE_H2D].ahead;
        pthread_mutex_unlock(&q->r.m);
    }
    sleep_ns(20000000);
    pthread_mutex_lock(&q->r.m);
    compute = q->queue[PS_QUEUE_COMPUTE].ahead;
    h2d = q->queue[PS_QUEUE_H2D].ahead;
    q->stuck = false;
    pthread_cond_broadcast(&q->r.changed);
    pthread_mutex_unlock(&q->r.m);
    pthread_join(thread, NULL);
    assert_int_equal(compute, PS_EXECUTOR_AHEAD);
    assert_int_equal(h2d, PS_EXECUTOR_AHEAD);
    assert_int_equal(x.ret, 0);
    check_order(&q->r, 1);
    ps_executor_destroy(x.ex);
    device_stop(q);
    free(q);
    ps_schedule_fini(&s);
}

static void a_lane_of_the_host_starts_when_the_device_has_done_its_work(void **state)
{
    (void)state;
    struct ps_schedule s;
    ps_schedule_init(&s, "spill");
    add(&s, PS_LANE_COMPUTE, 0);
    add(&s, PS_LANE_D2H, 0);
    ps_schedule_dep(&s, 0, 0);
    add(&s, PS_LANE_DISK_WRITE, 0);
    ps_schedule_dep(&s, 1, 0);
    add(&s, PS_LANE_CPU_OPTIM, 0);
    ps_schedule_dep(&s, 1, 0);
    add(&s, PS_LANE_H2D, 0);
    ps_schedule_dep(&s, 3, 0);
    struct ps_queues *q = device_open(&s, 3);
    q->r.sleep_ns[0] = q->r.sleep_ns[1] = 2000000;
    struct ps_executor_options opt = {0};
    struct ps_executor *ex = ahead(q, &opt);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    for (uint32_t p = 0; p < 5; p++)
        assert_int_equal(ps_executor_run(ex, h, &err), 0);
    check_order(&q->r, 5);
    const struct ps_task_record *r = ps_executor_records(ex, h);
    assert_int_equal(r[1].waited_on, 0);
    assert_int_equal(r[2].waited_on, 1);
    assert_true(r[1].end_ns - r[1].start_ns > 1000000);
    assert_true(r[1].start_ns >= r[0].end_ns);
    ps_executor_destroy(ex);
    device_stop(q);
    free(q);
    ps_schedule_fini(&s);
}

static void durations_are_the_devices_where_it_tells_them(void **state)
{
    (void)state;
    struct ps_schedule s;
    copies_then_compute(&s, 3);
    struct ps_queues *q = device_open(&s, 0);
    q->duration_ns = 10; /* shorter than two landings are apart */
    for (uint32_t i = 0; i < 6; i++)
        q->r.sleep_ns[i] = 500000;
    struct ps_executor_options opt = {0};
    struct ps_executor *ex = ahead(q, &opt);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    assert_int_equal(ps_executor_run(ex, h, &err), 0);
    const struct ps_task_record *r = ps_executor_records(ex, h);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(r[i].end_ns - r[i].start_ns, 10);
    struct ps_lane_stats stats[PS_LANE_COUNT];
    ps_executor_stats(ex, stats);
    assert_int_equal(stats[PS_LANE_H2D].busy_ns, 30);
    assert_int_equal(stats[PS_LANE_COMPUTE].tasks, 3);
    ps_executor_destroy(ex);
    device_stop(q);
    free(q);
    ps_schedule_fini(&s);
}

/* A throttle holds the end of a task, so every task is waited for. */
static void a_throttled_lane_goes_one_by_one(void **state)
{
    (void)state;
    struct ps_schedule s;
    copies_then_compute(&s, 4);
    for (uint32_t i = 0; i < s.task_count; i++)
        s.task[i].bytes = s.task[i].lane == PS_LANE_H2D ? 1000 : 0;
    struct ps_queues *q = device_open(&s, 4);
    struct ps_executor_options opt = {0};
    opt.throttle[PS_LANE_H2D] = 1e6; /* 1 ms each */
    struct ps_executor *ex = ahead(q, &opt);
    int h = ps_executor_bind(ex, &s);
    struct ps_error err = {0};
    assert_int_equal(ps_executor_run(ex, h, &err), 0);
    check_order(&q->r, 1);
    for (int i = 0; i < PS_QUEUE_COUNT; i++)
        assert_true(q->queue[i].ahead_max <= 1);
    const struct ps_task_record *r = ps_executor_records(ex, h);
    assert_true(r[7].end_ns - r[0].start_ns >= 4000000);
    ps_executor_destroy(ex);
    device_stop(q);
    free(q);
    ps_schedule_fini(&s);
}

/* --- failures --- */

static int fail_launch(void *ctx, const struct ps_task *t, struct ps_error *err)
{
    struct ps_queues *q = ctx;
    if ((int)t->id == q->r.fail_task) {
        (void)!launch_task(ctx, t, err); /* half of its work is in the queue */
        return ps_error_set(err, -EIO, "task %u was told to fail", t->id);
    }
    return launch_task(ctx, t, err);
}

/* Everything stands still when the failure is reported. */
static void expect_failure(struct ps_queues *q, const struct ps_schedule *s, int code,
                           const char *text)
{
    struct ps_executor_options opt = {0};
    struct ps_executor *ex = ahead(q, &opt);
    int h = ps_executor_bind(ex, s);
    struct ps_error err = {0};
    int ret = 0;
    for (int p = 0; p < 3 && ret == 0; p++)
        ret = ps_executor_run(ex, h, &err);
    if (ret == 0)
        ret = ps_executor_drain(ex, &err);
    assert_int_equal(ret, code);
    assert_non_null(strstr(err.message, text));
    pthread_mutex_lock(&q->r.m);
    for (int i = 0; i < PS_QUEUE_COUNT; i++)
        assert_int_equal(q->queue[i].queued, q->queue[i].done);
    pthread_mutex_unlock(&q->r.m);
    assert_int_equal(ps_executor_run(ex, h, &err), code);
    ps_executor_destroy(ex);
}

static void a_failure_to_launch_leaves_nothing_in_the_queues(void **state)
{
    (void)state;
    size_t failed = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct ps_schedule s;
        random_schedule(&s, seed);
        for (uint32_t i = 0; i < s.task_count; i += 5) {
            if (queue_of(s.task[i].lane) == PS_QUEUE_COUNT)
                continue;
            struct ps_queues *q = device_open(&s, seed);
            q->run = fail_launch;
            q->r.fail_task = (int)i;
            q->r.fail_at = UINT32_MAX; /* on the device it does not fail */
            expect_failure(q, &s, -EIO, "was told to fail");
            device_stop(q);
            free(q);
            failed++;
        }
        ps_schedule_fini(&s);
    }
    assert_true(failed > 50);
}

static void a_failure_of_the_device_names_the_task(void **state)
{
    (void)state;
    for (int n = 1; n <= 8; n++) {
        struct ps_schedule s;
        copies_then_compute(&s, 4);
        struct ps_queues *q = device_open(&s, (uint64_t)n);
        q->fail_sync = n;
        expect_failure(q, &s, PS_ECUDA, "the device failed in embed of unit 0: the card fell off");
        device_stop(q);
        free(q);
        ps_schedule_fini(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(on_the_device_order_holds_in_200_random_graphs),
        cmocka_unit_test(a_queue_that_does_not_wait_is_seen),
        cmocka_unit_test(the_host_goes_ahead_by_eight_tasks_a_lane),
        cmocka_unit_test(a_lane_of_the_host_starts_when_the_device_has_done_its_work),
        cmocka_unit_test(durations_are_the_devices_where_it_tells_them),
        cmocka_unit_test(a_throttled_lane_goes_one_by_one),
        cmocka_unit_test(a_failure_to_launch_leaves_nothing_in_the_queues),
        cmocka_unit_test(a_failure_of_the_device_names_the_task),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Full fine-tuning with streamed updates: a training step's tasks, one at a time in random orders,
 * while every page of the arenas that the task did not declare is protected. A task that touches
 * more than it says is killed. The negative control takes declarations away: that must be noticed.
 *
 * Each run has a process of its own. See test_checker.c for runs whose updates are not streamed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "optim/optimizers.h"
#include "runtime/train/trainer_internal.h"
#include "tests/helpers/stream_io.h"
#include "tests/helpers/tiny_model.h"

#include "tests/helpers/full_plan.h"

enum { LAYERS = 3, MICROS = 2, ROWS = 6 };

/* How a child ends. */
enum { CLEAN = 0, FAILED = 11, FAULT = 12 };

struct world {
    struct ps_trainer *t;
    const struct ps_schedule *schedule; /* that runs now */
    const struct ps_task *open;         /* whose pages alone are not protected; NULL: none are */
};

/* All declarations of a buffer by the tasks of a kind. */
struct cut {
    enum ps_task_kind kind;
    uint32_t buffer;
};

static struct world *handler_world; /* the child has one */

static void protect(const struct ps_trainer *t, uint32_t buffer, uint64_t begin, uint64_t end,
                    int protection)
{
    unsigned char *base = ps_trainer_buffer(t, (enum ps_step_buffer)buffer);
    if (!base || end <= begin)
        return;
    begin &= ~(uint64_t)4095;
    end = (end + 4095) & ~(uint64_t)4095;
    if (mprotect(base + begin, (size_t)(end - begin), protection) < 0)
        abort();
}

static void protect_all(const struct ps_trainer *t, int protection)
{
    for (uint32_t b = 0; b < PS_BUF_COUNT; b++)
        protect(t, b, 0, t->map.bytes[b], protection);
}

static void protect_declared(const struct world *w, const struct ps_task *task, bool allow)
{
    for (int write = 0; write < 2; write++)
        for (uint32_t i = 0; i < task->access_count; i++) {
            const struct ps_access *a = &w->schedule->access[task->access_begin + i];
            int allowed = write ? PROT_READ | PROT_WRITE : PROT_READ;
            if (a->write == (bool)write)
                protect(w->t, a->buffer, a->offset, a->offset + a->bytes,
                        allow ? allowed : PROT_NONE);
        }
}

/* Says who touched what. Nothing here is safe in a signal handler but the end of the process. */
static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    const unsigned char *at = info->si_addr;
    const struct world *w = handler_world;
    for (uint32_t b = 0; w && w->open && b < PS_BUF_COUNT; b++) {
        const unsigned char *base = ps_trainer_buffer(w->t, (enum ps_step_buffer)b);
        if (base && at >= base && at < base + w->t->map.bytes[b])
            fprintf(stderr, "task %u (%s of unit %d) touched \"%s\" at %zu\n", w->open->id,
                    ps_task_kind_name(w->open->kind), w->open->unit, w->schedule->buffer[b].name,
                    (size_t)(at - base));
    }
    _exit(FAULT);
}

static int before(void *arg, const struct ps_task *task, struct ps_error *err)
{
    struct world *w = arg;
    (void)err;
    if (w->open)
        protect_declared(w, w->open, false);
    else
        protect_all(w->t, PROT_NONE);
    protect_declared(w, task, true);
    w->open = task;
    return 0;
}

static int run(struct world *w, enum ps_segment segment, uint64_t seed)
{
    struct ps_error err = {0};
    struct ps_random_run r = {.seed = seed, .periods = 1, .arg = w, .before = before};
    w->schedule = &w->t->segment[segment];
    if (w->schedule->task_count == 0)
        return 0;
    int ret = ps_executor_run_random(w->t->ex, w->t->handle[segment], &r, &err);
    protect_all(w->t, PROT_READ | PROT_WRITE);
    w->open = NULL;
    if (ret < 0)
        fprintf(stderr, "%s: %s\n", ps_segment_name(segment), err.message);
    return ret;
}

static void open_trainer(struct world *w, const struct full_plan *p, enum ps_dtype dtype,
                         struct stream_io *io)
{
    struct ps_error err = {0};
    struct ps_trainer_options o = tiny_options("m", PS_MODE_FULL);
    *w = (struct world){0};
    o.dtype = dtype;
    o.optimizer = &ps_adamw_ops;
    o.micro_max = MICROS;
    o.max_grad_norm = 1e6;
    o.granule_elements = 1024;
    o.device = ps_device_find(p->emu ? "emu" : "cpu");
    o.io = stream_io_ops(io);
    if (ps_trainer_create(&w->t, &o, &err) < 0)
        fail_msg("%s (%s)", err.message, err.field);
    full_plan_set(w->t, p);
}

static void take_away(struct ps_trainer *t, const struct cut *c)
{
    struct ps_schedule *s = &t->segment[PS_SEGMENT_TRAIN];
    for (uint32_t i = 0; i < s->task_count; i++)
        for (uint32_t k = 0; k < s->task[i].access_count; k++) {
            struct ps_access *a = &s->access[s->task[i].access_begin + k];
            if (s->task[i].kind == c->kind && a->buffer == c->buffer)
                a->bytes = 0;
        }
}

/* A normal step, and the same window again at random: prologue and step. */
static int child(const struct full_plan *p, enum ps_dtype dtype, uint64_t seed,
                 const struct cut *cut)
{
    struct stream_io io = {.backend = "threads", .dir = "spill"};
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    struct ps_batch_options bo = {
        .batch_size = 2, .grad_accum = MICROS, .max_seq_len = 16, .epochs = 1};
    struct ps_trainer_stats stats;
    struct ps_batcher *b = NULL;
    struct tiny_rows rows;
    struct ps_error err = {0};
    struct world w;
    char dir[64];
    open_trainer(&w, p, dtype, &io);
    snprintf(dir, sizeof dir, "store-%d", (int)getpid());
    struct ps_spill_store *store = full_store_create(w.t, dir, PS_SPILL_SHADOW);
    tiny_rows_make(&rows, ROWS);
    if (ps_trainer_commit(w.t, &err) < 0 || ps_batcher_create(&b, &rows.ds, &bo, &err) < 0 ||
        ps_trainer_step(w.t, b, 0, &stats, &err) < 0 || ps_executor_drain(w.t->ex, &err) < 0) {
        fprintf(stderr, "%s: %s\n", p->name, err.message);
        return FAILED;
    }
    handler_world = &w;
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    if (cut)
        take_away(w.t, cut);
    w.t->training = true;
    if (run(&w, PS_SEGMENT_PROLOGUE_TRAIN, seed) < 0 || run(&w, PS_SEGMENT_TRAIN, seed) < 0 ||
        run(&w, PS_SEGMENT_UPDATE, seed) < 0)
        return FAILED;
    ps_trainer_destroy(w.t);
    PS_IGNORE(ps_spill_store_remove(store, &err), "the directory is temporary");
    return CLEAN;
}

static int in_child(const struct full_plan *p, enum ps_dtype dtype, uint64_t seed,
                    const struct cut *cut)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (cut)
            PS_IGNORE(!freopen("/dev/null", "w", stderr), "what is found is meant to be");
        _exit(child(p, dtype, seed, cut));
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void write_model(bool tied)
{
    struct tiny_model files = {
        .dir = "m", .type = "qwen3", .tied = tied, .dtype = PS_DTYPE_F32, .n_layer = LAYERS};
    tiny_model_write(&files);
}

static const struct full_plan plans[] = {
    {.name = "after, all in memory",
     .weights = "nnnnn",
     .states = "nnnnn",
     .grads = "nnnnn",
     .boundary = "nnn",
     .keep = "kkk",
     .group = 1,
     .x_ring = 1,
     .update = PS_UPDATE_AFTER},
    {.name = "horizontal, all on disk",
     .weights = "ndddn",
     .states = "ddddd",
     .grads = "ndddn",
     .boundary = "nnn",
     .keep = "rrr",
     .group = 1,
     .near_slots = 1,
     .x_ring = 1,
     .grad_slots = 1,
     .grad_ring = 2,
     .state_slots = 1,
     .update = PS_UPDATE_AFTER},
    {.name = "layer-major",
     .weights = "ndddd",
     .states = "ddddd",
     .grads = "ddhdd",
     .boundary = "dnd",
     .keep = "2k1",
     .saved = "dnd",
     .saved_ring = 2,
     .group = 2,
     .near_slots = 2,
     .x_ring = 4,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 3,
     .update = PS_UPDATE_AFTER},
    {.name = "inside",
     .weights = "ndddn",
     .states = "ddddd",
     .grads = "hhdhd",
     .boundary = "dnn",
     .keep = "1k3",
     .saved = "ddn",
     .saved_ring = 1,
     .group = 2,
     .near_slots = 2,
     .x_ring = 4,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 3,
     .update = PS_UPDATE_INSIDE},
    {.name = "some inside, some next forward",
     .weights = "ndddn",
     .states = "ddddd",
     .grads = "ndhdn",
     .boundary = "dnn",
     .keep = "rkr",
     .group = 2,
     .near_slots = 2,
     .x_ring = 4,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 3,
     .update = PS_UPDATE_INSIDE,
     .deferred = 1},
    {.name = "next forward",
     .weights = "ndddn",
     .states = "ddddd",
     .grads = "ndhdn",
     .boundary = "nnn",
     .keep = "32r",
     .group = 2,
     .near_slots = 2,
     .x_ring = 2,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 3,
     .update = PS_UPDATE_NEXT_FORWARD},
    {.name = "emu: after, all over",
     .weights = "nhddd",
     .states = "dhddd",
     .grads = "hhdhd",
     .boundary = "hdn",
     .keep = "0r1",
     .saved = "dnh",
     .saved_ring = 2,
     .group = 2,
     .near_slots = 2,
     .raw_slots = 2,
     .x_ring = 4,
     .host_ring = 2,
     .grad_slots = 2,
     .grad_ring = 2,
     .state_slots = 2,
     .update = PS_UPDATE_AFTER,
     .emu = true},
};
enum { PLANS = sizeof plans / sizeof *plans };

static void check_plans(enum ps_dtype dtype, bool tied)
{
    int bad = 0;
    write_model(tied);
    for (int i = 0; i < PLANS; i++)
        for (uint64_t seed = 1; seed <= 2; seed++) {
            int code = in_child(&plans[i], dtype, seed, NULL);
            if (code != CLEAN)
                print_error("%s, seed %d: %s (%d)\n", plans[i].name, (int)seed,
                            code == FAULT ? "a task touched what it did not declare" : "failed",
                            code);
            bad += code != CLEAN;
        }
    assert_int_equal(bad, 0);
}

static void streamed_updates_touch_what_they_declare(void **state)
{
    (void)state;
    check_plans(PS_DTYPE_BF16, false);
}

static void streamed_updates_of_tied_fp32_touch_what_they_declare(void **state)
{
    (void)state;
    check_plans(PS_DTYPE_F32, true);
}

/* What the host's update, and the traffic around it, need. */
static void a_declaration_taken_away_is_noticed(void **state)
{
    static const struct cut cuts[] = {
        {PS_TASK_UPDATE_HOST, PS_BUF_STATE_RING}, {PS_TASK_UPDATE_HOST, PS_BUF_SLOTS},
        {PS_TASK_UPDATE_HOST, PS_BUF_GRAD_HOST},  {PS_TASK_READ_STATE, PS_BUF_STATE_RING},
        {PS_TASK_WRITE_STATE, PS_BUF_STATE_RING}, {PS_TASK_WRITE_WEIGHTS, PS_BUF_SLOTS},
        {PS_TASK_GRAD_OUT, PS_BUF_GRAD},          {PS_TASK_GRAD_OUT, PS_BUF_GRAD_HOST},
        {PS_TASK_GRAD_WRITE, PS_BUF_GRAD_HOST},   {PS_TASK_GRAD_READ, PS_BUF_GRAD_HOST}};
    int missed = 0;
    (void)state;
    write_model(false);
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        int code = in_child(&plans[2], PS_DTYPE_BF16, 1, &cuts[i]);
        if (code == FAULT || code == FAILED)
            continue;
        missed++;
        print_error("%s by %s is not missed (%d)\n", "buffer", ps_task_kind_name(cuts[i].kind),
                    code);
    }
    assert_int_equal(missed, 0);
}

/* Of each segment every edge of the transitive reduction, or (where there are very many) some,
 * spread evenly; returns how many were left out. */
static size_t leave_out_edges(const struct full_plan *p, const struct ps_schedule *s,
                              size_t *missed)
{
    enum { EDGES_MAX = 600 };
    struct ps_edge *edge;
    struct ps_error err = {0};
    size_t count;
    size_t left_out = 0;
    assert_int_equal(ps_schedule_validate(s, &err), 0);
    assert_int_equal(ps_schedule_reduction(s, &edge, &count), 0);
    size_t stride = count / EDGES_MAX + 1;
    for (size_t i = 0; i < count; i += stride, left_out++) {
        const struct ps_task *from = &s->task[edge[i].from];
        const struct ps_task *to = &s->task[edge[i].to];
        if (ps_schedule_validate_without(s, &edge[i], &err) == PS_EUSAGE)
            continue;
        ++*missed;
        print_error("%s, %s: %s of unit %d -> %s of unit %d, distance %u may be left out\n",
                    p->name, s->name, ps_task_kind_name(from->kind), from->unit,
                    ps_task_kind_name(to->kind), to->unit, edge[i].distance);
    }
    free(edge);
    return left_out;
}

static void an_edge_left_out_is_noticed_in_every_order_of_updates(void **state)
{
    size_t missed = 0;
    size_t total = 0;
    (void)state;
    write_model(false);
    for (int i = 0; i < PLANS; i++) {
        struct stream_io io = {.backend = "threads", .dir = "spill"};
        struct ps_error err = {0};
        struct world w;
        size_t edges = 0;
        open_trainer(&w, &plans[i], PS_DTYPE_BF16, &io);
        struct ps_spill_store *store = full_store_create(w.t, "store", PS_SPILL_SHADOW);
        if (ps_trainer_commit(w.t, &err) < 0)
            fail_msg("%s: %s", plans[i].name, err.message);
        for (int k = 0; k < PS_SEGMENT_COUNT; k++)
            if (w.t->segment[k].task_count > 0)
                edges += leave_out_edges(&plans[i], &w.t->segment[k], &missed);
        total += edges;
        ps_trainer_destroy(w.t);
        assert_int_equal(ps_spill_store_remove(store, &err), 0);
        stream_io_close(&io);
    }
    assert_int_equal(missed, 0);
    assert_true(total > 900);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streamed_updates_touch_what_they_declare),
        cmocka_unit_test(streamed_updates_of_tied_fp32_touch_what_they_declare),
        cmocka_unit_test(a_declaration_taken_away_is_noticed),
        cmocka_unit_test(an_edge_left_out_is_noticed_in_every_order_of_updates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The checker: segments of real trainers, one task at a time in random orders, while every page of
 * the arenas that the task did not declare is protected. A task that touches more than it says is
 * killed; one that finds stale bytes gives other results. Slots, activations and scratch begin as
 * NaN, gradients become NaN between the periods.
 *
 * Each run has a process of its own. The negative control takes one kind of declaration away from
 * one kind of task: that must be noticed. */
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
#include "peft/lora.h"
#include "runtime/train/trainer_internal.h"
#include "tests/helpers/stream_io.h"
#include "tests/helpers/tiny_model.h"

enum { LAYERS = 5, PERIODS = 3, ROWS = 6 };

/* How a child ends. */
enum { SAME_BITS = 0, OTHER_BITS = 10, FAILED = 11, FAULT = 12 };

struct model {
    enum ps_dtype stored, run;
    bool tied, full;
    int32_t first_layer; /* trained layers: from this one on (adapters) */
    bool outside;        /* the embedding is adapted too, and the head unless tied */
};

/* What two steps over the same window, and an evaluation after them, come to. */
struct results {
    float *grad, *weight; /* of the second step */
    size_t n;
    double train_loss, eval_loss;
};

struct setting {
    const struct model *model;
    const struct stream_plan *plan;
    int32_t micros; /* of the window; may be less than the plan's group */
    uint64_t seed;
};

/* A declaration to take away: of all tasks of a kind in a segment, all of a buffer. */
struct cut {
    enum ps_segment segment;
    enum ps_task_kind kind;
    uint32_t buffer;
};

struct world {
    struct ps_trainer *t;
    struct ps_batcher *b;
    struct tiny_rows rows;
    struct stream_io io;
    bool site_on[LAYERS * 7 + 2];
    const struct results *want;
    enum ps_segment segment;    /* that runs now */
    const struct ps_task *open; /* whose pages alone are not protected; NULL: none are */
    int bad;                    /* periods with other results */
};

static struct ps_batcher *batcher(const struct tiny_rows *r, int32_t micros)
{
    struct ps_batch_options o = {
        .batch_size = 2, .grad_accum = micros, .max_seq_len = 16, .epochs = 1};
    struct ps_batcher *b = NULL;
    struct ps_error err = {0};
    if (ps_batcher_create(&b, &r->ds, &o, &err) < 0)
        fail_msg("%s", err.message);
    return b;
}

static void open_world(struct world *w, const struct setting *s)
{
    const struct model *m = s->model;
    struct ps_error err = {0};
    *w = (struct world){.io = {.backend = "threads", .dir = "spill"}};
    tiny_rows_make(&w->rows, ROWS);
    for (int i = 0; i < LAYERS * 7; i++)
        w->site_on[i] = i / 7 >= m->first_layer;
    w->site_on[LAYERS * 7] = m->outside;
    w->site_on[LAYERS * 7 + 1] = m->outside && !m->tied;
    struct ps_trainer_options o = tiny_options("m", m->full ? PS_MODE_FULL : PS_MODE_ADAPTER);
    o.dtype = m->run;
    o.optimizer = &ps_adamw_ops;
    o.adapter = m->full ? NULL : &ps_lora_ops;
    o.adapter_config =
        (struct ps_adapter_config){.method = "lora", .r = 3, .alpha = 6, .dropout = 0.2};
    o.site_on = w->site_on;
    o.micro_max = s->micros;
    o.device = ps_device_find(s->plan->emu ? "emu" : "cpu");
    o.io = stream_io_ops(&w->io);
    if (ps_trainer_create(&w->t, &o, &err) < 0)
        fail_msg("%s (%s)", err.message, err.field);
    stream_plan_commit(w->t, s->plan);
    assert_int_equal(ps_trainer_pull(w->t, &err), 0);
    tiny_randomise_adapters(w->t);
    assert_int_equal(ps_trainer_push(w->t, &err), 0);
    w->b = batcher(&w->rows, s->micros);
}

static void close_world(struct world *w)
{
    ps_batcher_destroy(w->b);
    ps_trainer_destroy(w->t);
    stream_io_close(&w->io);
}

static const struct stream_plan resident = {.name = "resident",
                                            .weights = "nnnnnnn",
                                            .boundary = "nnnnn",
                                            .keep = "kkkkk",
                                            .group = 1,
                                            .eval_group = ROWS,
                                            .x_ring = 1};

/* Of a trainer, all tensors one after another. */
static float *gather(struct ps_trainer *t, bool grad)
{
    float *out = malloc(ps_trainer_trainable_elements(t) * sizeof *out);
    struct ps_error err = {0};
    assert_non_null(out);
    assert_int_equal(ps_trainer_pull(t, &err), 0);
    size_t at = 0;
    for (size_t i = 0; i < ps_trainer_trainable_count(t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(t, i);
        if (grad)
            memcpy(out + at, x->grad, x->n * sizeof *out);
        else
            ps_dtype_convert(out + at, PS_DTYPE_F32, x->weight, x->dtype, x->n);
        /* the update segment adds the parts of a tied embedding's gradient up, and empties one */
        const float *lookup = ps__trainer_lookup_part(x->grad, x->n);
        for (size_t k = 0; grad && ps__trainer_two_parts(t, x) && k < x->n; k++)
            out[at + k] += lookup[k];
        at += x->n;
    }
    return out;
}

static double evaluate(struct world *w)
{
    double sum;
    int64_t labels;
    int64_t tokens;
    struct ps_error err = {0};
    assert_int_equal(ps_trainer_eval(w->t, w->b, &sum, &labels, &tokens, &err), 0);
    assert_true(labels > 0);
    return sum;
}

static void step(struct world *w)
{
    struct ps_trainer_stats stats;
    struct ps_error err = {0};
    if (ps_trainer_step(w->t, w->b, 0, &stats, &err) < 0)
        fail_msg("%s", err.message);
}

/* What the resident trainer makes of the same window. */
static struct results results_of(const struct setting *s)
{
    struct setting plain = *s;
    struct world w;
    struct results r;
    plain.plan = &resident;
    open_world(&w, &plain);
    step(&w);
    assert_int_equal(ps_batcher_micro_count(w.b), s->micros);
    step(&w);
    r.n = ps_trainer_trainable_elements(w.t);
    r.train_loss = w.t->loss_sum;
    r.grad = gather(w.t, true);
    r.weight = gather(w.t, false);
    r.eval_loss = evaluate(&w);
    close_world(&w);
    return r;
}

static void results_fini(struct results *r)
{
    free(r->grad);
    free(r->weight);
}

/* --- in the child --- */

static size_t page_up(uint64_t bytes)
{
    return (size_t)((bytes + 4095) & ~(uint64_t)4095);
}

static void protect(const struct ps_trainer *t, uint32_t buffer, uint64_t begin, uint64_t end,
                    int protection)
{
    unsigned char *base = ps_trainer_buffer(t, (enum ps_step_buffer)buffer);
    if (!base || end <= begin)
        return;
    begin &= ~(uint64_t)4095;
    if (mprotect(base + begin, page_up(end) - (size_t)begin, protection) < 0)
        abort();
}

static void protect_all(const struct ps_trainer *t, int protection)
{
    for (uint32_t b = 0; b < PS_BUF_COUNT; b++)
        protect(t, b, 0, t->map.bytes[b], protection);
}

static const struct ps_trainer *handler_trainer; /* the child has one */
static const struct ps_task *handler_task;

/* Says who touched what. Nothing here is safe in a signal handler but the end of the process. */
static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    const unsigned char *at = info->si_addr;
    for (uint32_t b = 0; handler_trainer && b < PS_BUF_COUNT; b++) {
        const unsigned char *base = ps_trainer_buffer(handler_trainer, (enum ps_step_buffer)b);
        if (base && at >= base && at < base + handler_trainer->map.bytes[b])
            fprintf(stderr, "task %u (%s of unit %d) touched \"%s\" at %zu\n", handler_task->id,
                    ps_task_kind_name(handler_task->kind), handler_task->unit,
                    handler_trainer->segment[PS_SEGMENT_TRAIN].buffer[b].name, (size_t)(at - base));
    }
    _exit(FAULT);
}

/* What a task declares: `allow` is what it is allowed, or nothing again. Pages that it reads and
 * writes come last as written. */
static void protect_declared(const struct world *w, const struct ps_task *task, bool allow)
{
    const struct ps_schedule *s = &w->t->segment[w->segment];
    for (int write = 0; write < 2; write++)
        for (uint32_t i = 0; i < task->access_count; i++) {
            const struct ps_access *a = &s->access[task->access_begin + i];
            int allowed = write ? PROT_READ | PROT_WRITE : PROT_READ;
            if (a->write == (bool)write)
                protect(w->t, a->buffer, a->offset, a->offset + a->bytes,
                        allow ? allowed : PROT_NONE);
        }
}

static int before(void *arg, const struct ps_task *task, struct ps_error *err)
{
    struct world *w = arg;
    (void)err;
    handler_task = task;
    if (w->open)
        protect_declared(w, w->open, false);
    else
        protect_all(w->t, PROT_NONE);
    protect_declared(w, task, true);
    w->open = task;
    return 0;
}

static void unprotect(struct world *w)
{
    protect_all(w->t, PROT_READ | PROT_WRITE);
    w->open = NULL;
}

static void spoil(const struct world *w, enum ps_step_buffer b)
{
    unsigned char *base = ps_trainer_buffer(w->t, b);
    if (base)
        memset(base, 0xff, (size_t)w->t->map.bytes[b]);
}

static void spoil_activations(const struct world *w)
{
    static const enum ps_step_buffer stale[] = {
        PS_BUF_X,    PS_BUF_DX,   PS_BUF_SAVED,        PS_BUF_SCRATCH,
        PS_BUF_GEMM, PS_BUF_GRAD, PS_BUF_HEAD_SCRATCH, PS_BUF_LOSS};
    for (size_t i = 0; i < sizeof stale / sizeof *stale; i++)
        spoil(w, stale[i]);
}

static bool same(const float *a, const float *b, size_t n)
{
    return memcmp(a, b, n * sizeof *a) == 0;
}

/* The period that has ended gave the step's gradients and loss. */
static void judge(struct world *w)
{
    double loss = 0;
    unprotect(w);
    for (int32_t i = 0; i < w->t->present; i++) {
        double x;
        memcpy(&x, ps_trainer_buffer(w->t, PS_BUF_LOSS) + (size_t)i * 64, sizeof x);
        loss += x;
    }
    bool train = w->segment == PS_SEGMENT_TRAIN;
    bool ok = loss == (train ? w->want->train_loss : w->want->eval_loss);
    if (train) {
        float *grad = gather(w->t, true);
        bool rounds = w->t->opt.mode == PS_MODE_FULL && w->t->opt.dtype == PS_DTYPE_BF16;
        for (size_t i = 0; rounds && i < w->want->n; i++) /* the update segment would */
            grad[i] = ps_bf16_to_f32(ps_f32_to_bf16(grad[i]));
        ok &= same(grad, w->want->grad, w->want->n);
        free(grad);
    }
    if (!ok)
        print_error("%s: loss %.17g, other bits\n", ps_segment_name(w->segment), loss);
    w->bad += !ok;
}

static int between(void *arg, uint32_t period, struct ps_error *err)
{
    struct world *w = arg;
    (void)period;
    (void)err;
    judge(w);
    spoil_activations(w);
    return 0;
}

static int run(struct world *w, enum ps_segment segment, uint32_t periods, uint64_t seed)
{
    struct ps_error err = {0};
    struct ps_random_run r = {
        .seed = seed, .periods = periods, .arg = w, .before = before, .between = between};
    int handle = w->t->handle[segment];
    w->segment = segment;
    if (w->t->segment[segment].task_count == 0)
        return 0;
    int ret = ps_executor_run_random(w->t->ex, handle, &r, &err);
    unprotect(w);
    if (ret < 0)
        fprintf(stderr, "%s: %s\n", ps_segment_name(segment), err.message);
    return ret;
}

/* After a normal run: what it left in the batches and in the trainer's own variables stands, all
 * else is spoilt. The prologue and then the segment, at random. */
static int run_again(struct world *w, enum ps_segment segment, uint64_t seed)
{
    bool train = segment == PS_SEGMENT_TRAIN;
    struct ps_error err = {0};
    if (ps_executor_drain(w->t->ex, &err) < 0)
        return FAILED;
    spoil(w, PS_BUF_SLOTS);
    spoil(w, PS_BUF_RAW);
    spoil(w, PS_BUF_HOST_X);
    spoil(w, PS_BUF_HOST_SAVED);
    spoil_activations(w);
    if (w->t->opt.device->discrete)
        spoil(w, PS_BUF_BATCH);
    w->t->training = train;
    if (run(w, train ? PS_SEGMENT_PROLOGUE_TRAIN : PS_SEGMENT_PROLOGUE_EVAL, 1, seed) < 0 ||
        run(w, segment, PERIODS, seed) < 0)
        return FAILED;
    judge(w);
    return 0;
}

static void take_away(struct ps_trainer *t, const struct cut *c)
{
    struct ps_schedule *s = &t->segment[c->segment];
    for (uint32_t i = 0; i < s->task_count; i++)
        for (uint32_t k = 0; k < s->task[i].access_count; k++) {
            struct ps_access *a = &s->access[s->task[i].access_begin + k];
            if (s->task[i].kind == c->kind && a->buffer == c->buffer)
                a->bytes = 0;
        }
}

static int child(const struct setting *s, const struct results *want, const struct cut *cut)
{
    struct world w;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    open_world(&w, s);
    w.want = want;
    handler_trainer = w.t;
    sigaction(SIGSEGV, &action, NULL);
    if (cut)
        take_away(w.t, cut);
    step(&w);
    if (run_again(&w, PS_SEGMENT_TRAIN, s->seed) != 0 || run(&w, PS_SEGMENT_UPDATE, 1, s->seed) < 0)
        return FAILED;
    float *weight = gather(w.t, false);
    w.bad += !same(weight, want->weight, want->n);
    free(weight);
    w.bad += evaluate(&w) != want->eval_loss;
    if (run_again(&w, PS_SEGMENT_EVAL, s->seed) != 0)
        return FAILED;
    close_world(&w);
    return w.bad ? OTHER_BITS : SAME_BITS;
}

static int in_child(const struct setting *s, const struct results *want, const struct cut *cut)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (cut)
            PS_IGNORE(!freopen("/dev/null", "w", stderr), "what is found is meant to be");
        _exit(child(s, want, cut));
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* --- the tests --- */

static void write_model(const struct model *m)
{
    struct tiny_model files = {.dir = "m",
                               .type = m->tied ? "qwen3" : "llama",
                               .tied = m->tied,
                               .bias = !m->tied,
                               .dtype = m->stored,
                               .n_layer = LAYERS};
    tiny_model_write(&files);
}

static void check_plan(const struct model *m, const struct stream_plan *p, int32_t micros)
{
    struct setting s = {.model = m, .plan = p, .micros = micros, .seed = 1};
    write_model(m);
    struct results want = results_of(&s);
    for (; s.seed <= 4; s.seed++) {
        int code = in_child(&s, &want, NULL);
        if (code != SAME_BITS)
            fail_msg("%s, seed %d: %s (%d)", p->name, (int)s.seed,
                     code == OTHER_BITS ? "other bits" : "a task touched what it did not declare",
                     code);
    }
    results_fini(&want);
}

static const struct model direct = {.stored = PS_DTYPE_BF16, .run = PS_DTYPE_BF16};
static const struct model converted = {.stored = PS_DTYPE_F16, .run = PS_DTYPE_BF16};
static const struct model tied = {.stored = PS_DTYPE_F32, .run = PS_DTYPE_F32, .tied = true};
static const struct model last = {.stored = PS_DTYPE_F32, .run = PS_DTYPE_BF16, .first_layer = 3};
static const struct model outside = {
    .stored = PS_DTYPE_BF16, .run = PS_DTYPE_BF16, .first_layer = 4, .outside = true};
static const struct model outside_tied = {
    .stored = PS_DTYPE_F32, .run = PS_DTYPE_F32, .tied = true, .first_layer = 4, .outside = true};

static void resident_plans_touch_what_they_declare(void **state)
{
    static const struct model full[] = {
        {.stored = PS_DTYPE_F32, .run = PS_DTYPE_F32, .full = true},
        {.stored = PS_DTYPE_F32, .run = PS_DTYPE_BF16, .full = true, .tied = true}};
    struct stream_plan p = resident;
    (void)state;
    p.group = 3;
    p.x_ring = 3;
    check_plan(&direct, &p, 3);
    check_plan(&full[0], &p, 3);
    p.keep = "rk321";
    p.saved = "nndnd";
    p.saved_ring = 1;
    check_plan(&full[1], &p, 2);
    p.boundary = "ddndn";
    p.x_ring = 4;
    check_plan(&last, &p, 3);
    p.emu = true;
    p.host_ring = 2;
    check_plan(&full[1], &p, 3);
    p.name = "lots of one, resident";
    p.interleave = 1;
    check_plan(&direct, &p, 3);
    p.emu = false;
    p.keep = "kkkkk";
    p.saved = NULL;
    check_plan(&last, &p, 2);
}

static const struct stream_plan streamed = {.name = "streamed",
                                            .weights = "ddddddn",
                                            .boundary = "ddddd",
                                            .keep = "r1k32",
                                            .saved = "nddnd",
                                            .saved_ring = 2,
                                            .group = 2,
                                            .eval_group = 3,
                                            .near_slots = 2,
                                            .raw_slots = 1,
                                            .x_ring = 3};

static void streamed_plans_touch_what_they_declare(void **state)
{
    struct stream_plan p = streamed;
    (void)state;
    check_plan(&direct, &p, 2);
    check_plan(&converted, &p, 2);
    check_plan(&outside, &p, 2);
    p.name = "one slot, a window that is not full";
    p.near_slots = 1;
    p.group = 3;
    p.x_ring = 4;
    p.boundary = "dnddn";
    check_plan(&direct, &p, 2);
    p.name = "three slots, tied, some pinned";
    p.weights = "nddnddn";
    p.near_slots = 3;
    p.raw_slots = 2;
    check_plan(&tied, &p, 3);
    check_plan(&last, &p, 1);
    p.name = "without its ideas";
    p.weights = "ddddddn";
    p.group = 1;
    p.x_ring = 2;
    p.ablate = PS_ABLATE_TURNS | PS_ABLATE_CROSS_STEP | PS_ABLATE_FORWARDING | PS_ABLATE_PREFETCH;
    check_plan(&converted, &p, 1);
}

static void discrete_plans_touch_what_they_declare(void **state)
{
    struct stream_plan p = streamed;
    (void)state;
    p.emu = true;
    p.host_ring = 2;
    check_plan(&direct, &p, 2);
    p.name = "emu, every tier";
    p.weights = "dhndhdn";
    p.boundary = "hdnhd";
    p.saved = "nhdnh";
    p.raw_slots = 2;
    check_plan(&converted, &p, 1);
    p.name = "emu, tied, all in host memory";
    p.weights = "nhhhhhn";
    p.boundary = "hhhhh";
    p.near_slots = 3;
    p.group = 3;
    p.x_ring = 4;
    check_plan(&tied, &p, 3);
    check_plan(&outside_tied, &p, 3);
}

/* Declared for the order alone: the update comes after the clipping, but the coefficient itself
 * goes by way of the trainer. */
static bool needless(const struct cut *c)
{
    return c->kind == PS_TASK_UPDATE && c->buffer == PS_BUF_NORM;
}

static bool declares(const struct ps_schedule *s, const struct cut *c)
{
    for (uint32_t i = 0; i < s->task_count; i++)
        for (uint32_t k = 0; k < s->task[i].access_count; k++)
            if (s->task[i].kind == c->kind &&
                s->access[s->task[i].access_begin + k].buffer == c->buffer)
                return true;
    return false;
}

static void every_kind_of_declaration_is_needed(const struct model *m, const struct stream_plan *p)
{
    struct setting s = {.model = m, .plan = p, .micros = 2, .seed = 1};
    struct world w;
    int tried = 0;
    int missed = 0;
    write_model(m);
    struct results want = results_of(&s);
    open_world(&w, &s);
    for (int segment = 0; segment <= PS_SEGMENT_EVAL; segment++)
        for (int kind = 0; kind < PS_TASK_KIND_COUNT; kind++)
            for (uint32_t b = 0; b < PS_BUF_COUNT; b++) {
                struct cut c = {(enum ps_segment)segment, (enum ps_task_kind)kind, b};
                if (b == PS_BUF_DISK_X || b == PS_BUF_DISK_SAVED ||
                    !declares(&w.t->segment[segment], &c) || needless(&c))
                    continue;
                int code = in_child(&s, &want, &c);
                tried++;
                if (code == FAULT || code == FAILED)
                    continue;
                missed++;
                print_error("%s: %s of \"%s\" by %s is not missed (%d)\n", p->name,
                            ps_segment_name(c.segment), w.t->segment[segment].buffer[b].name,
                            ps_task_kind_name(c.kind), code);
            }
    close_world(&w);
    results_fini(&want);
    assert_true(tried > 30);
    assert_int_equal(missed, 0);
}

static void a_declaration_taken_away_is_noticed(void **state)
{
    struct stream_plan p = streamed;
    (void)state;
    every_kind_of_declaration_is_needed(&converted, &p);
    p.name = "emu";
    p.emu = true;
    p.host_ring = 2;
    p.weights = "dhndhdn";
    p.boundary = "hdnhd";
    p.saved = "nhddn";
    every_kind_of_declaration_is_needed(&direct, &p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resident_plans_touch_what_they_declare),
        cmocka_unit_test(streamed_plans_touch_what_they_declare),
        cmocka_unit_test(discrete_plans_touch_what_they_declare),
        cmocka_unit_test(a_declaration_taken_away_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

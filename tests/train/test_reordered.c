/* Imported schedules: what a trainer accepts gives the bits of the resident step, whatever the
 * order. Every order that leaves conflicting tasks as they were is accepted; of orders with a few
 * tasks exchanged blindly, some are, and they too must give the same bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "optim/optimizers.h"
#include "peft/lora.h"
#include "tests/helpers/random_schedule.h"
#include "tests/helpers/stream_io.h"
#include "tests/helpers/tiny_model.h"

enum { LAYERS = 5, ROWS = 6 };

struct outcome {
    double loss[2];
    float *weight;
    size_t n;
};

static const struct stream_plan resident = {.name = "resident",
                                            .weights = "nnnnnnn",
                                            .boundary = "nnnnn",
                                            .keep = "kkkkk",
                                            .group = 1,
                                            .eval_group = 1,
                                            .x_ring = 1};

static const struct stream_plan plans[] = {{.name = "streamed",
                                            .weights = "ddddddn",
                                            .boundary = "ddnnd",
                                            .keep = "r2r1k",
                                            .saved = "ndndn",
                                            .saved_ring = 2,
                                            .group = 2,
                                            .eval_group = 1,
                                            .near_slots = 3,
                                            .raw_slots = 2,
                                            .x_ring = 3},
                                           {.name = "one slot, no forwarding",
                                            .weights = "dddnddn",
                                            .boundary = "ddddd",
                                            .keep = "rkrrr",
                                            .group = 3,
                                            .eval_group = 1,
                                            .near_slots = 1,
                                            .raw_slots = 1,
                                            .x_ring = 4,
                                            .ablate = PS_ABLATE_FORWARDING},
                                           {.name = "emu",
                                            .weights = "dhddhdn",
                                            .boundary = "hdhnd",
                                            .keep = "0rrk3",
                                            .saved = "hnnnd",
                                            .saved_ring = 1,
                                            .group = 2,
                                            .eval_group = 1,
                                            .near_slots = 2,
                                            .raw_slots = 2,
                                            .x_ring = 3,
                                            .host_ring = 2,
                                            .emu = true},
                                           {.name = "lots",
                                            .weights = "nnnnnnn",
                                            .boundary = "hddhh",
                                            .keep = "rrkrr",
                                            .group = 3,
                                            .eval_group = 1,
                                            .x_ring = 4,
                                            .host_ring = 2,
                                            .interleave = 1,
                                            .emu = true}};

struct world {
    struct ps_trainer *t;
    struct stream_io io;
    struct tiny_rows rows;
};

/* Created, with a layout, not yet committed. */
static void open_world(struct world *w, const struct stream_plan *p)
{
    struct ps_error err = {0};
    *w = (struct world){.io = {.backend = "threads", .dir = "spill"}};
    tiny_rows_make(&w->rows, ROWS);
    struct ps_trainer_options o = tiny_options("m", PS_MODE_ADAPTER);
    o.dtype = PS_DTYPE_BF16;
    o.optimizer = &ps_adamw_ops;
    o.adapter = &ps_lora_ops;
    o.adapter_config =
        (struct ps_adapter_config){.method = "lora", .r = 3, .alpha = 6, .dropout = 0.2};
    o.micro_max = 3;
    o.device = ps_device_find(p->emu ? "emu" : "cpu");
    o.io = stream_io_ops(&w->io);
    if (ps_trainer_create(&w->t, &o, &err) < 0)
        fail_msg("%s (%s)", err.message, err.field);
    stream_plan_set(w->t, p);
}

static struct outcome run_and_close(struct world *w)
{
    struct outcome out;
    struct ps_batcher *b = NULL;
    struct ps_error err = {0};
    struct ps_batch_options o = {.batch_size = 1, .grad_accum = 3, .max_seq_len = 16, .epochs = 1};
    assert_int_equal(ps_batcher_create(&b, &w->rows.ds, &o, &err), 0);
    if (ps_trainer_commit(w->t, &err) < 0)
        fail_msg("%s", err.message);
    for (uint64_t i = 0; i < 2; i++) {
        struct ps_trainer_stats s;
        if (ps_trainer_step(w->t, b, i, &s, &err) < 0)
            fail_msg("%s", err.message);
        out.loss[i] = s.loss;
    }
    assert_int_equal(ps_trainer_pull(w->t, &err), 0);
    out.n = ps_trainer_trainable_elements(w->t);
    out.weight = malloc(out.n * sizeof(float));
    assert_non_null(out.weight);
    size_t at = 0;
    for (size_t i = 0; i < ps_trainer_trainable_count(w->t); i++) {
        const struct ps_trainable *x = ps_trainer_trainable(w->t, i);
        memcpy(out.weight + at, x->weight, x->n * sizeof(float));
        at += x->n;
    }
    ps_batcher_destroy(b);
    ps_trainer_destroy(w->t);
    stream_io_close(&w->io);
    return out;
}

static bool touch(const struct ps_schedule *s, const struct ps_task *a, const struct ps_task *b)
{
    for (uint32_t i = 0; i < a->access_count; i++)
        for (uint32_t k = 0; k < b->access_count; k++) {
            const struct ps_access *x = &s->access[a->access_begin + i];
            const struct ps_access *y = &s->access[b->access_begin + k];
            if (x->buffer == y->buffer && (x->write || y->write) &&
                x->offset < y->offset + y->bytes && y->offset < x->offset + x->bytes)
                return true;
        }
    return false;
}

/* A copy of the tasks in the order given, with dependencies derived for it. */
static int reorder(struct ps_schedule *to, const struct ps_schedule *from, const uint32_t *order)
{
    struct ps_error err = {0};
    ps_schedule_init(to, from->name);
    for (uint32_t i = 0; i < from->buffer_count; i++)
        ps_schedule_buffer(to, from->buffer[i].tier, from->buffer[i].bytes, "%s",
                           from->buffer[i].name);
    for (uint32_t i = 0; i < from->task_count; i++) {
        const struct ps_task *t = &from->task[order[i]];
        uint32_t id = ps_schedule_task(to, t->kind, t->lane, t->unit);
        to->task[id].micro = t->micro;
        to->task[id].flags = t->flags;
        to->task[id].flops = t->flops;
        to->task[id].bytes = t->bytes;
        memcpy(to->task[id].arg, t->arg, sizeof t->arg);
        for (uint32_t k = 0; k < t->access_count; k++) {
            const struct ps_access *a = &from->access[t->access_begin + k];
            ps_schedule_access(to, a->buffer, a->write, a->offset, a->bytes);
        }
    }
    return ps_schedule_derive(to, &err);
}

/* A random order in which tasks that touch the same bytes stay as they were. */
static void random_order(const struct ps_schedule *s, uint32_t *order, uint64_t *seed)
{
    uint32_t n = s->task_count;
    bool *done = calloc(n, sizeof *done);
    uint32_t *ready = calloc(n, sizeof *ready);
    assert_non_null(done);
    assert_non_null(ready);
    for (uint32_t at = 0; at < n; at++) {
        uint32_t count = 0;
        for (uint32_t i = 0; i < n; i++) {
            bool free_now = !done[i];
            for (uint32_t k = 0; free_now && k < i; k++)
                free_now = done[k] || !touch(s, &s->task[k], &s->task[i]);
            if (free_now)
                ready[count++] = i;
        }
        assert_true(count > 0);
        order[at] = ready[random_below(seed, count)];
        done[order[at]] = true;
    }
    free(done);
    free(ready);
}

/* Import the order; false: refused, and the trainer goes on with its own. */
static bool import(struct world *w, const uint32_t *order)
{
    const struct ps_schedule *mine = ps_trainer_schedule(w->t, PS_SEGMENT_TRAIN);
    struct ps_schedule s;
    struct ps_error err = {0};
    if (reorder(&s, mine, order) < 0) {
        ps_schedule_fini(&s);
        return false;
    }
    int ret = ps_trainer_import_schedule(w->t, PS_SEGMENT_TRAIN, &s, "order.json", &err);
    if (ret < 0)
        assert_int_equal(ret, PS_EUSAGE);
    return ret == 0;
}

static void same(const struct outcome *got, const struct outcome *want, const char *what,
                 uint64_t seed)
{
    bool ok = got->loss[0] == want->loss[0] && got->loss[1] == want->loss[1] && got->n == want->n &&
              memcmp(got->weight, want->weight, want->n * sizeof(float)) == 0;
    if (!ok)
        fail_msg("%s, seed %llu: loss %.17g, %.17g where the resident step has %.17g, %.17g", what,
                 (unsigned long long)seed, got->loss[0], got->loss[1], want->loss[0],
                 want->loss[1]);
}

static struct outcome resident_outcome(void)
{
    struct tiny_model m = {
        .dir = "m", .type = "llama", .bias = true, .dtype = PS_DTYPE_F16, .n_layer = LAYERS};
    struct world w;
    tiny_model_write(&m);
    open_world(&w, &resident);
    return run_and_close(&w);
}

static void orders_that_keep_conflicts_are_accepted_and_give_the_same_bits(void **state)
{
    (void)state;
    struct outcome want = resident_outcome();
    for (size_t p = 0; p < sizeof plans / sizeof *plans; p++)
        for (uint64_t seed = 1; seed <= 8; seed++) {
            struct world w;
            uint64_t random = seed * 977 + p;
            open_world(&w, &plans[p]);
            const struct ps_schedule *s = ps_trainer_schedule(w.t, PS_SEGMENT_TRAIN);
            uint32_t *order = calloc(s->task_count, sizeof *order);
            assert_non_null(order);
            random_order(s, order, &random);
            if (!import(&w, order))
                fail_msg("%s, seed %d is refused", plans[p].name, (int)seed);
            free(order);
            struct outcome got = run_and_close(&w);
            same(&got, &want, plans[p].name, seed);
            free(got.weight);
        }
    free(want.weight);
}

/* Pairs of near neighbours exchanged, whether they touch the same bytes or not. */
static void orders_with_tasks_exchanged_are_refused_or_give_the_same_bits(void **state)
{
    int accepted = 0;
    int refused = 0;
    (void)state;
    struct outcome want = resident_outcome();
    for (size_t p = 0; p < sizeof plans / sizeof *plans; p++)
        for (uint64_t seed = 1; seed <= 40; seed++) {
            struct world w;
            uint64_t random = seed * 1009 + p;
            open_world(&w, &plans[p]);
            const struct ps_schedule *s = ps_trainer_schedule(w.t, PS_SEGMENT_TRAIN);
            uint32_t n = s->task_count;
            uint32_t *order = calloc(n, sizeof *order);
            assert_non_null(order);
            for (uint32_t i = 0; i < n; i++)
                order[i] = i;
            for (uint32_t k = 1 + random_below(&random, 2); k > 0; k--) {
                uint32_t i = random_below(&random, n - 2);
                uint32_t j = i + 1 + random_below(&random, 2);
                uint32_t swap = order[i];
                order[i] = order[j];
                order[j] = swap;
            }
            bool taken = import(&w, order);
            accepted += taken;
            refused += !taken;
            free(order);
            struct outcome got = run_and_close(&w);
            same(&got, &want, plans[p].name, seed);
            free(got.weight);
        }
    free(want.weight);
    print_message("%d accepted, %d refused\n", accepted, refused);
    assert_true(accepted >= 10);
    assert_true(refused >= 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(orders_that_keep_conflicts_are_accepted_and_give_the_same_bits),
        cmocka_unit_test(orders_with_tasks_exchanged_are_refused_or_give_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The bits of a step do not depend on what the session did before it: evaluations, logits, other
 * sessions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "session/penstock.h"

#define STEPS 6

struct run {
    struct ps_options opt;
    struct ps_session *session;
    char model[4096], data[4096], output[64];
    double loss[STEPS], norm[STEPS], eval_loss;
    int steps;
};

static void set(struct ps_options *o, const char *name, const char *value)
{
    struct ps_error err;
    if (ps_options_set(o, name, value, "test", &err) != 0)
        fail_msg("%s=%s: %s", name, value, err.message);
}

/* method: lora or full, with dropout and bf16 where it applies. */
static void open_run(struct run *r, const char *method, const char *dtype)
{
    struct ps_error err;
    const char *root = getenv("PENSTOCK_ROOT");
    memset(r, 0, sizeof *r);
    snprintf(r->model, sizeof r->model, "%s/tests/golden/models/qwen3_tied/model", root);
    snprintf(r->data, sizeof r->data, "%s/tests/golden/models/curves/qwen3_tied.jsonl", root);
    ps_options_init(&r->opt, PS_CMD_TRAIN);
    set(&r->opt, "model", r->model);
    set(&r->opt, "data", r->data);
    set(&r->opt, "output", "run");
    set(&r->opt, "format", "tokens");
    set(&r->opt, "method", method);
    set(&r->opt, "dtype", dtype);
    set(&r->opt, "threads", "2");
    set(&r->opt, "val-split", "0.2");
    set(&r->opt, "max-steps", "6");
    set(&r->opt, "grad-accum", "2");
    set(&r->opt, "learning-rate", "0.003");
    if (strcmp(method, "lora") == 0)
        set(&r->opt, "lora-dropout", "0.1");
    if (ps_options_resolve(&r->opt, &err) != 0)
        fail_msg("%s", err.message);
    if (ps_session_open(&r->session, &r->opt, NULL, &err) != 0)
        fail_msg("%s: %s", err.file, err.message);
}

static void close_run(struct run *r)
{
    ps_session_close(r->session);
    ps_options_fini(&r->opt);
}

static void step(struct run *r)
{
    struct ps_step_stats s;
    struct ps_error err;
    int ret = ps_session_step(r->session, &s, &err);
    if (ret < 0)
        fail_msg("%s", err.message);
    r->loss[r->steps] = s.loss;
    r->norm[r->steps] = s.grad_norm;
    r->steps++;
    assert_int_equal(ret, r->steps < STEPS);
}

static void eval(struct run *r)
{
    struct ps_eval_stats e;
    struct ps_error err;
    if (ps_session_eval(r->session, &e, &err) != 0)
        fail_msg("%s", err.message);
    r->eval_loss = e.loss;
}

static void logits(struct run *r)
{
    struct ps_error err;
    if (ps_session_write_logits(r->session, "logits.safetensors", &err) != 0)
        fail_msg("%s", err.message);
}

/* s: a step, e: an evaluation, l: logits of all evaluation rows. */
static void play(struct run *r, const char *history)
{
    for (const char *h = history; *h; h++) {
        if (*h == 's')
            step(r);
        else if (*h == 'e')
            eval(r);
        else
            logits(r);
    }
    assert_int_equal(r->steps, STEPS);
}

static void assert_same(const struct run *a, const struct run *b)
{
    assert_memory_equal(a->loss, b->loss, sizeof a->loss);
    assert_memory_equal(a->norm, b->norm, sizeof a->norm);
    assert_memory_equal(&a->eval_loss, &b->eval_loss, sizeof a->eval_loss);
}

static void shuffle(const char *method, const char *dtype)
{
    static const char *const history[] = {"essssssee", "eslsesleesslse", "leesesesesleselse"};
    struct run plain;
    open_run(&plain, method, dtype);
    play(&plain, "sssssse");
    close_run(&plain);
    assert_true(plain.loss[0] != plain.loss[1]);
    for (size_t i = 0; i < sizeof history / sizeof history[0]; i++) {
        struct run r;
        open_run(&r, method, dtype);
        play(&r, history[i]);
        close_run(&r);
        assert_same(&plain, &r);
    }
}

static void shuffled_histories_change_no_bit_of_lora(void **state)
{
    (void)state;
    shuffle("lora", "fp32");
    shuffle("lora", "bf16");
}

static void shuffled_histories_change_no_bit_of_full(void **state)
{
    (void)state;
    shuffle("full", "fp32");
    shuffle("full", "bf16");
}

static void sessions_side_by_side_do_not_disturb_each_other(void **state)
{
    (void)state;
    struct run plain;
    struct run a;
    struct run b;
    open_run(&plain, "lora", "bf16");
    play(&plain, "sssssse");
    close_run(&plain);
    open_run(&a, "lora", "bf16");
    step(&a);
    open_run(&b, "full", "fp32");
    for (int i = 0; i < STEPS; i++) {
        step(&b);
        if (i > 0)
            step(&a);
        eval(&b);
    }
    close_run(&b);
    eval(&a);
    close_run(&a);
    assert_same(&plain, &a);
}

static void a_step_after_the_last_is_refused_and_changes_nothing(void **state)
{
    (void)state;
    struct run r;
    struct ps_step_stats s;
    struct ps_error err;
    open_run(&r, "lora", "fp32");
    play(&r, "sssssse");
    double before = r.eval_loss;
    assert_true(ps_session_step(r.session, &s, &err) < 0);
    eval(&r);
    assert_true(r.eval_loss == before);
    close_run(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shuffled_histories_change_no_bit_of_lora),
        cmocka_unit_test(shuffled_histories_change_no_bit_of_full),
        cmocka_unit_test(sessions_side_by_side_do_not_disturb_each_other),
        cmocka_unit_test(a_step_after_the_last_is_refused_and_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

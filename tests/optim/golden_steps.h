/* Twenty steps against an official implementation: tests/golden/optimizers. Include after
 * optim_check.h. */
#ifndef PS_TESTS_GOLDEN_STEPS_H
#define PS_TESTS_GOLDEN_STEPS_H

#include "tests/optim/optim_check.h"

struct golden {
    const char *name; /* of the case */
    const struct ps_optimizer_ops *ops;
    struct ps_optimizer_hyper hyper;
    double lr;
    double atol, rtol; /* of a weight after t steps: (atol + rtol |weight|) t */
    int flips;         /* so many may be off by flip_size: a rounding to few bits fell otherwise */
    double flip_size;
};

enum { GOLDEN_TENSORS = 5, GOLDEN_STEPS = 20 };

static inline void golden_make(struct subject *s, const struct golden *c, int k)
{
    static const int64_t shape[GOLDEN_TENSORS][2] = {{8, 6}, {5, 40}, {64, 100}, {33, 0}, {300, 0}};
    struct ps_opt_tensor x = tensor_of(shape[k][0], shape[k][1], PS_DTYPE_F32);
    x.id = (uint32_t)k;
    subject_make(s, c->ops, &c->hyper, x, 1);
    for (size_t i = 0; i < x.n; i++) {
        float w = golden_value((uint32_t)i, 50 + (uint32_t)k) * 0.05f;
        memcpy(s->weight.data + 4 * i, &w, 4);
    }
}

static inline void golden_step(struct subject *s, const struct golden *c, int k)
{
    for (size_t i = 0; i < s->tensor.n; i++) {
        float g = golden_grad((uint32_t)i, (uint32_t)k, (uint32_t)s->t + 1);
        memcpy(s->grad.data + 4 * i, &g, 4);
    }
    subject_update(s, &(struct how){.isa = ps_isa_detect(), .lr = c->lr, .decay = true});
}

/* Compare every sampled weight; returns the largest error as a share of what is allowed. */
static inline double golden_check(const struct golden *c)
{
    const char *root = getenv("PENSTOCK_ROOT");
    char path[4096];
    char line[128];
    snprintf(path, sizeof path, "%s/tests/golden/optimizers/optimizers.txt", root ? root : ".");
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    struct subject s[GOLDEN_TENSORS];
    for (int k = 0; k < GOLDEN_TENSORS; k++)
        golden_make(&s[k], c, k);
    bool here = false;
    int compared = 0, flips = 0;
    double worst = 0;
    while (fgets(line, sizeof line, f)) {
        int k;
        unsigned t, i;
        double want;
        if (!strncmp(line, "case ", 5)) {
            line[strcspn(line, "\n")] = '\0';
            here = !strcmp(line + 5, c->name);
            continue;
        }
        if (!here)
            continue;
        assert_int_equal(sscanf(line, "%d %u %u %la", &k, &t, &i, &want), 4);
        while (s[k].t < t)
            golden_step(&s[k], c, k);
        double got = master(&s[k], i), allowed = (c->atol + c->rtol * fabs(want)) * t;
        if (fabs(got - want) > allowed && fabs(got - want) <= c->flip_size && flips < c->flips) {
            flips++;
            allowed = c->flip_size;
        }
        if (!(fabs(got - want) <= allowed))
            fail_msg(
                "%s: tensor %d, step %u, weight %u: %.9g, want %.9g (error %.3g, allowed %.3g)",
                c->name, k, t, i, got, want, fabs(got - want), allowed);
        worst = fabs(got - want) / allowed > worst ? fabs(got - want) / allowed : worst;
        compared++;
    }
    fclose(f);
    assert_in_range(compared, 300, 1000);
    for (int k = 0; k < GOLDEN_TENSORS; k++) {
        assert_int_equal(s[k].t, GOLDEN_STEPS);
        subject_free(&s[k]);
    }
    return worst;
}

#endif

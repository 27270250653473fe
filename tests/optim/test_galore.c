/* GaLore: the official trajectories, what its parts promise, bits, errors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tests/optim/matrix_method.h"

static struct ps_optimizer_hyper hyper_make(void)
{
    return (struct ps_optimizer_hyper){.beta1 = 0.9,
                                       .beta2 = 0.95,
                                       .eps = 1e-6,
                                       .rank = 4,
                                       .update_gap = 7,
                                       .scale = 0.25,
                                       .seed = 42,
                                       .thread_count = THREADS_MAX,
                                       .refresh_together = true};
}

/* 20 steps of size 1e-2: fp32 weights round by 1e-8 each time, directions are good to 1e-6. */
#define GOLDEN_ATOL 5e-7

static void agrees_with_the_official_code(void **state)
{
    struct pools *pools = *state;
    for (int basis = PS_BASIS_RANDOMIZED; basis <= PS_BASIS_SVD; basis++) {
        FOR_EACH_ISA(isa)
        {
            struct ps_optimizer_hyper h = hyper_make();
            h.basis = (enum ps_basis)basis;
            golden_check(&ps_galore_ops, &h, pools->pool[1], isa, "galore.txt", "std", 1e-2,
                         GOLDEN_ATOL);
            h.update_gap = 50;
            h.scale = 1;
            h.weight_decay = 0.1;
            golden_check(&ps_galore_ops, &h, pools->pool[1], isa, "galore.txt", "decay", 1e-2,
                         GOLDEN_ATOL);
            h.rank = 3;
            h.update_gap = 6;
            h.scale = 0.5;
            h.weight_decay = 0.01;
            h.projection = PS_PROJECTION_REVERSE_STD;
            golden_check(&ps_galore_ops, &h, pools->pool[1], isa, "galore.txt", "reverse_std", 1e-2,
                         GOLDEN_ATOL);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_official_code),
    };
    return cmocka_run_group_tests(tests, pools_setup, pools_teardown);
}

/* Parameters a second of the fused AdamW: see bench.h. */
#include "session/bench_internal.h"

#include <errno.h>
#include <string.h>

#include "optim/adamw.h"

#define PARAM_BYTES 14 /* weight, remainder, gradient of 2, two moments of 4 */

int ps__bench_update_init(struct ps__bench_update *u, const struct ps__bench *b,
                          struct ps_pool *pool, struct ps_error *err)
{
    size_t n = b->quick ? (size_t)1 << 18 : (size_t)1 << 24;
    while (n * PARAM_BYTES > b->memory_bytes && n > (size_t)1 << 18)
        n /= 2;
    memset(u, 0, sizeof *u);
    u->pool = pool;
    u->isa = b->isa;
    u->n = n;
    u->bytes = n * PARAM_BYTES;
    u->memory = ps__bench_alloc(u->bytes);
    if (!u->memory)
        return ps_error_set(err, -ENOMEM, "out of memory for %zu parameters with their states", n);
    float *v = (float *)u->memory + n; /* second moments are not negative */
    for (size_t i = 0; i < n; i++)
        v[i] = 1e-3f;
    return 0;
}

void ps__bench_update_fini(struct ps__bench_update *u)
{
    ps__bench_free(u->memory, u->bytes);
    u->memory = NULL;
}

void ps__bench_update_run(void *update)
{
    const struct ps__bench_update *u = update;
    float *m = u->memory;
    uint16_t *half = (uint16_t *)(m + 2 * u->n);
    struct ps_adamw_scalars s;
    ps_adamw_prepare(&s, 1e-6, 0.9, 0.999, 1e-8, 0.01, 10, 1);
    struct ps_adamw_slice slice = {
        .weight = half,
        .remainder = half + u->n,
        .grad = half + 2 * u->n,
        .exp_avg = m,
        .exp_avg_sq = m + u->n,
        .weight_dtype = PS_DTYPE_BF16,
        .grad_dtype = PS_DTYPE_BF16,
        .n = u->n,
    };
    ps_adamw_update(u->pool, u->isa, &s, &slice);
}

int ps__bench_optim(struct ps__bench *b, struct ps_error *err)
{
    ps_log(b->opt->log, PS_LOG_INFO, "cpu-optim: AdamW, bf16 weights with remainder");
    struct ps__bench_update u;
    int ret = ps__bench_update_init(&u, b, b->pool, err);
    if (ret)
        return ret;
    b->out->profile.cpu_optim_params =
        ps__bench_rate(ps__bench_update_run, &u, (double)u.n, b->quick ? 0.01 : 0.5);
    ps__bench_update_fini(&u);
    return 0;
}

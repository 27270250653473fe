/* Matrix products, attention, and handing over a task: see bench.h.
 *
 * Products are C = A B^T (activations times a weight as checkpoints store it); the two others of a
 * training step run within a tenth of that on every machine measured so far. Attention counts
 * 4 S^2 d a head forward, half of it for the causal mask, and 2.5 times that backward. */
#include "session/bench_internal.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "runtime/kernels/attention.h"
#include "runtime/kernels/gemm.h"

struct shape {
    int64_t m, n, k;
};

/* tokens, outputs, inputs: decoding, small models, the 1.1B and the 8B Llama */
static const struct shape full_shapes[] = {
    {1, 4096, 4096},    {8, 4096, 4096},    {64, 4096, 4096},   {512, 576, 576},
    {512, 1536, 576},   {512, 576, 1536},   {256, 2048, 2048},  {256, 5632, 2048},
    {256, 2048, 5632},  {256, 32000, 2048}, {2048, 2048, 2048}, {2048, 5632, 2048},
    {2048, 2048, 5632}, {512, 4096, 4096},  {512, 14336, 4096}, {512, 4096, 14336},
};
static const struct shape quick_shapes[] = {
    {1, 1024, 1024},
    {128, 576, 576},
    {256, 1024, 1024},
};

static_assert(2 * sizeof full_shapes / sizeof full_shapes[0] <= PS_PROFILE_GEMM_MAX,
              "each shape in two types");

int ps__bench_product_init(struct ps__bench_product *p, const struct ps__bench *b, int64_t m,
                           int64_t n, int64_t k, enum ps_dtype dtype, struct ps_error *err)
{
    size_t size = ps_dtype_size(dtype);
    memset(p, 0, sizeof *p);
    p->pool = b->pool;
    p->isa = b->isa;
    p->m = m;
    p->n = n;
    p->k = k;
    p->dtype = dtype;
    p->a_bytes = (size_t)(m * k) * size;
    p->b_bytes = (size_t)(n * k) * size;
    p->c_bytes = (size_t)(m * n) * size;
    p->workspace_bytes = ps_gemm_workspace_bytes(b->threads);
    p->a = ps__bench_alloc(p->a_bytes);
    p->b = ps__bench_alloc(p->b_bytes);
    p->c = ps__bench_alloc(p->c_bytes);
    p->workspace = ps__bench_alloc(p->workspace_bytes);
    if (p->a && p->b && p->c && p->workspace)
        return 0;
    ps__bench_product_fini(p);
    return ps_error_set(err, -ENOMEM, "out of memory for matrices of %zu bytes",
                        p->a_bytes + p->b_bytes + p->c_bytes);
}

void ps__bench_product_fini(struct ps__bench_product *p)
{
    ps__bench_free(p->a, p->a_bytes);
    ps__bench_free(p->b, p->b_bytes);
    ps__bench_free(p->c, p->c_bytes);
    ps__bench_free(p->workspace, p->workspace_bytes);
    p->a = p->b = p->c = p->workspace = NULL;
}

void ps__bench_product_run(void *product)
{
    const struct ps__bench_product *p = product;
    struct ps_gemm_args args = {
        .m = (size_t)p->m,
        .n = (size_t)p->n,
        .k = (size_t)p->k,
        .a = {p->a, (size_t)p->k, p->dtype, 0},
        .b = {p->b, (size_t)p->k, p->dtype, 1},
        .c = p->c,
        .c_ld = (size_t)p->n,
        .c_dtype = p->dtype,
        .math = p->dtype == PS_DTYPE_BF16 ? PS_GEMM_BF16 : PS_GEMM_F32,
    };
    ps_gemm(p->pool, p->isa, &args, p->workspace);
}

double ps__bench_product_flops(const struct ps__bench_product *p)
{
    return 2.0 * (double)p->m * (double)p->n * (double)p->k;
}

static int measure_shape(struct ps__bench *b, const struct shape *s, enum ps_dtype dtype,
                         double *rate, struct ps_error *err)
{
    struct ps__bench_product product;
    int ret = ps__bench_product_init(&product, b, s->m, s->n, s->k, dtype, err);
    if (ret)
        return ret;
    *rate = ps__bench_rate(ps__bench_product_run, &product, ps__bench_product_flops(&product),
                           b->quick ? 0.01 : 0.1);
    ps__bench_product_fini(&product);
    return 0;
}

/* Each shape twice, a while apart, the better one counts: what disturbs a machine for a moment
 * would otherwise make one shape look worse than its neighbour. */
static int measure_shapes(struct ps__bench *b, const struct shape *shapes, size_t count,
                          enum ps_dtype dtype, struct ps_error *err)
{
    struct ps_profile *p = &b->out->profile;
    int first = p->gemm_count;
    for (int round = 0; round < 2; round++) {
        int at = first;
        for (size_t i = 0; i < count; i++) {
            const struct shape *s = &shapes[i];
            uint64_t need = (uint64_t)(s->m * s->k + s->n * s->k + s->m * s->n);
            if (need * ps_dtype_size(dtype) > b->memory_bytes)
                continue; /* a machine this small will not train this shape either */
            struct ps_profile_gemm g = {s->m, s->n, s->k, dtype, 0};
            int ret = measure_shape(b, s, dtype, &g.flops, err);
            if (ret)
                return ret;
            if (round == 0 || g.flops > p->gemm[at].flops)
                p->gemm[at] = g;
            at++;
        }
        p->gemm_count = at;
    }
    return 0;
}

/* ---- attention ------------------------------------------------------------------------------ */

struct attention {
    struct ps_pool *pool;
    enum ps_isa isa;
    struct ps_attention_args args;
    void *workspace;
};

static void attention_run(void *arg)
{
    struct attention *a = arg;
    ps_attention_forward(a->pool, a->isa, &a->args, a->workspace);
    ps_attention_backward(a->pool, a->isa, &a->args, a->workspace);
}

static int measure_attention(struct ps__bench *b, struct ps_error *err)
{
    const int32_t tokens = b->quick ? 256 : 2048, heads = 8, kv_heads = 2, dim = 64;
    const int32_t doc_start[2] = {0, tokens};
    const size_t q_ld = (size_t)(heads * dim), kv_ld = (size_t)(kv_heads * dim);
    const size_t q = (size_t)tokens * q_ld, kv = (size_t)tokens * kv_ld;
    size_t lse_bytes = (size_t)tokens * (size_t)heads * sizeof(float);
    size_t work = ps_attention_workspace_bytes(tokens, heads, kv_heads, dim, b->threads);
    work = (work + 63) / 64 * 64;
    size_t bytes = work + lse_bytes + 2 * (4 * q + 4 * kv);
    unsigned char *memory = ps__bench_alloc(bytes);
    if (!memory)
        return ps_error_set(err, -ENOMEM, "out of memory for %zu bytes of attention", bytes);
    uint16_t *half = (uint16_t *)(memory + work + lse_bytes);
    struct attention a = {
        .pool = b->pool,
        .isa = b->isa,
        .workspace = memory,
        .args = {.doc_start = doc_start,
                 .doc_count = 1,
                 .n_head = heads,
                 .n_kv_head = kv_heads,
                 .head_dim = dim,
                 .scale = 0.125f,
                 .dtype = PS_DTYPE_BF16,
                 .q = half,
                 .k = half + q,
                 .v = half + q + kv,
                 .q_ld = q_ld,
                 .k_ld = kv_ld,
                 .v_ld = kv_ld,
                 .out = half + q + 2 * kv,
                 .out_ld = q_ld,
                 .lse = (float *)(void *)(memory + work),
                 .dout = half + 2 * q + 2 * kv,
                 .dout_ld = q_ld,
                 .dq = half + 3 * q + 2 * kv,
                 .dk = half + 4 * q + 2 * kv,
                 .dv = half + 4 * q + 3 * kv,
                 .dq_ld = q_ld,
                 .dk_ld = kv_ld,
                 .dv_ld = kv_ld},
    };
    double flops = 3.5 * 0.5 * 4.0 * (double)tokens * tokens * dim * heads;
    b->out->profile.attention_flops =
        ps__bench_rate(attention_run, &a, flops, b->quick ? 0.01 : 0.3);
    ps__bench_free(memory, bytes);
    return 0;
}

/* ---- handing over a task -------------------------------------------------------------------- */

#define TURNS 400
#define LOOPS_A_TASK 12 /* norms, activations, products of a half layer */

struct relay {
    pthread_mutex_t m;
    pthread_cond_t wake;
    int turn; /* guarded by m: odd is the partner's */
};

static void relay_go(struct relay *r, int mine)
{
    PS_IGNORE(pthread_mutex_lock(&r->m), "an own mutex");
    while (r->turn % 2 != mine)
        PS_IGNORE(pthread_cond_wait(&r->wake, &r->m), "an own mutex");
    r->turn++;
    PS_IGNORE(pthread_cond_broadcast(&r->wake), "never fails");
    PS_IGNORE(pthread_mutex_unlock(&r->m), "an own mutex");
}

static void *relay_partner(void *arg)
{
    for (int i = 0; i < TURNS; i++)
        relay_go(arg, 1);
    return NULL;
}

static void nothing(void *arg, size_t task, int thread)
{
    (void)arg;
    (void)task;
    (void)thread;
}

/* A wake-up of a sleeping thread and the small parallel loops of a compute task. */
static int measure_overhead(struct ps__bench *b, struct ps_error *err)
{
    struct relay r = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
    pthread_t partner;
    int ret = pthread_create(&partner, NULL, relay_partner, &r);
    if (ret)
        return ps_error_set(err, -ret, "cannot start a thread: %s", ps_status_text(-ret));
    double begin = ps__bench_now();
    for (int i = 0; i < TURNS; i++)
        relay_go(&r, 0);
    PS_IGNORE(pthread_join(partner, NULL), "it was started");
    double wake_s = (ps__bench_now() - begin) / (2.0 * TURNS);
    begin = ps__bench_now();
    for (int i = 0; i < TURNS; i++)
        ps_pool_run(b->pool, nothing, NULL, 4 * (size_t)b->threads);
    double loop_s = (ps__bench_now() - begin) / TURNS;
    b->out->profile.step_overhead_s = wake_s + LOOPS_A_TASK * loop_s;
    return 0;
}

int ps__bench_gemm(struct ps__bench *b, struct ps_error *err)
{
    static const enum ps_dtype dtypes[] = {PS_DTYPE_BF16, PS_DTYPE_F32};
    const struct shape *shapes = b->quick ? quick_shapes : full_shapes;
    size_t count = b->quick ? sizeof quick_shapes / sizeof quick_shapes[0]
                            : sizeof full_shapes / sizeof full_shapes[0];
    b->out->profile.gemm_count = 0;
    for (size_t d = 0; d < 2; d++) {
        ps_log(b->opt->log, PS_LOG_INFO, "gemm: %zu shapes in %s, %d thread%s", count,
               dtypes[d] == PS_DTYPE_BF16 ? "bf16" : "f32", b->threads, b->threads > 1 ? "s" : "");
        int ret = measure_shapes(b, shapes, count, dtypes[d], err);
        if (ret)
            return ret;
    }
    int ret = measure_attention(b, err);
    return ret ? ret : measure_overhead(b, err);
}

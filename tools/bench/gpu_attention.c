/* Attention of the CUDA device, forward and backward: raw times for gpu_attention.py.
 *
 *   gpu_attention [--case HEAD_DIM:HEADS:KV_HEADS:T:DOCS]... [--seconds S] [--out FILE] [--tiny]
 *
 * DOCS documents of T tokens each in one stream, causal, bf16. FLOPs are the useful ones: 4
 * (backward: 10) of every visible pair of tokens, head and channel. Outputs must be finite and not
 * all zeros. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench/gpu_bench.h"

#define CASES_MAX 32

struct shape {
    int32_t head_dim, n_head, n_kv_head, seq_len, docs;
};

struct plan {
    struct shape s[CASES_MAX];
    int count;
    size_t bytes; /* of the largest case */
};

struct work {
    struct ps_attention_args a;
    const int32_t *doc;
    void *workspace;
};

static size_t case_bytes(const struct shape *s)
{
    size_t tokens = (size_t)s->seq_len * (size_t)s->docs;
    size_t q = (size_t)(s->n_head * s->head_dim), kv = (size_t)(s->n_kv_head * s->head_dim);
    return tokens * (2 * (4 * q + 4 * kv) + 8 * (size_t)s->n_head + 8) + ((size_t)1 << 20);
}

static bool flag(void *arg, const char *name, const char *value)
{
    struct plan *plan = arg;
    struct shape *s = &plan->s[plan->count];
    if (strcmp(name, "--case") || plan->count == CASES_MAX ||
        sscanf(value, "%d:%d:%d:%d:%d", &s->head_dim, &s->n_head, &s->n_kv_head, &s->seq_len,
               &s->docs) != 5 ||
        s->head_dim < 1 || s->n_kv_head < 1 || s->seq_len < 1 || s->docs < 1 ||
        s->seq_len > INT32_MAX / s->docs)
        return false;
    plan->bytes = case_bytes(s) > plan->bytes ? case_bytes(s) : plan->bytes;
    plan->count++;
    return true;
}

static void forward(struct gpu_bench *g, void *arg)
{
    struct work *w = arg;
    g->cx.k->attention_forward(&g->cx, &w->a, w->doc, w->workspace);
}

static void backward(struct gpu_bench *g, void *arg)
{
    struct work *w = arg;
    g->cx.k->attention_backward(&g->cx, &w->a, w->doc, w->workspace);
}

static void set_docs(struct gpu_bench *g, struct work *w, const struct shape *s)
{
    size_t tokens = (size_t)s->seq_len * (size_t)s->docs;
    int32_t *start = malloc(((size_t)s->docs + 1) * sizeof *start);
    int32_t *doc = malloc(tokens * 2 * sizeof *doc);
    if (!start || !doc)
        gpu_fail("documents", "no memory");
    for (int32_t d = 0; d <= s->docs; d++)
        start[d] = d * s->seq_len;
    for (size_t t = 0; t < tokens; t++) {
        size_t d = t / (size_t)s->seq_len;
        doc[2 * t] = start[d];
        doc[2 * t + 1] = start[d + 1];
    }
    w->doc = gpu_upload(g, doc, tokens * 2 * sizeof *doc);
    free(doc);
    w->a.doc_start = start;
    w->a.doc_count = s->docs;
}

static void set(struct gpu_bench *g, struct work *w, const struct shape *s)
{
    size_t tokens = (size_t)s->seq_len * (size_t)s->docs;
    size_t q = (size_t)(s->n_head * s->head_dim), kv = (size_t)(s->n_kv_head * s->head_dim);
    *w = (struct work){.a = {.n_head = s->n_head,
                             .n_kv_head = s->n_kv_head,
                             .head_dim = s->head_dim,
                             .scale = 1 / sqrtf((float)s->head_dim),
                             .dtype = PS_DTYPE_BF16,
                             .q_ld = q,
                             .k_ld = kv,
                             .v_ld = kv,
                             .out_ld = q,
                             .dout_ld = q,
                             .dq_ld = q,
                             .dk_ld = kv,
                             .dv_ld = kv}};
    w->a.q = gpu_random(g, PS_DTYPE_BF16, tokens * q, 1);
    w->a.k = gpu_random(g, PS_DTYPE_BF16, tokens * kv, 1);
    w->a.v = gpu_random(g, PS_DTYPE_BF16, tokens * kv, 1);
    w->a.dout = gpu_random(g, PS_DTYPE_BF16, tokens * q, 1);
    w->a.out = gpu_take(g, tokens * q * 2);
    w->a.dq = gpu_take(g, tokens * q * 2);
    w->a.dk = gpu_take(g, tokens * kv * 2);
    w->a.dv = gpu_take(g, tokens * kv * 2);
    w->a.lse = gpu_take(g, tokens * (size_t)s->n_head * sizeof(float));
    w->workspace = gpu_take(g, g->cx.k->attention_workspace_bytes(
                                   &g->cx, (int32_t)tokens, s->n_head, s->n_kv_head, s->head_dim));
    set_docs(g, w, s);
}

/* The last rows depend on everything. */
static void check(struct gpu_bench *g, const void *device, size_t count, const char *what)
{
    enum { LAST = 4096 };
    uint16_t host[LAST];
    size_t n = count < LAST ? count : LAST, zeros = 0;
    if (g->cx.k->fetch(&g->cx, host, (const uint16_t *)device + count - n, n * 2))
        gpu_fail("fetch", g->plugin->fault_text(&g->cx));
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(ps_bf16_to_f32(host[i])))
            gpu_fail(what, "not finite");
        zeros += (host[i] & 0x7FFF) == 0;
    }
    if (zeros > n / 2)
        gpu_fail(what, "zeros");
}

int main(int argc, char **argv)
{
    static struct plan plan;
    struct gpu_bench g = {0};
    gpu_parse(&g, argc, argv, flag, &plan);
    gpu_open(&g, plan.bytes + ((size_t)64 << 20), 1);
    size_t before = g.used;
    for (int i = 0; i < plan.count; i++) {
        const struct shape *s = &plan.s[i];
        struct work w;
        double left = g.deadline - gpu_now();
        if (left <= 0) {
            fprintf(stderr, "gpu_attention: no time left for %d of %d cases\n", plan.count - i,
                    plan.count);
            break;
        }
        g.used = before;
        set(&g, &w, s);
        double share = 0.4 * left / (plan.count - i), f = gpu_time(&g, forward, &w, share),
               b = gpu_time(&g, backward, &w, share);
        size_t tokens = (size_t)s->seq_len * (size_t)s->docs;
        check(&g, w.a.out, tokens * w.a.out_ld, "out");
        check(&g, w.a.dq, tokens * w.a.dq_ld, "dq");
        check(&g, w.a.dk, tokens * w.a.dk_ld, "dk");
        check(&g, w.a.dv, tokens * w.a.dv_ld, "dv");
        double pairs = s->docs * 0.5 * (double)s->seq_len * (s->seq_len + 1.0);
        double unit = pairs * s->n_head * s->head_dim;
        gpu_line(&g,
                 "{\"part\":\"raw attention\",\"case\":\"%d:%d:%d:%d:%d\",\"forward_s\":%.9g,"
                 "\"backward_s\":%.9g,\"forward_flops\":%.6g,\"backward_flops\":%.6g}",
                 s->head_dim, s->n_head, s->n_kv_head, s->seq_len, s->docs, f, b, 4 * unit / f,
                 10 * unit / b);
        free((void *)(uintptr_t)w.a.doc_start);
    }
    gpu_close(&g);
    return 0;
}

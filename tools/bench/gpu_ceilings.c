/* Products by the plug-in's cuBLASLt path, and copies over the link: raw times for gpu_ceilings.py.
 *
 *   gpu_ceilings [--gemm NAME:KIND:M:N:K]... [--copy BYTES] [--seconds S] [--out FILE] [--tiny]
 *
 * KIND says what the product is in a linear layer y = x W^T with T tokens:
 *
 *   y     (T, out) = x (T, in) W^T           M = T, N = out, K = in; bf16 out
 *   dx    (T, in)  = dy (T, out) W           M = T, N = in, K = out; bf16 out
 *   dw    (out, in) += dy^T x                M = out, N = in, K = T; fp32 out, added to
 *   head  (T, vocab) = x W^T                 as y, fp32 out
 *   lora  y + u B^T, rank 16, in one call    as y; FLOPs of the base product alone are counted
 *
 * --copy: host memory that the plug-in has page-locked, to the device, back, and both at once, on
 * the plug-in's own copy streams, each by a thread of its own; bytes a second of each direction. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench/gpu_bench.h"

#define CASES_MAX 48
#define RANK 16
#define COPIES 8

struct product {
    char name[48], kind[8];
    size_t m, n, k;
};

struct plan {
    struct product p[CASES_MAX];
    int count;
    size_t copy_bytes;
    size_t a, b, c, u, v; /* bytes that the largest operands need */
};

struct operands {
    void *a, *b, *c, *u, *v;
    struct ps_gemm_args g;
};

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

static bool is(const struct product *p, const char *kind)
{
    return !strcmp(p->kind, kind);
}

static bool flag(void *arg, const char *name, const char *value)
{
    struct plan *plan = arg;
    struct product *p = &plan->p[plan->count];
    if (!strcmp(name, "--copy")) {
        plan->copy_bytes = strtoull(value, NULL, 10);
        return plan->copy_bytes > 0;
    }
    if (strcmp(name, "--gemm") || plan->count == CASES_MAX ||
        sscanf(value, "%47[^:]:%7[^:]:%zu:%zu:%zu", p->name, p->kind, &p->m, &p->n, &p->k) != 5)
        return false;
    bool f32 = is(p, "dw") || is(p, "head");
    plan->a = largest(plan->a, p->m * p->k * 2);
    plan->b = largest(plan->b, p->n * p->k * 2);
    plan->c = largest(plan->c, p->m * p->n * (f32 ? 4 : 2));
    plan->u = largest(plan->u, p->m * RANK * 2);
    plan->v = largest(plan->v, p->n * RANK * 2);
    plan->count++;
    return f32 || is(p, "y") || is(p, "dx") || is(p, "lora");
}

static struct ps_gemm_mat mat(const void *data, size_t ld, int trans)
{
    return (struct ps_gemm_mat){.data = data, .ld = ld, .dtype = PS_DTYPE_BF16, .trans = trans};
}

static void describe(struct operands *o, const struct product *p)
{
    bool dw = is(p, "dw"), dx = is(p, "dx"), f32 = dw || is(p, "head");
    o->g = (struct ps_gemm_args){
        .m = p->m,
        .n = p->n,
        .k = p->k,
        .a = dw ? mat(o->a, p->m, 1) : mat(o->a, p->k, 0),
        .b = dw || dx ? mat(o->b, p->n, 0) : mat(o->b, p->k, 1),
        .c = o->c,
        .c_ld = p->n,
        .c_dtype = f32 ? PS_DTYPE_F32 : PS_DTYPE_BF16,
        .accumulate = dw,
        .math = PS_GEMM_BF16,
    };
    if (is(p, "lora")) {
        o->g.k2 = RANK;
        o->g.a2 = mat(o->u, RANK, 0);
        o->g.b2 = mat(o->v, RANK, 1);
    }
}

static void multiply(struct gpu_bench *g, void *arg)
{
    g->cx.k->gemm(&g->cx, &((struct operands *)arg)->g);
}

static void products(struct gpu_bench *g, struct plan *plan)
{
    struct operands o = {.a = gpu_random(g, PS_DTYPE_BF16, plan->a / 2, 1),
                         .b = gpu_random(g, PS_DTYPE_BF16, plan->b / 2, 0.02f),
                         .c = gpu_take(g, plan->c),
                         .u = gpu_random(g, PS_DTYPE_BF16, plan->u / 2, 1),
                         .v = gpu_random(g, PS_DTYPE_BF16, plan->v / 2, 0.02f)};
    for (int i = 0; i < plan->count; i++) {
        const struct product *p = &plan->p[i];
        double left = g->deadline - gpu_now();
        if (left <= 0) {
            fprintf(stderr, "gpu_ceilings: no time left for %d of %d products\n", plan->count - i,
                    plan->count);
            return;
        }
        describe(&o, p);
        g->cx.k->zero(&g->cx, o.c, plan->c);
        double s = gpu_time(g, multiply, &o, 0.7 * left / (plan->count - i));
        double flops = 2.0 * (double)p->m * (double)p->n * (double)p->k;
        gpu_line(
            g,
            "{\"part\":\"raw gemm\",\"case\":\"%s\",\"kind\":\"%s\",\"m\":%zu,\"n\":%zu,\"k\":%zu,"
            "\"seconds\":%.9g,\"flops\":%.6g}",
            p->name, p->kind, p->m, p->n, p->k, s, flops / s);
    }
}

/* One direction, over and over. */
struct way {
    struct gpu_bench *g;
    void *host, *device;
    size_t bytes;
    bool down; /* device to host */
    int copies;
    double begin, end;
    struct ps_error err;
    int ret;
};

static void *run_way(void *arg)
{
    struct way *w = arg;
    const struct ps_device_ops *ops = w->g->device->ops;
    w->begin = gpu_now();
    for (int i = 0; i < w->copies && w->ret == 0; i++)
        w->ret = w->down ? ops->copy_d2h(w->g->device, w->host, w->device, w->bytes, &w->err)
                         : ops->copy_h2d(w->g->device, w->device, w->host, w->bytes, &w->err);
    w->end = gpu_now();
    return NULL;
}

static double rate(const struct way *w)
{
    if (w->ret)
        gpu_fail("copy", w->err.message);
    return (double)w->bytes * w->copies / (w->end - w->begin);
}

static void copies(struct gpu_bench *g, size_t bytes)
{
    int n = g->tiny ? 2 : COPIES;
    struct way w[2] = {{.g = g, .bytes = bytes, .copies = n},
                       {.g = g, .bytes = bytes, .copies = n, .down = true}};
    double alone[2], both[2];
    bool pinned = true;
    pthread_t thread;
    for (int i = 0; i < 2; i++) {
        struct ps_error err = {0};
        w[i].device = gpu_take(g, bytes);
        if (!(w[i].host = aligned_alloc((size_t)2 << 20, bytes)))
            gpu_fail("copy", "no host memory");
        memset(w[i].host, 1, bytes);
        pinned = g->plugin->pin(w[i].host, bytes, &err) == 0 && pinned;
    }
    for (int warm = 0; warm < 2; warm++)
        for (int i = 0; i < 2; i++) {
            run_way(&w[i]);
            alone[i] = rate(&w[i]);
        }
    /* as many copies each way: the sum counts until the later end */
    if (pthread_create(&thread, NULL, run_way, &w[1]))
        gpu_fail("copy", "no thread");
    run_way(&w[0]);
    pthread_join(thread, NULL);
    for (int i = 0; i < 2; i++)
        both[i] = rate(&w[i]);
    double begin = w[0].begin < w[1].begin ? w[0].begin : w[1].begin;
    double end = w[0].end > w[1].end ? w[0].end : w[1].end;
    gpu_line(g,
             "{\"part\":\"raw copy\",\"bytes\":%zu,\"pinned\":%s,\"h2d\":%.6g,\"d2h\":%.6g,"
             "\"h2d_both\":%.6g,\"d2h_both\":%.6g,\"duplex\":%.6g}",
             bytes, pinned ? "true" : "false", alone[0], alone[1], both[0], both[1],
             2.0 * (double)bytes * n / (end - begin));
    for (int i = 0; i < 2; i++) {
        if (pinned)
            g->plugin->unpin(w[i].host);
        free(w[i].host);
    }
}

/* What a task of a run has on top of its kernels: one small kernel and the wait for it. */
static void tiny_task(struct gpu_bench *g, void *arg)
{
    g->cx.k->round_bf16(&g->cx, arg, 64);
    gpu_finish(g);
}

int main(int argc, char **argv)
{
    static struct plan plan;
    struct gpu_bench g = {0};
    gpu_parse(&g, argc, argv, flag, &plan);
    gpu_open(&g, plan.a + plan.b + plan.c + plan.u + plan.v + 2 * plan.copy_bytes + (1 << 20),
             plan.c / 2);
    gpu_line(&g,
             "{\"part\":\"raw device\",\"name\":\"%s\",\"emulated\":%s,\"major\":%d,\"minor\":%d,"
             "\"total_bytes\":%llu,\"free_bytes\":%llu,\"reserved_bytes\":%llu,\"task_s\":%.6g}",
             g.info.name, g.plugin->emulated ? "true" : "false", g.info.major, g.info.minor,
             (unsigned long long)g.info.total_bytes, (unsigned long long)g.info.free_bytes,
             (unsigned long long)g.info.reserved_bytes,
             gpu_time(&g, tiny_task, gpu_random(&g, PS_DTYPE_F32, 64, 1), 0.1));
    if (plan.copy_bytes)
        copies(&g, plan.copy_bytes);
    if (plan.count)
        products(&g, &plan);
    gpu_close(&g);
    return 0;
}

/* Bandwidth of the CUDA device's memory-bound kernels over that of a device-to-device copy: for
 * gpu_kernels.py.
 *
 *   gpu_kernels [--seconds S] [--out FILE] [--only TEXT] [--tiny]
 *
 * Every kernel reads its inputs and writes its outputs once, and the figure counts those bytes
 * alone (cross-entropy: the logits read once and written once, although they are looked at twice).
 * Tensors are larger than the second-level cache. The copy is measured before and after each
 * kernel; shapes are those of Llama-3-8B at 16384 tokens. bf16 unless the name says fp32. */
#include <string.h>

#include "runtime/kernels/rope.h"
#include "tools/bench/gpu_bench.h"

struct sizes {
    size_t tokens, hidden, inter, vocab, logit_rows, params, head_dim;
};

static const struct sizes full = {16384, 4096, 14336, 128256, 1024, (size_t)64 << 20, 128};
static const struct sizes tiny = {32, 64, 96, 97, 8, 2048, 16};

struct kernels {
    struct sizes z;
    void *t[5]; /* tokens x inter, bf16 */
    void *f[3]; /* params, fp32 */
    void *logits;
    float *small, *cos_sin, *workspace;
    int32_t *position, *target, *ids;
    double *sums;
};

static struct ps_rmsnorm_args norm_args(struct kernels *k)
{
    size_t n = k->z.hidden;
    return (struct ps_rmsnorm_args){.n_tok = k->z.tokens,
                                    .rows_per_tok = 1,
                                    .n = n,
                                    .eps = 1e-5f,
                                    .dtype = PS_DTYPE_BF16,
                                    .x = k->t[0],
                                    .x_ld = n,
                                    .weight = k->small,
                                    .weight_dtype = PS_DTYPE_F32,
                                    .y = k->t[1],
                                    .y_ld = n,
                                    .rstd = k->small + n,
                                    .dy = k->t[3],
                                    .dy_ld = n,
                                    .dx = k->t[2],
                                    .dx_ld = n,
                                    .dx_add = k->t[4],
                                    .dx_add_ld = n};
}

static void rmsnorm_forward(struct gpu_bench *g, void *arg)
{
    struct ps_rmsnorm_args a = norm_args(arg);
    g->cx.k->rmsnorm_forward(&g->cx, &a);
}

static void rmsnorm_backward(struct gpu_bench *g, void *arg)
{
    struct ps_rmsnorm_args a = norm_args(arg);
    g->cx.k->rmsnorm_backward(&g->cx, &a, NULL);
}

static void rmsnorm_dweight(struct gpu_bench *g, void *arg)
{
    struct kernels *k = arg;
    struct ps_rmsnorm_args a = norm_args(k);
    a.dweight = k->f[0];
    a.accumulate = 1;
    g->cx.k->rmsnorm_backward(&g->cx, &a, k->workspace);
}

static void rope(struct gpu_bench *g, void *arg)
{
    struct kernels *k = arg;
    g->cx.k->rope_apply(&g->cx, k->t[0], k->z.tokens, k->z.hidden / k->z.head_dim, k->z.head_dim,
                        k->position, k->cos_sin, 0);
}

static void swiglu_forward(struct gpu_bench *g, void *arg)
{
    struct kernels *k = arg;
    g->cx.k->swiglu_forward(&g->cx, k->z.tokens, k->z.inter, k->t[0], k->t[1], k->t[2]);
}

static void swiglu_backward(struct gpu_bench *g, void *arg)
{
    struct kernels *k = arg;
    g->cx.k->swiglu_backward(&g->cx, k->z.tokens, k->z.inter, k->t[0], k->t[1], k->t[2], k->t[3],
                             k->t[4]);
}

static void embedding_forward(struct gpu_bench *g, void *arg)
{
    struct kernels *k = arg;
    g->cx.k->embedding_forward(&g->cx, k->t[0], PS_DTYPE_BF16, k->z.hidden, 0, INT32_MAX, k->ids,
                               k->z.tokens, k->t[1]);
}

static void cross_entropy(struct gpu_bench *g, void *arg)
{
    struct kernels *k = arg;
    g->cx.k->cross_entropy(&g->cx, k->logits, k->z.logit_rows, k->z.vocab, k->target, k->sums,
                           1e-3f, 1);
}

static void dropout(struct gpu_bench *g, void *arg)
{
    const struct ps_rng_key key = {.seed = 1, .site = PS_RNG_DROPOUT};
    struct kernels *k = arg;
    g->cx.k->dropout(&g->cx, k->t[1], k->t[0], k->z.tokens, k->z.hidden, 0.1f, &key, 0);
}

static void round_bf16(struct gpu_bench *g, void *arg)
{
    struct kernels *k = arg;
    g->cx.k->round_bf16(&g->cx, k->f[0], k->z.params);
}

static void square_sum(struct gpu_bench *g, void *arg)
{
    struct kernels *k = arg;
    g->cx.k->square_sum(&g->cx, k->sums, k->f[0], k->z.params);
}

static void adamw(struct gpu_bench *g, struct kernels *k, enum ps_dtype dtype)
{
    bool bf16 = dtype == PS_DTYPE_BF16;
    struct ps_adamw_cuda_args a = {.weight = bf16 ? k->t[0] : k->logits,
                                   .weight_dtype = dtype,
                                   .remainder = bf16 ? k->t[1] : NULL,
                                   .grad = k->f[0],
                                   .exp_avg = k->f[1],
                                   .exp_avg_sq = k->f[2],
                                   .n = k->z.params,
                                   .beta1 = 0.9f,
                                   .beta2 = 0.999f,
                                   .one_minus_beta1 = 0.1f,
                                   .one_minus_beta2 = 0.001f,
                                   .step_size = 1e-6f,
                                   .rsqrt_c2 = 1,
                                   .eps = 1e-8f,
                                   .grad_scale = 1};
    g->cx.k->adamw(&g->cx, &a);
}

static void adamw_bf16(struct gpu_bench *g, void *arg)
{
    adamw(g, arg, PS_DTYPE_BF16);
}

static void adamw_f32(struct gpu_bench *g, void *arg)
{
    adamw(g, arg, PS_DTYPE_F32);
}

static void copy(struct gpu_bench *g, void *arg)
{
    struct kernels *k = arg;
    gpu_copy(g, k->t[1], k->t[0], k->z.tokens * k->z.inter * 2);
}

/* Bytes: of each token's hidden elements, of each token's inner elements, of each parameter, of
 * each logit. */
static const struct {
    const char *name;
    gpu_work_fn run;
    double hidden, inter, param, logit;
} cases[] = {
    {"rmsnorm forward", rmsnorm_forward, 4, 0, 0, 0},
    {"rmsnorm backward", rmsnorm_backward, 8, 0, 0, 0},
    {"rmsnorm backward with dweight", rmsnorm_dweight, 8, 0, 0, 0},
    {"rope", rope, 4, 0, 0, 0},
    {"swiglu forward", swiglu_forward, 0, 6, 0, 0},
    {"swiglu backward", swiglu_backward, 0, 10, 0, 0},
    {"embedding forward", embedding_forward, 4, 0, 0, 0},
    {"cross-entropy with gradient, fp32", cross_entropy, 0, 0, 0, 8},
    {"dropout", dropout, 4, 0, 0, 0},
    {"cast: rounding to bf16, fp32", round_bf16, 0, 0, 8, 0},
    {"sum of squares, fp32", square_sum, 0, 0, 4, 0},
    {"adamw, bf16 weight and remainder", adamw_bf16, 0, 0, 28, 0},
    {"adamw, fp32 weight", adamw_f32, 0, 0, 28, 0},
};

static double bytes_of(const struct sizes *z, size_t c)
{
    return cases[c].hidden * (double)(z->tokens * z->hidden) +
           cases[c].inter * (double)(z->tokens * z->inter) + cases[c].param * (double)z->params +
           cases[c].logit * (double)(z->logit_rows * z->vocab);
}

static size_t arena_of(const struct sizes *z)
{
    return 5 * z->tokens * z->inter * 2 + 3 * z->params * 4 + z->logit_rows * z->vocab * 4 +
           ps_rmsnorm_workspace_bytes(z->tokens, z->hidden) + ((size_t)64 << 20);
}

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void prepare(struct gpu_bench *g, struct kernels *k)
{
    enum { TOKENS_MAX = 16384, PAIRS_MAX = 64 };
    static int32_t index[TOKENS_MAX];
    static float table[2 * TOKENS_MAX * PAIRS_MAX], inv_freq[PAIRS_MAX];
    const struct sizes *z = &k->z;
    size_t pairs = z->head_dim / 2;
    k->cos_sin = NULL;
    for (size_t i = 0; i < 5; i++)
        k->t[i] = gpu_random(g, PS_DTYPE_BF16, z->tokens * z->inter, 1);
    for (size_t i = 0; i < 3; i++)
        k->f[i] = gpu_random(g, PS_DTYPE_F32, z->params, 1);
    g->cx.k->zero(&g->cx, k->f[2], z->params * 4); /* second moments are not negative */
    k->logits = gpu_random(g, PS_DTYPE_F32, largest(z->logit_rows * z->vocab, z->params), 1);
    k->small = gpu_random(g, PS_DTYPE_F32, z->hidden + z->tokens, 1);
    k->workspace = gpu_take(g, ps_rmsnorm_workspace_bytes(z->tokens, z->hidden));
    k->sums = gpu_take(g, ((size_t)4 << 20));
    for (size_t i = 0; i < pairs; i++)
        inv_freq[i] = 1.0f / (float)(i + 1);
    ps_rope_table(table, inv_freq, z->tokens, pairs);
    k->cos_sin = gpu_upload(g, table, 2 * z->tokens * pairs * sizeof *table);
    for (size_t i = 0; i < z->tokens; i++)
        index[i] = (int32_t)i;
    k->position = gpu_upload(g, index, z->tokens * sizeof *index);
    for (size_t i = 0; i < z->tokens; i++)
        index[i] = (int32_t)(i * 7 % z->tokens);
    k->ids = gpu_upload(g, index, z->tokens * sizeof *index);
    for (size_t i = 0; i < z->logit_rows; i++)
        index[i] = (int32_t)(i * 11 % z->vocab);
    k->target = gpu_upload(g, index, z->logit_rows * sizeof *index);
}

static bool flag(void *arg, const char *name, const char *value)
{
    if (!strcmp(name, "--only"))
        *(const char **)arg = value;
    return !strcmp(name, "--only");
}

int main(int argc, char **argv)
{
    const size_t count = sizeof cases / sizeof *cases;
    const char *only = "";
    struct gpu_bench g = {0};
    struct kernels k;
    gpu_parse(&g, argc, argv, flag, &only);
    k.z = g.tiny ? tiny : full;
    gpu_open(&g, arena_of(&k.z), 1);
    prepare(&g, &k);
    double copy_bytes = 4.0 * (double)(k.z.tokens * k.z.inter);
    for (size_t c = 0; c < count; c++) {
        double left = g.deadline - gpu_now(), share = left / (double)(count - c);
        if (!strstr(cases[c].name, only))
            continue;
        if (left <= 0) {
            fprintf(stderr, "gpu_kernels: no time left for %zu of %zu kernels\n", count - c, count);
            break;
        }
        double before = gpu_time(&g, copy, &k, share / 8);
        double s = gpu_time(&g, cases[c].run, &k, share / 4);
        double after = gpu_time(&g, copy, &k, share / 8);
        double rate = bytes_of(&k.z, c) / s, ceiling = copy_bytes / (before / 2 + after / 2);
        gpu_line(
            &g,
            "{\"part\":\"raw kernel\",\"case\":\"%s\",\"ratio\":%.4g,\"ours\":%.5g,\"other\":%.5g,"
            "\"unit\":\"GB/s\",\"against\":\"%s\"}",
            cases[c].name, rate / ceiling, rate * 1e-9, ceiling * 1e-9,
            g.copy ? "cuMemcpyDtoDAsync" : "copy kernel");
    }
    gpu_close(&g);
    return 0;
}

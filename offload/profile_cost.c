/* From a hardware profile to a cost model: see profile.h, which has the derivation. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "offload/profile.h"
#include "runtime/model/block.h"
#include "runtime/model/config.h"

#define NEAREST 3
/* A GPU link that carries both directions at once was seen to move half as much again as one
 * direction (offload systems that copy both ways report 1.5): each direction asks for 2/3 of it. */
#define LINK_SHARE (2.0 / 3)
/* Products as narrow as an adapter's rank use a third of the units that wide ones use. Not measured
 * alone: it makes LoRA steps of 135M and 1.1B shapes on 2 cores come out within a tenth. */
#define ADAPTER_SLOWER 3
/* Bytes that a fused AdamW update moves for a parameter. */
#define UPDATE_BYTES 26.0
/* And the norm of its gradient, which is rounded in place. */
#define NORM_BYTES 8.0
/* A commit flushes three times and writes a table and a superblock, one after the other. */
#define COMMIT_LATENCIES 5

/* --- products --- */

struct nearest {
    double distance, flops;
};

static double log_ratio(int64_t a, int64_t b)
{
    return log((double)(a > 0 ? a : 1) / (double)b);
}

/* The nearest shapes of a dtype, nearest first; returns how many. */
static int find_nearest(const struct ps_profile *p, enum ps_dtype dtype, const int64_t shape[3],
                        struct nearest out[NEAREST])
{
    int count = 0;
    for (int i = 0; i < p->gemm_count; i++) {
        const struct ps_profile_gemm *g = &p->gemm[i];
        if (g->dtype != dtype)
            continue;
        double m = log_ratio(shape[0], g->m), n = log_ratio(shape[1], g->n),
               k = log_ratio(shape[2], g->k);
        struct nearest x = {.distance = m * m + n * n + k * k, .flops = g->flops};
        int at = count < NEAREST ? count++ : NEAREST;
        for (; at > 0 && x.distance < out[at - 1].distance; at--)
            if (at < NEAREST)
                out[at] = out[at - 1];
        if (at < NEAREST)
            out[at] = x;
    }
    return count;
}

/* FLOP/s of a dtype that was measured: seconds per FLOP averaged over the nearest shapes, each with
 * the inverse of its squared distance. 0 where nothing was measured. */
static double measured_flops(const struct ps_profile *p, enum ps_dtype dtype,
                             const int64_t shape[3])
{
    struct nearest near[NEAREST];
    int count = find_nearest(p, dtype, shape, near);
    if (count == 0)
        return 0;
    if (near[0].distance < 1e-12)
        return near[0].flops;
    double weight = 0, seconds = 0;
    for (int i = 0; i < count; i++) {
        weight += 1 / near[i].distance;
        seconds += 1 / near[i].distance / near[i].flops;
    }
    return weight / seconds;
}

double ps_profile_gemm_flops(const struct ps_profile *p, enum ps_dtype dtype, int64_t m, int64_t n,
                             int64_t k)
{
    const int64_t shape[3] = {m, n, k};
    double rate = measured_flops(p, dtype, shape);
    if (rate > 0)
        return rate;
    /* the two halves run alike wherever both are known; f32 at half their rate is a careful guess,
     * and either at the rate of f32 too */
    if (dtype == PS_DTYPE_BF16 || dtype == PS_DTYPE_F16)
        rate = measured_flops(p, dtype == PS_DTYPE_BF16 ? PS_DTYPE_F16 : PS_DTYPE_BF16, shape);
    if (rate > 0)
        return rate;
    rate = measured_flops(p, PS_DTYPE_F32, shape);
    if (rate > 0)
        return rate;
    rate = fmax(measured_flops(p, PS_DTYPE_BF16, shape), measured_flops(p, PS_DTYPE_F16, shape));
    if (rate > 0)
        return rate / 2;
    struct ps_profile careful;
    ps_profile_conservative(&careful);
    return measured_flops(&careful, PS_DTYPE_F32, shape);
}

/* FLOP/s of the linears of a layer. Attention's projections count as 2.5 matrices (hidden, hidden):
 * queries and output, and a half for keys and values, which most models share between heads. */
static double linears_rate(const struct ps_profile *p, const struct ps_cost_query *q, bool backward)
{
    int64_t t = q->tokens, h = q->hidden_size, i = q->intermediate_size;
    double square = 2.5 * (double)h * (double)h, wide = (double)h * (double)i;
    double up = backward ? ps_profile_gemm_flops(p, q->dtype, t, h, i)
                         : ps_profile_gemm_flops(p, q->dtype, t, i, h);
    double down = backward ? ps_profile_gemm_flops(p, q->dtype, t, i, h)
                           : ps_profile_gemm_flops(p, q->dtype, t, h, i);
    double seconds =
        square / ps_profile_gemm_flops(p, q->dtype, t, h, h) + 2 * wide / up + wide / down;
    return (square + 3 * wide) / seconds;
}

/* FLOP/s, of the FLOPs that a task counts: `linear` and `attention`. It does `skipped` of the
 * linears not, and `adapter` besides. */
static double layer_rate(const struct ps_profile *p, double rate, double linear, double attention,
                         double skipped, double adapter)
{
    double seconds = (linear - skipped) / rate + ADAPTER_SLOWER * adapter / rate +
                     attention / (p->attention_flops > 0 ? p->attention_flops : rate);
    return (linear + attention) / seconds;
}

static void set_layers(const struct ps_profile *p, const struct ps_cost_query *q, double *rate)
{
    double forward = linears_rate(p, q, false), backward = linears_rate(p, q, true);
    rate[PS_TASK_LAYER_FORWARD] = rate[PS_TASK_LAYER_RECOMPUTE] = forward;
    rate[PS_TASK_LAYER_BACKWARD] = backward;
    rate[PS_TASK_HEAD] = forward;
    if (q->vocab_size > 0)
        rate[PS_TASK_HEAD] =
            ps_profile_gemm_flops(p, q->dtype, q->tokens, q->vocab_size, q->hidden_size);
    double l = 1 - q->attention_share, a = q->attention_share, x = 0, down = 0;
    if (q->linear_flops > 0) {
        l = q->linear_flops;
        a = q->attention_flops;
        x = q->adapter_flops;
        down = q->down_flops;
    }
    rate[PS_TASK_LAYER_FORWARD] = layer_rate(p, forward, l, a, 0, x);
    rate[PS_TASK_LAYER_RECOMPUTE] = layer_rate(p, forward, l, a, down, x);
    rate[PS_TASK_LAYER_BACKWARD] =
        layer_rate(p, backward, (q->full ? 2 : 1) * l, 2.5 * a, 0, 2 * x);
}

/* Recomputation by level: its linears, at R4 attention too, and its element-wise operations
 * (`once`: seconds for an element of each token): n2 and m; n1, q and k turned; the sum after
 * attention. */
static void set_recompute(const struct ps_profile *p, const struct ps_cost_query *q, double once,
                          struct ps_cost_model *out)
{
    double h = (double)q->hidden_size, i = (double)q->intermediate_size;
    double rate = linears_rate(p, q, false);
    for (int level = PS_RECOMPUTE_R1; level < PS_RECOMPUTE_COUNT; level++) {
        double linear = q->recompute_flops[level];
        double attention = level == PS_RECOMPUTE_R4 ? q->attention_flops : 0;
        double elements = 2 * h + 3 * i + (level >= PS_RECOMPUTE_R2 ? 4.5 * h : 0) +
                          (level >= PS_RECOMPUTE_R3 ? 2 * h : 0);
        if (linear <= 0 || q->linear_flops <= 0)
            continue;
        out->recompute_rate[level] =
            layer_rate(p, rate, linear, attention, 0, q->adapter_flops * linear / q->linear_flops);
        out->recompute_overhead_s[level] = p->step_overhead_s + once * elements;
    }
}

void ps_cost_query_model(struct ps_cost_query *q, const struct ps_model_config *cfg, int64_t tokens,
                         int64_t row_tokens, double adapter_params, bool full)
{
    double n = (double)tokens, row = (double)(row_tokens < tokens ? row_tokens : tokens);
    q->tokens = tokens;
    q->hidden_size = cfg->hidden_size;
    q->intermediate_size = cfg->intermediate_size;
    q->vocab_size = cfg->vocab_size;
    q->linear_flops = n * ps_block_linear_flops(cfg);
    q->attention_flops = 4 * n * (row / 2) * (double)cfg->n_head * (double)cfg->head_dim;
    q->down_flops = 2 * n * (double)cfg->hidden_size * (double)cfg->intermediate_size;
    q->adapter_flops = 2 * n * adapter_params;
    for (int level = 0; level < PS_RECOMPUTE_COUNT; level++)
        q->recompute_flops[level] = n * ps_block_recompute_flops(cfg, (enum ps_recompute)level);
    q->full = full;
}

static bool on_cuda(const struct ps_profile *p)
{
    return strcmp(p->device, "cuda") == 0;
}

static void set_compute(const struct ps_profile *p, const struct ps_cost_query *q,
                        struct ps_cost_model *out)
{
    for (int k = 0; k <= PS_TASK_UPDATE; k++)
        out->overhead_s[k] = p->step_overhead_s;
    set_layers(p, q, out->flop_rate);
    set_recompute(p, q, 0, out);
    if (!on_cuda(p)) /* a card's own memory is so much faster that both cost nothing there */
        out->flop_rate[PS_TASK_UPDATE] = out->flop_rate[PS_TASK_PERTURB] = p->cpu_optim_params;
    if (!on_cuda(p)) /* products of updates are fp32 ones on the host; a card's profile has none */
        out->flop_rate[PS_TASK_UPDATE_HOST] = ps_profile_gemm_flops(
            p, PS_DTYPE_F32, q->hidden_size, q->intermediate_size, q->hidden_size);
    if (on_cuda(p) || p->memory <= 0)
        return;
    out->flop_rate[PS_TASK_GRAD_NORM] = p->memory / NORM_BYTES;
    /* Elements that the element-wise operations of a block read and write for each token: two norms
     * (4 h), RoPE on queries and keys (2.5 h), residuals (2 h), SwiGLU (3 i); backward the norms
     * and SwiGLU again, their gradients, and the sums of three gradients. */
    double h = (double)q->hidden_size, i = (double)q->intermediate_size;
    double bytes = (double)q->tokens * (double)ps_dtype_size(q->dtype);
    double once = bytes / p->memory;
    set_recompute(p, q, once, out);
    out->overhead_s[PS_TASK_EMBED] += once * 2 * h;
    out->overhead_s[PS_TASK_EMBED_BACKWARD] += once * 3 * h;
    out->overhead_s[PS_TASK_LAYER_FORWARD] += once * (8.5 * h + 3 * i);
    out->overhead_s[PS_TASK_LAYER_RECOMPUTE] += once * (8.5 * h + 3 * i);
    out->overhead_s[PS_TASK_LAYER_BACKWARD] += once * (18.5 * h + 8 * i);
    out->overhead_s[PS_TASK_HEAD] += once * (4 * h + 2 * (double)q->vocab_size);
}

/* --- lanes --- */

/* The disk whose figures count. */
static struct ps_profile_disk disk_of(const struct ps_profile *p)
{
    if (p->disk_count > 0)
        return p->disk[0];
    struct ps_profile careful;
    ps_profile_conservative(&careful);
    return careful.disk[0];
}

static double known(double wanted, double otherwise)
{
    return wanted > 0 ? wanted : otherwise;
}

static void set_bytes(const struct ps_profile *p, const struct ps_cost_query *q,
                      struct ps_cost_model *out)
{
    const struct ps_profile_disk disk = disk_of(p), *d = &disk;
    double read = d->read, write = d->write;
    if (q->sustained) {
        read = fmin(read, known(d->sustained_read, read));
        write = fmin(write, known(d->sustained_write, write));
    }
    out->byte_rate[PS_LANE_DISK_WEIGHTS] = read;
    out->byte_rate[PS_LANE_DISK_STATE] = read;
    out->byte_rate[PS_LANE_DISK_WRITE] = write;
    out->byte_rate[PS_LANE_COMMIT] = write;
    out->byte_rate[PS_LANE_H2D] = q->discrete ? known(p->copy_h2d, p->copy_host) : p->copy_host;
    if (q->decode_rate > 0) /* on a CPU decoding leaves the weights where compute wants them */
        out->byte_rate[PS_LANE_H2D] =
            q->discrete ? 1 / (1 / out->byte_rate[PS_LANE_H2D] + 1 / q->decode_rate)
                        : q->decode_rate;
    out->byte_rate[PS_LANE_D2H] = q->discrete ? known(p->copy_d2h, p->copy_host) : p->copy_host;
    out->byte_rate[PS_LANE_CPU_OPTIM] = p->cpu_optim_params;
    out->host_copy_rate = p->copy_host;
    static const enum ps_task_kind request[] = {
        PS_TASK_READ_WEIGHTS, PS_TASK_SPILL_READ, PS_TASK_SPILL_WRITE, PS_TASK_GRAD_WRITE,
        PS_TASK_GRAD_READ,    PS_TASK_READ_STATE, PS_TASK_WRITE_STATE, PS_TASK_WRITE_WEIGHTS};
    for (size_t i = 0; i < sizeof request / sizeof *request; i++)
        out->overhead_s[request[i]] = d->latency_s;
    out->overhead_s[PS_TASK_COMMIT] = COMMIT_LATENCIES * d->latency_s;
}

/* The factor by which two that run together both slow down in the model, when the first slows down
 * by `a` and the second by `b`: as much work is done in the same time. 1 .. 2. */
static double together(double a, double b)
{
    double both = 1 / fmax(a, 1) + 1 / fmax(b, 1);
    return fmin(2, 2 / both);
}

static void set_shares(const struct ps_profile *p, const struct ps_cost_query *q,
                       struct ps_cost_model *out)
{
    enum ps_resource own = on_cuda(p) ? PS_RESOURCE_DEVICE : PS_RESOURCE_CORES;
    double disk = together(p->compute_by_disk, p->disk_by_compute) - 1;
    double copy = together(p->compute_by_copy, p->copy_by_compute) - 1;
    out->use[PS_LANE_COMPUTE][own] = 1;
    out->use[PS_LANE_DISK_WEIGHTS][own] = disk;
    out->use[PS_LANE_DISK_STATE][own] = disk;
    out->use[PS_LANE_DISK_WRITE][own] = disk;
    out->use[PS_LANE_H2D][own] = copy;
    out->use[PS_LANE_D2H][own] = copy;
    if (q->decode_rate > 0)
        out->use[PS_LANE_H2D][PS_RESOURCE_CORES] =
            fmax(out->use[PS_LANE_H2D][PS_RESOURCE_CORES], q->decode_share);
    out->use[PS_LANE_CPU_OPTIM][own] = together(p->compute_by_optim, p->optim_by_compute) - 1;
    if (on_cuda(p))
        out->use[PS_LANE_CPU_OPTIM][PS_RESOURCE_CORES] = 1;
    const struct ps_profile_disk disk_0 = disk_of(p), *d = &disk_0;
    double mixed = 2;
    if (d->mixed_read > 0 && d->mixed_write > 0)
        mixed = together(d->read / d->mixed_read, d->write / d->mixed_write);
    out->use[PS_LANE_DISK_WEIGHTS][PS_RESOURCE_DISK] = 1;
    out->use[PS_LANE_DISK_STATE][PS_RESOURCE_DISK] = 1;
    out->use[PS_LANE_DISK_WRITE][PS_RESOURCE_DISK] = mixed - 1;
    out->use[PS_LANE_COMMIT][PS_RESOURCE_DISK] = mixed - 1;
    if (q->discrete && on_cuda(p))
        out->use[PS_LANE_H2D][PS_RESOURCE_LINK] = out->use[PS_LANE_D2H][PS_RESOURCE_LINK] =
            LINK_SHARE;
    if (p->memory <= 0)
        return;
    for (int l = 0; l < PS_LANE_COUNT; l++) {
        if (l == PS_LANE_CPU_OPTIM)
            continue;
        bool twice = (l == PS_LANE_H2D || l == PS_LANE_D2H) && !(q->discrete && on_cuda(p));
        out->use[l][PS_RESOURCE_HOST_MEMORY] =
            fmin(1, out->byte_rate[l] * (twice ? 2 : 1) / p->memory);
    }
    out->use[PS_LANE_CPU_OPTIM][PS_RESOURCE_HOST_MEMORY] =
        fmin(1, p->cpu_optim_params * UPDATE_BYTES / p->memory);
}

void ps_profile_cost(const struct ps_profile *p, const struct ps_cost_query *q,
                     struct ps_cost_model *out)
{
    assert(q->tokens > 0);
    assert(q->hidden_size > 0);
    assert(q->intermediate_size > 0);
    assert(q->attention_share >= 0);
    assert(q->attention_share <= 1);
    assert(q->down_flops <= q->linear_flops);
    memset(out, 0, sizeof *out);
    set_compute(p, q, out);
    set_bytes(p, q, out);
    set_shares(p, q, out);
    memcpy(out->throttle, q->throttle, sizeof out->throttle);
}

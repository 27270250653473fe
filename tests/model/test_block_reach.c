/* What of a layer's backward pass is left out when nothing below it trains: counted, and the same
 * gradients. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "peft/adapters.h"
#include "runtime/kernels/gemm.h"
#include "runtime/kernels/rope.h"
#include "runtime/model/block.h"

enum { T = 7, H = 16, F = 24, HEADS = 4, KV_HEADS = 2, D = 4, R = 2 };

static const struct ps_model_config cfg = {.hidden_size = H,
                                           .intermediate_size = F,
                                           .n_layer = 1,
                                           .n_head = HEADS,
                                           .n_kv_head = KV_HEADS,
                                           .head_dim = D,
                                           .rms_norm_eps = 1e-5f};

static struct {
    int gemms, norms, attentions;
} count;

static void counted_gemm(const struct ps_compute *cx, const struct ps_gemm_args *g)
{
    count.gemms++;
    ps_kernels_cpu.gemm(cx, g);
}

static void counted_norm(const struct ps_compute *cx, const struct ps_rmsnorm_args *a, void *w)
{
    count.norms++;
    ps_kernels_cpu.rmsnorm_backward(cx, a, w);
}

static void counted_attention(const struct ps_compute *cx, const struct ps_attention_args *a,
                              const int32_t *doc, void *w)
{
    count.attentions++;
    ps_kernels_cpu.attention_backward(cx, a, doc, w);
}

/* A layer of random weights with a LoRA on the linears in `mask`, and the gradients of its tensors.
 */
struct layer {
    struct ps_block b;
    struct ps_adapter_site site[PS_LINEAR_COUNT];
    float *grads;
    size_t grad_count;
};

static const struct ps_adapter_config lora = {.method = "lora", .r = R, .alpha = 4};

static float *noise(size_t n, uint32_t id, float about)
{
    struct ps_rng_key key = {.seed = 5, .layer = id, .site = 99};
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = about + 0.3f * (float)ps_rng_normal(&key, i);
    return x;
}

static void make_layer(struct layer *l, unsigned mask)
{
    memset(l, 0, sizeof *l);
    l->b = (struct ps_block){.cfg = &cfg, .trains = true};
    l->b.weight[PS_ROLE_ATTN_NORM] = (struct ps_weight){noise(H, 90, 1), PS_DTYPE_F32};
    l->b.weight[PS_ROLE_MLP_NORM] = (struct ps_weight){noise(H, 91, 1), PS_DTYPE_F32};
    l->grads = calloc(2 * PS_LINEAR_COUNT * R * F, sizeof *l->grads);
    assert_non_null(l->grads);
    for (int r = 0; r < PS_LINEAR_COUNT; r++) {
        struct ps_adapter_site *s = &l->site[r];
        struct ps_adapter_tensor tensor[PS_ADAPTER_TENSOR_MAX] = {0};
        struct ps_error err;
        *s = (struct ps_adapter_site){
            .ops = ps_adapter_find("lora"), .config = &lora, .role = (enum ps_role)r};
        ps_linear_shape(&cfg, s->role, &s->out, &s->in);
        l->b.weight[r] =
            (struct ps_weight){noise((size_t)(s->out * s->in), (uint32_t)r, 0), PS_DTYPE_F32};
        if (!(mask >> r & 1))
            continue;
        s->tensor_count = s->ops->tensors(s, tensor, &err);
        assert_int_equal(s->tensor_count, 2);
        for (int k = 0; k < 2; k++) {
            s->n[k] = (size_t)(tensor[k].shape[0] * tensor[k].shape[1]);
            s->tensor[k] = noise(s->n[k], (uint32_t)(10 + 2 * r + k), 0);
            s->grad[k] = l->grads + l->grad_count;
            l->grad_count += s->n[k];
        }
        l->b.site[r] = s;
    }
}

static void free_layer(struct layer *l)
{
    for (int r = 0; r < PS_ROLE_LAYER_COUNT; r++)
        free(l->b.weight[r].data);
    for (int r = 0; r < PS_LINEAR_COUNT; r++)
        for (int k = 0; k < 2; k++)
            free(l->site[r].tensor[k]);
    free(l->grads);
}

/* Forward and backward over one document; the backward pass is counted. */
static void pass(struct layer *l, bool need_dx)
{
    struct ps_kernels k = ps_kernels_cpu;
    k.gemm = counted_gemm;
    k.rmsnorm_backward = counted_norm;
    k.attention_backward = counted_attention;
    struct ps_pool *pool;
    assert_int_equal(ps_pool_create(&pool, 1), 0);
    size_t gemm = ps_gemm_workspace_bytes(1);
    struct ps_compute cx = {.k = &k,
                            .pool = pool,
                            .isa = PS_ISA_PORTABLE,
                            .dtype = PS_DTYPE_F32,
                            .math = PS_GEMM_F32,
                            .gemm_workspace = aligned_alloc(64, (gemm + 127) & ~(size_t)63)};
    struct ps_block_saved saved;
    struct ps_block_saved_place at = {0};
    size_t kept = ps_block_saved_carve(&saved, &at, &l->b, PS_DTYPE_F32, T).kept;
    at.kept = aligned_alloc(64, (kept + 127) & ~(size_t)63);
    PS_IGNORE(ps_block_saved_carve(&saved, &at, &l->b, PS_DTYPE_F32, T).kept == 0, "measured");
    struct ps_block_scratch scratch;
    size_t own = ps_block_adapter_scratch(&l->b, PS_DTYPE_F32, T);
    size_t bytes = ps_block_scratch_carve(&scratch, NULL, &cfg, &cx, T, own, true);
    void *room = aligned_alloc(64, (bytes + 127) & ~(size_t)63);
    ps_block_scratch_carve(&scratch, room, &cfg, &cx, T, own, true);
    float cos_sin[T * D];
    int32_t position[T];
    for (int i = 0; i < T * D; i++)
        cos_sin[i] = i % 2 ? 0.6f : 0.8f;
    for (int i = 0; i < T; i++)
        position[i] = i;
    struct ps_block_run run = {.cx = &cx,
                               .n_tok = T,
                               .doc_start = (const int32_t[]){0, T},
                               .doc_count = 1,
                               .position = position,
                               .cos_sin = cos_sin,
                               .training = true,
                               .scratch = &scratch};
    float *x0 = noise(T * H, 70, 0);
    float *dx = noise(T * H, 71, 0);
    float x2[T * H];
    ps_block_forward(&l->b, &run, x0, x2, &saved);
    memset(&count, 0, sizeof count);
    ps_block_backward(&l->b, &run, x0, &saved, dx, need_dx);
    free(dx);
    free(x0);
    free(room);
    free(at.kept);
    free(cx.gemm_workspace);
    ps_pool_destroy(pool);
}

/* Products that the lowest trained layer saves, and its gradients, which stay the same bits. */
static void saves(unsigned mask, int gemms, int norms, int attentions)
{
    struct layer l;
    make_layer(&l, mask);
    pass(&l, true);
    int before[] = {count.gemms, count.norms, count.attentions};
    float *want = malloc(l.grad_count * sizeof *want);
    assert_non_null(want);
    memcpy(want, l.grads, l.grad_count * sizeof *want);
    memset(l.grads, 0xff, l.grad_count * sizeof *want);
    pass(&l, false);
    assert_memory_equal(want, l.grads, l.grad_count * sizeof *want);
    assert_int_equal(before[0] - count.gemms, gemms);
    assert_int_equal(before[1] - count.norms, norms);
    assert_int_equal(before[2] - count.attentions, attentions);
    free(want);
    free_layer(&l);
}

static void the_lowest_layer_passes_nothing_back_through_q_k_v_and_their_norm(void **state)
{
    (void)state;
    saves(0x7f, 3, 1, 0);
    saves(1u << PS_ROLE_V, 3, 1, 0);
    saves(1u << PS_ROLE_Q | 1u << PS_ROLE_DOWN, 3, 1, 0);
}

static void nor_through_what_lies_below_its_lowest_adapter(void **state)
{
    (void)state;
    saves(1u << PS_ROLE_O, 4, 1, 1);                /* and o, attention */
    saves(1u << PS_ROLE_UP, 3 + 1 + 2, 2, 1);       /* and gate, up and their norm */
    saves(1u << PS_ROLE_DOWN, 3 + 1 + 2 + 1, 2, 1); /* and down itself */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_lowest_layer_passes_nothing_back_through_q_k_v_and_their_norm),
        cmocka_unit_test(nor_through_what_lies_below_its_lowest_adapter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

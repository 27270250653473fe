/* Attention without tensor cores, forward and backward: F32, and BF16 whose head_dim, alignment or
 * scale attention_forward.cu and attention_backward.cu do not take. Same contract, same masks;
 * correct and linear in memory, not fast.
 *
 * Design: a warp a query (forward, dQ) or a key (dK, dV), 32 of the others at a time, counted from
 * the first that the mask lets through: a row's bits depend on its document alone. */
#include "runtime/kernels/attention_row_internal.cuh"
#include "runtime/kernels/attention_tile_internal.cuh"

enum { WARPS = 4 };

/* What a warp works on: a token and a head; token < 0 when there is nothing left. */
struct item {
    int32_t token, begin, end; /* [begin, end): its document */
    int head;
};

static __device__ __forceinline__ struct item item_of_warp(const int32_t *doc, int32_t n_tok,
                                                           int n_head)
{
    const size_t at = (size_t)blockIdx.x * WARPS + threadIdx.x / 32;
    struct item it = {-1, 0, 0, (int)(at % (size_t)n_head)};
    if (at / (size_t)n_head < (size_t)n_tok) {
        it.token = (int32_t)(at / (size_t)n_head);
        it.begin = doc[2 * (size_t)it.token];
        it.end = doc[2 * (size_t)it.token + 1];
    }
    return it;
}

/* The item's first visible key. */
static __device__ __forceinline__ int32_t first_key(const struct item *it, int32_t window)
{
    const int32_t lo = it->token - window + 1;
    return lo > it->begin ? lo : it->begin;
}

/* Address of the columns of `head` of row `row`. */
template <class T>
static __device__ __forceinline__ T *row_of(const void *data, size_t ld, int32_t row, int head,
                                            int dim)
{
    return (T *)const_cast<void *>(data) + (size_t)row * ld + (size_t)head * (size_t)dim;
}

template <class T>
static __device__ __forceinline__ void put_row(T *to, const float (&acc)[PS__ROW_COLS], float f,
                                               int dim)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < PS__ROW_COLS; i++) {
        if (lane + 32 * i < dim)
            ps__row_put(to + lane + 32 * i, acc[i] * f);
    }
}

template <class T>
static __global__ void __launch_bounds__(WARPS * 32, 4)
    attention_forward_plain_kernel(const struct ps_attention_args a, const int32_t *doc,
                                   int32_t n_tok)
{
    __shared__ float q[WARPS][PS__ROW_DIM_MAX], p[WARPS][32];
    const int warp = (int)threadIdx.x / 32, dim = a.head_dim;
    const struct item it = item_of_warp(doc, n_tok, a.n_head);
    if (it.token < 0)
        return;
    const int kv = it.head / (a.n_head / a.n_kv_head);
    struct ps__row row = {};
    row.m = -INFINITY;
    ps__row_fetch(q[warp], row_of<T>(a.q, a.q_ld, it.token, it.head, dim), dim);
    __syncwarp(); /* q is there */
    ps__row_attend(&row, q[warp], p[warp], a, row_of<T>(a.k, a.k_ld, 0, kv, dim),
                   row_of<T>(a.v, a.v_ld, 0, kv, dim), first_key(&it, ps__window(&a)), it.token + 1,
                   1);
    put_row(row_of<T>(a.out, a.out_ld, it.token, it.head, dim), row.o, 1.0f / row.l, dim);
    if (threadIdx.x % 32 == 0 && a.lse)
        a.lse[(size_t)it.token * (size_t)a.n_head + (size_t)it.head] = row.m + logf(row.l);
}

/* delta[i][h] = sum over c of dO[i][h d + c] O[i][h d + c] */
template <class T>
static __global__ void __launch_bounds__(WARPS * 32, 4)
    attention_delta_plain_kernel(const struct ps_attention_args a, const int32_t *doc, float *delta,
                                 int32_t n_tok)
{
    const int dim = a.head_dim;
    const struct item it = item_of_warp(doc, n_tok, a.n_head);
    if (it.token < 0)
        return;
    const T *out = row_of<T>(a.out, a.out_ld, it.token, it.head, dim);
    const T *dout = row_of<T>(a.dout, a.dout_ld, it.token, it.head, dim);
    float sum = 0;
    for (int c = (int)threadIdx.x % 32; c < dim; c += 32)
        sum = fmaf(ps__row_get(out + c), ps__row_get(dout + c), sum);
    sum = ps_gpu_warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        delta[(size_t)it.token * (size_t)a.n_head + (size_t)it.head] = sum;
}

/* dq: a warp a query. */
template <class T>
static __global__ void __launch_bounds__(WARPS * 32, 4)
    attention_query_plain_kernel(const struct ps_attention_args a, const int32_t *doc,
                                 const float *delta, int32_t n_tok)
{
    __shared__ float q[WARPS][PS__ROW_DIM_MAX], dout[WARPS][PS__ROW_DIM_MAX], ds[WARPS][32];
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, dim = a.head_dim;
    const struct item it = item_of_warp(doc, n_tok, a.n_head);
    if (it.token < 0)
        return;
    const int kv = it.head / (a.n_head / a.n_kv_head);
    const size_t at = (size_t)it.token * (size_t)a.n_head + (size_t)it.head;
    const T *k = row_of<T>(a.k, a.k_ld, 0, kv, dim), *v = row_of<T>(a.v, a.v_ld, 0, kv, dim);
    float dq[PS__ROW_COLS] = {};
    ps__row_fetch(q[warp], row_of<T>(a.q, a.q_ld, it.token, it.head, dim), dim);
    ps__row_fetch(dout[warp], row_of<T>(a.dout, a.dout_ld, it.token, it.head, dim), dim);
    for (int32_t key = first_key(&it, ps__window(&a)); key <= it.token; key += 32) {
        float mine = 0;
        __syncwarp(); /* the rows are there, and nobody reads the last 32 dS any more */
        if (key + lane <= it.token) {
            const float s = a.scale * ps__row_dot(q[warp], k + (size_t)(key + lane) * a.k_ld, dim);
            const float dp = ps__row_dot(dout[warp], v + (size_t)(key + lane) * a.v_ld, dim);
            mine = expf(s - a.lse[at]) * (dp - delta[at]);
        }
        ds[warp][lane] = ps__row_operand<T>(mine);
        __syncwarp(); /* all dS are there */
        ps__row_add(dq, ds[warp], k + (size_t)key * a.k_ld, a.k_ld,
                    it.token - key < 31 ? it.token - key + 1 : 32, dim);
    }
    put_row(row_of<T>(a.dq, a.dq_ld, it.token, it.head, dim), dq, a.scale, dim);
}

/* dk, dv: a warp a key; the heads of its group one after the other. */
template <class T>
static __global__ void __launch_bounds__(WARPS * 32, 4)
    attention_key_plain_kernel(const struct ps_attention_args a, const int32_t *doc,
                               const float *delta, int32_t n_tok)
{
    __shared__ float k[WARPS][PS__ROW_DIM_MAX], v[WARPS][PS__ROW_DIM_MAX];
    __shared__ float ds[WARPS][32], p[WARPS][32];
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, dim = a.head_dim;
    const struct item it = item_of_warp(doc, n_tok, a.n_kv_head);
    if (it.token < 0)
        return;
    const int group = a.n_head / a.n_kv_head;
    const int32_t window = ps__window(&a);
    const int32_t end = it.end - it.token < window ? it.end : it.token + window;
    float dk[PS__ROW_COLS] = {}, dv[PS__ROW_COLS] = {};
    ps__row_fetch(k[warp], row_of<T>(a.k, a.k_ld, it.token, it.head, dim), dim);
    ps__row_fetch(v[warp], row_of<T>(a.v, a.v_ld, it.token, it.head, dim), dim);
    for (int head = it.head * group; head < (it.head + 1) * group; head++) {
        for (int32_t row = it.token; row < end; row += 32) {
            const int32_t mine = row + lane;
            float p_mine = 0, ds_mine = 0;
            __syncwarp(); /* the rows are there, and nobody reads the last 32 P and dS any more */
            if (mine < end) {
                const size_t at = (size_t)mine * (size_t)a.n_head + (size_t)head;
                const float s =
                    a.scale * ps__row_dot(k[warp], row_of<T>(a.q, a.q_ld, mine, head, dim), dim);
                const float dp =
                    ps__row_dot(v[warp], row_of<T>(a.dout, a.dout_ld, mine, head, dim), dim);
                p_mine = expf(s - a.lse[at]);
                ds_mine = p_mine * (dp - delta[at]);
            }
            p[warp][lane] = ps__row_operand<T>(p_mine);
            ds[warp][lane] = ps__row_operand<T>(ds_mine);
            __syncwarp(); /* all are there */
            const int count = end - row < 32 ? end - row : 32;
            ps__row_add(dv, p[warp], row_of<T>(a.dout, a.dout_ld, row, head, dim), a.dout_ld, count,
                        dim);
            ps__row_add(dk, ds[warp], row_of<T>(a.q, a.q_ld, row, head, dim), a.q_ld, count, dim);
        }
    }
    put_row(row_of<T>(a.dk, a.dk_ld, it.token, it.head, dim), dk, a.scale, dim);
    put_row(row_of<T>(a.dv, a.dv_ld, it.token, it.head, dim), dv, 1.0f, dim);
}

static unsigned blocks(int32_t n_tok, int32_t heads)
{
    return (unsigned)(((size_t)n_tok * (size_t)heads + WARPS - 1) / WARPS);
}

int ps__attention_forward_plain(void *stream, const struct ps_attention_args *args,
                                const int32_t *doc, int32_t n_tok)
{
    const unsigned grid = blocks(n_tok, args->n_head);
    if (args->dtype == PS_DTYPE_BF16)
        PS_LAUNCH(attention_forward_plain_kernel<__nv_bfloat16>, grid, WARPS * 32, 0, stream, *args,
                  doc, n_tok);
    else
        PS_LAUNCH(attention_forward_plain_kernel<float>, grid, WARPS * 32, 0, stream, *args, doc,
                  n_tok);
    return ps_gpu_check_launch();
}

template <class T>
static void launch_backward(void *stream, const struct ps_attention_args *args, const int32_t *doc,
                            int32_t n_tok, float *delta)
{
    const unsigned query = blocks(n_tok, args->n_head), key = blocks(n_tok, args->n_kv_head);
    PS_LAUNCH(attention_delta_plain_kernel<T>, query, WARPS * 32, 0, stream, *args, doc, delta,
              n_tok);
    PS_LAUNCH(attention_key_plain_kernel<T>, key, WARPS * 32, 0, stream, *args, doc, delta, n_tok);
    PS_LAUNCH(attention_query_plain_kernel<T>, query, WARPS * 32, 0, stream, *args, doc, delta,
              n_tok);
}

int ps__attention_backward_plain(void *stream, const struct ps_attention_args *args,
                                 const int32_t *doc, int32_t n_tok, float *delta)
{
    if (args->dtype == PS_DTYPE_BF16)
        launch_backward<__nv_bfloat16>(stream, args, doc, n_tok, delta);
    else
        launch_backward<float>(stream, args, doc, n_tok, delta);
    return ps_gpu_check_launch();
}

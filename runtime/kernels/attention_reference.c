/* Attention and its gradient in double, one row of scores at a time: for tests. Also takes tensors
 * of PS_DTYPE_F64, so that the gradient itself can be tested against finite differences. lse may be
 * NULL in the forward pass; the backward pass uses neither out nor lse. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/kernels/attention.h"

static double get(const struct ps_attention_args *a, const void *data, size_t at)
{
    if (a->dtype == PS_DTYPE_F64)
        return ((const double *)data)[at];
    if (a->dtype == PS_DTYPE_BF16)
        return (double)ps_bf16_to_f32(((const uint16_t *)data)[at]);
    return (double)((const float *)data)[at];
}

static void put(const struct ps_attention_args *a, void *data, size_t at, double x)
{
    if (a->dtype == PS_DTYPE_F64)
        ((double *)data)[at] = x;
    else if (a->dtype == PS_DTYPE_BF16)
        ((uint16_t *)data)[at] = ps_f32_to_bf16((float)x);
    else
        ((float *)data)[at] = (float)x;
}

static double dot(const struct ps_attention_args *a, const void *x, size_t x_at, const void *y,
                  size_t y_at)
{
    double sum = 0;
    for (size_t c = 0; c < (size_t)a->head_dim; c++)
        sum += get(a, x, x_at + c) * get(a, y, y_at + c);
    return sum;
}

/* First token that token i of the document from `begin` sees. */
static int32_t first_key(const struct ps_attention_args *a, int32_t begin, int32_t i)
{
    int32_t w = a->sliding_window;
    return w > 0 && i - begin >= w ? i - w + 1 : begin;
}

/* p[j - j0] = softmax of row i, head h, over keys [j0, i]; returns lse. */
static double softmax_row(const struct ps_attention_args *a, int32_t i, int32_t j0, size_t h,
                          double *p)
{
    size_t d = (size_t)a->head_dim, kv = h / (size_t)(a->n_head / a->n_kv_head);
    double max = -INFINITY, sum = 0;
    for (int32_t j = j0; j <= i; j++) {
        double s = (double)a->scale *
                   dot(a, a->q, (size_t)i * a->q_ld + h * d, a->k, (size_t)j * a->k_ld + kv * d);
        p[j - j0] = s;
        max = s > max ? s : max;
    }
    for (int32_t j = j0; j <= i; j++) {
        p[j - j0] = exp(p[j - j0] - max);
        sum += p[j - j0];
    }
    for (int32_t j = j0; j <= i; j++)
        p[j - j0] /= sum;
    return max + log(sum);
}

static int32_t longest(const struct ps_attention_args *a)
{
    int32_t most = 1;
    for (int32_t d = 0; d < a->doc_count; d++) {
        int32_t n = a->doc_start[d + 1] - a->doc_start[d];
        most = n > most ? n : most;
    }
    return most;
}

/* For tests only: without memory there is nothing to compare with. */
static double *doubles(size_t n)
{
    double *p = calloc(n, sizeof *p);
    assert(p);
    return p;
}

void ps_attention_forward_reference(const struct ps_attention_args *a)
{
    size_t dim = (size_t)a->head_dim, n_head = (size_t)a->n_head;
    size_t group = n_head / (size_t)a->n_kv_head;
    double *p = doubles((size_t)longest(a)), *o = doubles(dim);
    for (int32_t d = 0; d < a->doc_count; d++) {
        for (int32_t i = a->doc_start[d]; i < a->doc_start[d + 1]; i++) {
            int32_t j0 = first_key(a, a->doc_start[d], i);
            for (size_t h = 0; h < n_head; h++) {
                double lse = softmax_row(a, i, j0, h, p);
                if (a->lse)
                    a->lse[(size_t)i * n_head + h] = (float)lse;
                memset(o, 0, dim * sizeof *o);
                for (int32_t j = j0; j <= i; j++) {
                    for (size_t c = 0; c < dim; c++)
                        o[c] += p[j - j0] * get(a, a->v, (size_t)j * a->v_ld + h / group * dim + c);
                }
                for (size_t c = 0; c < dim; c++)
                    put(a, a->out, (size_t)i * a->out_ld + h * dim + c, o[c]);
            }
        }
    }
    free(o);
    free(p);
}

struct sums {
    double *dq, *dk, *dv; /* (n_tok, heads, head_dim) */
};

/* Gradient of row i of head h; p and dp have room for a row. */
static void backward_row(const struct ps_attention_args *a, int32_t i, int32_t j0, size_t h,
                         double *p, double *dp, const struct sums *to)
{
    size_t dim = (size_t)a->head_dim, n_head = (size_t)a->n_head, n_kv = (size_t)a->n_kv_head;
    size_t kv = h / (n_head / n_kv), row = (size_t)i;
    double delta = 0;
    (void)softmax_row(a, i, j0, h, p);
    for (int32_t j = j0; j <= i; j++) {
        dp[j - j0] =
            dot(a, a->dout, row * a->dout_ld + h * dim, a->v, (size_t)j * a->v_ld + kv * dim);
        delta += p[j - j0] * dp[j - j0];
    }
    for (int32_t j = j0; j <= i; j++) {
        double ds = p[j - j0] * (dp[j - j0] - delta) * (double)a->scale;
        size_t key = (size_t)j, at = (key * n_kv + kv) * dim;
        for (size_t c = 0; c < dim; c++) {
            to->dq[(row * n_head + h) * dim + c] += ds * get(a, a->k, key * a->k_ld + kv * dim + c);
            to->dk[at + c] += ds * get(a, a->q, row * a->q_ld + h * dim + c);
            to->dv[at + c] += p[j - j0] * get(a, a->dout, row * a->dout_ld + h * dim + c);
        }
    }
}

static void put_rows(const struct ps_attention_args *a, void *data, size_t ld, const double *from,
                     size_t rows, size_t cols)
{
    for (size_t i = 0; i < rows; i++) {
        for (size_t c = 0; c < cols; c++)
            put(a, data, i * ld + c, from[i * cols + c]);
    }
}

void ps_attention_backward_reference(const struct ps_attention_args *a)
{
    size_t dim = (size_t)a->head_dim, n_head = (size_t)a->n_head, n_kv = (size_t)a->n_kv_head;
    size_t n_tok = (size_t)a->doc_start[a->doc_count], most = (size_t)longest(a);
    struct sums to = {.dq = doubles(n_tok * n_head * dim + 1),
                      .dk = doubles(n_tok * n_kv * dim + 1),
                      .dv = doubles(n_tok * n_kv * dim + 1)};
    double *p = doubles(most), *dp = doubles(most);
    for (int32_t d = 0; d < a->doc_count; d++) {
        for (int32_t i = a->doc_start[d]; i < a->doc_start[d + 1]; i++) {
            for (size_t h = 0; h < n_head; h++)
                backward_row(a, i, first_key(a, a->doc_start[d], i), h, p, dp, &to);
        }
    }
    put_rows(a, a->dq, a->dq_ld, to.dq, n_tok, n_head * dim);
    put_rows(a, a->dk, a->dk_ld, to.dk, n_tok, n_kv * dim);
    put_rows(a, a->dv, a->dv_ld, to.dv, n_tok, n_kv * dim);
    free(dp);
    free(p);
    free(to.dv);
    free(to.dk);
    free(to.dq);
}

/* Tile code of attention in portable C: operands are fp32 (k_group 1); in bf16 mode they hold
 * values rounded to bf16. See attention_internal.h for what each function does. */
#include <math.h>
#include <string.h>

#include "runtime/kernels/attention_internal.h"

static float exp2_small(float y)
{
    if (y < PS__EXP2_MIN)
        return 0;
    y = y > PS__EXP2_MAX ? PS__EXP2_MAX : y; /* NaN stays NaN */
    float shifted = y + 0x1.8p23f, n = shifted - 0x1.8p23f, f = y - n;
    float p = PS__EXP2_C6;
    p = p * f + PS__EXP2_C5;
    p = p * f + PS__EXP2_C4;
    p = p * f + PS__EXP2_C3;
    p = p * f + PS__EXP2_C2;
    p = p * f + PS__EXP2_C1;
    p = p * f + PS__EXP2_C0;
    if (n >= 128) /* 2^128 is not a float */
        return p * 0x1p127f * 2.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

static float round_operand(float x, int round_bf16)
{
    return round_bf16 ? ps_bf16_to_f32(ps_f32_to_bf16(x)) : x;
}

enum { DIM_MAX = 512 };

/* A row as fp32. */
static void load_row(const struct ps__attention_src *src, size_t row, float *to)
{
    size_t at = row * src->ld;
    if (src->dtype == PS_DTYPE_F32) {
        memcpy(to, (const float *)src->data + at, src->cols * sizeof *to);
        return;
    }
    const uint16_t *from = (const uint16_t *)src->data + at;
    for (size_t j = 0; j < src->cols; j++)
        to[j] = ps_bf16_to_f32(from[j]);
}

static void store_row(const struct ps__attention_dst *dst, size_t row, const float *from)
{
    size_t at = row * dst->ld;
    if (dst->dtype == PS_DTYPE_F32) {
        memcpy((float *)dst->data + at, from, dst->cols * sizeof *from);
        return;
    }
    uint16_t *to = (uint16_t *)dst->data + at;
    for (size_t j = 0; j < dst->cols; j++)
        to[j] = ps_f32_to_bf16(from[j]);
}

static void gemm(const struct ps__attention_gemm *g)
{
    enum { W = PS__ATTENTION_LANE };
    const float *a = g->a, *b = g->b;
    for (size_t j = 0; j < g->n; j += W) {
        for (size_t i = 0; i < g->m; i++) {
            float acc[W] = {0}, *c = g->c + i * g->ldc + j;
            if (g->accumulate)
                memcpy(acc, c, sizeof acc);
            for (size_t k = 0; k < g->k; k++) {
                float x = a[i * g->lda + k];
                for (size_t w = 0; w < W; w++)
                    acc[w] += x * b[k * g->ldb + j + w];
            }
            memcpy(c, acc, sizeof acc);
        }
    }
}

static int32_t clamp(int32_t x, int32_t low, int32_t high)
{
    return x < low ? low : x > high ? high : x;
}

static int softmax(const struct ps__attention_scores *t, float *m, float *l, float *alpha, void *p,
                   int round_bf16)
{
    float mc[PS__ATTENTION_TILE], *out = p;
    int moved = 0;
    for (size_t q = 0; q < t->ld; q++)
        alpha[q] = m[q];
    for (int32_t r = 0; r < t->rows; r++) {
        int32_t lo = clamp(r + t->lo, 0, t->cols), hi = clamp(r + t->hi, lo, t->cols);
        const float *s = t->s + (size_t)r * t->ld;
        for (int32_t q = lo; q < hi; q++)
            m[q] = s[q] > m[q] ? s[q] : m[q];
    }
    for (size_t q = 0; q < t->ld; q++) {
        mc[q] = m[q] == -INFINITY ? 0 : m[q] * t->c;
        alpha[q] = alpha[q] == -INFINITY ? 0 : exp2_small(alpha[q] * t->c - mc[q]);
        moved |= alpha[q] != 1;
        l[q] *= alpha[q];
    }
    for (int32_t r = 0; r < t->rows; r++) {
        int32_t lo = clamp(r + t->lo, 0, t->cols), hi = clamp(r + t->hi, lo, t->cols);
        const float *s = t->s + (size_t)r * t->ld;
        float *to = out + (size_t)r * t->ld;
        memset(to, 0, t->ld * sizeof(float));
        for (int32_t q = lo; q < hi; q++) {
            float x = exp2_small(s[q] * t->c - mc[q]);
            l[q] += x;
            to[q] = round_operand(x, round_bf16);
        }
    }
    return moved;
}

static void grad(const struct ps__attention_scores *t, const float *dp, const float *lse2,
                 const float *delta, void *p_a, void *ds_a, void *ds_b, int round_bf16)
{
    (void)ds_b; /* the same operand */
    for (int32_t r = 0; r < t->rows; r++) {
        int32_t lo = clamp(r + t->lo, 0, t->cols), hi = clamp(r + t->hi, lo, t->cols);
        size_t at = (size_t)r * t->ld;
        const float *s = t->s + at, *g = dp + at;
        float *p = (float *)p_a + at, *ds = (float *)ds_a + at;
        memset(p, 0, t->ld * sizeof(float));
        memset(ds, 0, t->ld * sizeof(float));
        for (int32_t q = lo; q < hi; q++) {
            float x = exp2_small(s[q] * t->c - lse2[q]);
            p[q] = round_operand(x, round_bf16);
            ds[q] = round_operand(x * (g[q] - delta[q]), round_bf16);
        }
    }
}

static void pack_rows(const struct ps__attention_src *src, void *dst, size_t ld)
{
    for (size_t i = 0; i < src->rows; i++) {
        float *to = (float *)dst + i * ld;
        load_row(src, i, to);
        for (size_t j = src->cols; j < ld; j++)
            to[j] = 0;
    }
}

static void pack_cols(const struct ps__attention_src *src, void *dst, size_t ld)
{
    float row[DIM_MAX], *to = dst;
    for (size_t i = 0; i < ld; i++) {
        if (i < src->rows)
            load_row(src, i, row);
        for (size_t j = 0; j < src->cols; j++)
            to[j * ld + i] = i < src->rows ? row[j] : 0;
    }
}

static void scale_cols(float *x, size_t rows, size_t ld, const float *f)
{
    for (size_t i = 0; i < rows; i++) {
        for (size_t j = 0; j < ld; j++)
            x[i * ld + j] *= f[j];
    }
}

static void store_t(const float *x, size_t ld, const float *f, const struct ps__attention_dst *dst)
{
    float row[DIM_MAX];
    for (size_t i = 0; i < dst->rows; i++) {
        for (size_t j = 0; j < dst->cols; j++)
            row[j] = x[j * ld + i] * f[i];
        store_row(dst, i, row);
    }
}

static void store(const float *x, size_t ld, float f, const struct ps__attention_dst *dst)
{
    float row[DIM_MAX];
    for (size_t i = 0; i < dst->rows; i++) {
        for (size_t j = 0; j < dst->cols; j++)
            row[j] = x[i * ld + j] * f;
        store_row(dst, i, row);
    }
}

static void head_dot(const struct ps__attention_src *a, const struct ps__attention_src *b,
                     size_t dim, float *out, size_t ld)
{
    float x[DIM_MAX], y[DIM_MAX];
    size_t size = ps_dtype_size(a->dtype);
    for (size_t i = 0; i < a->rows; i++) {
        for (size_t h = 0; h < a->cols / dim; h++) {
            struct ps__attention_src of_a = *a, of_b = *b;
            of_a.data = (const char *)a->data + h * dim * size;
            of_b.data = (const char *)b->data + h * dim * size;
            of_a.cols = of_b.cols = dim;
            load_row(&of_a, i, x);
            load_row(&of_b, i, y);
            double sum = 0;
            for (size_t j = 0; j < dim; j++)
                sum += (double)x[j] * (double)y[j];
            out[h * ld + i] = (float)sum;
        }
    }
}

void ps__attention_ops_portable(struct ps__attention_ops *ops, enum ps_dtype dtype)
{
    *ops = (struct ps__attention_ops){
        .k_group = 1,
        .round_bf16 = dtype == PS_DTYPE_BF16,
        .gemm = gemm,
        .softmax = softmax,
        .grad = grad,
        .pack_a = pack_rows,
        .pack_at = pack_cols,
        .pack_b = pack_rows,
        .pack_bt = pack_cols,
        .scale_cols = scale_cols,
        .store_t = store_t,
        .store = store,
        .head_dot = head_dot,
    };
}

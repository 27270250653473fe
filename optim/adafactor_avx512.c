/* Adafactor's passes over a matrix with AVX-512: the operations and the order of sums of
 * adafactor.c. A square of an fp32 number is exact in fp64, so that a fused multiply-add gives the
 * bits of the product and the sum.
 *
 * Instructions for 16 parameters with an fp32 gradient, loads and stores in: sums 16 (four rows at
 * a time share the columns' sums), norms 9, step 15 with fp32 weights, 23 with remainder, 43
 * rounded. The memory moves 64 bytes in each of the first two passes, 128 or 192 in the last. */
#include "optim/adafactor_internal.h"
#include "optim/lanes_avx512_internal.h"

#define TOGETHER 4 /* rows */

PS__INLINE512 __m512 load_grad(const void *grad, bool g32, size_t i, __mmask16 k, __m512 scale)
{
    __m512 g;
    if (g32) {
        g = ps__load_f32((const float *)grad + i, k);
    } else {
        __m256i half = _mm256_maskz_loadu_epi16(k, (const uint16_t *)grad + i);
        g = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    return _mm512_mul_ps(g, scale);
}

/* Partial sums of a row. */
struct lanes {
    __m512d low, high;
};

PS__INLINE512 __m512d low_of(__m512 x)
{
    return _mm512_cvtps_pd(_mm512_castps512_ps256(x));
}

PS__INLINE512 __m512d high_of(__m512 x)
{
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
}

PS__INLINE512 void add_squares(struct lanes *s, __m512 x)
{
    __m512d low = low_of(x), high = high_of(x);
    s->low = _mm512_fmadd_pd(low, low, s->low);
    s->high = _mm512_fmadd_pd(high, high, s->high);
}

PS__INLINE512 double sum_of(const struct lanes *s)
{
    double lane[PS__ADAFACTOR_LANES], sum = 0;
    _mm512_storeu_pd(lane, s->low);
    _mm512_storeu_pd(lane + 8, s->high);
    for (int k = 0; k < PS__ADAFACTOR_LANES; k++)
        sum += lane[k];
    return sum;
}

/* Columns [j, j + 16) of `rows` rows from i on. */
PS__INLINE512 void sums_at(const struct ps__adafactor *a, bool g32, __m512 scale, size_t i,
                           int rows, size_t j, __mmask16 k, double *col, struct lanes *lane)
{
    __mmask8 k0 = (__mmask8)k, k1 = (__mmask8)(k >> 8);
    __m512d c0 = _mm512_maskz_loadu_pd(k0, col + j), c1 = _mm512_maskz_loadu_pd(k1, col + j + 8);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        __m512 g = load_grad(a->u->grad, g32, (i + (size_t)r) * a->s.cols + j, k, scale);
        __m512d low = low_of(g), high = high_of(g);
        c0 = _mm512_fmadd_pd(low, low, c0);
        c1 = _mm512_fmadd_pd(high, high, c1);
        lane[r].low = _mm512_fmadd_pd(low, low, lane[r].low);
        lane[r].high = _mm512_fmadd_pd(high, high, lane[r].high);
    }
    _mm512_mask_storeu_pd(col + j, k0, c0);
    _mm512_mask_storeu_pd(col + j + 8, k1, c1);
}

PS__INLINE512 void sums_of(const struct ps__adafactor *a, bool g32, size_t i, int rows, double *col)
{
    struct lanes lane[TOGETHER] = {{{0}, {0}}};
    __m512 scale = _mm512_set1_ps(a->u->grad_scale);
    size_t j = 0, cols = a->s.cols;
    for (; j + 16 <= cols; j += 16)
        sums_at(a, g32, scale, i, rows, j, PS__FULL16, col, lane);
    if (j < cols)
        sums_at(a, g32, scale, i, rows, j, ps__mask16(cols - j), col, lane);
    for (int r = 0; r < rows; r++)
        a->p.row[i + (size_t)r] = sum_of(&lane[r]);
}

PS__INLINE512 void sums(const struct ps__adafactor *a, bool g32, size_t begin, size_t end)
{
    double *col = a->p.col + begin / a->s.block * a->s.cols;
    for (size_t j = 0; j < a->s.cols; j++)
        col[j] = 0;
    size_t i = begin;
    for (; i + TOGETHER <= end; i += TOGETHER)
        sums_of(a, g32, i, TOGETHER, col);
    for (; i < end; i++)
        sums_of(a, g32, i, 1, col);
}

void ps__adafactor_sums_avx512(const struct ps__adafactor *a, size_t begin, size_t end)
{
    if (a->u->grad_dtype == PS_DTYPE_F32)
        sums(a, true, begin, end);
    else
        sums(a, false, begin, end);
}

PS__INLINE512 __m512 direction(const float *col, __m512 row, __m512 g, __mmask16 k)
{
    return _mm512_mul_ps(g, _mm512_mul_ps(row, ps__load_f32(col, k)));
}

PS__INLINE512 void norm_of_row(const struct ps__adafactor *a, bool g32, size_t i)
{
    struct lanes lane = {{0}, {0}};
    __m512 scale = _mm512_set1_ps(a->u->grad_scale), row = _mm512_set1_ps(a->p.row_factor[i]);
    size_t j = 0, cols = a->s.cols, at = i * cols;
    for (; j + 16 <= cols; j += 16) {
        __m512 g = load_grad(a->u->grad, g32, at + j, PS__FULL16, scale);
        add_squares(&lane, direction(a->p.col_factor + j, row, g, PS__FULL16));
    }
    if (j < cols) {
        __mmask16 k = ps__mask16(cols - j);
        __m512 g = load_grad(a->u->grad, g32, at + j, k, scale);
        add_squares(&lane, direction(a->p.col_factor + j, row, g, k));
    }
    a->p.row[i] = sum_of(&lane);
}

static void norm_of_weights(const struct ps__adafactor *a, size_t i)
{
    const struct ps_update *u = a->u;
    struct lanes lane = {{0}, {0}};
    for (size_t j = 0; j < a->s.cols; j += 32) {
        size_t at = i * a->s.cols + j, left = a->s.cols - j;
        __m512 w[2];
        if (u->tensor->dtype == PS_DTYPE_F32)
            ps__load_pair((const float *)u->weight + at, left, w);
        else if (u->remainder)
            ps__load_master_pair((const uint16_t *)u->weight + at, u->remainder + at, left, w);
        else
            ps__load_bf16_pair((const uint16_t *)u->weight + at, left, w);
        add_squares(&lane, w[0]);
        add_squares(&lane, w[1]);
    }
    a->p.row_w[i] = sum_of(&lane);
}

void ps__adafactor_norms_avx512(const struct ps__adafactor *a, size_t begin, size_t end)
{
    bool weights = a->u->hyper->scale_parameter, g32 = a->u->grad_dtype == PS_DTYPE_F32;
    for (size_t i = begin; i < end; i++) {
        a->p.row_w[i] = 0;
        if (g32)
            norm_of_row(a, true, i);
        else
            norm_of_row(a, false, i);
        if (weights)
            norm_of_weights(a, i);
    }
}

struct scalars {
    float row, step, decay, beta1, one_minus_beta1;
    const float *col; /* (cols,) */
    size_t begin;     /* of the row */
};

PS__INLINE512 void weigh(const struct scalars *s, __m512 *w, __m512 x)
{
    *w = _mm512_sub_ps(*w, _mm512_mul_ps(_mm512_set1_ps(s->decay), *w));
    *w = _mm512_sub_ps(*w, x);
}

PS__INLINE512 __m512 step_at(const struct scalars *s, size_t i, __mmask16 k, __m512 g)
{
    __m512 x = direction(s->col + (i - s->begin), _mm512_set1_ps(s->row), g, k);
    return _mm512_mul_ps(x, _mm512_set1_ps(s->step));
}

PS__INLINE512 void plain(void *method, size_t i, __mmask16 k, __m512 *w, __m512 g, __m512 *x0,
                         __m512 *x1)
{
    (void)x0;
    (void)x1;
    weigh(method, w, step_at(method, i, k, g));
}

PS__INLINE512 void momentum(void *method, size_t i, __mmask16 k, __m512 *w, __m512 g, __m512 *m,
                            __m512 *x1)
{
    const struct scalars *s = method;
    (void)x1;
    __m512 x = step_at(s, i, k, g);
    *m = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(s->beta1), *m),
                       _mm512_mul_ps(_mm512_set1_ps(s->one_minus_beta1), x));
    weigh(s, w, *m);
}

void ps__adafactor_step_avx512(const struct ps__adafactor *a, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        struct scalars s = {.row = a->p.row_factor[i],
                            .step = a->step,
                            .decay = a->decay,
                            .beta1 = a->beta1,
                            .one_minus_beta1 = a->one_minus_beta1,
                            .col = a->p.col_factor,
                            .begin = i * a->s.cols};
        if (a->momentum < 0)
            ps__lanes512(a->u, 0, 0, plain, &s, s.begin, s.begin + a->s.cols);
        else
            ps__lanes512(a->u, a->momentum, 1, momentum, &s, s.begin, s.begin + a->s.cols);
    }
}

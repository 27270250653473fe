/* Element-wise updates with AVX-512: weights, gradients and states where they lie, sixteen lanes at
 * a time, each touched once. Private to the *_avx512.c files of optim, which alone are compiled for
 * it.
 *
 * Design: a loop of loads, arithmetic and stores keeps the memory busy all the time; tiles (load
 * 1024 elements, compute, store) do not, for nothing is fetched while a tile is computed. Random
 * bits for stochastic rounding are made in the same loop: eight Philox blocks at a time, one in
 * each 64-bit lane, whose upper halves hold rubbish that the next multiplication ignores. A round
 * is two multiplications, two shifts and two three-way xors for 64 elements: 60 instructions and 6
 * more to put the words in order, 17 a sixteen elements. Rounding itself takes 5.
 *
 * The bits are those of tile_internal.h. */
#ifndef PS_OPTIM_LANES_AVX512_INTERNAL_H
#define PS_OPTIM_LANES_AVX512_INTERNAL_H

#include <assert.h>
#include <immintrin.h>
#include <stdbool.h>

#include "optim/weight_io.h"
#include "runtime/base/rng.h"

#define PS__INLINE512 static inline __attribute__((always_inline))
#define PS__FULL16 ((__mmask16)0xffff)

/* Lanes of a group that begins where `left` elements are left. */
PS__INLINE512 __mmask16 ps__mask16(size_t left)
{
    return left >= 16 ? PS__FULL16 : (__mmask16)((1u << left) - 1u);
}

PS__INLINE512 __m512 ps__load_f32(const float *p, __mmask16 k)
{
    return k == PS__FULL16 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(k, p);
}

PS__INLINE512 void ps__store_f32(float *p, __mmask16 k, __m512 v)
{
    if (k == PS__FULL16)
        _mm512_storeu_ps(p, v);
    else
        _mm512_mask_storeu_ps(p, k, v);
}

/* Of 32 elements, by half words: those that are there. */
PS__INLINE512 __mmask32 ps__mask32(size_t left)
{
    return left >= 32 ? 0xffffffffu : (__mmask32)((1u << left) - 1u);
}

PS__INLINE512 __m512i ps__load_half(const uint16_t *p, size_t left)
{
    return left >= 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(ps__mask32(left), p);
}

PS__INLINE512 void ps__store_half(uint16_t *p, size_t left, __m512i v)
{
    if (left >= 32)
        _mm512_storeu_si512(p, v);
    else
        _mm512_mask_storeu_epi16(p, ps__mask32(left), v);
}

/* Word h * 16 + i / 2 for lane i: each half word twice. */
PS__INLINE512 __m512i ps__spread(int h)
{
    const __m512i twice = _mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8,
                                           8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return h ? _mm512_add_epi16(twice, _mm512_set1_epi16(16)) : twice;
}

PS__INLINE512 void ps__load_bf16_pair(const uint16_t *p, size_t left, __m512 x[2])
{
    __m512i half = ps__load_half(p, left);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++)
        x[h] =
            _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, ps__spread(h), half));
}

/* Masters of 32 elements: the upper halves are one more than the master's where the lower ones are
 * at least 0x8000. */
PS__INLINE512 void ps__load_master_pair(const uint16_t *weight, const uint16_t *remainder,
                                        size_t left, __m512 x[2])
{
    __m512i hi = ps__load_half(weight, left), lo = ps__load_half(remainder, left);
    hi = _mm512_sub_epi16(hi, _mm512_srli_epi16(lo, 15));
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        /* even half words from lo, odd ones from hi */
        __m512i at =
            _mm512_mask_add_epi16(ps__spread(h), 0xaaaaaaaau, ps__spread(h), _mm512_set1_epi16(32));
        x[h] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(lo, at, hi));
    }
}

/* Upper (1) or lower (0) half words of 32 lanes. */
PS__INLINE512 __m512i ps__halves(__m512i a, __m512i b, int upper)
{
    const __m512i even =
        _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                         24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    __m512i at = upper ? _mm512_add_epi16(even, _mm512_set1_epi16(1)) : even;
    return _mm512_permutex2var_epi16(a, at, b);
}

/* A NaN, which arithmetic has made quiet, keeps its upper half; its lower one is 0. */
PS__INLINE512 void ps__store_master_pair(uint16_t *weight, uint16_t *remainder, size_t left,
                                         const __m512 x[2])
{
    __m512i high[2], low[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        __mmask16 number = _mm512_cmp_ps_mask(x[h], x[h], _CMP_ORD_Q);
        __m512i u = _mm512_castps_si512(x[h]);
        high[h] = _mm512_mask_add_epi32(u, number, u, _mm512_set1_epi32(0x8000));
        low[h] = _mm512_maskz_mov_epi32(number, u);
    }
    ps__store_half(weight, left, ps__halves(high[0], high[1], 1));
    ps__store_half(remainder, left, ps__halves(low[0], low[1], 0));
}

/* The random half words of weight_io.h for consecutive elements. */
#define PS__GROUP 128 /* elements of a group: two sets of eight Philox blocks */

struct ps__random512 {
    uint64_t key[10][2];
    __m512i block, c2, c3; /* counters of the next eight blocks, in the order of `order` */
    __m512i shift;         /* half words of the first block that come before the first element */
    __m512i half[4];       /* the half words that begin with the next element's block */
};

/* Half words of the next 16 blocks. Two sets side by side: one alone would wait for its own
 * multiplications. */
PS__INLINE512 void ps__random512_make(struct ps__random512 *r, __m512i half[4])
{
    const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
    __m512i c[2][4];
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
        c[k][0] = _mm512_add_epi64(r->block, _mm512_set1_epi64(8 * k));
        c[k][1] = _mm512_srli_epi64(c[k][0], 32);
        c[k][2] = r->c2;
        c[k][3] = r->c3;
    }
#pragma GCC unroll 10
    for (int i = 0; i < 10; i++) {
        const __m512i k0 = _mm512_set1_epi64((long long)r->key[i][0]);
        const __m512i k1 = _mm512_set1_epi64((long long)r->key[i][1]);
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            __m512i p0 = _mm512_mul_epu32(m0, c[k][0]), p1 = _mm512_mul_epu32(m1, c[k][2]);
            c[k][0] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c[k][1], k0, 0x96);
            c[k][2] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c[k][3], k1, 0x96);
            c[k][1] = p1;
            c[k][3] = p0;
        }
    }
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
        /* low halves of two words side by side; then blocks 0 ... 3 and 4 ... 7 */
        __m512i a = _mm512_mask_shuffle_epi32(c[k][0], 0xaaaa, c[k][1], _MM_PERM_CCAA);
        __m512i b = _mm512_mask_shuffle_epi32(c[k][2], 0xaaaa, c[k][3], _MM_PERM_CCAA);
        half[2 * k] = _mm512_unpacklo_epi64(a, b);
        half[2 * k + 1] = _mm512_unpackhi_epi64(a, b);
    }
    r->block = _mm512_add_epi64(r->block, _mm512_set1_epi64(16));
}

PS__INLINE512 void ps__random512_begin(struct ps__random512 *r, const struct ps_rng_key *key,
                                       uint64_t element)
{
    uint32_t k0 = (uint32_t)key->seed, k1 = (uint32_t)(key->seed >> 32);
    uint32_t s[4] = {(uint32_t)key->step, (uint32_t)(key->step >> 32), key->micro_batch,
                     key->layer};
    ps_rng_philox(s, k0 ^ (key->site * 0x85EBCA6Bu), k1 ^ key->site);
    k0 ^= s[2];
    k1 ^= s[3];
    for (int i = 0; i < 10; i++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        r->key[i][0] = k0;
        r->key[i][1] = k1;
    }
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    r->block = _mm512_add_epi64(_mm512_set1_epi64((long long)(element / 8)), order);
    r->c2 = _mm512_set1_epi64(s[0]);
    r->c3 = _mm512_set1_epi64(s[1]);
    r->shift = _mm512_set1_epi16((short)(element % 8));
    ps__random512_make(r, r->half);
}

/* Half words of the next PS__GROUP elements, each in the lower half of its lane. */
PS__INLINE512 void ps__random512_next(struct ps__random512 *r, __m512i out[8])
{
    __m512i half[8];
    ps__random512_make(r, half + 4);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        half[i] = r->half[i];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        __m512i at = _mm512_add_epi16(ps__spread(i % 2), r->shift);
        out[i] = _mm512_maskz_permutex2var_epi16(0x55555555u, half[i / 2], at, half[i / 2 + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        r->half[i] = half[4 + i];
}

/* x, 32 elements, rounded by the half words of r. A NaN that arithmetic made is quiet: pass
 * `quiet`; else it is made so. */
PS__INLINE512 void ps__store_rounded(uint16_t *p, const __m512 x[2], const __m512i r[2],
                                     size_t left, bool quiet)
{
    __m512i u[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        __mmask16 special = _mm512_fpclass_ps_mask(x[h], 0x99); /* Inf and NaN stay */
        u[h] = _mm512_castps_si512(x[h]);
        u[h] = _mm512_mask_add_epi32(u[h], (__mmask16)~special, u[h], r[h]);
        if (!quiet) {
            __mmask16 nan = _mm512_fpclass_ps_mask(x[h], 0x81);
            u[h] = _mm512_mask_or_epi32(u[h], nan, u[h], _mm512_set1_epi32(0x400000));
        }
    }
    ps__store_half(p, left, ps__halves(u[0], u[1], 1));
}

/* What a loop moves: constants of each instance of it. */
enum ps__weight_form { PS__FORM_F32, PS__FORM_REMAINDER, PS__FORM_ROUNDED };

struct ps__form512 {
    enum ps__weight_form weight;
    bool grad32, state32;
    int first, states; /* states first ... first + states - 1 (0 ... 2 of them): one entry for each
                          element */
};

/* New weight and states of elements i, i + 1, ... of the slice, those of the mask; g is scaled. */
typedef void (*ps__lane_fn)(void *method, size_t i, __mmask16 k, __m512 *w, __m512 g, __m512 *x0,
                            __m512 *x1);

/* Where elements [at, at + 16) lie. */
struct ps__lanes512 {
    float *w32;
    uint16_t *w16, *remainder;
    const void *grad;
    void *state[2];
    __m512 grad_scale;
};

PS__INLINE512 struct ps_rng_key ps__round_key(const struct ps_update *u, uint32_t plane)
{
    return (struct ps_rng_key){.seed = u->hyper->seed,
                               .step = u->t,
                               .micro_batch = plane,
                               .layer = u->tensor->id,
                               .site = PS_RNG_ROUND};
}

PS__INLINE512 void ps__load_pair(const float *p, size_t left, __m512 x[2])
{
    x[0] = ps__load_f32(p, ps__mask16(left));
    x[1] = ps__load_f32(p + 16, ps__mask16(left > 16 ? left - 16 : 0));
}

PS__INLINE512 void ps__lane_weight(const struct ps__lanes512 *l, const struct ps__form512 f,
                                   size_t i, size_t left, __m512 w[2])
{
    if (f.weight == PS__FORM_F32)
        ps__load_pair(l->w32 + i, left, w);
    else if (f.weight == PS__FORM_ROUNDED)
        ps__load_bf16_pair(l->w16 + i, left, w);
    else
        ps__load_master_pair(l->w16 + i, l->remainder + i, left, w);
}

PS__INLINE512 void ps__grad_pair(const void *grad, bool g32, size_t i, size_t left, __m512 scale,
                                 __m512 g[2])
{
    if (g32)
        ps__load_pair((const float *)grad + i, left, g);
    else
        ps__load_bf16_pair((const uint16_t *)grad + i, left, g);
    g[0] = _mm512_mul_ps(g[0], scale);
    g[1] = _mm512_mul_ps(g[1], scale);
}

PS__INLINE512 void ps__lane_state(const struct ps__lanes512 *l, const struct ps__form512 f, int s,
                                  size_t i, size_t left, __m512 x[2])
{
    if (s >= f.states)
        x[0] = x[1] = _mm512_setzero_ps();
    else if (f.state32)
        ps__load_pair((const float *)l->state[s] + i, left, x);
    else
        ps__load_bf16_pair((const uint16_t *)l->state[s] + i, left, x);
}

/* 32 elements from i on, of which `left` are there. random: of the weight and the states. */
PS__INLINE512 void ps__lane_pair(const struct ps__lanes512 *l, const struct ps__form512 f,
                                 ps__lane_fn op, void *method, size_t i, size_t left,
                                 const __m512i *const random[3])
{
    __m512 w[2], g[2], x[2][2];
    ps__lane_weight(l, f, i, left, w);
    ps__grad_pair(l->grad, f.grad32, i, left, l->grad_scale, g);
    ps__lane_state(l, f, 0, i, left, x[0]);
    ps__lane_state(l, f, 1, i, left, x[1]);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        size_t at = i + 16 * (size_t)h, rest = left > 16 * (size_t)h ? left - 16 * (size_t)h : 0;
        __mmask16 k = ps__mask16(rest);
        op(method, at, k, &w[h], g[h], &x[0][h], &x[1][h]);
        if (f.weight == PS__FORM_F32)
            ps__store_f32(l->w32 + at, k, w[h]);
        for (int s = 0; s < f.states && f.state32; s++)
            ps__store_f32((float *)l->state[s] + at, k, x[s][h]);
    }
    if (f.weight == PS__FORM_REMAINDER)
        ps__store_master_pair(l->w16 + i, l->remainder + i, left, w);
    if (f.weight == PS__FORM_ROUNDED)
        ps__store_rounded(l->w16 + i, w, random[0], left, true);
    for (int s = 0; s < f.states && !f.state32; s++)
        ps__store_rounded((uint16_t *)l->state[s] + i, x[s], random[1 + s], left, true);
}

/* Which of weight and states are rounded at random. */
PS__INLINE512 bool ps__is_rounded(const struct ps__form512 f, int plane)
{
    return plane == 0 ? f.weight == PS__FORM_ROUNDED : f.states >= plane && !f.state32;
}

/* PS__GROUP elements from i on, of which `left` are there. */
PS__INLINE512 void ps__lane_group(const struct ps__lanes512 *l, const struct ps__form512 f,
                                  ps__lane_fn op, void *method, size_t i, size_t left,
                                  struct ps__random512 random[3])
{
    __m512i r[3][8];
#pragma GCC unroll 3
    for (int s = 0; s < 3; s++)
        if (ps__is_rounded(f, s))
            ps__random512_next(&random[s], r[s]);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        size_t past = 32 * (size_t)k, rest = left > past ? left - past : 0;
        const __m512i *const of_pair[3] = {r[0] + 2 * k, r[1] + 2 * k, r[2] + 2 * k};
        if (rest > 0)
            ps__lane_pair(l, f, op, method, i + past, rest < 32 ? rest : 32, of_pair);
    }
}

/* Elements [begin, end) of the slice. `method` must point into the caller's own frame: then its
 * scalars stay in registers. */
PS__INLINE512 void ps__lanes512_run(const struct ps_update *u, const struct ps__form512 f,
                                    ps__lane_fn op, void *method, size_t begin, size_t end)
{
    struct ps__random512 random[3];
    const struct ps__lanes512 l = {.w32 = u->weight,
                                   .w16 = u->weight,
                                   .remainder = u->remainder,
                                   .grad = u->grad,
                                   .state = {f.states > 0 ? u->state[f.first] : NULL,
                                             f.states > 1 ? u->state[f.first + 1] : NULL},
                                   .grad_scale = _mm512_set1_ps(u->grad_scale)};
#pragma GCC unroll 3
    for (int s = 0; s < 3; s++)
        if (ps__is_rounded(f, s)) {
            struct ps_rng_key key = ps__round_key(u, (uint32_t)(s > 0 ? s + f.first : 0));
            ps__random512_begin(&random[s], &key, u->begin + begin);
        }
    size_t i = begin;
    for (; i + PS__GROUP <= end; i += PS__GROUP)
        ps__lane_group(&l, f, op, method, i, PS__GROUP, random);
    if (i < end)
        ps__lane_group(&l, f, op, method, i, end - i, random);
}

/* The instance for the update's types. */
PS__INLINE512 void ps__lanes512(const struct ps_update *u, int first, int states, ps__lane_fn op,
                                void *method, size_t begin, size_t end)
{
    enum ps__weight_form weight = u->tensor->dtype == PS_DTYPE_F32 ? PS__FORM_F32
                                  : u->remainder                   ? PS__FORM_REMAINDER
                                                                   : PS__FORM_ROUNDED;
    bool g32 = u->grad_dtype == PS_DTYPE_F32;
    bool x32 = states == 0 || u->layout->state[first].dtype == PS_DTYPE_F32;
#define PS__CASE(w, g, x)                                                                          \
    if (weight == (w) && g32 == (g) && x32 == (x))                                                 \
    ps__lanes512_run(u, (struct ps__form512){w, g, x, first, states}, op, method, begin, end)
    PS__CASE(PS__FORM_F32, true, true);
    PS__CASE(PS__FORM_F32, false, true);
    PS__CASE(PS__FORM_REMAINDER, true, true);
    PS__CASE(PS__FORM_REMAINDER, false, true);
    PS__CASE(PS__FORM_ROUNDED, true, true);
    PS__CASE(PS__FORM_ROUNDED, false, true);
    if (states == 0)
        return;
    PS__CASE(PS__FORM_F32, true, false);
    PS__CASE(PS__FORM_F32, false, false);
    PS__CASE(PS__FORM_REMAINDER, true, false);
    PS__CASE(PS__FORM_REMAINDER, false, false);
    PS__CASE(PS__FORM_ROUNDED, true, false);
    PS__CASE(PS__FORM_ROUNDED, false, false);
#undef PS__CASE
}

#endif

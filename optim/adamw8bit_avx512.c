/* AdamW with 8-bit moments with AVX-512: the operations of adamw8bit.c.
 *
 * Bytes a parameter with an fp32 gradient: 16 with exact masters, 12 with bf16 weights rounded at
 * random (codes 4, scales 1/16, gradient 4, weights 8 or 4). Instructions for 16 parameters: 130
 * with fp32 weights, up to 165 rounded, and most of them take a whole cycle of their unit: this is
 * what bounds it, not the memory (docs/benchmarks/optimizers.md).
 *
 * A block's new moments lie in the caller's frame and are encoded while the next block is computed:
 * nothing waits for their largest ones (a reduction and a division), and encoding goes on beside
 * the root and the division, which keep one unit busy for 16 cycles. */
#include <string.h>

#include "optim/adamw8bit_internal.h"
#include "optim/dynamic_map_avx512_internal.h"
#include "optim/dynamic_map_variants.h"

void ps__map_planes_fill(struct ps__map_planes *planes)
{
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        uint8_t code[PS_BLOCK8];
        uint32_t bits[PS_BLOCK8];
        float value[PS_BLOCK8];
        for (int c = 0; c < PS_BLOCK8; c++)
            code[c] = (uint8_t)c;
        ps__block8_decode_avx512(code, 1, PS_BLOCK8, is_signed, value);
        memcpy(bits, value, sizeof bits);
        for (int k = 0; k < 4; k++)
            for (int c = 0; c < PS_BLOCK8; c++)
                planes->byte[is_signed][k][c] = (uint8_t)(bits[c] >> 8 * k);
    }
}

/* A block whose new moments wait to be encoded. */
struct waiting {
    float *m, *v;
    uint8_t *m_code, *v_code;
    float m_inverse, v_inverse; /* of the scales */
};

/* Moments of a block into x (PS_BLOCK8,). */
typedef void (*decode_fn)(const struct ps__map_planes *planes, const uint8_t *code, float scale,
                          bool is_signed, float *x);

struct method {
    struct ps_adamw_scalars s;
    decode_fn decode;
    const struct ps__map_planes *planes;
    struct ps__map512 map[2];
    uint8_t *m_code, *v_code;
    float *m_scale, *v_scale;
    __m512i m_most, v_most;
    float *m, *v; /* (2 PS_BLOCK8,): of this block and the one before */
    struct waiting *waiting;
};

/* 16 values from x on. */
PS__INLINE512 void encode(const struct ps__map512 *map, const float *x, float inverse,
                          uint8_t *code, bool is_signed)
{
    __m512 v = _mm512_loadu_ps(x);
    __m512i c = ps__map512_number(map, v, _mm512_mul_ps(v, _mm512_set1_ps(inverse)), is_signed);
    if (is_signed)
        c = _mm512_max_epi32(_mm512_add_epi32(c, _mm512_set1_epi32(127)), _mm512_setzero_si512());
    _mm_storeu_si128((__m128i *)(void *)code, _mm512_cvtepi32_epi8(c));
}

PS__INLINE512 void encode_waiting(const struct waiting *w, const struct ps__map512 map[2],
                                  size_t at)
{
    encode(&map[1], w->m + at, w->m_inverse, w->m_code + at, true);
    encode(&map[0], w->v + at, w->v_inverse, w->v_code + at, false);
}

static __attribute__((noinline)) void lift(float *x, float by)
{
    for (size_t i = 0; i < PS_BLOCK8; i++)
        x[i] *= by;
}

/* The block `next`, of which all but the scales is known, waits. */
static __attribute__((noinline)) void end_block(struct waiting *w, struct waiting next,
                                                __m512i m_most, __m512i v_most, float *m_scale,
                                                float *v_scale)
{
    struct ps__map_scale m = ps__map_scale_of(m_most), v = ps__map_scale_of(v_most);
    *m_scale = m.a;
    *v_scale = v.a;
    if (m.lift > 1)
        lift(next.m, m.lift);
    if (v.lift > 1)
        lift(next.v, v.lift);
    next.m_inverse = m.inverse;
    next.v_inverse = v.inverse;
    *w = next;
}

static void decode(const struct ps__map_planes *planes, const uint8_t *code, float scale,
                   bool is_signed, float *x)
{
    (void)planes;
    ps__block8_decode_avx512(code, scale, PS_BLOCK8, is_signed, x);
}

/* One byte of the values of 64 codes: tables of 128 codes each by permutation. */
#define VBMI __attribute__((target("avx512vbmi")))
VBMI static inline __m512i byte_of(const uint8_t table[256], __m512i code, __mmask64 upper)
{
    __m512i low =
        _mm512_permutex2var_epi8(_mm512_loadu_si512(table), code, _mm512_loadu_si512(table + 64));
    __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), code,
                                            _mm512_loadu_si512(table + 192));
    return _mm512_mask_mov_epi8(low, upper, high);
}

VBMI static void decode_vbmi(const struct ps__map_planes *planes, const uint8_t *code, float scale,
                             bool is_signed, float *x)
{
    /* so that interleaved bytes come in order */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512 s = _mm512_set1_ps(scale);
    for (size_t i = 0; i < PS_BLOCK8; i += 64) {
        __m512i c = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(code + i));
        __mmask64 upper = _mm512_movepi8_mask(c);
        __m512i b[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            b[k] = byte_of(planes->byte[is_signed][k], c, upper);
        __m512i low[2] = {_mm512_unpacklo_epi8(b[0], b[1]), _mm512_unpackhi_epi8(b[0], b[1])};
        __m512i high[2] = {_mm512_unpacklo_epi8(b[2], b[3]), _mm512_unpackhi_epi8(b[2], b[3])};
#pragma GCC unroll 2
        for (size_t k = 0; k < 2; k++) {
            __m512i even = _mm512_unpacklo_epi16(low[k], high[k]);
            __m512i odd = _mm512_unpackhi_epi16(low[k], high[k]);
            _mm512_storeu_ps(x + i + 32 * k, _mm512_mul_ps(_mm512_castsi512_ps(even), s));
            _mm512_storeu_ps(x + i + 32 * k + 16, _mm512_mul_ps(_mm512_castsi512_ps(odd), s));
        }
    }
}

PS__INLINE512 void adamw8bit(void *method, size_t i, __mmask16 k, __m512 *w, __m512 g, __m512 *x0,
                             __m512 *x1)
{
    struct method *b = method;
    const struct ps_adamw_scalars *s = &b->s;
    (void)k;
    (void)x0;
    (void)x1;
    size_t in = i % PS_BLOCK8, of = i / PS_BLOCK8;
    float *new_m = b->m + i % (2 * PS_BLOCK8), *new_v = b->v + i % (2 * PS_BLOCK8);
    if (in == 0) {
        b->decode(b->planes, b->m_code + i, b->m_scale[of], true, new_m);
        b->decode(b->planes, b->v_code + i, b->v_scale[of], false, new_v);
    }
    __m512 m = _mm512_loadu_ps(new_m), v = _mm512_loadu_ps(new_v);
    m = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(s->beta1), m),
                      _mm512_mul_ps(_mm512_set1_ps(s->one_minus_beta1), g));
    __m512 g2 = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(s->one_minus_beta2), g), g);
    v = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(s->beta2), v), g2);
    __m512 root = _mm512_mul_ps(_mm512_sqrt_ps(v), _mm512_set1_ps(s->rsqrt_c2));
    __m512 step = _mm512_div_ps(m, _mm512_add_ps(root, _mm512_set1_ps(s->eps)));
    *w = _mm512_sub_ps(*w, _mm512_mul_ps(_mm512_set1_ps(s->decay), *w));
    *w = _mm512_sub_ps(*w, _mm512_mul_ps(_mm512_set1_ps(s->step_size), step));
    _mm512_storeu_ps(new_m, m);
    _mm512_storeu_ps(new_v, v);
    b->m_most = ps__map512_most(b->m_most, m);
    b->v_most = ps__map512_most(b->v_most, v);
    encode_waiting(b->waiting, b->map, in);
    if (in == PS_BLOCK8 - 16) {
        struct waiting next = {.m = new_m - in,
                               .v = new_v - in,
                               .m_code = b->m_code + i - in,
                               .v_code = b->v_code + i - in};
        end_block(b->waiting, next, b->m_most, b->v_most, b->m_scale + of, b->v_scale + of);
        b->m_most = b->v_most = _mm512_setzero_si512();
    }
}

void ps__adamw8bit_avx512(const struct ps_update *u, const struct ps_adamw_scalars *s,
                          const struct ps__map_planes *planes, size_t at, size_t n)
{
    float m[2 * PS_BLOCK8] = {0}, v[2 * PS_BLOCK8] = {0};
    uint8_t none[PS_BLOCK8]; /* no block waits at first */
    struct waiting waiting = {.m = m, .v = v, .m_code = none, .v_code = none};
    struct method b = {.s = *s,
                       .decode = __builtin_cpu_supports("avx512vbmi") ? decode_vbmi : decode,
                       .planes = planes,
                       .map = {ps__map512_load(false), ps__map512_load(true)},
                       .m_code = u->state[PS__M_CODE],
                       .v_code = u->state[PS__V_CODE],
                       .m_scale = u->state[PS__M_SCALE],
                       .v_scale = u->state[PS__V_SCALE],
                       .m_most = _mm512_setzero_si512(),
                       .v_most = _mm512_setzero_si512(),
                       .m = m,
                       .v = v,
                       .waiting = &waiting};
    assert(at % PS_BLOCK8 == 0 && n % PS_BLOCK8 == 0);
    ps__lanes512(u, 0, 0, adamw8bit, &b, at, at + n);
    for (size_t i = 0; i < PS_BLOCK8; i += 16)
        encode_waiting(&waiting, b.map, i);
}

/* Loops over tiles that are compiled once for each instruction set. Private to optim.
 *
 * The bodies stand in a header, longer than a header's functions should be, because each method's
 * file compiles them into its own loops, three times: PS__TILE_VARIANTS makes of an always-inlined
 * body one function for each instruction set, and the compiler vectorises each for what it may use.
 * The bits are the same in all: the operations are IEEE ones, nothing is contracted
 * (-ffp-contract=off for this folder), and no loop adds up over elements. */
#ifndef PS_OPTIM_TILE_INTERNAL_H
#define PS_OPTIM_TILE_INTERNAL_H

#include <assert.h>
#include <string.h>

#include "optim/weight_io.h"
#include "optim/weight_io_internal.h"
#include "runtime/base/rng.h"

#define PS__INLINE static inline __attribute__((always_inline))
#define PS__AVX2 __attribute__((target("avx2,fma,f16c")))
#define PS__AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))

/* From PS__INLINE void body(u, arg, at, n): a function pointer for an instruction set. */
typedef void (*ps__tile_fn)(const struct ps_update *u, const void *arg, size_t at, size_t n);
#define PS__TILE_ARGS const struct ps_update *u, const void *arg, size_t at, size_t n
#define PS__TILE_VARIANTS(body)                                                                    \
    static void body##_portable(PS__TILE_ARGS)                                                     \
    {                                                                                              \
        body(u, arg, at, n);                                                                       \
    }                                                                                              \
    PS__AVX2 static void body##_avx2(PS__TILE_ARGS)                                                \
    {                                                                                              \
        body(u, arg, at, n);                                                                       \
    }                                                                                              \
    PS__AVX512 static void body##_avx512(PS__TILE_ARGS)                                            \
    {                                                                                              \
        body(u, arg, at, n);                                                                       \
    }                                                                                              \
    static ps__tile_fn body##_for(enum ps_isa isa)                                                 \
    {                                                                                              \
        return isa >= PS_ISA_AVX512 ? body##_avx512                                                \
               : isa == PS_ISA_AVX2 ? body##_avx2                                                  \
                                    : body##_portable;                                             \
    }

PS__INLINE float ps__float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

PS__INLINE uint32_t ps__bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* Random blocks of a tile, word by word. NARROW: eight elements a block; WIDE: four. */
enum { PS__NARROW = PS_TILE / 8 + 1, PS__WIDE = PS_TILE / 4 + 1 };

struct ps__random_narrow {
    uint32_t word[4][PS__NARROW];
};

struct ps__random_wide {
    uint32_t word[4][PS__WIDE];
};

/* Blocks [first, first + count) of the stream, word k of block i in word[k * stride + i]. */
PS__INLINE void ps__random_fill(uint32_t *restrict word, size_t stride,
                                const struct ps_rng_key *key, uint64_t first, size_t count)
{
    uint32_t k0 = (uint32_t)key->seed, k1 = (uint32_t)(key->seed >> 32);
    uint32_t s[4] = {(uint32_t)key->step, (uint32_t)(key->step >> 32), key->micro_batch,
                     key->layer};
    ps_rng_philox(s, k0 ^ (key->site * 0x85EBCA6Bu), k1 ^ key->site);
    k0 ^= s[2];
    k1 ^= s[3];
    for (size_t i = 0; i < count; i++) {
        uint32_t c0 = (uint32_t)(first + i), c1 = (uint32_t)((first + i) >> 32), c2 = s[0],
                 c3 = s[1], a = k0, b = k1;
        for (int round = 0; round < 10; round++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
            c0 = (uint32_t)(p1 >> 32) ^ c1 ^ a;
            c2 = (uint32_t)(p0 >> 32) ^ c3 ^ b;
            c1 = (uint32_t)p1;
            c3 = (uint32_t)p0;
            a += 0x9E3779B9u;
            b += 0xBB67AE85u;
        }
        word[i] = c0;
        word[stride + i] = c1;
        word[2 * stride + i] = c2;
        word[3 * stride + i] = c3;
    }
}

PS__INLINE uint16_t ps__round(float x, uint32_t r)
{
    uint32_t b = ps__bits_of(x);
    uint32_t up = (b + r) >> 16, top = b >> 16;
    bool special = (b & 0x7f800000u) == 0x7f800000u, nan = (b & 0x7fffffffu) > 0x7f800000u;
    return (uint16_t)(special ? (nan ? top | 0x40u : top) : up);
}

/* n <= PS_TILE elements from element `e` of the tensor on. */
PS__INLINE void ps__round_tile(const struct ps_update *u, uint32_t plane, uint64_t e, size_t n,
                               const float *restrict x, uint16_t *restrict out)
{
    struct ps_rng_key key = {.seed = u->hyper->seed,
                             .step = u->t,
                             .micro_batch = plane,
                             .layer = u->tensor->id,
                             .site = PS_RNG_ROUND};
    if (u->isa >= PS_ISA_AVX512) {
        ps__round_avx512(&key, e, n, x, out);
        return;
    }
    struct ps__random_narrow r;
    uint16_t half[PS__NARROW * 8];
    size_t skip = (size_t)(e % 8), blocks = (skip + n + 7) / 8;
    assert(n <= PS_TILE);
    ps__random_fill(r.word[0], PS__NARROW, &key, e / 8, blocks);
    for (size_t i = 0; i < blocks; i++)
        for (int k = 0; k < 4; k++) {
            half[8 * i + 2 * (size_t)k] = (uint16_t)r.word[k][i];
            half[8 * i + 2 * (size_t)k + 1] = (uint16_t)(r.word[k][i] >> 16);
        }
    for (size_t i = 0; i < n; i++)
        out[i] = ps__round(x[i], half[skip + i]);
}

PS__INLINE void ps__bf16_load(const uint16_t *restrict from, size_t n, float *restrict x)
{
    for (size_t i = 0; i < n; i++)
        x[i] = ps__float_of((uint32_t)from[i] << 16);
}

PS__INLINE void ps__weight_load(const struct ps_update *u, size_t at, size_t n, float *restrict w)
{
    if (u->tensor->dtype == PS_DTYPE_F32) {
        memcpy(w, (const float *)u->weight + at, n * sizeof *w);
        return;
    }
    const uint16_t *restrict p = (const uint16_t *)u->weight + at;
    if (!u->remainder) {
        ps__bf16_load(p, n, w);
        return;
    }
    const uint16_t *restrict lo = u->remainder + at;
    for (size_t i = 0; i < n; i++)
        w[i] = ps__float_of((((uint32_t)p[i] - (lo[i] >> 15)) << 16) | lo[i]);
}

PS__INLINE void ps__weight_store(const struct ps_update *u, size_t at, size_t n,
                                 const float *restrict w)
{
    if (u->tensor->dtype == PS_DTYPE_F32) {
        memcpy((float *)u->weight + at, w, n * sizeof *w);
        return;
    }
    uint16_t *restrict p = (uint16_t *)u->weight + at;
    if (!u->remainder) {
        ps__round_tile(u, 0, u->begin + at, n, w, p);
        return;
    }
    uint16_t *restrict lo = u->remainder + at;
    for (size_t i = 0; i < n; i++) {
        uint32_t b = ps__bits_of(w[i]);
        bool nan = (b & 0x7fffffffu) > 0x7f800000u; /* a carry could make a zero of it */
        p[i] = (uint16_t)(nan ? b >> 16 | 0x40u : (b + 0x8000u) >> 16);
        lo[i] = (uint16_t)(nan ? 0 : b);
    }
}

PS__INLINE void ps__grad_load(const struct ps_update *u, size_t at, size_t n, float *restrict g)
{
    float scale = u->grad_scale;
    if (u->grad_dtype == PS_DTYPE_F32) {
        const float *restrict from = (const float *)u->grad + at;
        for (size_t i = 0; i < n; i++)
            g[i] = from[i] * scale;
        return;
    }
    const uint16_t *restrict from = (const uint16_t *)u->grad + at;
    for (size_t i = 0; i < n; i++)
        g[i] = ps__float_of((uint32_t)from[i] << 16) * scale;
}

/* Weights, gradients and one fp32 state where they lie, for loops that touch each once. In the loop
 * `f32` and `g32` are constants: fp32 weights, else bf16 with remainder; fp32 gradients, else bf16.
 */
struct ps__lanes {
    void *w;
    uint16_t *lo;
    const void *g;
    float *x; /* NULL: the method has no state */
    float grad_scale;
};

PS__INLINE float ps__join(uint16_t p, uint16_t lo)
{
    return ps__float_of((((uint32_t)p - (uint32_t)(lo >> 15)) << 16) | lo);
}

/* Of a finite or infinite master; a NaN stays one. */
PS__INLINE uint16_t ps__split_high(float w)
{
    uint32_t b = ps__bits_of(w);
    bool nan = (b & 0x7fffffffu) > 0x7f800000u; /* a carry could make a zero of it */
    return (uint16_t)(nan ? b >> 16 | 0x40u : (b + 0x8000u) >> 16);
}

PS__INLINE uint16_t ps__split_low(float w)
{
    uint32_t b = ps__bits_of(w);
    return (uint16_t)((b & 0x7fffffffu) > 0x7f800000u ? 0 : b);
}

/* Are weights and states where such a loop can take them? */
PS__INLINE bool ps__in_place(const struct ps_update *u)
{
    for (int k = 0; k < u->layout->state_count; k++)
        if (u->layout->state[k].dtype != PS_DTYPE_F32)
            return false;
    return u->tensor->dtype == PS_DTYPE_F32 || u->remainder;
}

PS__INLINE struct ps__lanes ps__lanes_of(const struct ps_update *u, size_t at)
{
    return (struct ps__lanes){.w = (char *)u->weight + at * ps_dtype_size(u->tensor->dtype),
                              .lo = u->remainder ? u->remainder + at : NULL,
                              .g = (const char *)u->grad + at * ps_dtype_size(u->grad_dtype),
                              .x = u->layout->state_count > 0 ? (float *)u->state[0] + at : NULL,
                              .grad_scale = u->grad_scale};
}

/* loop(lanes, s, n, f32, g32) for the types of the update; else by way of fp32 tiles. For methods
 * with at most one state. */
#define PS__RUN_LANES(loop, s)                                                                     \
    do {                                                                                           \
        bool f32_ = u->tensor->dtype == PS_DTYPE_F32, g32_ = u->grad_dtype == PS_DTYPE_F32;        \
        struct ps__lanes l_ = ps__lanes_of(u, at);                                                 \
        if (!ps__in_place(u)) {                                                                    \
            float w_[PS_TILE], g_[PS_TILE], x_[PS_TILE];                                           \
            bool kept_ = u->layout->state_count > 0;                                               \
            ps__weight_load(u, at, n, w_);                                                         \
            ps__grad_load(u, at, n, g_);                                                           \
            if (kept_)                                                                             \
                ps__state_load(u, 0, at, n, x_);                                                   \
            l_ = (struct ps__lanes){.w = w_, .g = g_, .x = x_, .grad_scale = 1};                   \
            loop(&l_, s, n, true, true);                                                           \
            ps__weight_store(u, at, n, w_);                                                        \
            if (kept_)                                                                             \
                ps__state_store(u, 0, at, n, x_);                                                  \
        } else if (f32_ && g32_) {                                                                 \
            loop(&l_, s, n, true, true);                                                           \
        } else if (f32_) {                                                                         \
            loop(&l_, s, n, true, false);                                                          \
        } else if (g32_) {                                                                         \
            loop(&l_, s, n, false, true);                                                          \
        } else {                                                                                   \
            loop(&l_, s, n, false, false);                                                         \
        }                                                                                          \
    } while (0)

/* Declares what a loop over lanes reads: typed pointers that do not overlap. */
#define PS__LANES(l)                                                                               \
    float *restrict w32 = (l)->w, *restrict x = (l)->x;                                            \
    uint16_t *restrict w16 = (l)->w, *restrict lo = (l)->lo;                                       \
    const float *restrict gf = (l)->g;                                                             \
    const uint16_t *restrict gh = (l)->g;                                                          \
    const float scale = (l)->grad_scale

#define PS__LANE_WEIGHT(i) (f32 ? w32[i] : ps__join(w16[i], lo[i]))
#define PS__LANE_GRAD(i) ((g32 ? gf[i] : ps__float_of((uint32_t)gh[i] << 16)) * scale)
#define PS__LANE_STORE(i, w)                                                                       \
    do {                                                                                           \
        if (f32) {                                                                                 \
            w32[i] = w;                                                                            \
        } else {                                                                                   \
            w16[i] = ps__split_high(w);                                                            \
            lo[i] = ps__split_low(w);                                                              \
        }                                                                                          \
    } while (0)

PS__INLINE void ps__state_load(const struct ps_update *u, int state, size_t at, size_t n,
                               float *restrict x)
{
    if (u->layout->state[state].dtype == PS_DTYPE_F32)
        memcpy(x, (const float *)u->state[state] + at, n * sizeof *x);
    else
        ps__bf16_load((const uint16_t *)u->state[state] + at, n, x);
}

PS__INLINE void ps__state_store(const struct ps_update *u, int state, size_t at, size_t n,
                                const float *restrict x)
{
    if (u->layout->state[state].dtype == PS_DTYPE_F32)
        memcpy((float *)u->state[state] + at, x, n * sizeof *x);
    else
        ps__round_tile(u, 1 + (uint32_t)state, u->begin + at, n, x,
                       (uint16_t *)u->state[state] + at);
}

#endif

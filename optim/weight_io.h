/* Masters and gradients of a slice, a tile at a time.
 *
 * A tile of fp32 masters is loaded from what the weight is (F32; BF16 with a 16-bit remainder; BF16
 * alone), changed by the method in any way it likes, and stored. BF16 alone is stored by stochastic
 * rounding: u = bits(x), out = (u + r) >> 16 with 16 random bits r, so that the mean of the result
 * is x. NaN stays NaN, Inf stays Inf. r is the 16-bit half word e % 8 of
 *
 *   ps_rng_block({seed, step = t, micro_batch = plane, layer = tensor id, site = PS_RNG_ROUND}, e /
 * 8)
 *
 * (low half of word (e % 8) / 2 first) for element e of the tensor: the same whatever the slices,
 * tiles, threads and instruction set. plane is 0 for the weight, 1 + i for state i.
 *
 * All functions: host memory, any thread, any alignment of elements, n of any size. */
#ifndef PS_OPTIM_WEIGHT_IO_H
#define PS_OPTIM_WEIGHT_IO_H

#include "runtime/train/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Elements of a tile that methods commonly use: some tiles fit the first-level cache. */
#define PS_TILE 1024

/* Masters of elements [at, at + n) of the slice, into w (n,). */
void ps_weight_load(const struct ps_update *u, size_t at, size_t n, float *w);

/* Back again: rounded, or split into weight and remainder, as the layout says. */
void ps_weight_store(const struct ps_update *u, size_t at, size_t n, const float *w);

/* Gradients of elements [at, at + n) times u->grad_scale, into g (n,). */
void ps_grad_load(const struct ps_update *u, size_t at, size_t n, float *g);

/* A state with one entry an element, F32 or BF16, of elements [at, at + n) of the slice. BF16 is
 * stored by stochastic rounding. */
void ps_state_load(const struct ps_update *u, int state, size_t at, size_t n, float *x);
void ps_state_store(const struct ps_update *u, int state, size_t at, size_t n, const float *x);

/* The rounding itself. r: 16 random bits. */
uint16_t ps_round_stochastic(float x, uint16_t r);

/* Run body(u, arg, at, n) over tiles of `tile` elements of the slice on the pool's threads; the
 * last tile may be shorter. */
void ps_update_tiles(const struct ps_update *u, size_t tile,
                     void (*body)(const struct ps_update *u, const void *arg, size_t at, size_t n),
                     const void *arg);

#ifdef __cplusplus
}
#endif
#endif

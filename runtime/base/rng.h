/* Counter-based random numbers: a value depends on its key and index only, never on history.
 *
 * Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11). The key of
 * a stream is (seed, step, micro-batch, layer, site); `index` is the element. */
#ifndef PS_BASE_RNG_H
#define PS_BASE_RNG_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sites: one constant a use, so that no two uses share a stream. Values never change. */
enum ps_rng_site {
    PS_RNG_INIT_WEIGHT = 1,  /* `init`: layer = parameter index */
    PS_RNG_INIT_ADAPTER = 2, /* adapter A: layer = parameter index */
    PS_RNG_SHUFFLE = 3,      /* data order: step = epoch */
    PS_RNG_DROPOUT = 4,      /* adapter dropout: layer = layer * 16 + linear role; of the
                                head 2^32 - 1 - its chunk of rows */
    PS_RNG_SAMPLE = 5,       /* generation: step = position, micro = prompt */
    PS_RNG_SPLIT = 6,        /* --val-split */
    PS_RNG_ROUND = 7,        /* stochastic rounding: step = t, layer = tensor id, micro = 0 for the
                                weight, 1 + i for state i */
    PS_RNG_PROJECTION = 8,   /* random projections: step = t of the refresh, layer = tensor id */
    PS_RNG_ACTIVE = 9,       /* layers that train: step = interval */
    PS_RNG_PERTURB = 10,     /* zeroth-order directions: step, layer = tensor id */
    PS_RNG_BASIS = 11,       /* randomized subspace iteration: likewise */
};

struct ps_rng_key {
    uint64_t seed;
    uint64_t step;
    uint32_t micro_batch;
    uint32_t layer;
    uint32_t site;
};

/* Philox-4x32-10 itself: the counter c (4,) under the key k0, k1 is replaced by four random words.
 */
void ps_rng_philox(uint32_t c[4], uint32_t k0, uint32_t k1);

/* Four 32-bit words for block `block` of the stream. */
void ps_rng_block(const struct ps_rng_key *key, uint64_t block, uint32_t out[4]);

/* Word `index` of the stream (word index%4 of block index/4). */
uint32_t ps_rng_u32(const struct ps_rng_key *key, uint64_t index);

/* 64 bits made of words 2*index and 2*index+1. */
uint64_t ps_rng_u64(const struct ps_rng_key *key, uint64_t index);

/* Uniform in [0, 1): the top 24 bits of word `index`, times 2^-24. */
float ps_rng_uniform(const struct ps_rng_key *key, uint64_t index);

/* Standard normal by Box-Muller from words 2*index and 2*index+1, in double. */
double ps_rng_normal(const struct ps_rng_key *key, uint64_t index);

#ifdef __cplusplus
}
#endif
#endif

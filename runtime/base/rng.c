/* Counter-based random numbers: see rng.h.
 *
 * The 64-bit seed is the Philox key; step, micro-batch, layer and site are folded into the upper 64
 * bits of the counter by one Philox evaluation of their own, so that the full width of each counts.
 */
#include "runtime/base/rng.h"

#include <math.h>

void ps_rng_philox(uint32_t c[4], uint32_t k0, uint32_t k1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c[0];
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[1] = (uint32_t)p1;
        c[3] = (uint32_t)p0;
        c[0] = n0;
        c[2] = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

void ps_rng_block(const struct ps_rng_key *key, uint64_t block, uint32_t out[4])
{
    uint32_t k0 = (uint32_t)key->seed;
    uint32_t k1 = (uint32_t)(key->seed >> 32);
    uint32_t s[4] = {(uint32_t)key->step, (uint32_t)(key->step >> 32), key->micro_batch,
                     key->layer};
    ps_rng_philox(s, k0 ^ (key->site * 0x85EBCA6Bu), k1 ^ key->site);
    out[0] = (uint32_t)block;
    out[1] = (uint32_t)(block >> 32);
    out[2] = s[0];
    out[3] = s[1];
    ps_rng_philox(out, k0 ^ s[2], k1 ^ s[3]);
}

uint32_t ps_rng_u32(const struct ps_rng_key *key, uint64_t index)
{
    uint32_t w[4];
    ps_rng_block(key, index / 4, w);
    return w[index % 4];
}

uint64_t ps_rng_u64(const struct ps_rng_key *key, uint64_t index)
{
    uint32_t w[4];
    ps_rng_block(key, index / 2, w);
    unsigned at = index % 2 ? 2 : 0;
    return (uint64_t)w[at] << 32 | w[at + 1];
}

float ps_rng_uniform(const struct ps_rng_key *key, uint64_t index)
{
    return (float)(ps_rng_u32(key, index) >> 8) * 0x1p-24f;
}

double ps_rng_normal(const struct ps_rng_key *key, uint64_t index)
{
    uint32_t w[4];
    ps_rng_block(key, index / 2, w);
    unsigned at = index % 2 ? 2 : 0;
    double u = ((double)w[at] + 0.5) * 0x1p-32;
    double v = ((double)w[at + 1] + 0.5) * 0x1p-32;
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586476925286766559 * v);
}

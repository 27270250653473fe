/* Stochastic rounding with AVX-512: see weight_io_internal.h. */
#include "optim/weight_io_internal.h"

#include "optim/lanes_avx512_internal.h"

void ps__round_avx512(const struct ps_rng_key *key, uint64_t e, size_t n, const float *x,
                      uint16_t *out)
{
    struct ps__random512 random;
    ps__random512_begin(&random, key, e);
    for (size_t i = 0; i < n; i += PS__GROUP) {
        __m512i r[8];
        ps__random512_next(&random, r);
        for (size_t k = 0; k < 4 && i + 32 * k < n; k++) {
            size_t at = i + 32 * k, left = n - at;
            __m512 pair[2];
            ps__load_pair(x + at, left, pair);
            ps__store_rounded(out + at, pair, r + 2 * k, left, false);
        }
    }
}

"""The random numbers of runtime/base/rng.h, from the paper (Salmon et al. 2011) and the header."""
import math

M32 = 0xFFFFFFFF


def philox(c, k0, k1):
    c0, c1, c2, c3 = c
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & M32, (p0 >> 32) ^ c3 ^ k1, p0 & M32
        k0, k1 = (k0 + 0x9E3779B9) & M32, (k1 + 0xBB67AE85) & M32
    return c0, c1, c2, c3


class Stream:
    def __init__(self, seed, step, micro_batch, layer, site):
        k0, k1 = seed & M32, seed >> 32
        s = philox((step & M32, step >> 32, micro_batch, layer), k0 ^ (site * 0x85EBCA6B & M32),
                   k1 ^ site)
        self.s, self.k = s, (k0 ^ s[2], k1 ^ s[3])

    def block(self, i):
        return philox((i & M32, i >> 32, self.s[0], self.s[1]), *self.k)

    def normal(self, index):
        w = self.block(index // 2)
        at = 2 if index % 2 else 0
        u, v = (w[at] + 0.5) * 2.0**-32, (w[at + 1] + 0.5) * 2.0**-32
        return math.sqrt(-2.0 * math.log(u)) * math.cos(2 * math.pi * v)

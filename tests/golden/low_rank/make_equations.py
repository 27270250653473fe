"""Golden trajectories in float64 from the papers' equations: weights after steps 1 and 20.

    python make_equations.py fira|natural_galore|apollo > NAME.txt

Fira: arXiv:2410.01623; Natural GaLore: arXiv:2410.16029; APOLLO: arXiv:2412.05270. Written from the
equations (the header comments of optim/*.c), not from the authors' code. Singular vectors have
canonical signs; APOLLO's projections are the numbers that runtime/base/rng.h defines.
"""
import math
import sys

import numpy as np

import common
from philox import Stream

LR, B1, B2, EPS, SEED = 1e-2, 0.9, 0.95, 1e-6, 42
PROJECTION = 8  # PS_RNG_PROJECTION


class Moments:
    def __init__(self):
        self.m = self.v = 0.0
        self.t = 0

    def direction(self, r):
        """N, without bias correction."""
        self.t += 1
        self.m = B1 * self.m + (1 - B1) * r
        self.v = B2 * self.v + (1 - B2) * r * r
        return self.m / (np.sqrt(self.v) + EPS)

    def correction(self):
        return math.sqrt(1 - B2**self.t) / (1 - B1**self.t)


def basis_svd(g, rank, right):
    u, s, vh = np.linalg.svd(g, full_matrices=False)
    return common.canonical(vh[:rank] if right else u[:, :rank].T)


def project(p, g, right):
    return g @ p.T if right else p @ g


def back(p, r, right):
    return r @ p if right else p.T @ r


def channel_norm(x, right):
    return np.linalg.norm(x, axis=1, keepdims=True) if right else np.linalg.norm(x, axis=0, keepdims=True)


class Limiter:
    def __init__(self, gamma):
        self.gamma, self.norm = gamma, 0.0

    def __call__(self, s):
        norm = np.linalg.norm(s)
        if self.gamma and self.norm > 0:
            s = s / (max(norm / (self.norm + 1e-8), self.gamma) / self.gamma)
        if norm > 0:
            self.norm = np.linalg.norm(s)
        return s


def fira(case, tensor):
    rank, gap, a, gamma = case
    moments, limit, state = Moments(), Limiter(gamma), {}

    def step(t, g):
        right = g.shape[0] >= g.shape[1]
        if (t - 1) % gap == 0:
            state["p"] = basis_svd(g, rank, right)
        p = state["p"]
        r = project(p, g, right)
        n = moments.direction(r)
        phi = channel_norm(n, right) / (channel_norm(r, right) + 1e-8)
        s = limit((g - a * back(p, r, right)) * phi)
        return moments.correction() * (a * back(p, n, right) + s)

    return step


def natural_galore(case, tensor):
    rank, gap, scale, history, damping = case
    moments, state = Moments(), {}

    def step(t, g):
        right = g.shape[0] >= g.shape[1]
        if (t - 1) % gap == 0:
            state["p"], state["h"] = basis_svd(g, rank, right), []
        p = state["p"]
        r = project(p, g, right)
        state["h"] = (state["h"] + [r.reshape(-1)])[-history:] if history else []
        n = r.size
        fisher = damping * np.eye(n)
        for h in state["h"]:
            fisher += np.outer(h, h)
        r = np.linalg.solve(fisher, r.reshape(-1)).reshape(r.shape)
        n = moments.direction(r)
        return moments.correction() * scale * back(p, n, right)

    return step


def apollo(case, tensor):
    rank, gap, scale, gamma, front, whole = case
    moments, limit, state = Moments(), Limiter(gamma), {}

    def step(t, g):
        right = g.shape[0] >= g.shape[1]
        if (t - 1) % gap == 0:
            dim = min(g.shape)
            numbers = Stream(SEED, t, 0, tensor, PROJECTION)
            state["p"] = np.array([numbers.normal(i) for i in range(rank * dim)]).reshape(rank, dim)
            state["p"] /= math.sqrt(rank)
        r = project(state["p"], g, right)
        n = moments.direction(r)
        if whole:
            phi = np.linalg.norm(n) / (np.linalg.norm(r) + 1e-8)
        else:
            phi = channel_norm(n, right) / (channel_norm(r, right) + 1e-8)
        s = g * phi
        s = limit(s * math.sqrt(scale)) if front else limit(s) * math.sqrt(scale)
        return moments.correction() * s

    return step


METHODS = {
    "fira": (fira, {"a": (4, 7, 0.25, 1.01), "free": (3, 50, 1.0, 0)}),
    "natural_galore": (natural_galore, {"a": (4, 7, 0.25, 5, 0.5), "none": (4, 50, 1.0, 0, 2.0)}),
    "apollo": (apollo, {"a": (4, 7, 1.0, 1.01, False, False), "front": (3, 50, 2.0, 1.01, True, False),
                        "mini": (1, 7, 128.0, 1.01, False, True)}),
}
DECAY = 0.1
make, cases = METHODS[sys.argv[1]]
for name, case in cases.items():
    for i in range(5):
        w = common.weight(i)
        plain = Moments()
        step = make(case, i) if len(common.SHAPES[i]) == 2 else None
        for t in range(1, common.STEPS + 1):
            g = common.gradient(i, t)
            if step:
                w = w - LR * step(t, g)
                w = w - LR * DECAY * w
            else:
                n = plain.direction(g)
                w = w - LR * plain.correction() * n
            if t in common.SHOWN:
                common.show(name, t, i, w)

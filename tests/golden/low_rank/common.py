"""Gradients and weights that the generators here and tests/optim/matrix_method.h share, bit for bit.

Five tensors: a tall, a wide and a square matrix, two vectors. Gradients of matrices have leading
singular values well apart over a floor of noise, so that singular vectors are well determined.
"""
import numpy as np

SHAPES = [(24, 10), (10, 24), (12, 12), (9,), (16,)]
STEPS = 20
SHOWN = (1, 20)
MASK = (1 << 64) - 1


class Normals:
    """Sums of four uniform numbers of a linear congruential generator."""

    def __init__(self, seed):
        self.s = (seed * 0x9E3779B97F4A7C15 + 1) & MASK

    def next(self):
        total = 0.0
        for _ in range(4):
            self.s = (self.s * 6364136223846793005 + 1442695040888963407) & MASK
            total += float(self.s >> 40) * 2.0**-24 - 0.5
        return 1.7320508 * total

    def array(self, *shape):
        return np.array([self.next() for _ in range(int(np.prod(shape)))]).reshape(shape)


def weight(tensor):
    return (0.1 * Normals(1000 + tensor).array(*SHAPES[tensor])).astype(np.float32).astype(np.float64)


def gradient(tensor, step):
    """step is 1-based."""
    shape = SHAPES[tensor]
    r = Normals(step * 16 + tensor)
    if len(shape) == 1:
        return r.array(*shape).astype(np.float32).astype(np.float64)
    g = np.zeros(shape)
    scale = 1.0
    for _ in range(6):
        a, b = r.array(shape[0]), r.array(shape[1])
        for i in range(shape[0]):
            g[i] = g[i] + scale * a[i] * b
        scale *= 0.5
    g = g + 0.002 * r.array(*shape)
    return g.astype(np.float32).astype(np.float64)


def canonical(rows):
    """Each row with its entry of largest magnitude positive."""
    rows = rows.copy()
    for row in rows:
        if row[np.argmax(np.abs(row))] < 0:
            row *= -1
    return rows


def show(name, step, tensor, w):
    print("at", name, step, tensor, " ".join(f"{x:.9g}" for x in np.asarray(w).reshape(-1)))

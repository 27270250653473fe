"""Golden steps of optimizers by their official implementations: optimizers.txt.

torch.optim.SGD, lion_pytorch, transformers' Adafactor and torchao's AdamW8bit as they are; MicroAdam from the paper
(arXiv:2405.15593, algorithm 1, in float64 with the block size and rounding that optim/microadam.c documents, because the
official code needs a GPU). Gradients come from a hash that tests/optim/optim_check.h repeats, so only sampled weights are
stored: `case NAME`, then `TENSOR STEP INDEX VALUE` with VALUE in hexadecimal.

    python make_optimizers.py > optimizers.txt
"""
import math
import warnings

import numpy as np
import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
SHAPES = [(8, 6), (5, 40), (64, 100), (33,), (300,)]
STEPS, KEEP = 20, (1, 5, 20)


def value(i, stream):
    k = (i.astype(np.uint64) * 2654435761 + stream * 0x9E3779B9 + 12345).astype(np.uint32)
    k ^= k >> np.uint32(16)
    k *= np.uint32(0x7FEB352D)
    k ^= k >> np.uint32(15)
    k *= np.uint32(0x846CA68B)
    k ^= k >> np.uint32(16)
    return (k >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def weight(tensor, n):
    return value(np.arange(n), 50 + tensor) * np.float32(0.05)


def grad(tensor, t, n):
    i = np.arange(n)
    size = np.float32(2.0**-6) * (np.uint32(1) << (i % 7).astype(np.uint32)).astype(np.float32)
    return (value(i, 100 + tensor) * np.float32(0.5) + value(i, 1000 * t + tensor)) * size


def show(tensor, step, w):
    w = np.asarray(w, dtype=np.float64).reshape(-1)
    for i in range(0, len(w), max(1, len(w) // 24)):
        print(tensor, step, i, float(w[i]).hex())


def run(name, make, double=False):
    print("case", name)
    for k, shape in enumerate(SHAPES):
        n = math.prod(shape)
        kind = torch.float64 if double else torch.float32
        p = torch.nn.Parameter(torch.from_numpy(weight(k, n)).reshape(shape).to(kind))
        opt = make([p])
        for t in range(1, STEPS + 1):
            p.grad = torch.from_numpy(grad(k, t, n)).reshape(shape).to(kind)
            opt.step()
            if t in KEEP:
                show(k, t, p.detach().numpy())


def microadam(name, window, density, quant, beta1=0.9, beta2=0.999, eps=1e-8, lr=1e-3, decay=0.1):
    """One block: all tensors here are below 16384 elements."""
    print("case", name)

    def bf16(x):
        return torch.tensor(x, dtype=torch.float32).to(torch.bfloat16).to(torch.float64).numpy()

    for k, shape in enumerate(SHAPES):
        n = math.prod(shape)
        p = weight(k, n).astype(np.float64)
        kept = max(1, math.ceil(density * n))
        rows = [(np.zeros(0, int), np.zeros(0))] * window
        error = np.zeros(n)
        for t in range(1, STEPS + 1):
            a = grad(k, t, n).astype(np.float64) + error
            order = np.argsort(-np.abs(a), kind="stable")[:kept]
            rows[(t - 1) % window] = (order, bf16(a[order]))
            a[order] = 0
            for b in range(0, n, quant):
                x = a[b : b + quant]
                lo, hi = bf16(x.min()), bf16(x.max())
                # outward to the next bf16
                down = torch.tensor(lo).to(torch.bfloat16)
                if lo > x.min():
                    lo = torch.nextafter(down, torch.tensor(-math.inf, dtype=torch.bfloat16)).double().item()
                up = torch.tensor(hi).to(torch.bfloat16)
                if hi < x.max():
                    hi = torch.nextafter(up, torch.tensor(math.inf, dtype=torch.bfloat16)).double().item()
                u = (hi - lo) / 15
                error[b : b + quant] = lo + u * np.floor((x - lo) / u + 0.5) if u > 0 else lo
            z1, z2 = np.zeros(n), np.zeros(n)
            for r, (index, v) in enumerate(rows):
                age = (t - 1 - r) % window
                z1[index] += beta1**age * v
                z2[index] += beta2**age * v * v
            m = (1 - beta1) / (1 - beta1**t) * z1
            v = (1 - beta2) / (1 - beta2**t) * z2
            p = p * (1 - lr * decay) - lr * m / (np.sqrt(v) + eps)
            if t in KEEP:
                show(k, t, p)


def main():
    sgd = torch.optim.SGD
    run("sgd", lambda p: sgd(p, lr=0.1, weight_decay=0.01), True)
    run("sgd momentum", lambda p: sgd(p, lr=0.1, weight_decay=0.01, momentum=0.9), True)
    run("sgd nesterov", lambda p: sgd(p, lr=0.1, weight_decay=0.01, momentum=0.9, nesterov=True), True)
    run("sgd dampening", lambda p: sgd(p, lr=0.1, momentum=0.8, dampening=0.3), True)
    from lion_pytorch import Lion

    run("lion", lambda p: Lion(p, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1), True)
    from transformers.optimization import Adafactor

    plain = {"scale_parameter": False, "relative_step": False, "lr": 1e-3, "weight_decay": 0.01}
    run("adafactor", lambda p: Adafactor(p, **plain))
    run("adafactor momentum", lambda p: Adafactor(p, **plain, beta1=0.9, clip_threshold=0.5))
    run("adafactor scale", lambda p: Adafactor(p, lr=1e-2, scale_parameter=True, relative_step=False))
    run("adafactor relative", lambda p: Adafactor(p, scale_parameter=True, relative_step=True))
    run("adafactor warmup", lambda p: Adafactor(p, scale_parameter=False, relative_step=True, warmup_init=True))
    from torchao.optim import AdamW8bit

    run("adamw8bit", lambda p: AdamW8bit(p, lr=1e-3, weight_decay=0.01))
    microadam("microadam", 10, 0.01, 64)
    microadam("microadam dense", 4, 0.5, 32)


main()

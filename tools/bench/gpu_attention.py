#!/usr/bin/env python3
"""Attention of the CUDA device against torch's scaled_dot_product_attention, forward and backward, in one run.

    gpu_attention.py [--seconds S] [--out FILE.jsonl] [--tiny] [--build DIR]

Causal, bf16, 32 query and 8 key-value heads, 16384 tokens cut into rows of T (32768 for T = 32k), head_dim 64 and 128.
torch's side is the fastest of its kernels (flash, cuDNN, memory-efficient) that takes the shape, chosen for forward and
backward together. Useful TFLOP/s: 4 (backward 10) of every visible pair of tokens, head and channel, on both sides.
"""
import sys

from gpu_figures import Bench, import_torch, torch_device, torch_time


def cases(tiny):
    """(head_dim, heads, kv heads, T, rows)"""
    if tiny:
        return [(64, 4, 2, 64, 2), (128, 2, 1, 96, 1)]
    return [(d, 32, 8, t, max(16384 // t, 1)) for t in (4096, 8192, 2048, 16384, 32768) for d in (128, 64)]


def backends(torch, device):
    if device.type != "cuda":
        return [("cpu", None)]
    from torch.nn.attention import SDPBackend
    return [("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", getattr(SDPBackend, "CUDNN_ATTENTION", None)),
            ("efficient", SDPBackend.EFFICIENT_ATTENTION)]


def torch_attention(torch, device, shape, budget, tiny):
    """{name: (forward seconds, backward seconds)} of what works."""
    from contextlib import nullcontext
    import torch.nn.functional as F
    d, heads, kv, t, rows = shape
    result, names = {}, backends(torch, device)

    def tensor(h, grad):
        # (rows, T, heads, d) seen as (rows, heads, T, d): the layout that a model's linears leave
        x = torch.randn(rows, t, h, d, device=device, dtype=torch.bfloat16).transpose(1, 2)
        return x.detach().requires_grad_(grad)

    q, k, v, dout = tensor(heads, True), tensor(kv, True), tensor(kv, True), tensor(heads, False)
    for name, backend in names:
        if name != "cpu" and backend is None:
            continue
        for grouped in (True, False):
            def attend():
                if grouped:
                    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                n = heads // kv
                return F.scaled_dot_product_attention(q, k.repeat_interleave(n, 1), v.repeat_interleave(n, 1),
                                                      is_causal=True)

            def context():
                if backend is None:
                    return nullcontext()
                from torch.nn.attention import sdpa_kernel
                return sdpa_kernel(backend)

            try:
                with context():
                    share = budget / len(names) / 3
                    forward = torch_time(torch, device, attend, share, tiny)
                    out = attend()
                    backward = torch_time(
                        torch, device, lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), share, tiny)
            except RuntimeError:
                continue  # this kernel does not take the shape, or not grouped heads
            result[name + ("" if grouped else ", heads repeated")] = (forward, backward)
            break
    return result


def main():
    bench = Bench(__doc__, 60)
    shapes = cases(bench.tiny)
    flags = [x for s in shapes for x in ("--case", ":".join(map(str, s)))]
    raw = {r["case"]: r for r in bench.raw("gpu_attention", flags, 0.4 * bench.left())
           if r["part"] == "raw attention"}
    torch = import_torch()
    device = torch_device(torch, bench)
    for i, shape in enumerate(shapes):
        d, heads, kv, t, rows = shape
        name = f"head_dim {d}, T {t}, {rows} rows"
        ours = raw.get(":".join(map(str, shape)))
        if not ours:
            bench.missing("attention", name, "no time left, or it failed")
            continue
        best, kind = None, "(absent)"
        if device and (bench.left() > 2 or bench.tiny):
            tried = torch_attention(torch, device, shape, 0.9 * bench.left() / (len(shapes) - i), bench.tiny)
            kind = min(tried, key=lambda n: sum(tried[n]), default="none")
            best = tried.get(kind)
        unit = rows * t * (t + 1) / 2 * heads * d / 1e12
        f, b = ours["forward_s"], ours["backward_s"]
        for part, work, mine, theirs in (("attention forward", 4, f, best and best[0]),
                                         ("attention backward", 10, b, best and best[1]),
                                         ("attention both", 14, f + b, best and sum(best))):
            bench.figure(part, name, work * unit / mine, theirs and work * unit / theirs, "TFLOP/s", f"torch {kind}",
                         goal=(0.5, None) if part == "attention both" else None)
    return 0 if raw else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""What the card and its link can do, by torch and by the plug-in: products of Llama-3-8B's shapes, copies.

    gpu_ceilings.py [--tokens 8192] [--seconds S] [--out FILE.jsonl] [--tiny] [--build DIR]

Products in bf16, in TFLOP/s: y = x W^T, dx = dy W, dw += dy^T x of each linear (ours adds to fp32, torch writes bf16),
the head with fp32 logits (torch: bf16), and a linear with a LoRA pair of rank 16 in one call, which is held against
torch's product without it. Copies in GB/s, page-locked memory: to the device, back, both at once (the sum).
The best product of either is the measured peak that gpu_steps.py divides by.
"""
import sys

from gpu_figures import Bench, data_sheet_flops, import_torch, torch_device, torch_time

LINEARS = {"q_proj": (4096, 4096), "k_proj": (1024, 4096), "gate_proj": (14336, 4096), "down_proj": (4096, 14336)}
TINY = {"q_proj": (64, 64), "gate_proj": (96, 64)}


def products(tiny, tokens):
    """[(name, kind, m, n, k)], see gpu_ceilings.c."""
    out = []
    for name, (rows, cols) in (TINY if tiny else LINEARS).items():
        out.append((name, "y", tokens, rows, cols))
        out.append((name, "dx", tokens, cols, rows))
        out.append((name, "dw", rows, cols, tokens))
        if name in ("q_proj", "gate_proj"):
            out.append((name, "lora", tokens, rows, cols))
    out.append(("lm_head", "head", min(tokens, 2048), 97 if tiny else 128256, 64 if tiny else 4096))
    return out


def torch_products(torch, device, cases, budget, tiny):
    result = {}
    for name, kind, m, n, k in cases:
        if kind == "lora":
            continue
        a, b = torch.randn(m, k, device=device), torch.randn(n, k, device=device) * 0.02
        a, b = a.bfloat16(), b.bfloat16()
        if kind == "dx":
            b = b.t().contiguous().t()
        if kind == "dw":
            a, b = a.t().contiguous().t(), b.t().contiguous().t()
        c = torch.empty(m, n, dtype=torch.bfloat16, device=device)
        s = torch_time(torch, device, lambda: torch.mm(a, b.t(), out=c), budget / len(cases), tiny)
        result[name, kind] = 2.0 * m * n * k / s
    return result


def torch_copies(torch, device, size, tiny):
    """As the raw copy of gpu_ceilings.c; {} without a card."""
    if device.type != "cuda":
        return {}
    host = [torch.ones(size, dtype=torch.uint8).pin_memory() for _ in range(2)]
    near = [torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]

    def down():
        with torch.cuda.stream(streams[0]):
            near[0].copy_(host[0], non_blocking=True)

    def up():
        with torch.cuda.stream(streams[1]):
            host[1].copy_(near[1], non_blocking=True)

    def both():
        down()
        up()

    rate = {name: size / torch_time(torch, device, work, 0.5, tiny)
            for name, work in (("h2d", down), ("d2h", up), ("duplex", both))}
    rate["duplex"] *= 2
    return rate


def main():
    bench = Bench(__doc__, 40, lambda p: p.add_argument("--tokens", type=int, default=8192))
    tokens = 32 if bench.tiny else bench.args.tokens
    cases, size = products(bench.tiny, tokens), (2 << 20) if bench.tiny else (512 << 20)
    flags = [x for c in cases for x in ("--gemm", ":".join(map(str, c)))] + ["--copy", str(size)]
    raw = bench.raw("gpu_ceilings", flags, 0.4 * bench.left())
    torch = import_torch()
    device = torch_device(torch, bench)
    theirs, link = {}, {}
    if device:
        link = torch_copies(torch, device, size, bench.tiny)
        theirs = torch_products(torch, device, cases, 0.5 * bench.left(), bench.tiny)
    other = "torch" if device else "torch (absent)"
    peak = max(theirs.values(), default=0)
    for r in raw:
        if r["part"] == "raw device":
            name, emulated = r["name"], r["emulated"]
            bench.note("device", name=name, emulated=str(emulated), data_sheet_flops=data_sheet_flops(name),
                       task_s=r["task_s"], torch=torch.__version__ if torch else "absent")
        elif r["part"] == "raw copy":
            for way in ("h2d", "d2h", "duplex"):
                theirs_way = link.get(way)
                bench.figure("copy", way + ("" if r["pinned"] else ", not page-locked"), r[way] / 1e9,
                             theirs_way and theirs_way / 1e9, "GB/s", other)
            bench.figure("copy", "duplex over one direction, ours", r["duplex"] / 1e9, r["h2d"] / 1e9, "GB/s", "h2d")
        elif r["part"] == "raw gemm":
            kind = "y" if r["kind"] == "lora" else r["kind"]
            t = theirs.get((r["case"], kind))
            peak = max(peak, r["flops"])
            bench.figure("gemm", f"{r['case']} {r['kind']} {r['m']} x {r['n']} x {r['k']}", r["flops"] / 1e12,
                         t and t / 1e12, "TFLOP/s", other)
    if peak:
        sheet = data_sheet_flops(name)
        bench.figure("peak", "best product of either", peak / 1e12, sheet and sheet / 1e12, "TFLOP/s", "data sheet")
    return 0 if raw else 1


if __name__ == "__main__":
    sys.exit(main())

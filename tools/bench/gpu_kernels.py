#!/usr/bin/env python3
"""Bandwidth of the CUDA device's memory-bound kernels over that of a device-to-device copy, in GB/s.

    gpu_kernels.py [--seconds S] [--out FILE.jsonl] [--tiny] [--build DIR]

RMSNorm, RoPE, SwiGLU, embedding, cross-entropy, dropout, rounding to bf16, sum of squares, AdamW at Llama-3-8B's shapes and
16384 tokens; each counts the bytes that it must move. The copy is the driver's, measured before and after each kernel.
"""
import sys

from gpu_figures import Bench


def main():
    bench = Bench(__doc__, 30)
    raw = [r for r in bench.raw("gpu_kernels", [], bench.left()) if r["part"] == "raw kernel"]
    for r in raw:
        bench.figure("kernel", r["case"], r["ours"], r["other"], r["unit"], r["against"])
    return 0 if raw else 1


if __name__ == "__main__":
    sys.exit(main())

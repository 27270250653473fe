#!/usr/bin/env python3
"""A hardware profile of this machine with its card, for `penstock plan` and `train --hardware FILE`.

    gpu_profile.py [--profile FILE] [--disk DIR] [--seconds S] [--out FILE.jsonl] [--tiny] [--build DIR]

The card's figures are measured through the plug-in (products of Llama-3-8B's shapes, attention at 4096 tokens, copies, the
time of an empty task), those of the host and of DIR by `penstock bench`. Whether a run beside another slows it down was
not measured: the factors between the card and the host are 1, as nothing is shared but the link.
"""
import json
import os
import subprocess
import sys
import time

from gpu_figures import Bench, data_sheet_flops

APART = ("compute_by_disk", "compute_by_optim", "compute_by_copy", "disk_by_compute", "optim_by_compute", "copy_by_compute")


def default_folder(bench):
    return os.path.join(bench.build, "bench", "gpu-tiny" if bench.tiny else "gpu")


def default_path(bench):
    return os.path.join(default_folder(bench), "hardware.json")


def is_fresh(path):
    return os.path.exists(path) and time.time() - os.path.getmtime(path) < 3600


def shapes(tiny):
    """[(m, n, k)]"""
    h, i, vocab, tokens = (64, 96, 97, (16, 32)) if tiny else (4096, 14336, 128256, (1024, 2048, 4096, 8192))
    out = [(m, n, k) for m in tokens for n, k in ((h, h), (i, h), (h, i))]
    return out + [(tokens[-2], vocab, h)]


def host_part(bench, path, disk):
    """`penstock bench` of what is not the card."""
    flags = ["--quick"] if bench.tiny else ["copy", "disk", "cpu-optim", "--disk-seconds", "2", "--disk-size", "2GiB"]
    os.makedirs(disk, exist_ok=True)
    done = subprocess.run([bench.program("penstock"), "bench", *flags, "--nvme-path", disk, "--output", path],
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          timeout=max(bench.left(), 10))
    if done.returncode:
        raise SystemExit(f"penstock bench: exit code {done.returncode}\n{done.stderr[-500:]}")
    with open(path) as f:
        return json.load(f)


def make(bench, path, disk):
    """Writes the profile; returns it with the largest product's FLOP/s and the card's name, or None."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    size = (2 << 20) if bench.tiny else (512 << 20)
    flags = ["--copy", str(size)]
    for m, n, k in shapes(bench.tiny):
        flags += ["--gemm", f"{m}x{n}x{k}:y:{m}:{n}:{k}"]
    attention = "16:4:2:64:1" if bench.tiny else "128:32:8:4096:4"
    share = min(bench.left() / 3, 15)  # the host's part takes as long
    raw = bench.raw("gpu_ceilings", flags, share)
    core = bench.raw("gpu_attention", ["--case", attention], share / 5)
    products = [r for r in raw if r["part"] == "raw gemm"]
    copy = next((r for r in raw if r["part"] == "raw copy"), None)
    card = next((r for r in raw if r["part"] == "raw device"), None)
    if not products or not copy:
        return None
    p = host_part(bench, path + ".host", disk)
    p["machine"] = f"{p.get('machine', '')}; {card['name']}"[:250]
    p["device"] = "cuda"
    p["memory"]["device"] = card["total_bytes"]
    p["gemm"] = [dict(m=r["m"], n=r["n"], k=r["k"], dtype="bf16", flops=r["flops"]) for r in products]
    p["copy"].update(h2d=copy["h2d"], d2h=copy["d2h"])
    p["overhead"] = dict(task_s=card["task_s"])
    p["interference"] = {name: 1 for name in APART}
    a = next((r for r in core if r["part"] == "raw attention"), None)
    p["attention"] = dict(flops=0)  # not known: as products
    if a:
        work = a["forward_s"] * a["forward_flops"] + a["backward_s"] * a["backward_flops"]
        p["attention"]["flops"] = work / (a["forward_s"] + a["backward_s"])
    os.remove(path + ".host")
    with open(path, "w") as f:
        json.dump(p, f, indent=1)
    return dict(profile=p, peak=max(r["flops"] for r in products), name=card["name"])


def main():
    def more(p):
        p.add_argument("--profile", help="file to write [BUILD/bench/gpu/hardware.json]")
        p.add_argument("--disk", help="directory on the disk that is streamed from [that of FILE]")

    bench = Bench(__doc__, 60, more)
    path = os.path.abspath(bench.args.profile or default_path(bench))
    got = make(bench, path, bench.args.disk or os.path.dirname(path))
    if not got:
        return 1
    p, sheet = got["profile"], data_sheet_flops(got["name"])
    bench.figure("profile", "largest product", got["peak"] / 1e12, sheet and sheet / 1e12, "TFLOP/s", "data sheet")
    bench.figure("profile", "attention over the largest product", p["attention"]["flops"] / 1e12, got["peak"] / 1e12,
                 "TFLOP/s", "product")
    bench.figure("profile", "disk read over h2d", p["disk"][0]["read"] / 1e9, p["copy"]["h2d"] / 1e9, "GB/s", "h2d")
    return 0


if __name__ == "__main__":
    sys.exit(main())

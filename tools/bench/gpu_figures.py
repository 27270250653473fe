"""What the gpu_*.py benchmarks share: flags, the programs of the build, torch's timing, figures.

Every program takes --out FILE.jsonl (appended to), --seconds S (its time limit), --tiny (a dry run in seconds, on the
emulated device where there is no other) and --build DIR. A figure is a ratio with both raw numbers, which come from one
run: one line of text on standard output, one JSON object in FILE:

    {"part", "case", "ratio", "ours", "other", "unit", "against", ...}

`ratio` is above 1 where ours is better; "goal" and "met" where the project has set one for an H200. What could not be measured is a line with "ratio": null and "why".
"""
import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Dense bf16 tensor-core FLOP/s with fp32 accumulation, from NVIDIA's data sheets; the first name that fits counts.
DATA_SHEET = [("H200", 989.4e12), ("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100", 989.4e12), ("A100", 312e12),
              ("L40S", 362e12), ("RTX 5090", 209.5e12), ("RTX 4090", 165.2e12), ("RTX 3090", 71e12)]


def data_sheet_flops(name):
    return next((flops for part, flops in DATA_SHEET if part in name), None)


def driver_is_there():
    try:
        ctypes.CDLL("libcuda.so.1")
        return True
    except OSError:
        return False


class Bench:
    """The flags of one program, its deadline, and where figures go."""

    def __init__(self, doc, seconds, more=None):
        p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        p.add_argument("--out", help="file to which figures are appended, one JSON object a line")
        p.add_argument("--seconds", type=float, default=seconds, help="time limit [%(default)s]")
        p.add_argument("--tiny", action="store_true", help="a dry run: small sizes, meaningless figures")
        p.add_argument("--build", default=os.environ.get("BUILD") or os.path.join(ROOT, "build"))
        if more:
            more(p)
        self.args = p.parse_args()
        self.tiny, self.build = self.args.tiny, os.path.abspath(self.args.build)
        self.started = time.monotonic()
        self.out = open(self.args.out, "a") if self.args.out else None
        if self.tiny:
            os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads fight over few cores
        self.env = dict(os.environ)
        if not self.env.get("PENSTOCK_CUDA_PLUGIN"):
            emulated = self.tiny and not driver_is_there()
            name = "libpenstock_cuda_emu.so" if emulated else "libpenstock_cuda.so"
            self.env["PENSTOCK_CUDA_PLUGIN"] = os.path.join(self.build, name)

    def left(self):
        return self.args.seconds - (time.monotonic() - self.started)

    def write(self, record):
        if self.out:
            self.out.write(json.dumps(record) + "\n")
            self.out.flush()

    def figure(self, part, case, ours, other, unit, against, lower=False, goal=None, **more):
        """lower: less is better, as with times. goal: (least, most) of the ratio on an H200; either may be None."""
        ratio = None
        if ours and other:
            ratio = other / ours if lower else ours / other
        shown = f"{ratio:7.3f}" if ratio is not None else "      -"
        if goal and not self.tiny:
            low, high = goal
            more["goal"] = (f"at least {low}" if high is None else f"at most {high}" if low is None else
                            f"{low} to {high}")
            if ratio is not None:
                more["met"] = (low is None or ratio >= low) and (high is None or ratio <= high)
        print(f"{part:<18} {case:<38} {shown}  ours {number(ours)} {unit}, {against} {number(other)} {unit}"
              + "".join(f", {k} {number(v)}" for k, v in more.items() if not isinstance(v, (dict, list))), flush=True)
        self.write(dict(part=part, case=case, ratio=ratio, ours=ours, other=other, unit=unit, against=against, **more))
        return ratio

    def missing(self, part, case, why):
        why = " ".join(why.split())
        print(f"{part:<18} {case:<38}       -  {why}", flush=True)
        self.write(dict(part=part, case=case, ratio=None, why=why))

    def note(self, part, **more):
        print(f"{part:<18} " + ", ".join(f"{k} {number(v)}" for k, v in more.items()), flush=True)
        self.write(dict(part=part, **more))

    def program(self, name):
        path = os.path.join(self.build, name)
        if not os.path.exists(path):
            raise SystemExit(f"{path} is missing: make {os.path.relpath(path, ROOT)}")
        return path

    def raw(self, name, flags, seconds):
        """The lines of a C program of the build. Exit code 77 (nothing to run on) ends this program with it too."""
        if self.tiny:
            seconds = 60  # it is short anyway, however slow the machine
        elif seconds <= 1:
            return []
        command = [self.program(f"tools/bench/{name}"), "--seconds", f"{seconds:.1f}"]
        with tempfile.TemporaryFile("w+") as out:
            try:
                run = subprocess.run(command + (["--tiny"] if self.tiny else []) + flags, stdout=out, env=self.env,
                                     timeout=seconds + 15)
                code = run.returncode
            except subprocess.TimeoutExpired:
                code = "none: it hung"
            out.seek(0)
            lines = [json.loads(line) for line in out if line.startswith("{")]
        if code == 77:
            sys.exit(77)
        if code:
            self.missing(name, "whole run", f"exit code {code}")
        return lines


def number(x):
    if x is None:
        return "-"
    if isinstance(x, bool):
        return "yes" if x else "no"
    return x if isinstance(x, str) else f"{x:.4g}"


def import_torch():
    """torch, or None: figures then lack the other side."""
    try:
        import torch
        return torch
    except ImportError:
        return None


def torch_device(torch, bench):
    """cuda where it is; the CPU for a dry run alone."""
    if torch is None:
        return None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu") if bench.tiny else None


def torch_time(torch, device, work, budget, tiny):
    """Median seconds of one call, as gpu_time in gpu_bench.c: batches of about 20 ms, queued back to back, at most half a
    second of them."""
    budget = min(budget, 0.5)

    def sync():
        if device.type == "cuda":
            torch.cuda.synchronize()

    def batch(calls):
        sync()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        sync()
        return (time.perf_counter() - start) / calls

    start = time.perf_counter()
    batch(1)
    once = batch(1)
    calls = 1 if tiny else int(min(1000, max(1, 0.02 / once)))
    times = []
    while len(times) < (2 if tiny else 3) or (not tiny and time.perf_counter() - start < budget):
        times.append(batch(calls))
    return statistics.median(times)

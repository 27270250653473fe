#!/usr/bin/env python3
"""Training steps on the CUDA device: MFU, streaming against resident, torch on the same card, prediction.

    gpu_steps.py [--layers 12] [--full-layers 4] [--prefetch-depth 3] [--work DIR] [--hardware FILE] [--peak FLOPS]
                 [--only TEXT,...] [--python PYTHON] [--seconds S] [--out FILE.jsonl] [--tiny] [--build DIR]

A model of Llama-3-8B's layer shapes, vocabulary and few layers with random weights (`penstock init`), rows of 4096
random tokens, micro-batches of one row. Cases, in this order while time lasts:

    resident lora 16384 tokens a step; 24 GiB with the base in host memory; torch_llama's LoRA step; 24 GiB with the base
    on disk, 12 and 8 GiB with both; resident lora 8192 and 32768; full fine-tuning, ours and torch's

So few layers would stay in the slots that they are streamed through: streamed runs read 3 layers ahead, as a large
model's would with little memory. A run has 4 steps, the first is not counted; figures are medians. Figures of a run:

    mfu, hfu    model FLOPs over time over peak, against the best measured product and against the data sheet. Model
                FLOPs: 4 (full: 6) per parameter of a linear, head included, and token, and three times attention's
                forward. hfu adds the layers that are recomputed (all but their down projection) and the scores that
                attention's backward makes again
    stream      tokens/s over those of the resident run, beside min(1, N/N*): as planned, and measured (the resident
                step over the busy time of the busiest lane that moves weights)
    memory      what the card's memory holds more than before the run, most of samples, over --gpu-mem
    busy        busy time of the busiest lane over the step
    prediction  predicted step time over measured
    torch       tokens/s over those of tools/torch_llama.py, the best of eager and compile
"""
import json
import os
import random
import statistics
import subprocess
import sys
import time

import gpu_profile
from gpu_figures import ROOT, Bench, data_sheet_flops

SHAPE = dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
             num_key_value_heads=8, rope_theta=500000.0)
TINY = dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
            rope_theta=10000.0)
GIB = 1 << 30


class Case:
    def __init__(self, name, tokens, method="lora", budget=None, tier=None, torch=False):
        self.name, self.tokens, self.method = name, tokens, method
        self.budget, self.tier, self.torch = budget, tier, torch


def all_cases(tiny):
    unit, budgets = (64, (4,)) if tiny else (16384, (24, 12, 8))
    out = [Case("resident lora", unit)]
    for budget in budgets:
        for tier in ("host", "disk"):
            out.append(Case(f"{budget} GiB, base {'in host memory' if tier == 'host' else 'on disk'}", unit,
                            budget=budget, tier=tier))
    out.insert(2, Case("torch lora", unit, torch=True))
    if tiny:
        return out + [Case("resident full", unit, "full")]
    return out + [Case("resident lora", unit // 2), Case("resident lora", unit * 2), Case("resident full", unit, "full"),
                  Case("torch full", unit, "full", torch=True)]


class Steps:
    def __init__(self, bench):
        a = bench.args
        self.bench, self.tiny = bench, bench.tiny
        self.shape = TINY if self.tiny else SHAPE
        self.lora_layers, self.full_layers = (4, 2) if self.tiny else (a.layers, a.full_layers)
        self.seq = 16 if self.tiny else 4096
        self.work = os.path.abspath(a.work or gpu_profile.default_folder(bench))
        self.resident = {}  # (method, tokens): result
        os.makedirs(self.work, exist_ok=True)
        self.make_rows()

    # --- what is trained ---

    def layers(self, case):
        return self.full_layers if case.method == "full" else self.lora_layers

    def config(self, case):
        path = os.path.join(self.work, f"config-{self.layers(case)}.json")
        config = dict(self.shape, architectures=["LlamaForCausalLM"], model_type="llama",
                      num_hidden_layers=self.layers(case), max_position_embeddings=8192, rms_norm_eps=1e-5,
                      hidden_act="silu", attention_bias=False, mlp_bias=False, tie_word_embeddings=False,
                      initializer_range=0.02, bos_token_id=1, eos_token_id=2, torch_dtype="bfloat16")
        with open(path, "w") as f:
            json.dump(config, f)
        return path

    def model(self, case):
        """The model's folder; made when it is first asked for."""
        path = os.path.join(self.work, f"model-{self.layers(case)}")
        if not os.path.exists(os.path.join(path, "config.json")):
            start = time.monotonic()
            subprocess.run(["rm", "-rf", path], check=True)
            subprocess.run([self.bench.program("penstock"), "init", "--config", self.config(case), "--output", path,
                            "--seed", "1", "--dtype", "bf16", "--threads", str(os.cpu_count())], check=True,
                           stdout=subprocess.DEVNULL, timeout=max(self.bench.left(), 60))
            self.bench.note("init", layers=self.layers(case), seconds=time.monotonic() - start)
        return path

    def make_rows(self):
        self.rows = os.path.join(self.work, "rows.jsonl")
        draw = random.Random(7)
        with open(self.rows, "w") as f:
            for _ in range(32):
                ids = [draw.randrange(3, self.shape["vocab_size"]) for _ in range(self.seq)]
                f.write(json.dumps({"input_ids": ids}) + "\n")

    def measure_machine(self):
        """The profile that predictions are made from, and the peak that MFU divides by."""
        a = self.bench.args
        self.peak, self.sheet, self.hardware = a.peak, None, a.hardware
        path = self.hardware or gpu_profile.default_path(self.bench)
        if not self.hardware and not gpu_profile.is_fresh(path):
            gpu_profile.make(self.bench, path, self.work)
        if os.path.exists(path):
            self.hardware = path
            with open(path) as f:
                profile = json.load(f)
            self.sheet = data_sheet_flops(profile["machine"])
            self.peak = self.peak or max(g["flops"] for g in profile["gemm"] if g["dtype"] == "bf16")

    # --- a run ---

    def command(self, case, output, steps):
        c = [self.bench.program("penstock"), "train", "--model", self.model(case), "--data", self.rows, "--format", "tokens",
             "--output", output, "--device", "cuda", "--method", case.method, "--packing", "false", "--shuffle",
             "false", "--import", "never", "--max-seq-len", str(self.seq), "--batch-size", "1", "--grad-accum",
             str(case.tokens // self.seq), "--max-steps", str(steps), "--learning-rate", "1e-5", "--progress", "none"]
        if self.hardware:
            c += ["--hardware", self.hardware]
        if case.budget:
            c += ["--gpu-mem", f"{case.budget}GiB", "--strategy", "stream-lora", "--offload-weights", case.tier,
                  "--prefetch-depth", "1" if self.tiny else str(self.bench.args.prefetch_depth)]
        else:
            c += ["--strategy", "resident"]
        return c

    def run(self, case, steps):
        """Steps and plan. A full run is ended before it writes the model: only its steps are of interest."""
        output = os.path.join(self.work, "run")
        subprocess.run(["rm", "-rf", output], check=True)
        metrics, log = os.path.join(output, "metrics.jsonl"), os.path.join(self.work, "run.log")
        end = case.method == "full"
        before, used = card_memory(), 0
        self.model(case)  # made outside of the run's time
        limit = time.monotonic() + max(self.bench.left(), 15 if self.tiny else 0)
        with open(log, "w") as f:
            run = subprocess.Popen(self.command(case, output, steps + end), stdout=f, stderr=f, env=self.bench.env)
            sample = 0
            while run.poll() is None and time.monotonic() < limit:
                time.sleep(0.02)
                if before is not None and time.monotonic() > sample:
                    used, sample = max(used, (card_memory() or 0) - before), time.monotonic() + 0.5
                if end and len(read_steps(metrics)) >= steps:
                    break
            why = "no time left" if time.monotonic() >= limit else None
            if run.poll() is None:
                run.kill()
            run.wait()
        lines = read_steps(metrics)
        if len(lines) < 2 or (run.returncode > 0):
            with open(log) as f:
                text = " ".join(f.read().split())
            return dict(why=why or f"exit code {run.returncode}: {text[-300:]}")
        with open(os.path.join(output, "plan.json")) as f:
            plan = json.load(f)
        return dict(steps=lines[1:], plan=plan, used=used if before is not None else None)

    # --- figures ---

    def flops(self, case, plan):
        """(model FLOPs, hardware FLOPs) of a step."""
        s, t = self.shape, case.tokens
        h, i, d = s["hidden_size"], s["intermediate_size"], s["hidden_size"] // s["num_attention_heads"]
        layer = h * d * (2 * s["num_attention_heads"] + 2 * s["num_key_value_heads"]) + 3 * h * i
        layers = self.layers(case)
        linear = layers * layer + s["vocab_size"] * h
        pairs = t / self.seq * self.seq * (self.seq + 1) / 2
        attention = 4 * pairs * s["num_attention_heads"] * d  # of a layer, forward
        model = (6 if case.method == "full" else 4) * linear * t + 3 * attention * layers
        again = sum(not a["keep"] for a in plan["placement"]["activations"])
        return model, model + 0.5 * attention * layers + again * (2 * (layer - h * i) * t + attention)

    def report(self, case, r):
        b, name, steps, plan = self.bench, f"{case.name}, {case.tokens} tokens", r["steps"], r["plan"]
        step = statistics.median(s["step_s"] for s in steps)
        r["step_s"], r["tokens_per_s"] = step, statistics.median(s["tokens"] / s["step_s"] for s in steps)
        lanes = {lane: statistics.median(s["lanes"].get(lane, {}).get("busy_s", 0) for s in steps)
                 for lane in steps[-1]["lanes"]}
        again = sum(not a["keep"] for a in plan["placement"]["activations"])
        b.note("run", name=name, step_s=step, tokens_per_s=r["tokens_per_s"], layers=self.layers(case), recomputed=again,
               strategy=plan["strategy"], bottleneck=plan["bottleneck"], micro_batches=plan["placement"]["group"],
               device_gib=steps[-1]["device_bytes"] / GIB, **{"busy_" + k: v for k, v in lanes.items()})
        model, hardware = self.flops(case, plan)
        for part, work in (("mfu", model), ("hfu", hardware)):
            if case.budget:
                break
            b.figure(part, name, work / step / 1e12, self.peak and self.peak / 1e12, "TFLOP/s", "best product")
            if self.sheet:
                b.figure(part, name, work / step / 1e12, self.sheet / 1e12, "TFLOP/s", "data sheet")
        if case.budget:
            self.report_stream(case, name, r, lanes)
            if r["used"]:
                b.figure("memory", name, r["used"] / GIB, case.budget, "GiB", "--gpu-mem", goal=(None, 1))
        busiest = max(lanes, key=lanes.get)
        b.figure("busy", f"{name}: {busiest}", lanes[busiest], step, "s", "step")
        b.figure("prediction", name, statistics.median(s["predicted_step_s"] for s in steps), step, "s", "measured",
                 goal=(0.9, 1.1))

    def report_stream(self, case, name, r, lanes):
        plan, resident = r["plan"], self.resident.get((case.method, case.tokens))
        if not resident:
            self.bench.missing("stream", name, "there is no resident run beside it")
            return
        moved = max((lanes.get(lane, 0) for lane in ("h2d", "disk_weights")), default=0)
        star = plan.get("break_even_tokens")
        self.bench.figure("stream", name, r["tokens_per_s"], resident["tokens_per_s"], "tokens/s", "resident",
                          goal=(0.9, None) if (case.budget, case.tier) == (24, "host") else None,
                          bound_planned=min(1, plan["tokens_per_pass"] / star) if star else None,
                          bound_measured=min(1, resident["step_s"] / moved) if moved else None)

    def torch(self, case):
        b, name = self.bench, f"{case.method}, {case.tokens} tokens"
        out = os.path.join(self.work, "torch.jsonl")
        if os.path.exists(out):
            os.remove(out)
        limit = max(30.0 if self.tiny else 5.0, min(90, 0.5 * b.left()))
        grace = max(5.0, min(30, b.left() - limit))  # to compile, and for what is running
        rows = case.tokens // self.seq
        micro = ",".join(str(m) for m in sorted({1, rows}, reverse=True))
        c = [b.args.python, os.path.join(ROOT, "tools", "torch_llama.py"), "--step", "--method", case.method, "--shape",
             self.config(case), "--tokens", str(case.tokens), "--seq-len", str(self.seq), "--micro-batch", micro,
             "--seconds", f"{limit:.0f}", "--out", out]
        if self.tiny:
            c += ["--mode", "eager", "--steps", "1"]
        try:
            run = subprocess.run(c, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=limit + grace,
                                 env=b.env)
            why = f"exit code {run.returncode}: {run.stderr.strip()[-200:]}" if run.returncode else None
        except subprocess.TimeoutExpired:
            why = "no time left"
        if why:
            b.missing("torch", name, why)
            return
        with open(out) as f:
            theirs = json.loads(f.readline())
        ours = self.resident.get((case.method, case.tokens))
        best = theirs["best"]
        b.figure("torch", name, ours and ours["tokens_per_s"], theirs["tokens_per_s"], "tokens/s",
                 f"torch {best['mode']}, {best['micro_batch']} rows" + (", recomputed" if best["recompute"] else ""),
                 goal=(1, None) if case.method == "lora" else None, torch=theirs["torch"], tried=theirs["tried"])

    def measure(self, case):
        if case.torch:
            self.torch(case)
            return
        r = self.run(case, 2 if self.tiny else 4)
        if "why" in r:
            self.bench.missing("run", f"{case.name}, {case.tokens} tokens", r["why"])
            return
        self.report(case, r)
        if not case.budget:
            self.resident[case.method, case.tokens] = r


def card_memory():
    """Bytes in use on the first card by whomever; None where nobody tells."""
    try:
        run = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=10)
        return int(run.stdout.split()[0]) << 20
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def read_steps(path):
    """Whole lines of steps; [] while there is no file."""
    try:
        with open(path) as f:
            lines = [line for line in f if line.endswith("\n")]
    except FileNotFoundError:
        return []
    return [s for s in map(json.loads, lines) if "step" in s and "step_s" in s]


def main():
    def more(p):
        p.add_argument("--layers", type=int, default=12, help="of the model of LoRA runs [%(default)s]")
        p.add_argument("--full-layers", type=int, default=4, help="of the model of full fine-tuning [%(default)s]")
        p.add_argument("--prefetch-depth", type=int, default=3, help="of streamed runs [%(default)s]")
        p.add_argument("--work", help="folder for model and runs, on the disk that is streamed from [BUILD/bench/gpu]")
        p.add_argument("--hardware", help="hardware profile [that of gpu_profile.py, made anew when over an hour old]")
        p.add_argument("--peak", type=float, help="FLOP/s that MFU divides by [the best product measured here]")
        p.add_argument("--only", default="", help="cases whose name has one of these texts")
        p.add_argument("--python", default=sys.executable, help="one that has torch [this one]")

    bench = Bench(__doc__, 240, more)
    steps = Steps(bench)
    bench.raw("gpu_ceilings", [], 10)  # ends here where there is no device
    steps.measure_machine()
    only = bench.args.only.split(",")
    for case in all_cases(bench.tiny):
        if not any(text in case.name for text in only):
            continue
        if bench.left() <= 5 and not bench.tiny:
            bench.missing("run", f"{case.name}, {case.tokens} tokens", "no time left")
            continue
        steps.measure(case)
    return 0 if steps.resident else 1


if __name__ == "__main__":
    sys.exit(main())

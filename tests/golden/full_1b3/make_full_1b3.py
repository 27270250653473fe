#!/usr/bin/env python3
"""Make the golden run of full fine-tuning on three layers of the 1.1B shape, for tests/cli/test_full_reference.sh.

    make_full_1b3.py --penstock build/penstock        (run anywhere; ~4 GB of memory, some minutes)

Model and rows are those of ../stream_1b3 (its config.json, rows.jsonl and seed). 30 steps of torch.optim.AdamW in fp32 on
a transformers model, attention eager, each row its own document, loss = sum over the labels / their number, gradients
clipped to norm 1 by torch.nn.utils.clip_grad_norm_, decay 0.01 on matrices alone. Written here:

  steps.txt            step, loss and gradient norm before clipping
  golden.safetensors   grad.NAME         gradient of the first step, before clipping: elements 0, s, 2 s, ..., at
                                         most 256 of them, s = max(1, elements / 256)
                       weight.NAME       the same elements of the weights after the last step
                       start.NAME        and before the first
  golden.json          seed, hash of the weights, options

Needs torch, transformers, safetensors; run with OMP_NUM_THREADS=1.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "models"))
sys.path.insert(0, os.path.join(HERE, "..", "stream_1b3"))
import make_models as mm  # noqa: E402
import make_stream_1b3 as stream  # noqa: E402

STEPS, RATE, DECAY, CLIP, SAMPLES = 30, 3e-6, 0.01, 1.0, 256
BASE = os.path.join(HERE, "..", "stream_1b3")


def sample(x):
    flat = x.detach().reshape(-1)
    return flat[::max(1, flat.numel() // SAMPLES)][:SAMPLES].float().clone()


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--penstock", required=True)
    args = ap.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "model")
        subprocess.run([args.penstock, "init", "--config", os.path.join(BASE, "config.json"), "--dtype", "bf16",
                        "--seed", str(stream.SEED), "--output", path], check=True)
        digest = stream.sha256(os.path.join(path, "model.safetensors"))
        model = mm.load(path, torch.float32, "eager")
        rows = mm.read_rows(BASE)
    named = list(model.named_parameters())
    for _, p in named:
        p.requires_grad_(True)
    groups = [{"params": [p for _, p in named if p.dim() > 1], "weight_decay": DECAY},
              {"params": [p for _, p in named if p.dim() == 1], "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    out = {f"start.{n}": sample(p) for n, p in named}
    losses, norms = [], []
    for step in range(STEPS):
        loss = mm.window_gradients(model, rows)[0]
        if step == 0:
            out.update({f"grad.{n}": sample(p.grad) for n, p in named})
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        losses.append(loss)
        opt.step()
        print(f"step {step + 1}: loss {losses[-1]:.7f}, norm {norms[-1]:.6f}", flush=True)
    out.update({f"weight.{n}": sample(p) for n, p in named})
    golden = os.path.join(HERE, "golden.safetensors")
    save_file(out, golden, metadata={"format": "pt"})
    os.chmod(golden, 0o644)
    mm.write_json(os.path.join(HERE, "golden.json"), {
        "seed": stream.SEED, "model_sha256": digest, "steps": STEPS, "learning_rate": RATE, "weight_decay": DECAY,
        "max_grad_norm": CLIP})
    with open(os.path.join(HERE, "steps.txt"), "w", encoding="utf-8") as f:
        f.writelines(f"{i + 1} {x:.9f} {y:.9f}\n" for i, (x, y) in enumerate(zip(losses, norms)))


if __name__ == "__main__":
    main()

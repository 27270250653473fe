#!/usr/bin/env python3
"""Measure torch's own bf16 error per tensor: bf16/NAME.jsonl (rows) and bf16/NAME.safetensors (errors).

For each golden model that is stored in bf16 (so that nothing but the arithmetic differs) WINDOWS optimizer steps of
ROWS rows are taken; each is one padded batch, so that torch rounds every gradient once. For each tensor

  full.TENSOR, lora.TENSOR  (1,)   sqrt(sum |bf16 - fp32|^2 / sum |fp32|^2), sums over the windows

A single window will not do: over the few elements of a norm or bias the error is a random draw that
varies by a third from window to window. LoRA: PEFT with adapter and base in bf16.
"""
import json
import os

import torch
from safetensors.torch import save_file

from make_models import HERE, MODELS, batch_gradients, load, make_rows, with_adapter

WINDOWS, ROWS = 16, 8
OUT = os.path.join(HERE, "bf16")


def pooled_errors(make, rows):
    """`make(dtype)` returns a model."""
    exact, half = make(torch.float32), make(torch.bfloat16).to(torch.bfloat16)
    diff, norm = {}, {}
    for w in range(WINDOWS):
        window = rows[w * ROWS:(w + 1) * ROWS]
        want, have = batch_gradients(exact, window)[1], batch_gradients(half, window)[1]
        for n, g in want.items():
            diff[n] = diff.get(n, 0.0) + (have[n].double() - g.double()).square().sum().item()
            norm[n] = norm.get(n, 0.0) + g.double().square().sum().item()
    return {n: (diff[n] / norm[n]) ** 0.5 for n in diff}


def measure(name, model_dir, adapter_parent, rows):
    with open(os.path.join(OUT, f"{name}.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(r, separators=(",", ":")) + "\n" for r in rows)
    full = lambda dtype: load(model_dir, dtype)
    lora = lambda dtype: with_adapter(full(dtype), adapter_parent)
    out = {}
    for method, make in (("full", full), ("lora", lora)):
        errors = pooled_errors(make, rows)
        print(f"{name} {method}: {min(errors.values()):.4f} to {max(errors.values()):.4f}")
        out.update({f"{method}.{n}": torch.tensor([e]) for n, e in errors.items()})
    save_file(out, os.path.join(OUT, f"{name}.safetensors"), metadata={"format": "pt"})
    os.chmod(os.path.join(OUT, f"{name}.safetensors"), 0o644)


def main():
    torch.set_num_threads(1)
    os.makedirs(OUT, exist_ok=True)
    for idx, (name, spec) in enumerate(MODELS.items()):
        if spec["dtype"] == "bf16":
            gen = torch.Generator().manual_seed(500 + idx)
            lengths = torch.randint(4, 33, (WINDOWS * ROWS,), generator=gen).tolist()
            folder = os.path.join(HERE, name)
            rows = [{"input_ids": r["input_ids"]}
                    for r in make_rows(lengths, spec["vocab_size"], gen)]
            measure(name, os.path.join(folder, "model"), folder, rows)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Make the golden gradients of three layers of the 1.1B shape, for tests/cli/test_stream_reference.sh.

    make_stream_1b3.py --penstock build/penstock        (run anywhere; ~2 GB of memory, one minute)

The model is too large to keep, so `penstock init` makes it again, from config.json (the TinyLlama-1.1B
shape with 3 of its 22 layers and a vocabulary of 4096) and SEED; golden.json holds the SHA-256 of its
weights. They are stored in bf16, which fp32 holds exactly. Written here:

  config.json            the shape
  rows.jsonl             documents that pack into two sequences of 48 tokens; labels masked in part
  adapter/               PEFT LoRA of rank 2 on all seven linears, A and B random and not zero (stored in bf16)
  golden.safetensors     lora.grad.NAME    (shape of NAME) the gradients of one step over all rows: torch,
                                           transformers and PEFT in fp32, attention eager, each row its own
                                           document, loss = sum over the labels / their number
                         lora.bf16.NAME    (1,) what torch in bf16 (base, adapter and arithmetic) differs
                                           from that by: ratio of Euclidean norms
  golden.json            loss, gradient norm, counts, seed and hash

Needs torch, transformers, peft, safetensors; run with OMP_NUM_THREADS=1.
"""
import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "models"))
import make_models as mm  # noqa: E402

SEED, RANK, ALPHA, LENGTHS = 1103, 2, 4, [29, 13, 6, 31, 17]
SHAPE = os.path.join(HERE, "..", "..", "..", "examples", "shapes", "tinyllama-1.1b.json")


def write_config():
    with open(SHAPE, encoding="utf-8") as f:
        cfg = json.load(f)
    cfg.update(num_hidden_layers=3, vocab_size=4096)
    mm.write_json(os.path.join(HERE, "config.json"), cfg)
    return cfg


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(1 << 22):
            h.update(piece)
    return h.hexdigest()


def write_rows(cfg, gen):
    rows = mm.make_rows(LENGTHS, cfg["vocab_size"], gen)
    with open(os.path.join(HERE, "rows.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(r, separators=(",", ":")) + "\n" for r in rows)


def write_adapter(model_dir, gen):
    peft = get_peft_model(mm.load(model_dir), LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=mm.TARGETS))
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name:
                p.copy_((0.02 if "lora_A" in name else 0.05) * torch.randn(p.shape, generator=gen))
    out = os.path.join(HERE, "adapter")
    shutil.rmtree(out, ignore_errors=True)
    peft.save_pretrained(out)
    os.remove(os.path.join(out, "README.md"))
    weights, config = (os.path.join(out, n) for n in ("adapter_model.safetensors", "adapter_config.json"))
    halves = {n: t.to(torch.bfloat16).contiguous() for n, t in load_file(weights).items()}
    save_file(halves, weights, metadata={"format": "pt"})
    os.chmod(weights, 0o644)
    with open(config, encoding="utf-8") as f:
        cfg = json.load(f)
    cfg.update(base_model_name_or_path="stream_1b3", target_modules=sorted(cfg["target_modules"]))
    mm.write_json(config, cfg)


def worst(a, b):
    return max(mm.relative(a[n], g) for n, g in b.items())


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--penstock", required=True)
    args = ap.parse_args()
    torch.set_num_threads(1)
    gen = torch.Generator().manual_seed(SEED)
    with tempfile.TemporaryDirectory() as tmp:
        cfg, path = write_config(), os.path.join(tmp, "model")
        subprocess.run([args.penstock, "init", "--config", os.path.join(HERE, "config.json"),
                        "--dtype", "bf16", "--seed", str(SEED), "--output", path], check=True)
        write_rows(cfg, gen)
        write_adapter(path, gen)
        rows = mm.read_rows(HERE)
        lora = lambda dtype, attn="eager": mm.with_adapter(mm.load(path, dtype, attn), HERE)
        loss, _, grads = mm.window_gradients(lora(torch.float32), rows)
        sdpa = worst(mm.batch_gradients(lora(torch.float32, "sdpa"), rows)[1], grads)
        exact = worst(mm.window_gradients(lora(torch.float64).double(), rows)[2], grads)
        half = mm.batch_gradients(lora(torch.bfloat16).to(torch.bfloat16), rows)[1]
        digest = sha256(os.path.join(path, "model.safetensors"))
    errors = {n: mm.relative(half[n], g) for n, g in grads.items()}
    norm = sum(g.double().square().sum().item() for g in grads.values()) ** 0.5
    print(f"loss {loss:.6f}, norm {norm:.6f}, {len(grads)} gradients, eager-sdpa {sdpa:.1e}, "
          f"eager-float64 {exact:.1e}, bf16 {min(errors.values()):.4f} to {max(errors.values()):.4f}")
    assert sdpa < 5e-6 and exact < 5e-6 and loss == loss
    out = {f"lora.grad.{n}": g for n, g in grads.items()}
    out.update({f"lora.bf16.{n}": torch.tensor([e]) for n, e in errors.items()})
    golden = os.path.join(HERE, "golden.safetensors")
    save_file(out, golden, metadata={"format": "pt"})
    os.chmod(golden, 0o644)
    mm.write_json(os.path.join(HERE, "golden.json"), {
        "seed": SEED, "model_sha256": digest, "lora_loss": loss, "lora_grad_norm": norm,
        "label_tokens": mm.label_count(rows), "tokens": sum(len(r["input_ids"]) for r in rows)})


if __name__ == "__main__":
    main()

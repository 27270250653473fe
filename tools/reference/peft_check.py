#!/usr/bin/env python3
"""Check that Penstock and PEFT agree on an adapter: the same logits from both programs.

    peft_check.py --model DIR --adapter DIR --data ROWS.jsonl [--penstock build/penstock] [--rtol 1e-5]

Direction 1: PEFT loads the adapter (whoever wrote it; its list of missing and unexpected keys must be empty) and its
fp32 logits of every row are compared with `penstock eval --logits`.
Direction 2: PEFT saves the adapter anew in its own spelling, Penstock reads that, and the logits are compared again.
Relative in norm, row by row. ROWS.jsonl has `input_ids`. Exit 1 when they differ. A developer's tool: needs
torch, transformers, peft, safetensors.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def peft_logits(model_dir, adapter, rows):
    """Logits of PEFT, fp32; a warning about keys that do not fit is an error."""
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32,
                                                attn_implementation="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*adapter keys.*")
        model = PeftModel.from_pretrained(base, adapter).eval()
    with safe_open(os.path.join(adapter, "adapter_model.safetensors"), "pt") as f:
        have = set(f.keys())
    want = {n.replace(".default.", ".") for n, _ in model.named_parameters() if "lora_" in n}
    if have != want:
        sys.exit(f"keys differ: only in the file {sorted(have - want)[:4]}, "
                 f"only in PEFT {sorted(want - have)[:4]}")
    with torch.no_grad():
        out = [model(input_ids=torch.tensor([ids])).logits[0].float() for ids in rows]
    return model, out


def penstock_logits(program, model_dir, adapter, data, folder):
    path = os.path.join(folder, "logits.safetensors")
    if os.path.exists(path):
        os.remove(path)
    subprocess.run([program, "eval", "--model", model_dir, "--adapter", adapter, "--data", data,
                    "--format", "tokens", "--dtype", "fp32", "--logits", path],
                   check=True, stdout=subprocess.DEVNULL)
    return load_file(path)


def worst_difference(ours, theirs):
    if set(ours) != {f"row.{i}" for i in range(len(theirs))}:
        sys.exit(f"rows differ: {len(ours)} from Penstock, {len(theirs)} from PEFT")
    return max(((ours[f"row.{i}"].double() - t.double()).norm() / t.double().norm()).item()
               for i, t in enumerate(theirs))


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--model", required=True)
    ap.add_argument("--adapter", required=True)
    ap.add_argument("--data", required=True)
    ap.add_argument("--penstock", default="build/penstock")
    ap.add_argument("--rtol", type=float, default=1e-5)
    args = ap.parse_args()
    torch.set_num_threads(1)
    with open(args.data, encoding="utf-8") as f:
        rows = [json.loads(line)["input_ids"] for line in f if line.strip()]
    model, theirs = peft_logits(args.model, args.adapter, rows)
    base_only = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    with torch.no_grad():
        plain = base_only(input_ids=torch.tensor([rows[0]])).logits[0]
    effect = ((plain - theirs[0]).norm() / plain.norm()).item()
    ok = True
    with tempfile.TemporaryDirectory() as folder:
        again = os.path.join(folder, "adapter")
        model.save_pretrained(again)
        for name, adapter in (("PEFT reads the adapter", args.adapter),
                              ("Penstock reads PEFT's copy", again)):
            ours = penstock_logits(args.penstock, args.model, adapter, args.data, folder)
            worst = worst_difference(ours, theirs)
            ok = ok and worst <= args.rtol
            print(f"{name}: {len(rows)} rows, largest relative difference {worst:.2e}")
    print(f"the adapter changes the logits of row 0 by {effect:.2e} relative")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()

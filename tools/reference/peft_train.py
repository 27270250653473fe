#!/usr/bin/env python3
"""The run of `penstock train --method lora` in transformers + PEFT, for a comparison on a real model.

    peft_train.py rows  --model DIR --data gsm8k_train.jsonl --train N --eval N --output DIR
    peft_train.py train --model DIR --rows DIR --steps N [--lr 2e-4] [--r 16] [--batch 2] [--accum 4]
                        [--dtype fp32|bf16] [--threads 2] --output DIR

`rows` writes DIR/train.jsonl and DIR/eval.jsonl with input_ids and labels (question + answer + EOS in one
encoding, the answer and EOS count in the loss), so that both programs read the same tokens. `train` writes OUTPUT/init (the
adapter before the first step, for --adapter), OUTPUT/result.json (losses, gradient norms, held-out loss before and
after, seconds) and OUTPUT/adapter. The same run in Penstock:

    penstock train --model DIR --data DIR/train.jsonl --eval-data DIR/eval.jsonl --format tokens --adapter OUTPUT/init
        --packing false --shuffle false --batch-size 2 --grad-accum 4 --max-steps N --learning-rate 2e-4
        --warmup-steps 3 --output RUN --dtype fp32
"""
import argparse
import json
import math
import os
import time

import torch
import torch.nn.functional as F

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARMUP = 3


def read_jsonl(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]


def make_rows(args):
    from tokenizers import Tokenizer

    tok = Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    with open(os.path.join(args.model, "config.json"), encoding="utf-8") as f:
        eos = json.load(f)["eos_token_id"]
    os.makedirs(args.output, exist_ok=True)
    rows = []
    for pair in read_jsonl(args.data)[:args.train + args.eval]:
        enc = tok.encode(pair["question"] + pair["answer"])
        cut = len(pair["question"])
        labels = [i if begin >= cut else -100 for i, (begin, _) in zip(enc.ids, enc.offsets)]
        rows.append({"input_ids": enc.ids + [eos], "labels": labels + [eos]})
    for name, part in (("train", rows[:args.train]), ("eval", rows[args.train:])):
        with open(os.path.join(args.output, f"{name}.jsonl"), "w", encoding="utf-8") as f:
            f.writelines(json.dumps(r) + "\n" for r in part)
        print(f"{name}: {len(part)} rows, {sum(len(r['input_ids']) for r in part)} tokens")


def padded(rows):
    n = max(len(r["input_ids"]) for r in rows)
    ids = torch.zeros(len(rows), n, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, r in enumerate(rows):
        k = len(r["input_ids"])
        ids[i, :k], labels[i, :k] = torch.tensor(r["input_ids"]), torch.tensor(r["labels"])
        mask[i, :k] = 1
    return ids, labels, mask


def loss_sum(model, rows):
    ids, labels, mask = padded(rows)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100,
                           reduction="sum")


def label_count(rows):
    return sum(sum(t != -100 for t in r["labels"][1:]) for r in rows)


def held_out(model, rows):
    with torch.no_grad():
        return sum(loss_sum(model, [r]).item() for r in rows) / label_count(rows)


def train(args):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=args.r, lora_alpha=2 * args.r,
                                            lora_dropout=0.0, target_modules=TARGETS))
    model.save_pretrained(os.path.join(args.output, "init"))
    rows = read_jsonl(os.path.join(args.rows, "train.jsonl"))
    eval_rows = read_jsonl(os.path.join(args.rows, "eval.jsonl"))
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=args.lr, weight_decay=0.0)
    out = {"eval_before": held_out(model, eval_rows), "loss": [], "grad_norm": []}
    begin = time.time()
    window = args.batch * args.accum
    for s in range(args.steps):
        part = [rows[(s * window + i) % len(rows)] for i in range(window)]
        total, loss = label_count(part), 0.0
        opt.zero_grad(set_to_none=True)
        for i in range(0, window, args.batch):
            piece = loss_sum(model, part[i:i + args.batch]) / total
            piece.backward()
            loss += piece.item()
        out["grad_norm"].append(torch.nn.utils.clip_grad_norm_(params, 1.0).item())
        x = (s - WARMUP) / (args.steps - WARMUP)
        factor = (s + 1) / WARMUP if s < WARMUP else 0.5 * (1 + math.cos(math.pi * x))
        for group in opt.param_groups:
            group["lr"] = args.lr * factor
        opt.step()
        out["loss"].append(loss)
        print(f"step {s + 1}: loss {loss:.5f}, grad norm {out['grad_norm'][-1]:.4f}", flush=True)
    out["seconds"] = time.time() - begin
    out["eval_after"] = held_out(model, eval_rows)
    model.save_pretrained(os.path.join(args.output, "adapter"))
    with open(os.path.join(args.output, "result.json"), "w", encoding="utf-8") as f:
        json.dump(out, f, indent=1)
    print({k: v for k, v in out.items() if not isinstance(v, list)})


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sub = ap.add_subparsers(dest="command", required=True)
    r = sub.add_parser("rows")
    r.add_argument("--data", required=True)
    r.add_argument("--train", type=int, default=160)
    r.add_argument("--eval", type=int, default=40)
    t = sub.add_parser("train")
    t.add_argument("--rows", required=True)
    t.add_argument("--steps", type=int, default=20)
    t.add_argument("--lr", type=float, default=2e-4)
    t.add_argument("--r", type=int, default=16)
    t.add_argument("--batch", type=int, default=2)
    t.add_argument("--accum", type=int, default=4)
    t.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    t.add_argument("--threads", type=int, default=2)
    t.add_argument("--seed", type=int, default=42)
    for p in (r, t):
        p.add_argument("--model", required=True)
        p.add_argument("--output", required=True)
    args = ap.parse_args()
    make_rows(args) if args.command == "rows" else train(args)


if __name__ == "__main__":
    main()

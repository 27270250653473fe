#!/usr/bin/env python3
"""Time training steps of transformers (+ PEFT) for tools/bench/full.sh: same model directory, same token rows.

    bench_torch.py --model DIR --data ROWS.jsonl --method lora|full --dtype fp32|bf16 --steps N --mode eager|compile
                   [--checkpointing] [--threads 2] [--r 16]

Prints one JSON line: step seconds (the first is warm-up), losses, peak resident bytes. LoRA: rank 16 on the seven
linears, fp32 adapters; full: AdamW over bf16 or fp32 weights as torch has it (bf16 moments for bf16 weights).
"""
import argparse
import json
import resource
import time

import torch
from transformers import AutoModelForCausalLM


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--method", choices=["lora", "full"], default="lora")
    p.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--mode", choices=["eager", "compile"], default="eager")
    p.add_argument("--checkpointing", action="store_true")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--r", type=int, default=16)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    dtype = torch.bfloat16 if a.dtype == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    if a.method == "lora":
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(model, LoraConfig(
            r=a.r, lora_alpha=2 * a.r, lora_dropout=0.0, task_type="CAUSAL_LM",
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
    if a.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if a.method == "lora":
            model.enable_input_require_grads()
    model.train()
    params = [x for x in model.parameters() if x.requires_grad]
    opt = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.0)
    run = torch.compile(model) if a.mode == "compile" else model
    rows = [json.loads(line)["input_ids"] for line in open(a.data)]
    seconds, losses = [], []
    for step in range(a.steps):
        ids = torch.tensor([rows[step % len(rows)]])
        start = time.perf_counter()
        loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        seconds.append(round(time.perf_counter() - start, 4))
        losses.append(round(float(loss.detach()), 5))
    print(json.dumps({"program": "torch " + torch.__version__, "mode": a.mode, "method": a.method,
                      "dtype": a.dtype, "checkpointing": a.checkpointing, "tokens": len(rows[0]),
                      "step_s": seconds, "loss": losses,
                      "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()

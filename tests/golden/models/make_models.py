#!/usr/bin/env python3
"""Make the tiny models and their golden values: NAME/{model,adapter,rows.jsonl,golden.*}.

    make_models.py [NAME ...]       (run where this file lies; default: all)

Every model is a random Hugging Face directory written by transformers, with a PEFT LoRA adapter whose
A and B are random and not zero. The golden values are torch's, in fp32, from the files as they were
saved (so a rewritten config.json is checked by transformers itself):

  logits.row.N, lora.logits.row.N   (tokens, vocab)   logits of row N, without and with the adapter
  grad.TENSOR                       full fine-tuning, Hugging Face names (tied head: one tensor)
  lora.grad.TENSOR                  PEFT names

Loss: sum over the labelled tokens of all rows / their number; each row is its own document. golden.json
holds the losses and counts. Needs torch, transformers, peft, safetensors; run with OMP_NUM_THREADS=1.
"""
import json
import os
import shutil
import sys

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

BASE = dict(hidden_act="silu", max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
            initializer_range=0.02, use_cache=True)


def rope(theta, rope_type="default", **extra):
    return {"rope_theta": theta, "rope_type": rope_type, **extra}


# `rows` are the lengths; `legacy` rewrites config.json in the spelling of transformers 4.
MODELS = {
    "llama_untied": dict(
        model_type="llama", dtype="fp32", legacy=True, rows=[2, 17, 40, 5, 23, 9],
        hidden_size=40, intermediate_size=52, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=97, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters=rope(10000.0)),
    "llama3_tied": dict(
        model_type="llama", dtype="bf16", legacy=False, shard="24KB", lora_r=3, rows=[39, 2, 12, 28, 7],
        hidden_size=36, intermediate_size=60, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, head_dim=16, vocab_size=101, rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        rope_parameters=rope(5000.0, "llama3", factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=32)),
    "llama_linear_bias": dict(
        model_type="llama", dtype="fp16", legacy=True, rows=[31, 3, 20, 14],
        hidden_size=44, intermediate_size=55, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=20, vocab_size=67, rms_norm_eps=1e-5,
        tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
        rope_parameters=rope(10000.0, "linear", factor=2.5)),
    "mistral_window": dict(
        model_type="mistral", dtype="fp32", legacy=False, rows=[6, 7, 8, 33, 150, 2],
        hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=12, vocab_size=43, rms_norm_eps=1e-5,
        tie_word_embeddings=False, sliding_window=7, rope_parameters=rope(10000.0)),
    "mistral_full": dict(
        model_type="mistral", dtype="bf16", legacy=True, rows=[40, 13, 2, 26],
        hidden_size=40, intermediate_size=61, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=12, vocab_size=73, rms_norm_eps=1e-5,
        tie_word_embeddings=True, sliding_window=None, rope_parameters=rope(1000000.0)),
    "qwen2_untied": dict(
        model_type="qwen2", dtype="fp16", legacy=False, rows=[3, 36, 11, 24],
        hidden_size=36, intermediate_size=53, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, vocab_size=61, rms_norm_eps=1e-6, tie_word_embeddings=False,
        rope_parameters=rope(1000000.0)),
    "qwen2_tied": dict(
        model_type="qwen2", dtype="bf16", legacy=True, lora_r=3, rows=[25, 40, 2, 18],
        hidden_size=40, intermediate_size=57, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=83, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters=rope(10000.0)),
    "qwen3_tied": dict(
        model_type="qwen3", dtype="fp32", legacy=True, rows=[22, 40, 4, 15, 2],
        hidden_size=40, intermediate_size=52, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=71, rms_norm_eps=1e-6,
        tie_word_embeddings=True, rope_parameters=rope(1000000.0)),
    "qwen3_untied": dict(
        model_type="qwen3", dtype="bf16", legacy=False, rows=[29, 2, 38, 10],
        hidden_size=38, intermediate_size=54, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=10, vocab_size=53, rms_norm_eps=1e-6,
        tie_word_embeddings=False, rope_parameters=rope(10000.0)),
}


def randomise(model, gen):
    """Weights that make every part of the network matter: no unit norms, no zero biases."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=gen)
            if "norm" in name:
                p.copy_(1.0 + 0.3 * noise)
            elif name.endswith("bias"):
                p.copy_(0.2 * noise)
            elif "embed_tokens" in name:
                p.copy_(0.35 * noise)
            else:
                p.copy_(0.18 * noise)


def make_rows(lengths, vocab, gen):
    """Rows with labels in three ways: masked in part, a masked prefix, and none given (all count)."""
    rows = []
    for i, n in enumerate(lengths):
        ids = torch.randint(3, vocab, (n,), generator=gen).tolist()
        row = {"input_ids": ids}
        if i % 3 == 0:
            keep = torch.rand(n, generator=gen) < 0.7
            keep[-1] = True
            row["labels"] = [t if k else -100 for t, k in zip(ids, keep.tolist())]
        elif i % 3 == 1:
            cut = n // 3
            row["labels"] = [-100] * cut + ids[cut:]
        rows.append(row)
    return rows


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def to_legacy(path):
    """Rewrite config.json with rope_theta, rope_scaling and torch_dtype."""
    with open(path, encoding="utf-8") as f:
        cfg = json.load(f)
    params = cfg.pop("rope_parameters")
    cfg["rope_theta"] = params.pop("rope_theta")
    kind = params.pop("rope_type")
    cfg["rope_scaling"] = None if kind == "default" else {"type": kind, **params}
    cfg["torch_dtype"] = cfg.pop("dtype")
    cfg["transformers_version"] = "4.40.0"
    if cfg["model_type"] == "llama":  # leave out what transformers derives
        if cfg["head_dim"] * cfg["num_attention_heads"] == cfg["hidden_size"]:
            del cfg["head_dim"]
        if cfg["num_key_value_heads"] == cfg["num_attention_heads"]:
            del cfg["num_key_value_heads"]
    if cfg["model_type"] == "qwen2":  # a window that is switched off must not act
        cfg.update(use_sliding_window=False, sliding_window=5, max_window_layers=1)
        cfg.pop("layer_types", None)
    write_json(path, cfg)


def load(folder, dtype=torch.float32, attn="eager"):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attn)
    return model.train()


def build(spec, folder, gen):
    spec = dict(spec)
    dtype, legacy = DTYPES[spec.pop("dtype")], spec.pop("legacy")
    shard, lengths = spec.pop("shard", None), spec.pop("rows")
    spec.pop("lora_r", None)
    cfg = AutoConfig.for_model(**BASE, **spec)
    model = AutoModelForCausalLM.from_config(cfg, dtype=torch.float32)
    randomise(model, gen)
    model.to(dtype)
    out = os.path.join(folder, "model")
    model.save_pretrained(out, **({"max_shard_size": shard} if shard else {}))
    for name in os.listdir(out):
        os.chmod(os.path.join(out, name), 0o644)
    if legacy:
        to_legacy(os.path.join(out, "config.json"))
    with open(os.path.join(out, "generation_config.json"), "w", encoding="utf-8") as f:
        f.write('{"bos_token_id": 1, "eos_token_id": 2}\n')
    rows = make_rows(lengths, spec["vocab_size"], gen)
    with open(os.path.join(folder, "rows.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(r, separators=(",", ":")) + "\n" for r in rows)


def build_adapter(model_dir, folder, rank, gen):
    """A random PEFT adapter, A and B not zero, as FOLDER/adapter."""
    model = load(model_dir)
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=8,
                                            lora_dropout=0.0, target_modules=TARGETS))
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name:
                p.copy_((0.15 if "lora_A" in name else 0.1) * torch.randn(p.shape, generator=gen))
    out = os.path.join(folder, "adapter")
    peft.save_pretrained(out)
    os.remove(os.path.join(out, "README.md"))
    os.chmod(os.path.join(out, "adapter_model.safetensors"), 0o644)
    path = os.path.join(out, "adapter_config.json")
    with open(path, encoding="utf-8") as f:
        cfg = json.load(f)
    cfg["base_model_name_or_path"] = "tiny"
    cfg["target_modules"] = sorted(cfg["target_modules"])
    write_json(path, cfg)


def with_adapter(model, folder, trainable=True):
    return PeftModel.from_pretrained(model, os.path.join(folder, "adapter"), is_trainable=trainable)


def read_rows(folder):
    with open(os.path.join(folder, "rows.jsonl"), encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def row_tensors(row):
    ids = torch.tensor([row["input_ids"]])
    return ids, torch.tensor([row.get("labels", row["input_ids"])])


def label_count(rows):
    return sum(sum(t != -100 for t in r.get("labels", r["input_ids"])[1:]) for r in rows)


def loss_sum(logits, labels):
    return F.cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=-100,
                           reduction="sum")


def window_gradients(model, rows):
    """Loss and gradients of one optimizer step over `rows`; the logits of each row."""
    model.zero_grad(set_to_none=True)
    total, loss, logits_of = label_count(rows), 0.0, []
    for row in rows:
        ids, labels = row_tensors(row)
        logits = model(input_ids=ids).logits
        part = loss_sum(logits, labels) / total
        part.backward()
        loss += part.item()
        logits_of.append(logits[0].detach().float().contiguous())
    return loss, logits_of, gradients(model)


def batch_gradients(model, rows):
    """As window_gradients, in one padded batch."""
    model.zero_grad(set_to_none=True)
    n = max(len(r["input_ids"]) for r in rows)
    ids = torch.zeros(len(rows), n, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        k = len(row["input_ids"])
        ids[i, :k], labels[i, :k] = row_tensors(row)
        mask[i, :k] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(),
                           ignore_index=-100, reduction="sum") / label_count(rows)
    loss.backward()
    return loss.item(), gradients(model)


def gradients(model):
    return {n.replace(".default.", "."): p.grad.detach().float().clone().contiguous()
            for n, p in model.named_parameters() if p.grad is not None}


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def golden(name, folder):
    rows, path = read_rows(folder), os.path.join(folder, "model")
    out, info = {}, {"label_tokens": label_count(rows),
                     "tokens": sum(len(r["input_ids"]) for r in rows)}
    for prefix in ("", "lora."):
        wrap = (lambda m: with_adapter(m, folder)) if prefix else (lambda m: m)
        loss, logits, grads = window_gradients(wrap(load(path)), rows)
        info[prefix.replace(".", "_") + "loss"] = loss
        out.update({f"{prefix}logits.row.{i}": t for i, t in enumerate(logits)})
        out.update({f"{prefix}grad.{n}": t for n, t in grads.items()})
        _, again = batch_gradients(wrap(load(path, attn="sdpa")), rows)
        worst = max(relative(again[n], g) for n, g in grads.items())
        print(f"{name}: {prefix or 'full '} loss {loss:.6f}, {len(grads)} gradients, smallest norm "
              f"{min(g.norm().item() for g in grads.values()):.1e}, eager-sdpa {worst:.1e}")
        assert worst < 5e-6, worst
    save_file(out, os.path.join(folder, "golden.safetensors"), metadata={"format": "pt"})
    os.chmod(os.path.join(folder, "golden.safetensors"), 0o644)
    write_json(os.path.join(folder, "golden.json"), info)


def main():
    torch.set_num_threads(1)
    for idx, (name, spec) in enumerate(MODELS.items()):
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        folder = os.path.join(HERE, name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        gen = torch.Generator().manual_seed(1000 + idx)
        build(spec, folder, gen)
        build_adapter(os.path.join(folder, "model"), folder, spec.get("lora_r", 4), gen)
        golden(name, folder)


if __name__ == "__main__":
    main()

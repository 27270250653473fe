#!/usr/bin/env python3
"""Make the golden adapters: CASE/{adapter,golden.safetensors,golden.json}, on the models of ../models.

    make_adapters.py peft [CASE ...]             adapters that PEFT makes, at random states that are not
                                                 the initial ones, with PEFT's logits and gradients
    make_adapters.py load PENSTOCK [METHOD ...]  adapters that PENSTOCK (the program) trains for four
                                                 steps, with the logits that PEFT computes from their files

Golden values are torch's in fp32: logits.row.N (tokens, vocab), and for the first kind grad.NAME with
PEFT's names in files (the gradient of the loss over the labelled tokens of all rows, as in
../models/make_models.py, whose functions are used). Needs torch, transformers, peft, safetensors; run
with OMP_NUM_THREADS=1.
"""
import json
import os
import shutil
import subprocess
import sys

import torch
from peft import (IA3Config, LNTuningConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model)
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(HERE, "..", "models")
sys.path.insert(0, MODELS)
from make_models import load, read_rows, window_gradients, write_json  # noqa: E402

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LM = dict(task_type="CAUSAL_LM")

PEFT_CASES = {
    "dora": ("llama_untied", lambda: LoraConfig(**LM, r=3, lora_alpha=5, target_modules=ALL,
                                                use_dora=True)),
    "dora_bias": ("qwen2_untied", lambda: LoraConfig(
        **LM, r=2, lora_alpha=6, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        use_dora=True, use_rslora=True, rank_pattern={"down_proj": 3})),
    "patterns": ("llama_untied", lambda: LoraConfig(
        **LM, r=3, lora_alpha=5, target_modules=ALL,
        rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 5},
        alpha_pattern={".*_proj$": 7, "v_proj": 1}, use_rslora=True)),
    "saved": ("llama_untied", lambda: LoraConfig(
        **LM, r=2, target_modules=["layers.1.mlp.up_proj"],
        modules_to_save=["lm_head", "embed_tokens"])),
    "embed": ("llama_untied", lambda: LoraConfig(
        **LM, r=3, lora_alpha=4, target_modules=["q_proj", "embed_tokens", "lm_head"],
        rank_pattern={"lm_head": 5}, alpha_pattern={"embed_tokens": 2})),
    "embed_tied": ("llama3_tied", lambda: LoraConfig(
        **LM, r=2, target_modules=["embed_tokens", "layers.1.mlp.up_proj"])),
    "biases_all": ("qwen2_untied", lambda: LoraConfig(
        **LM, r=2, target_modules=["q_proj", "o_proj"], layers_to_transform=[1], bias="all")),
    "biases_adapted": ("llama_linear_bias", lambda: LoraConfig(
        **LM, r=2, target_modules=["k_proj", "gate_proj", "down_proj"], bias="lora_only",
        use_dora=True)),
    "vera": ("llama_untied", lambda: VeraConfig(**LM, r=9, target_modules=ALL)),
    "ia3": ("llama_untied", lambda: IA3Config(
        **LM, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "ia3_bias": ("qwen2_untied", lambda: IA3Config(
        **LM, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        feedforward_modules=["down_proj"])),
    # Where backward ends inside the lowest layer that trains.
    "lowest_down": ("mistral_window", lambda: LoraConfig(
        **LM, r=2, target_modules=["layers.0.mlp.down_proj", "layers.1.mlp.up_proj"])),
    "lowest_gate": ("mistral_window", lambda: LoraConfig(
        **LM, r=2, target_modules=["layers.1.mlp.gate_proj", "layers.1.mlp.down_proj"])),
    "lowest_o": ("mistral_window", lambda: LoraConfig(
        **LM, r=2, target_modules=["layers.1.self_attn.o_proj"])),
    "norms": ("qwen3_tied", lambda: LNTuningConfig(
        **LM, target_modules=["input_layernorm", "post_attention_layernorm", "norm", "q_norm",
                              "k_norm"])),
}

# METHOD: (model, options of train)
LOAD_CASES = {
    "lora-fa": ("llama_untied", "--lora-r 2 --lora-target q_proj,down_proj"),
    "pissa": ("llama_untied", "--lora-r 2 --lora-target q_proj,v_proj,down_proj"),
    "olora": ("llama_untied", "--lora-r 2 --lora-alpha 3 --use-rslora --lora-target o_proj,up_proj "
                              "--lora-rank-pattern up_proj=3"),
    "nlora": ("llama_untied", "--lora-r 3 --lora-target q_proj,gate_proj"),
    "slora": ("llama_untied", "--lora-r 2 --lora-target attn --lora-layers last:1"),
    "inttune": ("llama_untied", "--lora-r 4 --lora-target k_proj,down_proj"),
    "bias": ("llama_linear_bias", ""),
    "dora_own": ("llama_untied", "--lora-r 2 --lora-target q_proj,up_proj --lora-rank-pattern up_proj=3"),
    "vera_own": ("llama_untied", "--lora-r 5 --lora-target k_proj,gate_proj --lora-layers last:1"),
    "ia3_own": ("llama_untied", "--lora-layers last:1"),
    "norms_own": ("qwen3_tied", ""),
    "lora_embed": ("llama_untied", "--lora-r 3 --lora-target up_proj,embed_tokens,lm_head --lora-layers last:1 "
                                   "--lora-rank-pattern lm_head=2"),
    "lora_biases": ("llama_linear_bias", "--lora-r 2 --lora-target q_proj,down_proj --lora-bias all"),
    "pissa_biases": ("llama_linear_bias", "--lora-r 2 --lora-target v_proj,up_proj --lora-bias lora_only "
                                          "--lora-layers last:1"),
    "olora_saved": ("llama_untied", "--lora-r 2 --lora-target up_proj --modules-to-save lm_head"),
}


def file_name(name):
    name = name.replace("modules_to_save.default.", "").replace("modules_to_save.", "")
    name = name.replace(".default.", ".").removesuffix(".default")
    return name.replace("magnitude_vector.weight", "magnitude_vector")


def tidy(folder):
    """What save_pretrained writes, without what differs between runs."""
    readme = os.path.join(folder, "README.md")
    if os.path.exists(readme):
        os.remove(readme)
    os.chmod(os.path.join(folder, "adapter_model.safetensors"), 0o644)
    path = os.path.join(folder, "adapter_config.json")
    with open(path, encoding="utf-8") as f:
        cfg = json.load(f)
    cfg["base_model_name_or_path"] = "tiny"
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(cfg.get(key), list):
            cfg[key] = sorted(cfg[key])
    write_json(path, cfg)


def write_golden(case, loss, logits, grads):
    out = {f"logits.row.{i}": t for i, t in enumerate(logits)}
    out.update({f"grad.{file_name(n)}": g for n, g in grads.items()})
    save_file(out, os.path.join(HERE, case, "golden.safetensors"))
    os.chmod(os.path.join(HERE, case, "golden.safetensors"), 0o644)
    return loss


def make_peft(case):
    name, config = PEFT_CASES[case]
    gen = torch.Generator().manual_seed(sum(case.encode()))
    folder = os.path.join(HERE, case)
    shutil.rmtree(folder, ignore_errors=True)
    peft = get_peft_model(load(os.path.join(MODELS, name, "model")), config())
    with torch.no_grad():
        for n, p in peft.named_parameters():
            if p.requires_grad:
                scale = 0.15 if "lora_A" in n or "lora_B" in n else 0.3
                p.add_(scale * torch.randn(p.shape, generator=gen))
    peft.save_pretrained(os.path.join(folder, "adapter"))
    tidy(os.path.join(folder, "adapter"))
    again = PeftModel.from_pretrained(load(os.path.join(MODELS, name, "model")),
                                      os.path.join(folder, "adapter"), is_trainable=True)
    loss, logits, grads = window_gradients(again, read_rows(os.path.join(MODELS, name)))
    write_golden(case, loss, logits, grads)
    write_json(os.path.join(folder, "golden.json"), {"model": name, "loss": loss})


def make_load(program, method):
    name, options = LOAD_CASES[method]
    folder = os.path.join(HERE, method)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    run = os.path.join(folder, "run")
    model = os.path.join(MODELS, name, "model")
    subprocess.run([program, "train", "--model", model, "--data",
                    os.path.join(MODELS, name, "rows.jsonl"), "--format", "tokens", "--dtype", "fp32",
                    "--max-steps", "4", "--learning-rate", "2e-2", "--output", run,
                    "--progress", "none", "--threads", "1", "--method", method.split("_")[0]] +
                   options.split(), check=True)
    os.makedirs(os.path.join(folder, "adapter"))
    for f in os.listdir(run):
        if "adapter" in f:
            shutil.copy(os.path.join(run, f), os.path.join(folder, "adapter", f))
    shutil.rmtree(run)
    path = os.path.join(folder, "adapter", "adapter_config.json")
    with open(path, encoding="utf-8") as f:
        cfg = json.load(f)
    cfg["base_model_name_or_path"] = "tiny"
    write_json(path, cfg)
    base = load(model)
    rows = read_rows(os.path.join(MODELS, name))
    with torch.no_grad():
        before = [base(input_ids=torch.tensor([r["input_ids"]])).logits[0].clone() for r in rows]
        peft = PeftModel.from_pretrained(base, os.path.join(folder, "adapter"))
        logits = [peft(input_ids=torch.tensor([r["input_ids"]])).logits[0].contiguous() for r in rows]
    moved = max((a - b).norm().item() / b.norm().item() for a, b in zip(logits, before))
    assert moved > 1e-3, moved
    write_golden(method, 0, logits, {})
    write_json(os.path.join(folder, "golden.json"), {"model": name, "moved": round(moved, 4)})


def main():
    kind, rest = sys.argv[1], sys.argv[2:]
    if kind == "peft":
        for case in rest or PEFT_CASES:
            make_peft(case)
    else:
        for method in rest[1:] or LOAD_CASES:
            make_load(rest[0], method)


main()

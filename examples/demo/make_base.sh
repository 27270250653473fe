#!/bin/sh
# The recipe of examples/demo/base: tokenizer, random weights, training from scratch. Writes to OUTPUT.
#
#   examples/demo/make_base.sh OUTPUT
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=${BUILD:-$root/build}
out=${1:?usage: make_base.sh OUTPUT}
mkdir -p "$out/tokenizer"
"$BUILD/examples/demo_data" tokenizer 3000 1 512 >"$out/tokenizer/tokenizer.json"
cat >"$out/tokenizer/tokenizer_config.json" <<EOF
{
  "tokenizer_class": "PreTrainedTokenizerFast",
  "eos_token": "<|endoftext|>",
  "model_max_length": 256
}
EOF
"$BUILD/examples/demo_data" base 60000 1 >"$out/base.jsonl"
"$BUILD/penstock" init --config "$root/examples/demo/config.json" --output "$out/init" --seed 1 --dtype bf16 \
    --tokenizer "$out/tokenizer"
"$BUILD/penstock" train --model "$out/init" --output "$out/run" --method full --data "$out/base.jsonl" \
    --max-seq-len 256 --batch-size 16 --grad-accum 1 --learning-rate 3e-3 --weight-decay 0.1 \
    --lr-scheduler wsd --max-steps "${STEPS:-1100}" --logging-steps 10
echo "the base model is $out/run (config.json, generation_config.json, model.safetensors, tokenizer files)"

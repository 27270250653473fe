#!/bin/sh
# The demo: LoRA-tune a small base model on a task that it has never seen, and measure it before and after.
#
#   make demo              three seeds, about a minute on two cores;  make demo SEEDS=1 for one
#
# examples/demo/base is a Llama of 0.8 million parameters that Penstock trained from scratch (make_base.sh) on short texts
# about who has how many things, in words, and how numbers are written. The task is to go on with the result in digits,
# where the base always writes words. The pairs of numbers in the held-out rows never occur in the adapter's training.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=${BUILD:-build}
case $BUILD in /*) ;; *) BUILD=$root/$BUILD ;; esac
penstock=$BUILD/penstock
data=$BUILD/examples/demo_data
base=$root/examples/demo/base
out=$BUILD/demo
rm -rf "$out"
mkdir -p "$out"
"$data" task test 200 99 >"$out/test.jsonl"

held_out() { # FILE [eval arguments]: loss, in FILE.json
    file=$1
    shift
    "$penstock" eval --model "$base" --data "$out/test.jsonl" --max-seq-len 256 --json "$@" >"$file" 2>/dev/null
    sed 's/.*"loss": *\([0-9]*\.[0-9]\{0,4\}\).*/\1/' "$file"
}

answers() { # FILE [generate arguments]
    file=$1
    shift
    "$penstock" generate --model "$base" --prompts "$out/test.jsonl" --max-new-tokens 12 --temperature 0 \
        --max-seq-len 256 --json "$@" >"$file"
}

echo "== base model: examples/demo/base, 0.8 million parameters, trained from scratch by make_base.sh"
loss_before=$(held_out "$out/before.json")
answers "$out/before.jsonl"
exact_before=$("$data" score "$out/test.jsonl" "$out/before.jsonl")
echo "before: held-out loss $loss_before, exact match $exact_before"
SEEDS=${SEEDS:-1 2 3}
progress=plain
missed=0
for seed in $SEEDS; do
    echo
    echo "== LoRA on 16000 rows of the task, seed $seed"
    "$data" task train 16000 "$seed" >"$out/train.jsonl"
    "$penstock" train "$root/examples/demo/lora.yaml" --model "$base" --data "$out/train.jsonl" \
        --output "$out/adapter-$seed" --seed "$seed" --progress $progress
    progress=none
    loss_after=$(held_out "$out/after.json" --adapter "$out/adapter-$seed")
    answers "$out/after-$seed.jsonl" --adapter "$out/adapter-$seed"
    exact_after=$("$data" score "$out/test.jsonl" "$out/after-$seed.jsonl")
    echo
    echo "== 200 held-out rows, seed $seed"
    echo "before: held-out loss $loss_before, exact match $exact_before"
    echo "after:  held-out loss $loss_after, exact match $exact_after"
    case $exact_after in 9[0-9].*|100.*) ;; *) missed=1 ;; esac
done
case $exact_before in [0-9].*|10.0*) ;; *) missed=1 ;; esac
echo
"$data" show 3 "$out/test.jsonl" "$out/before.jsonl" "$out/after-$seed.jsonl"
echo "adapter (PEFT format): $out/adapter-$seed"
if [ "$missed" -ne 0 ]; then
    echo "the demo missed its mark: at most 10% before, at least 90% after, with every seed" >&2
    exit 1
fi

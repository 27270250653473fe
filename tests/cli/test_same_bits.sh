# The same bits whatever the thread count, recomputation, evaluations or checkpoints between steps: results
# and losses are compared byte for byte.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1

losses() { sed -n 's/.*"loss": *\([^,}]*\).*"grad_norm": *\([^,}]*\).*/\1 \2/p' "$1/metrics.jsonl"; }

# run DIR ARG...: six steps with what the case has in $common
run() {
    dir=$1
    shift
    rm -rf "$dir"
    # shellcheck disable=SC2086
    penstock train --model "$base/model" --data "$base/rows.jsonl" --format tokens --max-steps 6 \
        --batch-size 2 --grad-accum 2 --max-seq-len 160 --learning-rate 1e-3 --output "$dir" \
        --progress none $common "$@"
}

# same NAME ARG...: run with ARG must give the bits of the reference run.
same() {
    name=$1
    shift
    if ! run other "$@"; then
        not_ok "$label: $name: train runs"
        return
    fi
    { losses ref >a; losses other >b; test -s a && cmp a b; } >log 2>&1 &&
        cmp "ref/$result" "other/$result" >>log 2>&1
    if [ $? -eq 0 ]; then ok "$label: $name"; else not_ok "$label: $name"; fi
}

while read -r model method dtype extra; do
    base=$models/$model label="$model $method $dtype" result=model.safetensors
    [ "$method" = lora ] && result=adapter_model.safetensors
    common="--method $method --dtype $dtype $extra"
    if ! run ref --threads 1 --offload-activations host; then
        not_ok "$label: train runs"
        continue
    fi
    same "two threads" --threads 2 --offload-activations host
    same "three threads, recomputed" --threads 3 --offload-activations recompute
    same "evaluation after each step" --threads 2 --offload-activations host \
        --eval-data "$base/rows.jsonl" --eval-steps 1
    same "a checkpoint after each step" --threads 2 --offload-activations host --save-steps 1
done <<EOF
llama3_tied lora bf16 --lora-dropout 0.1 --packing true
qwen3_untied full bf16 --packing false
mistral_window full fp32 --packing true
qwen2_tied lora fp32 --lora-dropout 0.25 --packing false
EOF

# The order of the data is drawn from the seed: another seed must give another result.
common="--method lora --dtype fp32" base=$models/llama_untied
run ref --seed 1 && run other --seed 2
check "another seed gives another adapter" test -n \
    "$(cmp ref/adapter_model.safetensors other/adapter_model.safetensors)"
finish

# Logits and loss of the golden models, with and without an adapter, as transformers and PEFT compute
# them. 1e-5 relative in norm: torch's own eager and SDPA attention differ by up to 2e-6.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"

# compare NAME MODEL GOLDEN_PREFIX LOSS_KEY [EVAL ARG...]
compare() {
    name=$1 dir=$models/$2 prefix=$3 key=$4
    shift 4
    rm -f logits.safetensors
    if ! penstock eval --model "$dir/model" --data "$dir/rows.jsonl" --format tokens --dtype fp32 \
        --logits logits.safetensors --json "$@"; then
        not_ok "$name: eval runs"
        return
    fi
    loss=$(json_get out loss) labels=$(json_get out label_tokens)
    check "$name: logits" st_compare "$dir/golden.safetensors" logits.safetensors \
        --expected-prefix "$prefix" --rtol 1e-5
    check "$name: loss" within "$loss" "$(json_get "$dir/golden.json" "$key")" 1e-5
    check "$name: label count" test "$labels" = "$(json_get "$dir/golden.json" label_tokens)"
}

for model in $(golden_models model_type); do
    compare "$model" "$model" logits. loss
    compare "$model with adapter" "$model" lora.logits. lora_loss --adapter "$models/$model/adapter"
done
compare "qwen3_tied on one thread" qwen3_tied logits. loss --threads 1
compare "llama3_tied in portable code" llama3_tied logits. loss --isa portable
finish

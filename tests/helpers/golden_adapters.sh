# For shell tests of adapters: what PEFT computes of tests/golden/adapters, 1e-5 relative in norm, per tensor.
# Use after lib.sh: . "$PENSTOCK_ROOT/tests/helpers/golden_adapters.sh"
golden=$PENSTOCK_ROOT/tests/golden/adapters

of_case() { # CASE: sets case_dir, base and rows
    case_dir=$golden/$1
    base=$models/$(json_get "$case_dir/golden.json" model)
    rows=$base/rows.jsonl
}
logits_are() { # NAME ADAPTER_OPTION...: what eval writes is PEFT's
    name=$1
    shift
    if penstock eval --data "$rows" --format tokens --dtype fp32 --max-seq-len 160 --logits logits "$@"; then
        check "$name" st_compare "$case_dir/golden.safetensors" logits --expected-prefix logits. \
            --actual-prefix "" --rtol "${rtol:-1e-5}"
    else not_ok "$name: eval runs"; fi
}
merges() { # NAME ADAPTER: the merged model has the logits
    rm -rf merged
    if penstock export --model "$base/model" --adapter "$2" --format hf --output merged; then
        logits_are "$1" --model merged
    else not_ok "$1: export runs"; fi
}
agrees_with_peft() { # logits and gradients of the case, resident and streamed
    logits_are "$case: logits are PEFT's" --model "$base/model" --adapter "$case_dir/adapter"
    logits_are "$case: logits are PEFT's, streamed" --model "$base/model" --adapter "$case_dir/adapter" \
        --strategy stream-lora --prefetch-depth 1 --import never
    for how in "--packing false --batch-size 2 --grad-accum 3 --offload-activations recompute" \
        "--packing true --batch-size 1 --grad-accum 8 --threads 1"; do
        rm -rf run grads
        # shellcheck disable=SC2086
        if penstock train --model "$base/model" --adapter "$case_dir/adapter" --data "$rows" \
            --format tokens --dtype fp32 --max-steps 1 --shuffle false --max-seq-len 160 --output run \
            --dump-grads grads --progress none --learning-rate 0 $how; then
            check "$case: gradients are PEFT's: $how" st_compare "$case_dir/golden.safetensors" grads \
                --expected-prefix grad. --rtol 1e-5
        else not_ok "$case: train runs: $how"; fi
    done
}

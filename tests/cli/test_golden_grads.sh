# Gradients per tensor of one step over all rows of each golden model, full and LoRA (at random non-zero A and
# B), packed and not, activations kept and recomputed, as torch and PEFT compute them: 1e-5 relative in
# norm (torch's own eager and SDPA attention differ by up to 2e-6).
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"

# step NAME MODEL METHOD GOLDEN_PREFIX LOSS_KEY [TRAIN ARG...]
step() {
    name=$1 dir=$models/$2 method=$3 prefix=$4 key=$5
    shift 5
    rm -rf run grads.safetensors
    if ! penstock train --model "$dir/model" --output run --data "$dir/rows.jsonl" --format tokens \
        --method "$method" --dtype fp32 --max-steps 1 --shuffle false --max-seq-len 160 \
        --dump-grads grads.safetensors --progress none "$@"; then
        not_ok "$name: train runs"
        return
    fi
    check "$name: gradients" st_compare "$dir/golden.safetensors" grads.safetensors \
        --expected-prefix "$prefix" --rtol 1e-5
    check "$name: loss" within "$(head -n 1 run/metrics.jsonl | json_get - loss)" \
        "$(json_get "$dir/golden.json" "$key")" 1e-5
}

for model in $(golden_models model_type); do
    adapter=$models/$model/adapter
    step "$model full" "$model" full grad. loss --packing false --batch-size 2 --grad-accum 3 \
        --threads 1
    step "$model full packed" "$model" full grad. loss --packing true --batch-size 1 --grad-accum 8 \
        --offload-activations recompute
    step "$model lora" "$model" lora lora.grad. lora_loss --adapter "$adapter" \
        --packing false --batch-size 2 --grad-accum 3 --offload-activations recompute --threads 1
    step "$model lora packed" "$model" lora lora.grad. lora_loss --adapter "$adapter" \
        --packing true --batch-size 2 --grad-accum 4 --offload-activations host
done
step "llama_untied full in portable code" llama_untied full grad. loss --packing false \
    --batch-size 6 --grad-accum 1 --isa portable
step "mistral_window lora on one thread" mistral_window lora lora.grad. lora_loss --packing true \
    --adapter "$models/mistral_window/adapter" --threads 1
finish

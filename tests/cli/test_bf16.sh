# Gradients in bf16: the error of each tensor against fp32 at most 1.2 times torch bf16's own (one
# padded batch, so that torch rounds each gradient once), norms within 1% of fp32's.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"

# step NAME MODEL METHOD PREFIX [TRAIN ARG...]
step() {
    name=$1 dir=$models/$2 method=$3 prefix=$4
    shift 4
    rm -rf run grads.safetensors
    if ! penstock train --model "$dir/model" --output run --data "$dir/rows.jsonl" --format tokens \
        --method "$method" --dtype bf16 --max-steps 1 --shuffle false --packing false \
        --batch-size 8 --grad-accum 1 --dump-grads grads.safetensors --progress none "$@"; then
        not_ok "$name: train runs"
        return
    fi
    check "$name: error at most 1.2 times torch's" st_compare "$dir/golden.safetensors" \
        grads.safetensors --expected-prefix "${prefix}grad." --limits "${prefix}bf16err." --factor 1.2
    check "$name: norms within 1%" st_compare "$dir/golden.safetensors" grads.safetensors \
        --expected-prefix "${prefix}grad." --norm-ratio 0.01
}

for model in $(golden_models bfloat16); do
    step "$model full" "$model" full ""
    step "$model lora" "$model" lora lora. --adapter "$models/$model/adapter"
done
finish

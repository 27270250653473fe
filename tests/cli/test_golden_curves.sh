# 100 steps of AdamW, full and LoRA, against torch: losses within 1e-4, clipping active in half of the
# steps, warm-up and cosine, decay on matrices alone. torch itself repeats its curves to 1e-5.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
curves=$models/curves

# curve NAME METHOD MODEL_DIR ADAPTER_DIR
curve() {
    golden=$curves/$1.$2.json name="$1 $2" method=$2 model=$3 adapter=$4
    get() { json_get "$golden" "$1"; }
    set -- --learning-rate "$(get learning_rate_peak)" --warmup-steps "$(get warmup_steps)" \
        --max-steps "$(get max_steps)" --batch-size "$(get batch_size)" \
        --grad-accum "$(get grad_accum)" --max-grad-norm "$(get max_grad_norm)" \
        --weight-decay "$(get weight_decay)" --lr-scheduler cosine
    if [ "$method" = lora ]; then set -- "$@" --adapter "$adapter"; fi
    rm -rf run
    if ! penstock train --model "$model" --output run --data "$curves/${golden_rows}.jsonl" \
        --format tokens --method "$method" --dtype fp32 --packing false --shuffle false \
        --threads 1 --progress none "$@"; then
        not_ok "$name: train runs"
        return
    fi
    for key in loss grad_norm learning_rate; do
        case $key in
        loss) tol="--atol 1e-4" ;;
        grad_norm) tol="--rtol 1e-3 --atol 1e-4" ;;
        learning_rate) tol="--rtol 1e-6" ;;
        esac
        # shellcheck disable=SC2086
        check "$name: $key" "$helpers/jsonl_compare" "$golden" run/metrics.jsonl $key $tol
    done
}

for golden_rows in llama_untied qwen3_tied; do
    curve $golden_rows full "$models/$golden_rows/model" ""
    curve $golden_rows lora "$models/$golden_rows/model" "$models/$golden_rows/adapter"
done
golden_rows=stories260k
if [ -d "$shared/models/stories260K" ]; then
    curve stories260k full "$shared/models/stories260K" ""
    curve stories260k lora "$shared/models/stories260K" "$curves/stories260k/adapter"
else
    echo "skip - stories260k curves: $shared/models/stories260K is missing"
fi
finish

# Full fine-tuning is torch's: three layers of the 1.1B shape (tests/golden/full_1b3), losses, norms, the gradient of every
# tensor and the weights. Two steps in memory; PENSTOCK_LONG=1: all 30, and streamed (some minutes, 8 GB of disk).
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
golden=$PENSTOCK_ROOT/tests/golden/full_1b3
base=$PENSTOCK_ROOT/tests/golden/stream_1b3
steps=2
[ "${PENSTOCK_LONG:-0}" = 1 ] && steps=30

check "a model" penstock init --config "$base/config.json" --dtype bf16 --output model \
    --seed "$(json_get "$golden/golden.json" seed)"
check "it is the golden one" test "$(sha256sum model/model.safetensors | cut -d ' ' -f 1)" = \
    "$(json_get "$golden/golden.json" model_sha256)"
[ "$failures" -eq 0 ] || finish

run() { # DIR ARG...
    dir=$1
    shift
    rm -rf "$dir"
    penstock train --model model --data "$base/rows.jsonl" --format tokens --method full --dtype fp32 \
        --max-seq-len 48 --packing true --batch-size 1 --grad-accum 2 --shuffle false --max-steps $steps \
        --learning-rate "$(json_get "$golden/golden.json" learning_rate)" --lr-scheduler constant --warmup-steps 0 \
        --weight-decay "$(json_get "$golden/golden.json" weight_decay)" --output "$dir" \
        --dump-grads "$dir.grads" --progress none "$@" || return
    "$helpers/st_sample" "$dir.grads" "$dir.grad" grad. &&
        "$helpers/st_sample" "$dir/model.safetensors" "$dir.weight" weight. || return
    rm -rf "$dir.grads" "$dir"/checkpoint-* "$dir/model.safetensors"
}
all_within() { # DIR FIELD COLUMN RELATIVE
    i=1
    while [ $i -le $steps ]; do
        have=$(sed -n ${i}p "$1/metrics.jsonl" | json_get - "$2")
        want=$(sed -n ${i}p "$golden/steps.txt" | cut -d ' ' -f "$3")
        within "$have" "$want" "$(awk -v w="$want" -v r="$4" 'BEGIN { print w * r }')" || { echo "step $i: $2 $have, torch's is $want"; return 1; }
        i=$((i + 1))
    done
}
check "resident: runs" run resident --strategy resident
check "resident: gradients are torch's" st_compare "$golden/golden.safetensors" resident.grad --expected-prefix grad. \
    --actual-prefix grad. --rtol 2e-5
check "resident: losses are torch's" all_within resident loss 2 $((steps / 30 * 9 + 1))e-5
# torch adds up the squares of 150 million elements in fp32
check "resident: norms are torch's" all_within resident grad_norm 3 5e-4
if [ $steps -eq 30 ]; then
    check "resident: weights after 30 steps are torch's" st_compare "$golden/golden.safetensors" resident.weight \
        --expected-prefix weight. --actual-prefix weight. --rtol 2e-4
    if st_compare "$golden/golden.safetensors" resident.weight --expected-prefix start. --actual-prefix weight. \
        --rtol 2e-3 >log; then
        not_ok "the weights have moved by more than that"
    else ok "the weights have moved by more than that"; fi
fi
[ $steps -eq 30 ] || finish
check "streamed: runs" run streamed --strategy zero-infinity --host-mem 900MiB
check "streamed: gradients, weights and losses have resident's bits" eval \
    'cmp resident.grad streamed.grad && cmp resident.weight streamed.weight && same_losses resident streamed'
finish

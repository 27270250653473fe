# For shell tests of adapters: short runs of $model on rows.jsonl with $options, compared bit for bit.
# Use after runs.sh: . "$PENSTOCK_ROOT/tests/helpers/adapter_runs.sh"

run() { # DIR ARG...
    dir=$1
    shift
    rm -rf "$dir"
    # shellcheck disable=SC2086
    penstock train --model "$model" --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 \
        --grad-accum 2 --packing false --max-steps 4 --learning-rate 3e-3 --threads 1 --progress none \
        --save-steps 2 --save-total-limit 9 --output "$dir" --dump-grads "$dir.grads" $options "$@"
}
equal() { same_files "$1" "$2" && same_losses "$1" "$2" && cmp "$1.grads" "$2.grads"; }
same() { # NAME ARG...
    name=$1
    shift
    run other "$@"
    if [ "$rc" -ne 0 ]; then not_ok "$name: runs"; else check "$name" equal ref other; fi
}
resumes() { # NAME: of ref, which has a checkpoint at step 2, the rest again, streamed
    rm -rf other && cp -r ref other && rm -r other/checkpoint-4 other/*adapter*
    # shellcheck disable=SC2086
    penstock train --model "$model" --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 \
        --grad-accum 2 --packing false --max-steps 4 --learning-rate 3e-3 --threads 1 --progress plain \
        --save-steps 2 --save-total-limit 9 --output other --resume --strategy stream-lora $options
    if [ "$rc" -eq 0 ] && grep -q "at step 2" err; then check "$1" equal ref other
    else not_ok "$1: runs"; fi
}
refused() { # NAME WORD ARG...: a usage error that says WORD
    name=$1 word=$2
    shift 2
    penstock train --model "$model" --data rows.jsonl --format tokens --output bad --progress none "$@"
    if [ "$rc" -eq 2 ] && grep -q -e "$word" err; then ok "$name"; else not_ok "$name"; fi
}

# Stopped and resumed equals uninterrupted, byte for byte: result, optimizer state, losses, evaluations. Beside
# test_resume.sh: packing, partial windows, stops in the middle of writing, and every signal.
#
# LoRA with dropout (fp32) and full with exact master weights (bf16), packing, three epochs whose last window is
# partial. Ways to stop: kill -9 when a checkpoint of a chosen step appears (an epoch's end first), kill -9 at
# any moment (twice), SIGTERM, SIGINT. PENSTOCK_RESUME_STOPS=20 stops each method 20 times instead of 4
# (some minutes); PENSTOCK_RESUME_SEED chooses other steps.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
stops=${PENSTOCK_RESUME_STOPS:-4}
random=${PENSTOCK_RESUME_SEED:-11}
next_random() { # MAX: $value in [1, MAX]
    random=$(awk -v x="$random" 'BEGIN { print (x * 16807) % 2147483647 }')
    value=$(awk -v x="$random" -v m="$1" 'BEGIN { print int(x / 64) % m + 1 }')
}
tiny=$models/llama_untied/model
make_rows 96 4 40 97 3 >rows.jsonl
train_args() { # METHOD: sets $args
    args="train --model $tiny --data rows.jsonl --format tokens --max-seq-len 64 --grad-accum 3 --epochs 3
        --val-split 0.1 --eval-steps 5 --learning-rate 3e-3 --max-grad-norm 0.7 --weight-decay 0.05 --threads 1 --progress none"
    if [ "$1" = lora ]; then
        args="$args --method lora --lora-r 3 --lora-dropout 0.1 --dtype fp32"
    else
        args="$args --method full --dtype bf16"
    fi
}
same_run() { # DIR DIR
    same_files "$1" "$2" && same_losses "$1" "$2"
}

# stop HOW LIMIT: run $args until stopped; sets $rc. The step of HOW=checkpoint is LIMIT.
stop() {
    # shellcheck disable=SC2086
    case $1 in
    checkpoint)
        "$helpers/signal_when" "run/checkpoint-$2/manifest.json" 1 9 "$PENSTOCK" $args --output run \
            --save-steps "$2" --resume ;;
    *)
        "$helpers/signal_when" run/metrics.jsonl "$2" "$1" "$PENSTOCK" $args --output run --save-steps 2 \
            --resume ;;
    esac >out 2>err
    rc=$?
    { echo "stop $*: exit $rc"; cat err; ls -a run; } >log
}

one_stop() { # METHOD NUMBER: by every way in turn
    rm -rf run
    case $(($2 % 4)) in
    1)
        if [ "$2" -eq 1 ]; then step=$epoch_end; else next_random $((steps * 3 / 4)); step=$value; fi
        name="$1: kill -9 after checkpoint $step"
        stop checkpoint "$step"
        check "$name: killed" test "$rc" -eq 137 ;;
    2)
        next_random $((steps / 2))
        name="$1: kill -9 twice, from line $value"
        stop 9 "$value"
        check "$name: killed" test "$rc" -eq 137
        stop 9 $((value + steps / 6))
        check "$name: killed again" test "$rc" -eq 137 ;;
    3)
        next_random $((steps / 2))
        name="$1: SIGTERM at line $value"
        stop 15 "$value"
        check "$name: exit 143" test "$rc" -eq 143
        check "$name: a checkpoint of the last step" test -e \
            "run/checkpoint-$(train_losses run | wc -l)/manifest.json" ;;
    0)
        next_random $((steps / 2))
        name="$1: SIGINT at line $value"
        stop 2 "$value"
        check "$name: exit 130" test "$rc" -eq 130 ;;
    esac
    # What may change on resume does: threads, placement of activations.
    # shellcheck disable=SC2086
    check "$name: resumed" penstock $args --output run --resume --threads $((1 + $2 % 3)) \
        --offload-activations recompute
    check "$name: as if it had never stopped" same_run "base-$1" run
    check "$name: nothing half-written is left" test -z "$(find run -name '*.tmp*')"
}

for method in lora full; do
    train_args $method
    # shellcheck disable=SC2086
    check "$method: uninterrupted" penstock $args --output base-$method
    steps=$(train_losses base-$method | wc -l)
    epoch_end=$(sed -n 's/^{"step":\([0-9]*\),"epoch":1,.*/\1/p' base-$method/metrics.jsonl | head -n 1)
    check "$method: steps enough, and an epoch that ends inside" test "$steps" -gt 30 -a "${epoch_end:-0}" -gt 1
    number=1
    while [ $number -le "$stops" ]; do
        one_stop $method $number
        number=$((number + 1))
    done
done

# A run that is complete stays as it is.
train_args full
# shellcheck disable=SC2086
check "resume of a complete run" penstock $args --output base-full --resume
check "resume of a complete run changes nothing" same_run run base-full
check "its last line has the evaluation" test \
    "$(json_get --last base-full/metrics.jsonl eval_loss)" = "$(json_get --last run/metrics.jsonl eval_loss)"

# --resume DIR takes a certain checkpoint.
rm -rf run
# shellcheck disable=SC2086
{
    penstock $args --output run --save-steps 7 --save-total-limit 9
    check "resume from an older checkpoint" penstock $args --output run --resume run/checkpoint-7
    check "resume from an older checkpoint: the same" same_run base-full run
    rm -rf run
    check "--resume auto without a checkpoint starts" penstock $args --output run --resume auto
    check "--resume auto without a checkpoint: the same" same_run base-full run
}

# SIGUSR1 saves and goes on.
train_args lora
rm -rf run
# shellcheck disable=SC2086
"$helpers/signal_when" run/metrics.jsonl 3 10 "$PENSTOCK" $args --output run --save-total-limit 9 >log 2>&1
rc=$?
check "SIGUSR1: the run goes on to its end" test "$rc" -eq 0
check "SIGUSR1: one more checkpoint" test "$(find run -name manifest.json | wc -l)" -eq 2
check "SIGUSR1: the same" same_run base-lora run

# A second signal ends a long step at once.
rm -rf run
make_rows 20000 40 60 97 9 >long.jsonl
"$PENSTOCK" train --model "$tiny" --data long.jsonl --format tokens --dtype fp32 --packing false --grad-accum 20000 \
    --output run --progress none >log 2>&1 &
pid=$!
tries=0
while [ ! -e run/metrics.jsonl ] && [ $tries -lt 600 ]; do sleep 0.05; tries=$((tries + 1)); done
kill -TERM $pid
sleep 0.3
check "the first signal waits for the step" kill -0 $pid
start=$(date +%s%N)
kill -TERM $pid
wait $pid
rc=$?
ms=$((($(date +%s%N) - start) / 1000000))
check "the second signal: exit 143" test "$rc" -eq 143
check "the second signal: at once ($ms ms)" test "$ms" -lt 2000
check "the second signal: no checkpoint" test -z "$(find run -name 'manifest.json')"
finish

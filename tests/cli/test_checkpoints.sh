# Checkpoints: damage is found and named, other options or data are refused, old ones are pruned, the best is
# kept, a run never writes over another, and a limit on file sizes leaves the last one whole.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
tiny=$models/llama_untied
make_rows 40 5 30 97 31 >rows.jsonl
make_rows 12 5 30 97 77 >held.jsonl
base="train --model $tiny/model --format tokens --max-steps 8 --grad-accum 2 --learning-rate 1e-3 --progress none"
mode="--method full --dtype bf16"
says() { # NAME REGEX
    check "$1" matches "$2"
}
matches() { grep -E -e "$1" err || { cat err; return 1; }; }
listed() { find "$1" -maxdepth 1 -name 'checkpoint-*' | sed 's/.*checkpoint-//' | sort -n | tr '\n' ' '; }

# shellcheck disable=SC2086
penstock $base $mode --data rows.jsonl --output whole --save-steps 2 --save-total-limit 9
check "a run with checkpoints" test "$rc" -eq 0
check "every second step" test "$(listed whole)" = "2 4 6 8 "
# A run that stopped after step 6.
fresh() { rm -rf run && mkdir run && cp -r whole/checkpoint-4 whole/checkpoint-6 run/; }
resume() { # CODE NAME ARG...
    resume_code=$1 resume_name=$2
    shift 2
    # shellcheck disable=SC2086
    expect_exit "$resume_name: exit $resume_code" "$resume_code" $base $mode --data rows.jsonl --output run --resume "$@"
}
fresh
resume 0 "untouched checkpoints resume"
check "untouched checkpoints: the same bits" cmp run/model.safetensors whole/model.safetensors

# Damage of every file, of three kinds.
flip() { # one bit in the middle of FILE
    at=$(($(wc -c <"$1") / 2))
    byte=$(od -An -tu1 -j "$at" -N 1 "$1" | tr -d ' ')
    # shellcheck disable=SC2059
    printf "\\$(printf %03o $((byte ^ 1)))" | dd of="$1" bs=1 seek="$at" conv=notrunc 2>/dev/null
}
damaged=0
for path in whole/checkpoint-6/*; do
    file=${path##*/}
    [ "$file" = manifest.json ] && continue
    for how in flip cut lose; do
        fresh
        case $how in
        flip) flip "run/checkpoint-6/$file" ;;
        cut) truncate -s -1 "run/checkpoint-6/$file" ;;
        lose) rm "run/checkpoint-6/$file" ;;
        esac
        resume 4 "$how $file"
        says "$how $file: the message names the file" "checkpoint-6/$file"
        damaged=$((damaged + 1))
    done
    says "$file: what to do" 'delete run/checkpoint-6; --resume then goes on from step 4'
done
check "all files were damaged in turn" test "$damaged" -ge 15
rm -r run/checkpoint-6
resume 0 "after doing so"
check "after doing so: the same bits" cmp run/model.safetensors whole/model.safetensors
fresh
rm -r run/checkpoint-4
flip run/checkpoint-6/optimizer.safetensors
resume 4 "the only checkpoint is damaged"
says "the only checkpoint: what to do" 'delete run/checkpoint-6; there is no older one'
fresh
truncate -s -1 run/checkpoint-6/manifest.json
resume 4 "a cut manifest"
says "a cut manifest: the message names it" 'checkpoint-6/manifest.json'
fresh
rm run/checkpoint-6/manifest.json
resume 0 "without a manifest it was never finished: the one before counts" --progress plain
says "the one before was taken" 'step 4'
check "without a manifest: the same bits" cmp run/model.safetensors whole/model.safetensors
fresh
resume 4 "a directory that is not there" --resume run/checkpoint-5

# Other numerical options are refused by name, together; others may change.
fresh
for change in "learning-rate 2e-3" "seed 7" "max-seq-len 64" "grad-accum 4" "batch-size 2" "max-steps 9" \
    "dtype fp32" "shuffle false" "packing false" "weight-decay 0.5" "max-grad-norm 2" "beta2 0.99" \
    "lr-scheduler linear" "warmup-steps 3" "overlength drop" "val-split 0.1"; do
    # shellcheck disable=SC2086
    resume 2 "another ${change% *}" --${change}
    says "another ${change% *}: named" "${change% *}"
done
# shellcheck disable=SC2086
expect_exit "another method: exit 2" 2 $base --method lora --dtype bf16 --data rows.jsonl --output run --resume
resume 2 "two at once" --seed 7 --beta1 0.8
says "two at once: both named" 'beta1.*seed|seed.*beta1'
sed 's/"input_ids":\[[0-9]*/"input_ids":[1/' rows.jsonl >changed.jsonl
resume 2 "changed data" --data changed.jsonl
says "changed data: named" 'changed.jsonl'
check "refusals touch nothing" test "$(listed run)" = "4 6 " -a ! -e run/metrics.jsonl
cp rows.jsonl moved.jsonl
resume 0 "what may change" --data moved.jsonl --threads 1 --save-steps 5 --logging-steps 3 --offload-activations \
    recompute --host-mem 1GiB --save-total-limit 9
check "what may change: the same bits" cmp run/model.safetensors whole/model.safetensors

# A limit on file sizes while a checkpoint is written: no privilege needed.
fresh
(
    ulimit -f 64
    resume 1 "a limit on file sizes" --save-steps 1
)
says "the message names the remedy" 'ulimit -f'
says "and the file" 'checkpoint-7'
check "the checkpoints before are whole" test "$(listed run)" = "4 6 "
check "nothing half-written is left" test -z "$(find run -name '*tmp*')"
resume 0 "without the limit the run goes on"
check "without the limit: the same bits" cmp run/model.safetensors whole/model.safetensors

# Pruning keeps the newest, and the best.
for limit in 1 3; do
    rm -rf run
    # shellcheck disable=SC2086
    penstock $base $mode --data rows.jsonl --output run --save-steps 1 --save-total-limit $limit
    check "--save-total-limit $limit" test "$(listed run)" = "$(seq -s ' ' $((9 - limit)) 8) "
done
# Learning random rows by heart makes the held-out loss rise after the first steps.
hot="--data rows.jsonl --eval-data held.jsonl --eval-steps 1 --method full --dtype fp32 --learning-rate 3e-2
    --save-total-limit 1"
rm -rf run
# shellcheck disable=SC2086
penstock $base $hot --output run --save-best true
check "--save-best" test "$rc" -eq 0
evals=$(sed -n 's/^{"step":\([0-9]*\),"eval_loss":\([^,]*\),.*/\2 \1/p' run/metrics.jsonl)
best=$(echo "$evals" | sort -g | head -n 1 | cut -d' ' -f2)
echo "$evals" >log
check "the best evaluation is not the last" test "$best" -lt 8
check "the best checkpoint is kept beside the newest" test "$(listed run)" = "$best 8 "
check "the result is that of the best" cmp run/model.safetensors "run/checkpoint-$best/model.safetensors"
check "and not of the last" test -n "$(cmp run/model.safetensors run/checkpoint-8/model.safetensors)"
check "the totals are those of the whole run" test "$(json_get --last run/metrics.jsonl updates)" = 8
tokens=$(sed -n 's/^{"step":.*,"tokens":\([0-9]*\),.*/\1/p' run/metrics.jsonl | awk '{ n += $1 } END { print n }')
check "tokens too" test "$(json_get --last run/metrics.jsonl tokens)" = "$tokens"

# Early stopping: patience counts from the best evaluation; a resumed run does not go on.
rm -rf early
# shellcheck disable=SC2086
penstock $base $hot --output early --early-stopping-patience 2
check "early stopping: exit 0" test "$rc" -eq 0
stopped=$(train_losses early | wc -l)
check "early stopping: before the last step" test "$stopped" -lt 8
check "early stopping: two evaluations after the best" test "$stopped" -eq $((best + 2))
check "early stopping: the result is there" test -e early/model.safetensors
cp -r early again && rm again/model.safetensors
# shellcheck disable=SC2086
penstock $base $hot --output again --early-stopping-patience 2 --resume
check "resumed after it: exit 0" test "$rc" -eq 0
check "resumed after it: no further step" test "$(train_losses again | wc -l)" -eq "$stopped"
check "resumed after it: the same result" cmp again/model.safetensors early/model.safetensors

# A new run does not write into the directory of another one, or over a model.
hash_of() { find "$1" -type f -exec cksum {} + | sort; }
untouched() { # NAME DIR ARG...: exit 2, and DIR is as it was
    untouched_name=$1 untouched_dir=$2
    shift 2
    hash_of "$untouched_dir" >before
    # shellcheck disable=SC2086
    expect_exit "$untouched_name: exit 2" 2 $base $mode --data rows.jsonl --output "$untouched_dir" "$@"
    says "$untouched_name: what to do" 'another --output'
    hash_of "$untouched_dir" >after
    check "$untouched_name: nothing changed" cmp before after
}
untouched "a directory with checkpoints" whole
cp -r "$tiny/model" mine && chmod -R u+w mine
untouched "the model itself" mine --model mine
untouched "the model itself, --resume" mine --model mine --resume
cp -r "$tiny/adapter" held && chmod -R u+w held
untouched "an adapter" held
finish

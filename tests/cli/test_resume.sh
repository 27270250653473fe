# A run that is stopped or killed and resumed ends with the bits of one that was not: LoRA and full, at twenty
# steps over several epochs, SIGTERM and SIGKILL among the ways to stop.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
base=$models/llama_untied
steps=60

# set_command METHOD DTYPE: the run of this test
set_command() {
    command="train --model $base/model --data $base/rows.jsonl --format tokens --method $1
        --dtype $2 --max-steps $steps --batch-size 1 --grad-accum 4 --packing false --max-seq-len 64
        --learning-rate 1e-3 --save-steps 1 --save-total-limit 2 --threads 1 --progress none"
    if [ "$1" = lora ]; then
        command="$command --lora-dropout 0.1"
        result=adapter_model.safetensors
    else
        result=model.safetensors
    fi
}

# interrupt LABEL AT SIGNAL: stop after AT logged steps, resume, compare
interrupt() {
    label=$1 at=$2 signal=$3
    rm -rf part
    # shellcheck disable=SC2086
    "$helpers/signal_when" part/metrics.jsonl "$at" "$signal" "$PENSTOCK" $command --output part \
        >out 2>err
    rc=$?
    if [ "$rc" -ne $((128 + signal)) ]; then
        { echo "exit $rc"; cat out err; } >log
        not_ok "$label: stopped"
        return
    fi
    done_steps=$(find part -maxdepth 1 -name 'checkpoint-*' | sed 's/.*-//' | sort -n | tail -n 1)
    # shellcheck disable=SC2086
    if ! penstock $command --output part --resume auto --progress plain; then
        not_ok "$label: resumes from step ${done_steps:-none}"
        return
    fi
    check "$label: same bits" same_result
}

# The resumed run went on from the newest checkpoint, logged each step once, with the losses of the whole run, and
# ended with its bits.
same_result() {
    grep "at step $done_steps\$" err || return 1
    losses whole >want
    losses part >have
    cmp want have && [ "$(wc -l <have)" -eq $steps ] && cmp "whole/$result" "part/$result"
}
losses() { sed -n 's/.*"step": *\([0-9]*\),.*"loss": *\([^,}]*\).*/\1 \2/p' "$1/metrics.jsonl"; }

for case in lora:bf16 full:fp32 full:bf16; do
    method=${case%:*} dtype=${case#*:}
    set_command "$method" "$dtype"
    rm -rf whole
    # shellcheck disable=SC2086
    if ! penstock $command --output whole; then
        not_ok "$method $dtype: train runs"
        continue
    fi
    at=1
    for signal in 15 9 15 9 9 15 9; do # two steps an epoch: odd and even ones, an epoch's end too
        interrupt "$method $dtype, signal $signal after $at steps" $at $signal
        at=$((at + 3))
    done
done

# What may change on resuming and what may not.
set_command lora fp32
rm -rf part
# shellcheck disable=SC2086
"$helpers/signal_when" part/metrics.jsonl 2 15 "$PENSTOCK" $command --output part >out 2>err
# shellcheck disable=SC2086
expect_exit "another learning rate on resuming: exit 2" 2 $command --output part --resume auto \
    --learning-rate 2e-3
check "the message names the option" grep -q 'learning.rate' err
# shellcheck disable=SC2086
expect_exit "another thread count on resuming: exit 0" 0 $command --output part --resume auto --threads 2
finish

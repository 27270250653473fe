# Tokens after the last label of each document are left out of training (--drop-unlabelled): the same gradients and
# losses to fp32 rounding, fewer tokens computed, evaluation untouched, the same bits wherever everything lies.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
. "$PENSTOCK_ROOT/tests/helpers/adapter_runs.sh"
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
mkdir disk && cp -r "$models/llama_untied/model" disk/untied && cp -r "$models/qwen2_tied/model" disk/tied
disk=$PWD/disk
cd "$scratch" || exit 1
# Rows of 8 to 30 tokens; labels of none, of the first half, or of a piece in the middle.
awk 'BEGIN { x = 7
    for (r = 0; r < 9; r++) {
        x = (x * 16807) % 2147483647; n = 8 + int(x / 64) % 23; ids = ""; labels = ""
        for (i = 0; i < n; i++) {
            x = (x * 16807) % 2147483647; id = int(x / 64) % 80
            ids = ids (i ? "," : "") id
            on = r % 3 == 0 || (r % 3 == 1 && i < n / 2) || (r % 3 == 2 && i > n / 4 && i < n / 2)
            labels = labels (i ? "," : "") (on ? id : -100)
        }
        printf "{\"input_ids\":[%s],\"labels\":[%s]}\n", ids, labels
    } }' >rows.jsonl
# One step over all rows.
step() { # DIR ARG...
    dir=$1
    shift
    rm -rf "$dir"
    # shellcheck disable=SC2086
    penstock train --model "$model" --data rows.jsonl --format tokens --max-seq-len 40 --batch-size 3 \
        --grad-accum 3 --max-steps 1 --learning-rate 1e-3 --threads 1 --progress none --shuffle false \
        --dtype fp32 --eval-data rows.jsonl --output "$dir" --dump-grads "$dir.grads" $options "$@"
}
metric() { sed -n "s/^{\"step\":1,\"epoch\".*\"$2\":\([^,]*\),.*/\1/p" "$1/metrics.jsonl"; }
agrees() { # NAME
    step whole --drop-unlabelled false || not_ok "$1: whole"
    step short || not_ok "$1: short"
    check "$1: the same gradients" st_compare whole.grads short.grads --rtol 1e-6
    check "$1: the same loss" within "$(metric whole loss)" "$(metric short loss)" 1e-6
    check "$1: the same tokens of data" test "$(metric whole tokens)" -eq "$(metric short tokens)"
    check "$1: some of them not computed" test "$(metric short dropped_tokens)" -gt 40
    check "$1: none without it" test "$(metric whole dropped_tokens)" -eq 0
}
for packing in true false; do
    model=$disk/untied
    options="--packing $packing --lora-r 3 --lora-target all,embed_tokens,lm_head"
    agrees "lora, packing $packing"
    options="--packing $packing --method full"
    agrees "full, packing $packing"
    model=$disk/tied
    options="--packing $packing --method dora --lora-r 2 --lora-layers last:1"
    agrees "dora of the last layer, packing $packing"
done
# Evaluation sees every token, and the same weights give the same bits.
options="--packing true --lora-r 3"
step whole --learning-rate 0 --drop-unlabelled false
step short --learning-rate 0
for run in whole short; do grep -o '"eval_loss":[^,]*' $run/metrics.jsonl | head -n 1 >$run.eval; done
check "evaluation: the same bits" cmp whole.eval short.eval
check "and there is one" test -s whole.eval

options="--lora-r 3 --lora-dropout 0.1"
run ref --strategy resident
check "resident" test "$rc" -eq 0
check "tokens are left out" sh -c '! grep "^{.step" ref/metrics.jsonl | grep -q "dropped_tokens\":0,"'
same "streamed" --strategy stream-lora --prefetch-depth 1 --import never
same "recomputed" --strategy resident --offload-activations recompute
same "emu, streamed" --strategy stream-lora --device emu --offload-weights disk
same "threads" --strategy resident --threads 2
resumes "resumed"
refused "mezo makes no gradient" "mezo" --optimizer mezo --method full --drop-unlabelled true
expect_exit "a dry run" 0 train --model "$model" --data rows.jsonl --format tokens --output dry --dry-run
check "says how many" grep -q "after the last label not computed" out
finish

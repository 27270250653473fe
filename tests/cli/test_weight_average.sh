# --ema-decay: the result is the average of the weights after each step, wherever things lie.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
model=$models/llama_untied/model
rows=$models/llama_untied/rows.jsonl
base="train --model $model --data $rows --eval-data $rows --format tokens --max-steps 4 --batch-size 1 --grad-accum 2
    --packing false --max-seq-len 64 --save-steps 1 --save-total-limit 9 --threads 1 --progress none"
full="$base --method full --dtype fp32 --learning-rate 1e-2"

row() { "$helpers/st_print" "$1" "$2" 1; }

# averaged DIR FILE TENSOR: row 1 of the result is the average of the rows of its checkpoints, and not the last of them
averaged() {
    for k in 1 2 3 4; do row "$1/checkpoint-$k/$2" "$3" >"w$k"; done
    row "$1/$2" "$3" >have
    paste -d ' ' w1 w2 w3 w4 have | awk '{ a = $1; for (k = 2; k <= 4; k++) a = 0.75 * a + 0.25 * $k
        d = $5 - a; if (d < 0) d = -d; if (!(d <= m)) m = d; e = $5 - $4; if (e < 0) e = -e; if (e > far) far = e }
        END { print NR " values, off by " m ", from the last weights by " far; exit !(NR > 0 && m <= 2e-7 && far > 1e-4) }'
}

# shellcheck disable=SC2086
penstock $full --output plain || not_ok "trains without"
# shellcheck disable=SC2086
penstock $full --ema-decay 0.75 --output whole || not_ok "trains with"
check "full: the result is the average" averaged whole model.safetensors model.layers.0.mlp.up_proj.weight
train_losses plain >a
train_losses whole >b
check "full: the steps are those of a run without" cmp a b
check "full: so are the weights in the checkpoint" cmp plain/model.safetensors whole/checkpoint-4/model.safetensors
shown=$(grep '"eval_loss"' whole/metrics.jsonl | grep -v '"event"' | tail -n 1 | sed 's/.*"eval_loss":\([0-9.]*\).*/\1/')
penstock eval --model whole --data "$rows" --format tokens --dtype fp32 --max-seq-len 64 --json || not_ok "evaluates"
check "full: the last evaluation is that of the result" within "$(json_get out loss)" "$shown" 1e-6

for flags in "--strategy zero-infinity --offload-optimizer disk --offload-weights disk" "--threads 3"; do
    rm -rf other
    # shellcheck disable=SC2086
    penstock $full --ema-decay 0.75 --output other $flags || not_ok "trains with $flags"
    check "$flags: the same bits" same_files whole other
done
cp -r whole part
rm -rf part/checkpoint-3 part/checkpoint-4 part/*.safetensors
# shellcheck disable=SC2086
penstock $full --ema-decay 0.75 --output part --resume part/checkpoint-2 || not_ok "resumes"
check "resumed: the same bits" same_files whole part

# shellcheck disable=SC2086
penstock $base --method lora --learning-rate 1e-2 --ema-decay 0.75 --output lora || not_ok "LoRA trains"
check "LoRA: the adapter is the average" averaged lora adapter_model.safetensors \
    base_model.model.model.layers.0.mlp.up_proj.lora_B.weight
# shellcheck disable=SC2086
expect_exit "with lisa: exit 2" 2 $full --optimizer lisa --ema-decay 0.75 --output none
check "it says why" grep -q 'leave weights alone' err
# shellcheck disable=SC2086
expect_exit "with --save-best: exit 2" 2 $full --save-best --eval-steps 2 --ema-decay 0.75 --output none
finish

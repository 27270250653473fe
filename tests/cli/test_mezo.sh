# MeZO through the tiers: a step at two points in one stream of the weights. The bits of the resident run whatever the
# strategy, the device and what the run was stopped by; each weight that is streamed read once a step, and, where it is
# trained, written once, as the plan says.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1

shape() { # NAME TYPE TIED DTYPE
    cat >"$1.json" <<END
{"model_type":"$2","hidden_size":32,"intermediate_size":80,"num_hidden_layers":4,"num_attention_heads":4,
"num_key_value_heads":2,"head_dim":8,"vocab_size":97,"rms_norm_eps":1e-5,"tie_word_embeddings":$3,
"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"max_position_embeddings":256,"rope_theta":100.0}
END
    check "model $1" penstock init --config "$1.json" --output "$1" --seed 5 --dtype "$4"
}
shape untied llama false bf16
shape tied qwen3 true fp32
# 9 rows in windows of 2 x 2: the last window of an epoch has one micro-batch of one row.
make_rows 9 4 30 97 3 >rows.jsonl
make_rows 5 3 20 97 4 >held_out.jsonl

run() { # DIR ARG...
    dir=$1
    shift
    # shellcheck disable=SC2086
    penstock train --model $model --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 --grad-accum 2 \
        --packing false --optimizer mezo --learning-rate 1e-3 --threads 1 --progress none --save-total-limit 9 \
        --import never --output "$dir" $common "$@"
}
equal() { same_files "$1" "$2" && same_losses "$1" "$2"; }
same() { # ARG...: the bits of the reference
    rm -rf other
    run other "$@" && equal ref other >log 2>&1
    if [ $? -eq 0 ]; then ok "$label: $*"; else not_ok "$label: $*"; fi
}
reference() { # MODEL LABEL ARG...
    model=$1 label=$2
    shift 2
    common=$*
    rm -rf ref
    check "$label" run ref --strategy resident
}
field() { sed -n "s/.*\"step\":$2,.*\"$3\":\([0-9]*\),.*/\1/p" "$1/metrics.jsonl" | head -n 1; }

evals="--epochs 2 --eval-data held_out.jsonl --eval-steps 2 --save-steps 3"
for type in "untied bf16" "untied fp32" "tied bf16" "tied fp32"; do
    # shellcheck disable=SC2086
    set -- $type
    reference "$1" "full, $type" --method full --dtype "$2" $evals
    same --strategy resident --device emu
    same --strategy update-next-forward
    same --strategy update-next-forward --offload-weights disk
    same --strategy update-next-forward --device emu
done
check "weights have moved" sh -c "! cmp ref/checkpoint-3/model.safetensors ref/model.safetensors"
reference untied "full, rounded at random" --method full --stochastic-rounding $evals
same --strategy update-next-forward --offload-weights disk
reference untied "full, some layers" --method full --train-layers last:2 $evals
same --strategy update-next-forward --offload-weights disk
same --strategy update-next-forward --device emu
reference untied "full, averaged" --method full --ema-decay 0.9 $evals
same --strategy update-next-forward
for method in "lora --lora-r 4" "lora --lora-r 4 --modules-to-save lm_head,embed_tokens" "dora --lora-r 4" ia3 norms; do
    reference untied "$method" --method $method $evals
    same --strategy stream-lora --offload-weights disk
    same --strategy horizontal --device emu
done

# --- read once, and written once ---
bytes() { # NAME WANTED-READ WANTED-WRITTEN: of a step amid others, and of the plan
    read=$(field other 3 disk_read_bytes) written=$(field other 3 disk_write_bytes)
    echo "read $read, written $written, wanted $2, $3; planned $(json_get other/plan.json traffic_bytes.disk_read)," \
        "$(json_get other/plan.json traffic_bytes.disk_write)" >log
    if [ "$read" -eq "$2" ] && [ "$written" -eq "$3" ] &&
        [ "$(json_get other/plan.json traffic_bytes.disk_read)" -eq "$2" ] &&
        [ "$(json_get other/plan.json traffic_bytes.disk_write)" -eq "$3" ]; then ok "$1"; else not_ok "$1"; fi
}
rm -rf other
model=untied common="--max-steps 4"
run other --method full --strategy update-next-forward --device emu --offload-weights disk --stochastic-rounding
# In bf16, each tensor on pages of its own: nine of a layer, three of them of two pages; embedding; head and norm.
whole=$((4 * (6 * 4096 + 3 * 8192) + 8192 + 12288))
bytes "full fine-tuning: every weight is read once and written once" "$whole" "$whole"
common="--max-steps 4 --grad-accum 4"
rm -rf other
run other --method lora --lora-r 4 --strategy stream-lora --device emu --offload-weights disk
once=$(field other 3 disk_read_bytes)
common="--max-steps 4 --grad-accum 4 --prefetch-depth 1"
rm -rf other
run other --method lora --lora-r 4 --strategy horizontal --device emu --offload-weights disk
each=$(field other 3 disk_read_bytes)
echo "$once bytes for four micro-batches together, $each one after the other" >log
check "adapters: micro-batches one after the other read it again" test "$each" -gt $((3 * once))
check "adapters: the base is read once for all micro-batches and both points" \
    test "$once" -le "$(wc -c <untied/model.safetensors)"

# --- stopped ---
reference untied "stopped" --method full --epochs 3 --save-steps 2
for s in resident update-next-forward; do
    rm -rf other && cp -r ref other && rm -rf other/checkpoint-[4-9] other/*.safetensors
    check "resumed from a checkpoint under $s" run other --strategy $s --resume other/checkpoint-2
    check "$s: the same bits" equal ref other
done
reference untied "killed" --method full --epochs 3
for device in cpu emu; do
    rm -rf other
    for lines in 2 4 6; do
        resume=""
        if [ -f other/metrics.jsonl ]; then resume=--resume; fi
        # shellcheck disable=SC2086
        "$helpers/signal_when" other/metrics.jsonl $lines 9 "$PENSTOCK" train --model untied --data rows.jsonl --format tokens \
            --max-seq-len 32 --batch-size 2 --grad-accum 2 --packing false --optimizer mezo --learning-rate 1e-3 \
            --threads 1 --progress none --save-total-limit 9 --import never --output other $common \
            --strategy update-next-forward --device $device --throttle compute=1e8 $resume >log 2>&1
        check "$device: killed after $lines lines" test $? -eq 137
    done
    check "$device: killed and resumed" run other --strategy update-next-forward --device $device --resume
    check "$device: killed, the same bits" equal ref other
done

# --- what it does not have ---
model=untied common="--max-steps 2 --method full"
rm -rf other
run other --strategy vertical
check "no backward pass to update in: exit 2" test "$rc" -eq 2
check "the message names what can be had" grep -q update-next-forward err
run other --max-grad-norm 1
check "nothing to clip: exit 2" test "$rc" -eq 2
finish

# train --adapter goes on from the values of a PEFT adapter; one that fits another model is refused.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
tiny=$models/llama_untied
base="--model $tiny/model --data $tiny/rows.jsonl --format tokens --dtype fp32"
train() { # DIR ARG...
    train_dir=$1
    shift
    # shellcheck disable=SC2086
    penstock train $base --progress none --output "$train_dir" "$@"
}

# From PEFT's own adapter: the first loss is that of the adapted model, not of the base.
# shellcheck disable=SC2086
{
    penstock eval $base --json
    plain=$(json_get out loss)
    penstock eval $base --adapter "$tiny/adapter" --json
    adapted=$(json_get out loss)
}
check "adapter and base differ" test -n "$adapted" -a "$adapted" != "$plain"
train on --adapter "$tiny/adapter" --lora-dropout 0 --grad-accum 64 --max-steps 2 --learning-rate 1e-3
check "train --adapter: exit 0" test "$rc" -eq 0
check "the first loss is the adapter's" within \
    "$(sed -n 's/^{"step":1,.*"loss":\([^,]*\),.*/\1/p' on/metrics.jsonl)" "$adapted" 1e-6
check "the values have changed" test -n "$(cmp on/adapter_model.safetensors "$tiny/adapter/adapter_model.safetensors")"
train still --adapter "$tiny/adapter" --max-steps 1 --learning-rate 0
check "at rate 0 every value stays" st_compare "$tiny/adapter/adapter_model.safetensors" \
    still/adapter_model.safetensors --atol 0
for field in r lora_alpha; do
    check "$field stays" test "$(json_get still/adapter_config.json $field)" = \
        "$(json_get "$tiny/adapter/adapter_config.json" $field)"
done

# From our own: rank, targets and layers are the adapter's.
train first --lora-r 3 --lora-alpha 5 --lora-target q_proj,down_proj --lora-layers last:1 --max-steps 3 \
    --learning-rate 1e-2
check "an own adapter" test "$rc" -eq 0
train second --adapter first --max-steps 1 --learning-rate 0
check "goes on" test "$rc" -eq 0
check "with the same tensors" cmp first/adapter_model.safetensors second/adapter_model.safetensors
train third --adapter first --max-steps 3 --learning-rate 1e-2
check "and learns" test -n "$(cmp first/adapter_model.safetensors third/adapter_model.safetensors)"
train dropout --adapter first --max-steps 1 --learning-rate 1e-3 --lora-dropout 0.3
check "--lora-dropout counts" test "$(json_get dropout/adapter_config.json lora_dropout)" != 0

# Stopped and resumed, with --adapter given: as if it had not stopped.
train whole --adapter first --max-steps 6 --learning-rate 1e-2 --save-steps 3 --save-total-limit 9
mkdir part && cp -r whole/checkpoint-3 part/
train part --adapter first --max-steps 6 --learning-rate 1e-2 --save-steps 3 --save-total-limit 9 --resume
check "resume of a run that went on from an adapter" test "$rc" -eq 0
check "ends with the same bits" cmp whole/adapter_model.safetensors part/adapter_model.safetensors

# What the adapter decides cannot be said again; full training takes none.
for option in "--lora-r 8" "--lora-alpha 2" "--lora-target attn" "--lora-layers last:1" "--method full"; do
    # shellcheck disable=SC2086
    expect_exit "--adapter with $option: exit 2" 2 train $base --output no --adapter first --max-steps 1 $option
done

# The wrong model, and adapters that are not.
refused() { # NAME REGEX ADAPTER [MODEL]
    expect_exit "$1: exit 4" 4 train --model "${4:-$tiny}/model" --data "$tiny/rows.jsonl" --format tokens \
        --dtype fp32 --output no --adapter "$3" --max-steps 1 --progress none
    cp err log
    check "$1: the message says why" grep -qE "$2" err
    check "$1: nothing was made" test ! -e no
}
refused "an adapter of another model" 'lora_[AB].*(shape|no linear)' "$models/qwen3_tied/adapter"
refused "an adapter of a deeper model" 'layers\.[0-9]+.*' "$models/llama3_tied/adapter"
refused "no such adapter" 'nowhere' nowhere
refused "a model directory for an adapter" 'adapter_config.json' "$tiny/model"
cp -r first cut
size=$(wc -c <first/adapter_model.safetensors)
head -c $((size - 4)) first/adapter_model.safetensors >cut/adapter_model.safetensors
refused "a truncated adapter" 'cut/adapter_model.safetensors' cut
cp -r first nan
printf '\000\000\300\177' | dd of=nan/adapter_model.safetensors bs=1 seek=$((size - 4)) conv=notrunc 2>/dev/null
refused "an adapter with NaN" 'NaN' nan
sed 's/"LORA"/"LOHA"/' first/adapter_config.json >cut/adapter_config.json
refused "an adapter of another kind" 'LOHA' cut
finish

# The plan's peak is neither broken nor twice what is used; the smallest budget that a refusal names works each time.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
cat >config.json <<'JSON'
{"architectures":["Qwen3ForCausalLM"],"model_type":"qwen3","hidden_size":128,"intermediate_size":320,
 "num_hidden_layers":3,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":32,"vocab_size":2048,
 "max_position_embeddings":8192,"rms_norm_eps":1e-6,"rope_theta":10000.0,"tie_word_embeddings":true,
 "hidden_act":"silu","attention_bias":false,"torch_dtype":"bfloat16"}
JSON
check "a model" "$PENSTOCK" init --config config.json --output model --seed 5 --dtype bf16
make_rows 2 3000 3000 2048 3 >rows.jsonl
args="train --model model --data rows.jsonl --format tokens --max-seq-len 4096 --max-steps 1 --grad-accum 2
    --packing false --progress none --threads 2 --output run"
for mode in "lora bf16 host" "lora fp32 recompute" "full fp32 recompute" "full bf16 host"; do
    # shellcheck disable=SC2086
    set -- $mode
    rm -rf run
    # shellcheck disable=SC2086
    check "$mode" penstock $args --method "$1" --dtype "$2" --offload-activations "$3"
    predicted=$(json_get --last run/metrics.jsonl predicted_peak_bytes.host)
    measured=$(json_get --last run/metrics.jsonl peak_bytes.host)
    check "$mode: peak within the plan, and over half of it" awk -v p="$predicted" -v m="$measured" \
        'BEGIN { print "predicted", p, "measured", m; exit !(m <= p && m >= p / 2) }'
    check "$mode: plan.json says the same" test "$(json_get run/plan.json peak_bytes.host)" = "$predicted"
done
# The arena of an emulated device is not host memory.
rm -rf run
# shellcheck disable=SC2086
check "an emulated device" penstock $args --device emu --gpu-mem 2GiB --offload-activations device
device=$(json_get --last run/metrics.jsonl peak_bytes.device) host=$(json_get --last run/metrics.jsonl peak_bytes.host)
check "its memory is not the host's" awk -v d="$device" -v h="$host" 'BEGIN { print d, h; exit !(h > 0 && h < d / 2) }'
check "nor planned as such" test "$host" -le "$(json_get --last run/metrics.jsonl predicted_peak_bytes.host)"

# A copy of each file in memory is a part of the process.
rm -rf run
# shellcheck disable=SC2086
check "--storage ram" penstock $args --strategy stream-lora --storage ram
ram=$(json_get --last run/metrics.jsonl predicted_peak_bytes.host)
rm -rf run
# shellcheck disable=SC2086
check "--storage threads" penstock $args --strategy stream-lora --storage threads
check "the copies are planned" awk -v r="$ram" -v t="$(json_get --last run/metrics.jsonl predicted_peak_bytes.host)" \
    -v f="$(stat -c %s model/model.safetensors)" 'BEGIN { d = r - t - f; print r, t, f; exit !(d > -8e5 && d < 8e5) }'
# shellcheck disable=SC2086
{
    rm -rf run
    expect_exit "a budget that is too small: exit 3" 3 $args --host-mem 30MiB
    need=$(grep -o -- '--host-mem [0-9]*MiB' err | grep -o '[0-9]*')
    check "nothing was made" test ! -e run
    for turn in 1 2 3 4; do
        rm -rf run
        check "the named budget, ${need:-none} MiB, works: $turn" penstock $args --host-mem "${need}MiB"
        measured=$(json_get --last run/metrics.jsonl peak_bytes.host)
        check "and is kept: $turn" test "$measured" -le $((need << 20))
    done
    rm -rf run
    expect_exit "4 MiB less are refused: exit 3" 3 $args --host-mem $((need - 4))MiB
}
check "activations were recomputed to fit" penstock train --model model --data rows.jsonl --format tokens \
    --max-seq-len 4096 --max-steps 1 --grad-accum 2 --packing false --threads 2 --output run --dry-run \
    --host-mem "${need}MiB" --json
check "says the plan" test "$(json_get out recompute)" = true
finish

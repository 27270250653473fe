# penstock plan: from a config.json alone, for this machine and for others; what it names as enough is enough; its
# placement is one that train takes.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
shapes=$PENSTOCK_ROOT/examples/shapes
hardware=$PENSTOCK_ROOT/examples/hardware

# field NAME of the last plan
field() { json_get out "$1"; }

for size in 8b 70b 405b; do
    check "$size plans for another machine" penstock plan --model "$shapes/llama-3-$size" --max-seq-len 2048 \
        --grad-accum 16 --hardware "$hardware/rtx4090-nvme7.json" --json
    check "$size fits" test "$(field fits)" = true
    for key in step_s tokens_per_s tokens_per_pass slowdown hours_per_10m_tokens evaluation.tokens_per_s; do
        check "$size: $key is above 0" awk -v v="$(field $key)" 'BEGIN { print v; exit !(v > 0) }'
    done
    check "$size stays in the memory of the profile" awk -v d="$(field peak_bytes.device)" \
        -v h="$(field peak_bytes.host)" 'BEGIN { print d, h; exit !(d <= 24 * 2^30 && h <= 64 * 2^30) }'
    check "$size: a tier for each layer" test "$(field 'placement.weights.layers.#')" = \
        "$(json_get "$shapes/llama-3-$size/config.json" num_hidden_layers)"
done
check "70b on the slower disk" penstock plan --model "$shapes/llama-3-70b" --max-seq-len 2048 --grad-accum 2 \
    --hardware "$hardware/rtx4090-nvme3.json" --json
slow=$(field step_s) slow_n=$(field break_even_tokens)
check "70b on the faster disk" penstock plan --model "$shapes/llama-3-70b" --max-seq-len 2048 --grad-accum 2 \
    --hardware "$hardware/rtx4090-nvme7.json" --json
check "few tokens a pass: the disk decides" awk -v s="$slow" -v f="$(field step_s)" -v n="$slow_n" \
    -v t="$(field tokens_per_pass)" 'BEGIN { print s, f, n, t; exit !(t < n && s > 1.3 * f) }'

# What does not fit names what would.
for where in "" "--gpu-mem 1MiB"; do
    # shellcheck disable=SC2086
    expect_exit "tiny budgets ${where:-on cpu}: exit 3" 3 plan --model "$shapes/tinyllama-1.1b.json" --host-mem 40MiB \
        $where --json
    check "says so" test "$(field fits)" = false
    host=$(field needs.host) device=$(field needs.device)
    [ "$device" = 0 ] || where="--gpu-mem $((device >> 20))MiB"
    # shellcheck disable=SC2086
    check "the budgets named fit: $host $device" penstock plan --model "$shapes/tinyllama-1.1b.json" \
        --host-mem "$((host >> 20))MiB" $where
    # shellcheck disable=SC2086
    expect_exit "12 MiB less do not" 3 plan --model "$shapes/tinyllama-1.1b.json" \
        --host-mem "$(((host >> 20) - 12))MiB" $where
done

# A text report for a person.
check "report" penstock plan --model "$shapes/llama-3-8b/config.json" --host-mem 8GiB
for word in "N\* is [0-9]* tokens" "tokens/s" "written to the SSD" "where it lives" "^strategy  stream-lora" \
    "^ *resident needs" "8.03 billion parameters, 41.94 million trained" "without the process itself"; do
    check "report has: $word" grep -q -- "$word" out
done

# Errors.
expect_exit "unknown strategy: exit 2" 2 plan --model "$shapes/llama-3-8b" --strategy vertical
expect_exit "full fine-tuning is not streamed: exit 2" 2 plan --model "$shapes/llama-3-8b" --method full \
    --strategy stream-lora --host-mem 400GiB
echo '{"version":1}' >bad.json
expect_exit "a bad profile: exit 4" 4 plan --model "$shapes/llama-3-8b" --hardware bad.json
expect_exit "no model: exit 4" 4 plan --model nowhere

# The plan with rows is that of the run, and its placement one that train takes.
model=$models/llama_untied/model
make_rows 4 40 60 96 3 >rows.jsonl
args="--model $model --data rows.jsonl --format tokens --max-seq-len 64 --grad-accum 2 --max-steps 3 --threads 1"
# shellcheck disable=SC2086
{
    check "plan with rows" penstock plan $args --strategy stream-lora --json
    check "knows the steps" test "$(field steps)" = 3
    check "keeps something on the disk" grep -q '"disk"' out
    json_get out placement >placement.json
    check "train takes the placement" penstock train $args --placement placement.json --output run --progress none
    check "plan takes it too" penstock plan $args --placement placement.json --json
    check "and only that" test "$(json_get out 'candidates.#')" = 1
    sed 's/"keep": *true/"keep":7/; s/"keep": *false/"keep":7/' placement.json >bad.json
    awk '{ while (sub(/"keep": *(true|false)/, "\"keep\":\"R" 1 + i % 3 "\"")) i++; print }' placement.json >levels.json
    check "levels of recomputation are planned" penstock plan $args --placement levels.json --json
    check "and told" sh -c "grep -q 'R1 [0-9]*, R2 [0-9]*' out && grep -q '\"keep\": *\"R2\"' out"
    check "train takes them" penstock train $args --placement levels.json --output levels --progress none
    check "the adapter is the same" cmp run/adapter_model.safetensors levels/adapter_model.safetensors
    check "a run's plan.json holds the same placement" test "$(json_get run/plan.json placement)" = \
        "$(json_get placement.json '')"
    check "and stands for it" penstock train $args --placement run/plan.json --output again --progress none
    check "the same adapter" cmp run/adapter_model.safetensors again/adapter_model.safetensors
    check "train takes what plan exports" penstock plan $args --strategy stream-lora --export-schedule schedule.json \
        --export-placement exported.json
    check "schedule and placement" penstock train $args --schedule schedule.json --placement exported.json \
        --output both --progress none
    check "the same adapter again" cmp run/adapter_model.safetensors both/adapter_model.safetensors
    sed 's/"group": *[0-9]*/"group":2/; s/"x_ring": *[0-9]*/"x_ring":3/' placement.json >two.json
    check "a placement without layer-major" penstock train $args --placement two.json --ablate layer-major \
        --output one --progress plain
    check "is limited to group 1" grep -q '^plan .*group 1,' out
    check "and says so" grep -q "group 1 in place of the placement's 2" err
    expect_exit "a missing placement: exit 2" 2 train $args --placement none.json --output x
    expect_exit "a missing schedule: exit 2" 2 train $args --schedule none.json --output x
    check "no empty spill directory stays" test ! -e run/spill
    check "boundaries on the disk" penstock train $args --strategy stream-lora --offload-activations disk --output spilled
    check "the spill directory is gone too" test ! -e spilled/spill
    check "the files that ram copies are planned" penstock train $args --strategy stream-lora --storage ram --output ram
    ram=$(sed -n 's/.*{"class":"files in memory","tier":"host","bytes":\([0-9]*\)}.*/\1/p' ram/plan.json)
    check "as large as they are" test "$ram" = "$(stat -Lc %s "$model/model.safetensors")"
    check "on an emulated device" penstock train $args --device emu --gpu-mem 600MiB --host-mem 300MiB --output emu \
        --progress none
    expect_exit "a bad placement: exit 4" 4 plan $args --placement bad.json
    check "is named" grep -q 'bad.json' err
}
finish

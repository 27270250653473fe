# Biases trained beside a LoRA (--lora-bias): outputs and gradients as PEFT computes them, files that PEFT agrees with,
# merged equals unmerged, the same bits resident, streamed, on `emu` and resumed.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
. "$PENSTOCK_ROOT/tests/helpers/golden_adapters.sh"
. "$PENSTOCK_ROOT/tests/helpers/adapter_runs.sh"

for case in biases_all biases_adapted; do
    of_case $case
    agrees_with_peft
done
rtol=1e-3 # the base is F16, which rounds merged weights
merges "biases_adapted: merged" "$case_dir/adapter"
rm -rf merged
penstock export --model "$base/model" --format hf --output merged --adapter "$case_dir/adapter" \
    --adapter "$case_dir/adapter" --weights 0.25,0.75 && logits_are "biases: merged with itself" --model merged
rtol=
for case in lora_biases pissa_biases; do
    of_case $case
    logits_are "$case: PEFT computes the same from its files" --model "$base/model" --adapter "$case_dir/adapter"
    rm -rf again && penstock export --model "$base/model" --adapter "$case_dir/adapter" --format peft --output again
    check "$case: exported again, the same bits" cmp "$case_dir/adapter/adapter_model.safetensors" \
        again/adapter_model.safetensors
    rm -rf plain && cp -r "$case_dir/adapter" plain && rm -f plain/runtime_adapter.*
    logits_are "$case: read as plain LoRA" --model "$base/model" --adapter plain
done

scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
mkdir disk && cp -r "$models/qwen2_tied/model" disk/model
model=$PWD/disk/model
cd "$scratch" || exit 1
make_rows 9 6 30 80 3 >rows.jsonl
for bias in all lora_only; do
    options="--lora-r 3 --lora-bias $bias --lora-target q_proj,v_proj --lora-layers last:1 --loraplus-ratio 4"
    run ref --strategy resident
    check "$bias: resident" test "$rc" -eq 0
    same "$bias: streamed" --strategy stream-lora --prefetch-depth 1 --import never
    same "$bias: recomputed" --strategy resident --offload-activations recompute
    same "$bias: emu, streamed" --strategy stream-lora --device emu --offload-weights disk
    resumes "$bias: resumed"
done
refused "biases where there are none" "no linear" --model "$models/llama_untied/model" --lora-bias all
refused "biases of linears without any" "no adapted linear" --lora-bias lora_only --lora-target o_proj
refused "biases beside ia3" "LoRA family" --method ia3 --lora-bias all
refused "no such choice" "lora_only" --lora-bias some
finish

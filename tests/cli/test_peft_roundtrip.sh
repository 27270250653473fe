# Adapters as PEFT writes and reads them: exact keys and shapes, an adapter that passes through Penstock
# keeps its bits, and the merged model has the logits of base plus adapter.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"

list() { "$helpers/st_print" "$1/adapter_model.safetensors"; }
same_list() {
    list "$1" >want && list "$2" >have && diff want have
}
config_is() { # DIR KEY VALUE
    have=$(json_get "$1/adapter_config.json" "$2")
    echo "$2 is '$have', expected '$3'"
    [ "$have" = "$3" ]
}
has_no_new_keys() { # keys that older PEFT refuses
    ! grep -E '"(eva_config|corda_config|trainable_token_indices|qalora|arrow_config)' \
        "$1/adapter_config.json"
}

for model in llama_untied llama3_tied mistral_window qwen2_tied qwen3_untied; do
    dir=$models/$model r=$(json_get "$models/$model/adapter/adapter_config.json" r)
    rm -rf run grads.safetensors
    penstock train --model "$dir/model" --output run --data "$dir/rows.jsonl" --format tokens \
        --method lora --lora-r "$r" --lora-alpha 8 --dtype fp32 --max-steps 1 --progress none
    if [ "$rc" -ne 0 ]; then
        not_ok "$model: train runs"
        continue
    fi
    check "$model: a trained adapter has PEFT's keys, shapes and types" same_list "$dir/adapter" run
    check "$model: config says LORA" config_is run peft_type LORA
    check "$model: config has the rank" config_is run r "$r"
    check "$model: config has alpha" within "$(json_get run/adapter_config.json lora_alpha)" 8 0
    check "$model: config has the task" config_is run task_type CAUSAL_LM
    check "$model: config lists seven linears" config_is run target_modules.# 7
    check "$model: config has no key that older PEFT refuses" has_no_new_keys run

    rm -rf again
    if penstock export --model "$dir/model" --adapter "$dir/adapter" --format peft --output again; then
        check "$model: an exported adapter keeps its bits" st_compare \
            "$dir/adapter/adapter_model.safetensors" again/adapter_model.safetensors --atol 0 --rtol 0
    else
        not_ok "$model: export peft runs"
    fi
done

# Training on from an adapter with learning rate 0 gives the same adapter.
dir=$models/llama_untied
rm -rf run
if penstock train --model "$dir/model" --adapter "$dir/adapter" --output run --format tokens \
    --data "$dir/rows.jsonl" --method lora --dtype fp32 --max-steps 2 --learning-rate 0 --progress none; then
    check "learning rate 0 leaves the adapter's bits" st_compare \
        "$dir/adapter/adapter_model.safetensors" run/adapter_model.safetensors --atol 0 --rtol 0
else
    not_ok "train with learning rate 0 runs"
fi

# Merging: the fp32 models only, a bf16 base rounds the sum.
for model in llama_untied mistral_window qwen3_tied; do
    dir=$models/$model
    rm -rf merged logits.safetensors
    if ! penstock export --model "$dir/model" --adapter "$dir/adapter" --format hf --output merged ||
        ! penstock eval --model merged --data "$dir/rows.jsonl" --format tokens --dtype fp32 \
            --logits logits.safetensors; then
        not_ok "$model: export hf and eval run"
        continue
    fi
    check "$model: merged logits" st_compare "$dir/golden.safetensors" logits.safetensors \
        --expected-prefix lora.logits. --rtol 1e-5
    check "$model: config copied byte for byte" cmp "$dir/model/config.json" merged/config.json
    check "$model: side file copied byte for byte" cmp "$dir/model/generation_config.json" \
        merged/generation_config.json
done

# The key of an adapter is checked, not guessed: one with a wrong prefix is refused.
rm -rf bad && cp -r "$models/llama_untied/adapter" bad && chmod -R u+w bad
LC_ALL=C sed 's/base_model.model.model.layers.0.self_attn.q_proj.lora_A/base_model.modem.model.layers.0.self_attn.q_proj.lora_A/' \
    "$models/llama_untied/adapter/adapter_model.safetensors" >bad/adapter_model.safetensors
expect_exit "an adapter with an unknown key is refused" 4 eval --model "$models/llama_untied/model" \
    --adapter bad --data "$models/llama_untied/rows.jsonl" --format tokens
finish

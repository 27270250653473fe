# LoRA on the embedding and on the head: outputs and gradients as PEFT computes them, files that PEFT agrees with, the
# base's function at step 0, merged equals unmerged, the same bits resident, streamed, on `emu` and resumed.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
. "$PENSTOCK_ROOT/tests/helpers/golden_adapters.sh"
. "$PENSTOCK_ROOT/tests/helpers/adapter_runs.sh"
cuda=$PENSTOCK_BUILD/libpenstock_cuda_emu.so

for case in embed embed_tied; do
    of_case $case
    agrees_with_peft
    if [ -e "$cuda" ]; then
        rm -rf run grads
        if PENSTOCK_CUDA_PLUGIN=$cuda penstock train --model "$base/model" --adapter "$case_dir/adapter" \
            --data "$rows" --format tokens --dtype fp32 --max-steps 1 --shuffle false --max-seq-len 160 \
            --output run --dump-grads grads --progress none --packing true --batch-size 1 --grad-accum 8 \
            --device cuda; then
            check "$case: gradients are PEFT's on the emulated CUDA device" st_compare \
                "$case_dir/golden.safetensors" grads --expected-prefix grad. --rtol 1e-5
        else not_ok "$case: train runs on the emulated CUDA device"; fi
    fi
done
of_case embed
merges "embed: merged" "$case_dir/adapter"
rm -rf merged
penstock export --model "$base/model" --format hf --output merged --adapter "$case_dir/adapter" \
    --adapter "$case_dir/adapter" --weights 0.25,0.75 && logits_are "embed: merged with itself" --model merged
of_case lora_embed
logits_are "lora_embed: PEFT computes the same from its files" --model "$base/model" --adapter "$case_dir/adapter"
rm -rf again && penstock export --model "$base/model" --adapter "$case_dir/adapter" --format peft --output again
check "lora_embed: exported again, the same bits" cmp "$case_dir/adapter/adapter_model.safetensors" \
    again/adapter_model.safetensors

# PEFT's files of such adapters hold the base's weights too.
of_case embed
check "the file holds a copy of the head" sh -c \
    "'$helpers/st_print' '$case_dir/adapter/adapter_model.safetensors' | grep -q lm_head.base_layer.weight"
rm -rf other && penstock init --config "$base/model/config.json" --output other --seed 9 --dtype fp32
expect_exit "a copy of another model's weights" 4 eval --model other --data "$rows" --format tokens \
    --adapter "$case_dir/adapter"
check "it says what to do" grep -q "save_embedding_layers=False" err

scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
mkdir disk && cp -r "$models/llama_untied/model" disk/untied && cp -r "$models/qwen2_tied/model" disk/tied
disk=$PWD/disk
cd "$scratch" || exit 1
make_rows 9 6 30 80 3 >rows.jsonl
last_loss() { losses "$1" | sed -n 's/.*"loss":\([^,]*\),.*/\1/p' | tail -n 1; }
for kind in untied tied; do
    model=$disk/$kind
    target=v_proj,embed_tokens
    [ $kind = untied ] && target=v_proj,embed_tokens,lm_head
    for dtype in bf16 fp32; do
        label="$kind $dtype"
        options="--lora-r 3 --lora-dropout 0.1 --loraplus-ratio 4 --lora-target $target --lora-layers last:1 --dtype $dtype"
        run ref --strategy resident
        check "$label: resident" test "$rc" -eq 0
        same "$label: streamed" --strategy stream-lora --prefetch-depth 1 --import never
        same "$label: threads" --strategy resident --threads 2
        same "$label: recomputed" --strategy resident --offload-activations recompute
        same "$label: emu, streamed" --strategy stream-lora --device emu --offload-weights disk
        if [ -e "$cuda" ] && [ $dtype = bf16 ]; then
            export PENSTOCK_CUDA_PLUGIN="$cuda"
            run on_cuda --device cuda
            unset PENSTOCK_CUDA_PLUGIN
            check "$label: runs on the emulated CUDA device" test "$rc" -eq 0
            check "$label: and learns alike" within "$(last_loss ref)" "$(last_loss on_cuda)" 0.03
        fi
        resumes "$label: resumed"
    done
    run zero --learning-rate 0 --max-steps 1 --save-steps 0
    penstock eval --model "$model" --data rows.jsonl --format tokens --dtype fp32 --logits logits
    penstock eval --model "$model" --data rows.jsonl --format tokens --dtype fp32 --logits adapted --adapter zero
    check "$kind: begins as the base" st_compare logits adapted --rtol 1e-7
done
# Generation: adapted and merged give the same tokens.
model=small
cat >small.json <<END
{"model_type":"qwen2","hidden_size":32,"intermediate_size":56,"num_hidden_layers":3,"num_attention_heads":4,
"num_key_value_heads":2,"vocab_size":261,"rms_norm_eps":1e-5,"tie_word_embeddings":false,
"hidden_act":"silu","bos_token_id":257,"eos_token_id":258,"max_position_embeddings":256,"rope_theta":1000.0}
END
penstock init --config small.json --output small --seed 5 --dtype fp32 \
    --tokenizer "$PENSTOCK_ROOT/tests/golden/byte_tokenizer"
printf 'one two\nthree\na longer third one\n' >prompts.txt
generated() { # FILE ARG...
    to=$1
    shift
    penstock generate --prompts prompts.txt --max-new-tokens 12 --temperature 0 --dtype fp32 --json --threads 1 "$@"
    grep -o '"ids":[^]]*' out >"$to"
}
options="--lora-r 3 --lora-target embed_tokens,lm_head --learning-rate 5e-2 --dtype fp32 --save-steps 0"
run ref
rm -rf merged && penstock export --model small --adapter ref --format hf --output merged
generated base.ids --model small
generated adapted.ids --model small --adapter ref
generated merged.ids --model merged
generated streamed.ids --model small --adapter ref --strategy stream-lora --prefetch-depth 1
check "generates as merged" cmp adapted.ids merged.ids
check "generates as streamed" cmp adapted.ids streamed.ids
check "and not as the base" sh -c 'test -s adapted.ids && ! cmp -s base.ids adapted.ids'

model=$disk/untied
refused "adapted and saved whole" "one of both" --lora-target lm_head --modules-to-save lm_head
refused "a method that does not adapt the embedding" "dora does not" --method dora --lora-target q_proj,embed_tokens
refused "a method that does not adapt the head" "vera does not" --method vera --lora-target lm_head
refused "a module that is not there" "embed_tokens lm_head" --lora-target q_proj,norm
model=$disk/tied
refused "the head of a tied model" "one tensor" --lora-target lm_head
options="--lora-r 2 --lora-target embed_tokens --max-steps 1"
run ref
expect_exit "merging into a tied embedding" 4 export --model "$model" --adapter ref --format hf --output bad
check "it names the other format" grep -q "format peft" err
finish

# Every adapter method: outputs and gradients as PEFT computes them, files that PEFT agrees with, the base's
# function at step 0, merged equals unmerged, and the same bits resident, streamed, on `emu` and resumed.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
. "$PENSTOCK_ROOT/tests/helpers/golden_adapters.sh"
cuda=$PENSTOCK_BUILD/libpenstock_cuda_emu.so

# --- golden adapters: 1e-5 relative in norm, per tensor ---
for case in dora dora_bias patterns vera ia3 ia3_bias norms saved lowest_down lowest_gate lowest_o; do
    of_case $case
    agrees_with_peft
    case $case in dora_bias | vera | ia3) emulated=$cuda ;; *) emulated=none ;; esac
    if [ -e "$emulated" ]; then
        rm -rf run grads
        if PENSTOCK_CUDA_PLUGIN=$cuda penstock train --model "$base/model" --adapter "$case_dir/adapter" \
            --data "$rows" --format tokens --dtype fp32 --max-steps 1 --shuffle false --max-seq-len 160 \
            --output run --dump-grads grads --progress none --packing true --batch-size 1 --grad-accum 8 \
            --device cuda; then
            check "$case: gradients are PEFT's on the emulated CUDA device" st_compare \
                "$case_dir/golden.safetensors" grads --expected-prefix grad. --rtol 1e-5
        else not_ok "$case: train runs on the emulated CUDA device"; fi
    fi
    case $case in
    *_bias) ;; # its base is F16, which rounds the merged weights
    *) merges "$case: merged" "$case_dir/adapter" ;;
    esac
done
for case in dora_own vera_own ia3_own norms_own lora-fa pissa olora olora_saved nlora slora inttune bias; do
    of_case $case
    logits_are "$case: PEFT computes the same from its files" --model "$base/model" \
        --adapter "$case_dir/adapter"
    rm -rf again && penstock export --model "$base/model" --adapter "$case_dir/adapter" --format peft \
        --output again
    check "$case: exported again, the same bits for PEFT" cmp "$case_dir/adapter/adapter_model.safetensors" \
        again/adapter_model.safetensors
    [ $case = bias ] && continue
    case $case in *_own)
        merges "$case: merged" "$case_dir/adapter"
        continue ;;
    esac
    merges "$case: merged" "$case_dir/adapter"
    rm -rf plain && cp -r "$case_dir/adapter" plain && rm -f plain/runtime_adapter.*
    logits_are "$case: read as plain LoRA" --model "$base/model" --adapter plain
    check "$case: never an initialisation that edits the base" test \
        "$(json_get "$case_dir/adapter/adapter_config.json" init_lora_weights)" = true
done

# --- several adapters, weighted: one half of an adapter twice is the adapter; of two, what each adds ---
of_case dora
rm -rf merged
if penstock export --model "$base/model" --format hf --output merged --adapter "$case_dir/adapter" \
    --adapter "$case_dir/adapter" --weights 0.25,0.75; then
    logits_are "weighted with itself: the adapter" --model merged
else not_ok "export of two adapters runs"; fi
rm -rf merged && penstock export --model "$base/model" --format hf --output merged \
    --adapter "$golden/pissa/adapter" --adapter "$golden/ia3/adapter" --adapter "$case_dir/adapter" \
    --weights=0,0,1 && logits_are "weight 0: as without" --model merged
rm -rf merged && penstock export --model "$base/model" --format hf --output merged \
    --adapter "$golden/vera/adapter" --weights=0
check "weight 0 alone: the base's bits" cmp "$base/model/model.safetensors" merged/model.safetensors
rm -rf one two && penstock export --model "$base/model" --format hf --output one \
    --adapter "$golden/inttune/adapter" --adapter "$golden/lora-fa/adapter" --weights 2,-0.5 &&
    penstock export --model "$base/model" --format hf --output two --adapter "$golden/lora-fa/adapter" \
        --weights=-0.5 && penstock export --model two --format hf --output three \
        --adapter "$golden/inttune/adapter" --weights 2
check "two adapters at once are one after the other" st_compare one/model.safetensors \
    three/model.safetensors --rtol 1e-6
expect_exit "weights of other number" 2 export --model "$base/model" --format hf --output bad \
    --adapter "$golden/vera/adapter" --weights 1,2
expect_exit "weights for an adapter directory" 2 export --model "$base/model" --format peft --output bad \
    --adapter "$golden/vera/adapter" --weights 2

# --- every method: the same bits wherever everything lies, and resumed ---
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
model=$models/qwen2_tied/model
mkdir disk && cp -r "$model" disk/model && model=$PWD/disk/model
cd "$scratch" || exit 1
make_rows 9 6 30 80 3 >rows.jsonl
run() { # DIR ARG...
    dir=$1
    shift
    rm -rf "$dir"
    # shellcheck disable=SC2086
    penstock train --model "$model" --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 \
        --grad-accum 2 --packing false --max-steps 4 --learning-rate 3e-3 --threads 1 --progress none \
        --save-steps 2 --save-total-limit 9 --output "$dir" --dump-grads "$dir.grads" --method $options "$@"
}
equal() { # DIR DIR
    same_files "$1" "$2" && same_losses "$1" "$2" && cmp "$1.grads" "$2.grads"
}
last_loss() { losses "$1" | sed -n 's/.*"loss":\([^,]*\),.*/\1/p' | tail -n 1; }
same() { # NAME ARG...
    name=$1
    shift
    run other "$@"
    if [ "$rc" -ne 0 ]; then not_ok "$name: runs"; else check "$name" equal ref other; fi
}
penstock list adapters
methods=$(cat out)
check "twelve methods" test "$(echo "$methods" | wc -l)" -eq 12
for method in $methods; do
    options=$method
    case $method in
    norms | bias | ia3) ;;
    *) options="$method --lora-r 3 --lora-dropout 0.1" ;;
    esac
    case $method in lora | dora | pissa | nlora) options="$options --loraplus-ratio 4" ;; esac
    [ "$method" = nlora ] && options="$options --learning-rate 1e-4" # 3e-3 diverges
    for dtype in bf16 fp32; do
        label="$method $dtype"
        common="--dtype $dtype"
        options="${options% --dtype *} $common"
        run ref --strategy resident
        check "$label: resident" test "$rc" -eq 0
        same "$label: streamed" --strategy stream-lora --prefetch-depth 1 --import never
        check "$label: streamed reads" test "$(json_get --last other/metrics.jsonl disk_read_bytes)" -gt 0
        [ $dtype = fp32 ] && continue
        same "$label: recomputed" --strategy resident --offload-activations recompute
        same "$label: emu, streamed" --strategy stream-lora --device emu --offload-weights disk
        case $method in nlora | inttune) emulated=$cuda ;; *) emulated=none ;; esac # the most products
        if [ -e "$emulated" ]; then
            export PENSTOCK_CUDA_PLUGIN="$cuda"
            run on_cuda --device cuda
            unset PENSTOCK_CUDA_PLUGIN
            check "$label: runs on the emulated CUDA device" test "$rc" -eq 0
            check "$label: and learns alike" within "$(last_loss ref)" "$(last_loss on_cuda)" 0.03
        fi
        rm -rf other && cp -r ref other && rm -r other/checkpoint-4 other/*adapter*
        # shellcheck disable=SC2086
        penstock train --model "$model" --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 \
            --grad-accum 2 --packing false --max-steps 4 --learning-rate 3e-3 --threads 1 --progress plain \
            --save-steps 2 --save-total-limit 9 --output other --resume --strategy stream-lora \
            --method $options
        if [ "$rc" -eq 0 ] && grep -q "at step 2" err; then
            check "$label: resumed" equal ref other
        else not_ok "$label: resumed: runs"; fi
        # Killed, with nothing but the commits of the spill store to go on from.
        args="train --model $model --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2
            --grad-accum 2 --packing false --max-steps 4 --learning-rate 3e-3 --threads 1 --progress plain
            --output killed --commit-interval 1 --method $options"
        rm -rf killed
        # shellcheck disable=SC2086
        "$helpers/signal_when" killed/metrics.jsonl 2 9 "$PENSTOCK" $args --throttle compute=3e7 >log 2>&1
        killed_rc=$?
        # shellcheck disable=SC2086
        penstock $args --resume
        if [ "$killed_rc" -eq 137 ] && [ "$rc" -eq 0 ] && grep -q "last commit" err; then
            for file in ref/*.safetensors; do
                check "$label: killed: ${file#ref/}" cmp "$file" "killed/${file#ref/}"
            done
        else not_ok "$label: killed ($killed_rc) and resumed"; fi
    done
    # Before the first step the adapted model is the base: no learning, then the same logits.
    run zero --learning-rate 0 --max-steps 1 --save-steps 0
    for adapter in "" "--adapter zero"; do
        # shellcheck disable=SC2086
        penstock eval --model "$model" --data rows.jsonl --format tokens --dtype fp32 \
            --logits "logits${adapter:+.adapted}" $adapter || not_ok "$method: eval $adapter"
    done
    # The Nystroem product is some times larger than what it is taken from.
    close=2e-6
    [ "$method" = nlora ] && close=1e-5
    check "$method: begins as the base" st_compare logits logits.adapted --rtol $close
done

# Embedding and head beside an adapter of the last layer.
tied=$model
model=$models/llama_untied/model
options="pissa --lora-r 2 --lora-target q_proj --lora-layers last:1 --modules-to-save lm_head,embed_tokens"
run ref --dtype bf16 --strategy resident
check "modules to save: resident" test "$rc" -eq 0
same "modules to save: streamed" --dtype bf16 --strategy stream-lora --prefetch-depth 1 --import never
same "modules to save: emu, streamed" --dtype bf16 --strategy stream-lora --device emu --offload-weights disk
same "modules to save: recomputed" --dtype bf16 --offload-activations recompute
run zero --learning-rate 0 --max-steps 1 --save-steps 0 --dtype fp32
penstock eval --model "$model" --data rows.jsonl --format tokens --dtype fp32 --logits logits
penstock eval --model "$model" --data rows.jsonl --format tokens --dtype fp32 --logits logits.adapted \
    --adapter zero
check "modules to save: begin as the base" st_compare logits logits.adapted --rtol 2e-6
model=$tied
# LoRA+: in the first step A's gradient is zero, so a ratio of 16 is a rate 16 times as large; DoRA's
# magnitudes belong to B's group.
for method in lora dora; do
    options="$method --lora-r 3 --lr-scheduler constant --warmup-steps 0 --max-steps 1 --save-steps 0 --dtype fp32"
    run ref --learning-rate 0.015625
    run other --learning-rate 0.0009765625 --loraplus-ratio 16
    check "$method: B learns 16 times as fast as A" cmp ref/adapter_model.safetensors \
        other/adapter_model.safetensors
done
# Generation, one token at a time: adapted, merged and streamed give the same tokens.
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
qwen=$model
model=small
for method in dora vera ia3 bias; do
    options="$method --learning-rate 5e-2 --dtype fp32 --max-steps 3 --save-steps 0"
    case $method in dora | vera) options="$options --lora-r 3" ;; esac
    run ref
    rm -rf merged && penstock export --model small --adapter ref --format hf --output merged
    generated base.ids --model small
    generated adapted.ids --model small --adapter ref
    generated merged.ids --model merged
    generated streamed.ids --model small --adapter ref --strategy stream-lora --prefetch-depth 1
    check "$method: generates as merged" cmp adapted.ids merged.ids
    check "$method: generates as streamed" cmp adapted.ids streamed.ids
    check "$method: and not as the base" sh -c 'test -s adapted.ids && ! cmp -s base.ids adapted.ids'
done
model=$qwen
# Two spellings of one method.
for method in dora pissa olora; do
    options="$method --lora-r 3 --lora-alpha 5"
    run ref --dtype bf16 --use-rslora
    how="--init $method"
    [ $method = dora ] && how=--use-dora
    options="lora --lora-r 3 --lora-alpha 5 $how"
    run other --dtype bf16 --use-rslora
    check "--method $method is $how" cmp ref/adapter_model.safetensors other/adapter_model.safetensors
done

# Of two patterns that match the first counts.
options="lora --lora-r 3 --max-steps 1 --save-steps 0 --dtype fp32"
run ref --lora-rank-pattern "1.self_attn.q_proj=2,q_proj=5"
check "the first pattern that matches: r" test "$("$helpers/st_print" ref/adapter_model.safetensors |
    grep -c 'q_proj.lora_A.* 2,40$')" -eq 1
check "the others: r" test "$("$helpers/st_print" ref/adapter_model.safetensors |
    grep -c 'q_proj.lora_A.* 5,40$')" -eq 2

# --- mistakes ---
refused() { # NAME WORD ARG...: a usage error that says WORD
    name=$1 word=$2
    shift 2
    penstock train --model "$model" --data rows.jsonl --format tokens --output bad --progress none "$@"
    if [ "$rc" -eq 2 ] && grep -q -e "$word" err; then ok "$name"; else not_ok "$name"; fi
}
refused "modules of a tied model" "full" --modules-to-save lm_head
refused "modules that cannot be saved" "choose lm_head" --modules-to-save norm
cp -r "$golden/vera/adapter" unprojected
sed -i 's/"save_projection": true/"save_projection": false/' unprojected/adapter_config.json
expect_exit "VeRA without its projections" 4 eval --model "$models/llama_untied/model" --data rows.jsonl \
    --format tokens --adapter unprojected
check "it says how to save them" grep -q "save_projection=True" err
refused "a rank over the matrix" "smaller --lora-r" --lora-r 41
refused "a rank over the matrix, pissa" "smaller --lora-r" --method pissa --lora-r 41
refused "a rank over the matrix by pattern" "smaller --lora-r" --lora-r 4 --lora-rank-pattern k_proj=21
refused "a pattern that matches nothing" "matches no linear" --lora-rank-pattern qq_proj=2
refused "a pattern without a number" "NAME=NUMBER" --lora-alpha-pattern q_proj
refused "both spellings of dora" "remove one" --method dora --use-dora
refused "both spellings of pissa" "remove one" --method pissa --init pissa
refused "dora from pissa" "combined" --use-dora --init pissa
refused "a rank for ia3" "no rank" --method ia3 --lora-r 4
refused "an alpha for vera" "no alpha" --method vera --lora-alpha 4
refused "dropout for ia3" "no dropout" --method ia3 --lora-dropout 0.1
refused "targets for norms" "vectors of every layer" --method norms --lora-target attn
refused "LoRA+ for lora-fa" "train A and B" --method lora-fa --loraplus-ratio 16
refused "another method than the adapter's" "leave .--method. out" --adapter zero --method vera
model=$models/llama_untied/model
refused "biases of a model that has none" "no vectors" --method bias
finish

# The emulated CUDA device against the CPU and against torch: gradients per tensor, loss curves, logits.
# Needs the emulated plug-in, which is built where nvcc is found.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"

plugin=$PENSTOCK_BUILD/libpenstock_cuda_emu.so
if [ ! -e "$plugin" ]; then
    echo "skip - the emulated CUDA device against the CPU: the build found no nvcc"
    exit 0
fi
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
export PENSTOCK_CUDA_PLUGIN="$plugin"

# --- without a device ---
one_step="train --model $models/llama_untied/model --data $models/llama_untied/rows.jsonl --format tokens
    --max-steps 1 --progress none"
# shellcheck disable=SC2086
{
    export PENSTOCK_CUDA_PLUGIN="$PWD/absent.so"
    expect_exit "without a plug-in: exit 2" 2 $one_step --device cuda --output absent
    check "the message says that there is no device, and why" grep -q "no CUDA device.*absent" err
    export PENSTOCK_CUDA_PLUGIN="$plugin"
}

# --- torch: gradients in fp32, 1e-5 of each tensor's norm ---
for model in llama_untied qwen3_tied mistral_window; do
    dir=$models/$model
    while read -r name prefix key flags; do
        rm -rf run grads.safetensors
        # shellcheck disable=SC2086
        penstock train --model "$dir/model" --output run --data "$dir/rows.jsonl" --format tokens \
            --dtype fp32 --max-steps 1 --shuffle false --max-seq-len 160 --device cuda --threads 1 \
            --dump-grads grads.safetensors --progress none $flags
        check "$model $name: gradients as torch's" st_compare "$dir/golden.safetensors" \
            grads.safetensors --expected-prefix "$prefix" --rtol 1e-5
        check "$model $name: loss" within "$(head -n 1 run/metrics.jsonl | json_get - loss)" \
            "$(json_get "$dir/golden.json" "$key")" 1e-5
    done <<END
full grad. loss --method full --packing false --batch-size 2 --grad-accum 3
lora lora.grad. lora_loss --method lora --adapter $dir/adapter --packing true --batch-size 2 --grad-accum 4
END
done

# --- the CPU: a model whose heads are wide enough for the tensor cores ---
cat >wide.json <<'END'
{"model_type":"llama","hidden_size":32,"intermediate_size":56,"num_hidden_layers":2,"num_attention_heads":2,
"num_key_value_heads":1,"head_dim":64,"vocab_size":261,"rms_norm_eps":1e-5,"tie_word_embeddings":false,
"hidden_act":"silu","bos_token_id":257,"eos_token_id":258,"max_position_embeddings":256,"rope_theta":1000.0}
END
check "a model with heads of 64" penstock init --config wide.json --output wide --seed 5 --dtype fp32 \
    --tokenizer "$PENSTOCK_ROOT/tests/golden/byte_tokenizer"
make_rows 24 4 40 257 3 >rows.jsonl
run() { # DIR DEVICE METHOD DTYPE ARG...
    dir=$1 device=$2 method=$3 dtype=$4
    shift 4
    rm -rf "$dir"
    penstock train --model wide --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 1 \
        --grad-accum 2 --packing true --device "$device" --method "$method" --dtype "$dtype" \
        --threads 1 --progress none --output "$dir" "$@"
}
# As an array of the kind that jsonl_compare reads.
curve() { # DIR
    sed -n 's/^{"step":.*"loss":\([^,]*\),.*/\1/p' "$1/metrics.jsonl" |
        awk 'NR > 1 { list = list "," } { list = list $1 } END { print "{\"loss\":[" list "]}" }'
}
# Seen: losses within 9e-8 (fp32) and 4.2e-4 (bf16), gradients within 5e-7 and 6e-8.
for case in lora:fp32:3e-3:1e-5:2e-5 full:fp32:1e-3:1e-5:2e-5 lora:bf16:3e-3:2e-3:2e-3 full:bf16:1e-3:2e-3:2e-3; do
    IFS=: read -r method dtype rate rtol atol <<END
$case
END
    for device in cpu cuda; do
        run $device $device "$method" "$dtype" --max-steps 50 --learning-rate "$rate"
        check "$method $dtype: 50 steps on $device" test "$rc" -eq 0 -a "$(train_losses $device | wc -l)" -eq 50
    done
    curve cpu >cpu.json
    check "$method $dtype: the losses of 50 steps are those of the CPU within $atol" \
        "$helpers/jsonl_compare" cpu.json cuda/metrics.jsonl loss --atol "$atol"
    check "$method $dtype: it learns" test "$(train_losses cpu | sed 's/.*"loss":\([^,]*\),.*/\1/' |
        awk 'NR <= 10 { a += $1 } NR > 40 { b += $1 } END { print (b < a - 0.1) }')" -eq 1
    for device in cpu cuda; do
        run first $device "$method" "$dtype" --max-steps 1 --dump-grads $device.grads
    done
    check "$method $dtype: gradients as the CPU's, $rtol of each tensor's norm" \
        st_compare cpu.grads cuda.grads --rtol "$rtol"
done
finish

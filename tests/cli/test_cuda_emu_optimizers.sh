#!/bin/sh
# Optimizers without kernels of their own on the CUDA device (emulated): tensors are updated on the host and
# go back. After two steps the CPU's weights within rounding; signs, where a method keeps nothing else.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"

plugin=$PENSTOCK_BUILD/libpenstock_cuda_emu.so
if [ ! -e "$plugin" ]; then
    echo "skip - optimizers on the emulated CUDA device: the build found no nvcc"
    exit 0
fi
export PENSTOCK_CUDA_PLUGIN="$plugin"
model=$models/llama_untied/model
rows=$models/llama_untied/rows.jsonl

train() { # NAME FLAGS...
    name=$1
    shift
    "$PENSTOCK" train --model "$model" --data "$rows" --format tokens --max-steps 2 --grad-accum 2 \
        --max-seq-len 32 --learning-rate 1e-3 --output "$name" --progress none --strategy resident \
        --threads 1 "$@" >"$name.log" 2>&1
}

for method in lora full; do
    file=adapter_model.safetensors
    [ $method = full ] && file=model.safetensors
    for optimizer in sgd lion adafactor lisa; do
        flags="--method $method --optimizer $optimizer --dtype fp32"
        # shellcheck disable=SC2086
        check "$optimizer, $method: the CPU" train "cpu-$method-$optimizer" $flags --device cpu
        # shellcheck disable=SC2086
        check "$optimizer, $method: the device" train "gpu-$method-$optimizer" $flags --device cuda --gpu-mem 4GiB
        check "$optimizer, $method: the same weights within 1e-4" \
            st_compare "cpu-$method-$optimizer/$file" "gpu-$method-$optimizer/$file" --rtol 1e-4
    done
done
check "a bf16 run with remainders" train gpu-bf16 --method full --optimizer lion --dtype bf16 --device cuda --gpu-mem 4GiB
train cpu-bf16 --method full --optimizer lion --dtype bf16 --device cpu
check "its weights differ from the CPU's in few signs" \
    st_compare cpu-bf16/model.safetensors gpu-bf16/model.safetensors --rtol 1e-2

# Two points in one pass, no gradient: images of the weights come from the host. Streamed, the device's own bits.
for method in lora full; do
    file=adapter_model.safetensors streamed=stream-lora
    [ $method = full ] && file=model.safetensors streamed=update-next-forward
    flags="--method $method --optimizer mezo --learning-rate 1e-4"
    # shellcheck disable=SC2086
    check "mezo, $method: the CPU" train "cpu-mezo-$method" $flags --dtype fp32 --device cpu
    # shellcheck disable=SC2086
    check "mezo, $method: the device" train "gpu-mezo-$method" $flags --dtype fp32 --device cuda --gpu-mem 4GiB
    check "mezo, $method: the same weights within 1e-3" \
        st_compare "cpu-mezo-$method/$file" "gpu-mezo-$method/$file" --rtol 1e-3
    # shellcheck disable=SC2086
    check "mezo, $method: the device, streamed" train "gpu-mezo-streamed-$method" $flags --dtype fp32 --device cuda \
        --gpu-mem 4GiB --strategy $streamed --offload-weights disk
    check "mezo, $method: streamed, the same bits" cmp "gpu-mezo-$method/$file" "gpu-mezo-streamed-$method/$file"
done
finish

#!/bin/sh
# Whole runs on the CUDA device, its kernels emulated on the host: the same bits under every strategy,
# and the CPU's numbers within rounding. Needs the emulated plug-in, which is built where nvcc is found.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"

case $PENSTOCK_BUILD in /*) plugin=$PENSTOCK_BUILD ;; *) plugin=$PENSTOCK_ROOT/$PENSTOCK_BUILD ;; esac
plugin=$plugin/libpenstock_cuda_emu.so
if [ ! -e "$plugin" ]; then
    echo "skip - runs on the emulated CUDA device: the build found no nvcc"
    exit 0
fi
model=$PENSTOCK_ROOT/tests/golden/models/llama_untied/model
rows=$PENSTOCK_ROOT/tests/golden/models/llama_untied/rows.jsonl

train() { # NAME FLAGS...
    name=$1
    shift
    "$PENSTOCK" train --model "$model" --data "$rows" --format tokens --max-steps 2 --grad-accum 3 \
        --max-seq-len 32 --learning-rate 1e-3 --output "$name" --dump-grads "$name.grads" \
        --progress none "$@" >"$name.out" 2>"$name.err"
}

PENSTOCK_CUDA_PLUGIN=$PWD/absent.so train absent --device cuda --dtype fp32
rc=$?
check "without a plug-in: exit 2" test $rc -eq 2
check "the message says that there is no device, and why" grep -q "no CUDA device" absent.err

export PENSTOCK_CUDA_PLUGIN=$plugin
for dtype in fp32 bf16; do
    train "want-$dtype" --device cuda --gpu-mem 4GiB --dtype $dtype --strategy resident
    rc=$?
    check "$dtype: a resident run on the emulated device" test $rc -eq 0
    n=0
    for flags in "--strategy stream-lora" "--strategy horizontal --storage threads --queue-depth 1" \
        "--strategy stream-lora --offload-weights disk --offload-activations disk --delay-seed 5" \
        "--strategy stream-lora --offload-activations host --prefetch-depth 1" "--serial" \
        "--strategy resident --offload-activations recompute"; do
        n=$((n + 1))
        # shellcheck disable=SC2086
        train "got-$dtype-$n" --device cuda --gpu-mem 4GiB --dtype $dtype $flags
        rc=$?
        check "$dtype $flags: runs" test $rc -eq 0
        check "$dtype $flags: the same gradients" cmp -s "want-$dtype.grads" "got-$dtype-$n.grads"
        check "$dtype $flags: the same adapter" cmp -s "want-$dtype/adapter_model.safetensors" \
            "got-$dtype-$n/adapter_model.safetensors"
    done
done

for method in lora full; do
    train "cpu-$method" --device cpu --dtype fp32 --method $method
    train "gpu-$method" --device cuda --gpu-mem 4GiB --dtype fp32 --method $method
    check "$method: the CPU's gradients within 1e-5 of each tensor's norm" \
        st_compare "cpu-$method.grads" "gpu-$method.grads" --rtol 1e-5
done
finish

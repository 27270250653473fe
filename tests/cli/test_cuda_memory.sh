# The memory of a card: what may be used of it, what others hold, and which device `auto` is. On the
# emulated CUDA device, whose context takes 256 MiB and which counts 16 MiB for driver and libraries, half of
# them taken before the plan is made.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"

plugin=$PENSTOCK_BUILD/libpenstock_cuda_emu.so
if [ ! -e "$plugin" ]; then
    echo "skip - the memory of the emulated CUDA device: the build found no nvcc"
    exit 0
fi
export PENSTOCK_CUDA_PLUGIN="$plugin"
train() { # CARD_MIB FLAGS...
    export PS_EMU_GPU_MIB="$1"
    shift
    rm -rf run
    penstock train --model "$models/llama_untied/model" --data "$models/llama_untied/rows.jsonl" \
        --format tokens --max-steps 1 --max-seq-len 32 --output run --threads 1 "$@"
}
budget() { sed -n 's/^memory .* of \([^ ]* [A-Za-z]*\) device.*/\1/p' out; }

train 320 --device cuda
check "64 MiB are free: 95% of them and the 8 MiB that are held" test "$rc" -eq 0 -a "$(budget)" = "68.80 MiB"
train 320 --device cuda --gpu-mem 60MiB
check "a budget that the card has is the budget" test "$rc" -eq 0 -a "$(budget)" = "60.00 MiB"
check "and nothing is said" test -z "$(grep 'can be had' err)"
train 320 --device cuda --gpu-mem 4GiB
check "a budget above what is left is what is left" test "$rc" -eq 0 -a "$(budget)" = "72.00 MiB"
check "and that is said" grep -q "of --gpu-mem 4096 MiB only 72 MiB can be had: 256 MiB of the card are in use" err
train 290 --device cuda --gpu-mem 4GiB
check "others leave too little: exit 3" test "$rc" -eq 3
check "the message says what can be had" grep -q "only 42 MiB can be had on this card now" err
check "and the remedy" grep -q "end what else uses the card (nvidia-smi" err
train 320 --device cuda --gpu-mem 20MiB
check "the budget is too little: exit 3" test "$rc" -eq 3
least=$(sed -n 's/.*smallest sufficient budget is --gpu-mem \([0-9]*\)MiB.*/\1/p' err)
train 320 --device cuda --gpu-mem "${least}MiB"
check "what is named as sufficient (${least} MiB) is" test "$rc" -eq 0
train 320 --device cuda --gpu-mem "$((least - 1))MiB"
check "one MiB less is not" test "$rc" -eq 3

# --- plans ---
plan() { penstock plan --model "$models/llama_untied/model" --max-seq-len 32 --json "$@"; }
needs() { json_get out needs.device; }
export PS_EMU_GPU_MIB=320
plan --device cuda
check "a plan for the card of this machine" test "$rc" -eq 0
plan --device emu --gpu-mem 1MiB
arena=$(needs)
plan --device cuda --gpu-mem 1MiB
check "counts what CUDA takes, as the run does: exit 3" test "$rc" -eq 3 -a "$(needs)" -eq $((arena + 16 * 1048576))

# --- auto ---
train 320
check "auto never takes the emulation, and says so" test "$rc" -eq 0 -a -n "$(
    grep '^penstock: device cpu: the CUDA plug-in is an emulation' err)"
check "it ran on the CPU" grep -q "^machine   cpu" out
unset PENSTOCK_CUDA_PLUGIN
if [ -e "$PENSTOCK_BUILD/libpenstock_cuda.so" ] && ldconfig -p 2>/dev/null | grep -q libcuda.so.1; then
    echo "skip - auto without a card: this machine has a driver"
else
    train 320
    check "auto without a card: one line says why" test "$(grep -c '^penstock: device cpu: no ' err)" -eq 1
fi
finish

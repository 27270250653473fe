# shellcheck shell=sh
# The bundle for a machine with a GPU: whole, small, self-contained; and tools/gpu_check.sh, unpacked from it, as a
# dry run on the emulated device. make gpu-bundle packs it first.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"

tgz=$PENSTOCK_BUILD/gpu-bundle.tgz
plugin=libpenstock_cuda_emu.so
if [ ! -e "$PENSTOCK_BUILD/libpenstock_cuda.so" ] || [ ! -e "$PENSTOCK_BUILD/$plugin" ]; then
    echo "skip - the GPU bundle: the build has no CUDA plug-in (no nvcc, CUDA=0 or sanitizers)"
    exit 0
fi

check "the bundle unpacks" tar -xzf "$tgz"
small() { du -sb gpu-bundle && [ "$(du -sb gpu-bundle | cut -f 1)" -lt $((60 << 20)) ]; }
check "it has less than 60 MiB" small
complete() {
    for file in build/penstock build/libpenstock_cuda.so build/gpu/tests/cuda/test_attention_cuda README COMMIT \
        build/gpu/tests/cuda/test_fragment_layout build/tests/helpers/st_compare build/tools/bench/gpu_ceilings \
        tools/gpu_check.sh tools/torch_llama.py tools/bench/gpu_ceilings.py; do
        [ -s gpu-bundle/$file ] || { echo "$file is missing"; return 1; }
    done
    # What only the emulation can run stays out.
    ! ls gpu-bundle/build/gpu/tests/cuda/test_emu* 2>/dev/null
}
check "it holds the program, plug-in, tests, benchmarks and scripts" complete

# Each program's libraries come with it, but for libc's and cuBLASLt.
self_contained() {
    find "$PWD/gpu-bundle/build" -type f -exec ldd {} + >libs
    awk -v own="$PWD/gpu-bundle/" '
        /=>/ && $1 !~ /^(libc|libm|libdl|librt|libpthread|libgcc_s|libcublasLt)\.so/ && index($3, "gpu-bundle/") == 0 {
            print "not from the bundle: " $0; bad = 1 }
        /gpu-bundle\/.*=>|=>.*gpu-bundle\// { n++ }
        END { print n " references to libraries of the bundle"; exit bad || n < 20 }' libs
}
check "every program finds its libraries in it" self_contained
no_cuda() { ! find gpu-bundle -name '*cublas*' | grep .; }
check "cuBLASLt is left to the target" no_cuda

# check_run NAME CODE FLAGS...: the unpacked script must end with CODE; its table is in ./out/summary.txt.
check_run() {
    run_name=$1 run_code=$2
    shift 2
    rm -rf out
    sh gpu-bundle/tools/gpu_check.sh --out out "$@" >said 2>&1
    run_rc=$?
    cp said log
    if [ $run_rc -eq "$run_code" ]; then ok "$run_name"; else
        echo "exit $run_rc where $run_code was due" >>log
        for part in out/*.log; do tail -n 15 "$part" >>log; done
        LOG_LINES=60 not_ok "$run_name"
    fi
}
has() { grep -Eq "$1" out/summary.txt; }

unset PENSTOCK_CUDA_PLUGIN PENSTOCK OUT
real_build=$PENSTOCK_BUILD
unset PENSTOCK_BUILD PENSTOCK_ROOT
export EMU_BUILD="$real_build"
check_run "the dry run passes" 0 --emulate
check "kernels were tested" has '^a  ok +test_fragment_layout'
check "gradients were compared" has '^b  ok +bf16 full head_dim 64'
check "fifty steps were run on both" has '^b  ok +50 steps bf16 lora.* 50 steps, loss'
check "equal bits were compared" has '^c  ok +lora bf16.* [0-9]+ the same, 0 not'
check "benchmarks ran" has '^d  ok +gpu_ceilings.py'
check "steps among them" has '^d  ok +gpu_steps.py'
check "nothing failed" has '^[0-9]+ ok, 0 failed'
check "the table says that no GPU was used" has '^EMULATED'
few_files() { [ "$(find out -type f | wc -l)" -le 8 ]; }
check "the logs are at most eight files" few_files

# A build with the plug-in but without tests of kernels: part a fails, c goes on.
mkdir -p broken/tests/cuda
ln -s "$real_build/$plugin" broken/
export EMU_BUILD="$PWD/broken"
check_run "a part that fails is told by the exit code" 1 --emulate a c
check "the failure is in the table" has '^a  FAIL +test_fragment_layout'
check "the others go on" has '^c  ok +lora bf16'
printf '#!/bin/sh\nsleep 60; echo survived >"%s/survived"\n' "$PWD" >broken/tests/cuda/test_fragment_layout
chmod +x broken/tests/cuda/test_fragment_layout
began=$(date +%s)
check_run "a part that hangs is a failure" 1 --emulate --seconds 2 a
check "it is stopped in time" test $(($(date +%s) - began)) -le 20
check "and named" has '^a  FAIL +part a +not finished in 2 s'
check_run "an unknown part is a usage error" 2 --emulate e
if [ ! -e /dev/nvidiactl ] && ! command -v nvidia-smi >/dev/null; then
    check_run "without a driver and without --emulate it does not run" 2 a
    check "and says why" grep -q "no NVIDIA driver" said
fi
finish

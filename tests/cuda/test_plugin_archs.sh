# shellcheck shell=sh
# The CUDA plug-in of the build: code for every architecture it is built for, no kernel that spills
# registers, and a program that knows nothing of CUDA.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"

plugin=$PENSTOCK_BUILD/libpenstock_cuda.so
needed() { readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }

# Not one of its libraries, nor theirs, is of CUDA.
free_of_cuda() {
    ldd "$1" >libs && cat libs && grep -q 'libc\.so' libs && ! grep -Eiq 'cuda|cublas|nvidia|nvrtc' libs
}
check "the program depends on no library of CUDA" free_of_cuda "$PENSTOCK"
check "libpenstock.so depends on no library of CUDA" free_of_cuda "$PENSTOCK_BUILD/libpenstock.so"

if [ ! -e "$plugin" ]; then
    echo "skip - the CUDA plug-in: the build has none (no nvcc, CUDA=0 or sanitizers)"
    finish
fi

only_libc_and_cublaslt() {
    needed "$plugin" >needs
    cat needs
    grep -q '^libcublasLt\.so' needs &&
        ! grep -Ev '^(libcublasLt|libc|libm|libdl|librt|libpthread|ld-linux-x86-64)\.so' needs
}
check "the plug-in needs cuBLASLt and libc alone" only_libc_and_cublaslt

"$helpers/fatbin_list" "$plugin" >entries
read -r archs <"$PENSTOCK_BUILD/cuda/archs"
said() { find "$PENSTOCK_BUILD/cuda" -path "$PENSTOCK_BUILD/cuda/tests" -prune -o -name '*.ptxas' "$@"; }
kernel_files=$(said -print | wc -l)
# Each source file has its code for $1.
in_every_file() { echo "$(grep -cx -e "$1" entries) of $kernel_files" && [ "$(grep -cx -e "$1" entries)" -ge "$kernel_files" ]; }
check "there are kernels" test "$kernel_files" -ge 10
for arch in $archs; do
    check "$arch is in every part of the plug-in" in_every_file "$arch"
done
if command -v cuobjdump >/dev/null 2>&1; then
    same_as_cuobjdump() {
        { cuobjdump --list-elf "$plugin" | sed -n 's/.*sm_\([0-9]*\).*\.cubin/elf-\1/p'
            cuobjdump --list-ptx "$plugin" | sed -n 's/.*sm_\([0-9]*\).*\.ptx/ptx-\1/p'; } | sort >dumped
        sort entries | diff - dumped
    }
    check "cuobjdump lists the same" same_as_cuobjdump
fi

# What the assembler said: KERNEL ARCH STACK STORES LOADS REGISTERS, one line a kernel and architecture.
said -exec cat {} + | awk '
    /Compiling entry function/ { split($0, q, "\047"); kernel = q[2]; arch = q[4]; sub(/^sm_/, "", arch) }
    /bytes stack frame/ { stack = $1; stores = $5; loads = $9 }
    / Used [0-9]+ registers/ && kernel != "" {
        for (i = 1; i < NF; i++) if ($i == "Used") print kernel, arch, stack, stores, loads, $(i + 1)
        kernel = ""
    }' >usage
none_spills() { awk '$4 + $5 > 0 { print; bad = 1 } END { exit bad || NR == 0 }' usage; }
check "no kernel spills registers on any architecture" none_spills
none_stacks() { awk '$3 > 0 { print; bad = 1 } END { exit bad || NR == 0 }' usage; }
check "no kernel keeps an array in local memory" none_stacks
# The assembler was heard on every kernel: those with the tensor cores, for each architecture.
heard() {
    for arch in $archs; do
        case $arch in ptx-*) continue ;; esac
        for kernel in attention_forward attention_backward_key attention_backward_query; do
            grep -q "$kernel.* ${arch#elf-} " usage || { echo "nothing on $kernel for $arch"; return 1; }
        done
    done
}
check "attention's kernels are among them, on every architecture" heard

# Loads without a driver, and says so.
if [ -e /dev/nvidiactl ] || ldconfig -p 2>/dev/null | grep -q libcuda.so.1; then
    echo "skip - the plug-in without a driver: there is one"
else
    printf '{"input_ids":[1,2,3]}\n' >rows.jsonl
    says_no_driver() {
        "$PENSTOCK" train --model "$models/llama_untied/model" --data rows.jsonl --format tokens --device cuda \
            --output run >out 2>err
        rc=$?
        cat out err
        [ $rc -ne 0 ] && [ "$(grep -c "no NVIDIA driver" err)" -eq 1 ]
    }
    check "without a driver the program says so in one line" says_no_driver
    export PENSTOCK_CUDA_PLUGIN="$plugin"
    check "so does the plug-in itself, which loads" says_no_driver
fi
finish

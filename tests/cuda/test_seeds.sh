#!/bin/sh
# The kernel tests with other orders of threads and blocks than the one that each gets by itself: the
# emulation's seed decides. (Attention compares several runs in its own test.)
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"

tests=$PENSTOCK_BUILD/tests/cuda
if [ ! -e "$tests/test_elementwise_cuda" ]; then
    echo "skip - other orders of threads: the build found no nvcc"
    exit 0
fi
for seed in 2 3 4 5; do
    for name in adamw cross_entropy elementwise embedding rope swiglu; do
        check "$name, seed $seed" env PS_EMU_SEED=$seed "$tests/test_${name}_cuda"
    done
done
check "rmsnorm, seed 2" env PS_EMU_SEED=2 "$tests/test_rmsnorm_cuda"
check "products, seed 2" env PS_EMU_SEED=2 "$tests/test_blas_cuda"
finish

#!/bin/sh
# Kernel benchmarks beside the limits of this machine: `make bench`.
set -eu
BUILD=${BUILD:-build}
for b in gemm attention kernels optimizers; do
    echo "== $b"
    "$BUILD/tools/bench/$b"
done

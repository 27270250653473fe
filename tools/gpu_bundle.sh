#!/bin/sh
# Pack what a machine with a GPU needs to check this build: tools/gpu_check.sh and everything that it runs.
#
#   BUILD=build tools/gpu_bundle.sh PROGRAM...      (make gpu-bundle)
#
# Writes BUILD/gpu-bundle/ and BUILD/gpu-bundle.tgz with the layout of the working tree, PROGRAMs stripped and under
# build/, and in lib/ the shared libraries they need beside libc's and cuBLASLt, which the target has with CUDA 13
# or torch. Fails when the folder is over LIMIT_MIB.
set -eu
LIMIT_MIB=60
BUILD=${BUILD:-build}
cd "$(dirname "$0")/.."
case $BUILD in /*) ;; *) BUILD=$PWD/$BUILD ;; esac
out=$BUILD/gpu-bundle
rm -rf "$out" "$out.tgz"
mkdir -p "$out/build" "$out/lib"

# Programs keep their place under build/.
for program in "$BUILD/penstock" "$BUILD/libpenstock_cuda.so" "$@"; do
    case $program in /*) ;; *) program=$PWD/$program ;; esac
    to=$out/build${program#"$BUILD"}
    mkdir -p "$(dirname "$to")"
    strip -o "$to" "$program"
done

# Libraries that a bare machine may lack; never libc's own, nor the compiler's, nor the driver's.
find "$out/build" -type f -exec ldd {} + | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u >"$out/libs"
while read -r lib; do
    case ${lib##*/} in
    libc.so.* | libm.so.* | libdl.so.* | librt.so.* | libpthread.so.* | ld-linux* | libgcc_s.so.* | libcublasLt.so.* | libcuda.so.*) ;;
    libstdc++.so.*)
        echo "gpu_bundle: something in the bundle needs libstdc++, which the target may have in another version" >&2
        exit 1
        ;;
    *) cp -L "$lib" "$out/lib/" ;;
    esac
done <"$out/libs"
rm "$out/libs"

# Scripts, models and shapes keep theirs.
set --
for path in tools/gpu_check.sh tools/*.py tools/bench/gpu_*.py tools/bench/gpu_*.sh tests/helpers/*.sh \
    tests/golden/models examples/shapes examples/hardware LICENSE; do
    if [ -e "$path" ]; then set -- "$@" "$path"; fi
done
tar -cf - "$@" | tar -xf - -C "$out"
{
    git describe --always --dirty --abbrev=12 2>/dev/null || echo "unknown commit"
    cat "$BUILD/cuda/archs"
} >"$out/COMMIT"
cat >"$out/README" <<'END'
Penstock for a machine with a GPU. Needed there: the NVIDIA driver, CUDA 13 (its libcublasLt, or that of a torch of CUDA 13),
gcc, and python3 with torch for comparisons; no network.

    tools/gpu_check.sh            everything, under 9 minutes; a table last, logs in gpu-check-out/ or $OUT
    tools/gpu_check.sh a c        only the kernel tests and the same-bits matrix
    tools/gpu_check.sh --help
END

bytes=$(du -sb "$out" | cut -f 1)
limit=$((LIMIT_MIB << 20))
if [ "$bytes" -ge "$limit" ]; then
    echo "gpu_bundle: $out has $bytes bytes, the limit is $LIMIT_MIB MiB" >&2
    du -ab "$out" | sort -rn | head -n 12 >&2
    exit 1
fi
tar -C "$BUILD" --sort=name --owner=0 --group=0 -czf "$out.tgz" gpu-bundle
echo "$out: $((bytes >> 20)) MiB, $out.tgz: $(($(du -sb "$out.tgz" | cut -f 1) >> 20)) MiB"

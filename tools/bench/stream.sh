#!/bin/sh
# Benchmarks of streaming: `make bench-stream`, or tools/bench/stream.sh [PART...].
#
# Parts: overlap, tokens, ablate, predict (all by default); each is a script of its own, with its own variables, and
# runs alone. Measures the hardware profile anew, unless HARDWARE names one. Raw lines go to docs/benchmarks/raw
# with RAW=NAME (NAME-PART.txt), else to the work folder; the tables to the end of standard output.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
BUILD=${BUILD:-build}
work=${WORK:-$BUILD/bench/stream}
out=$work
prefix=
[ -z "${RAW:-}" ] || { out=$here/../../docs/benchmarks/raw; prefix=$RAW-; }
[ $# -gt 0 ] || set -- overlap tokens ablate predict
mkdir -p "$work"
[ -n "${HARDWARE:-}" ] || rm -f "$work/hardware.json"
for part in "$@"; do
    [ -f "$here/stream_$part.sh" ] || { echo "stream.sh: no part $part: overlap, tokens, ablate or predict" >&2; exit 2; }
done
for part in "$@"; do
    echo "== $part"
    "$here/stream_$part.sh" >"$out/${prefix}stream-$part.txt" 2>&1 || { tail -n 20 "$out/${prefix}stream-$part.txt"; exit 1; }
    awk '/^$/ { table = 1 } /^#/ || table' "$out/${prefix}stream-$part.txt"
done

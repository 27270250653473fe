#!/bin/sh
# Run every fuzz target of $BUILD on a copy of its corpus, one line a target; fails when one fails.
#
#   BUILD=build/fuzz FUZZ_SECONDS=60 tests/fuzz/run.sh [NAME...]
#
# Findings are kept as $BUILD/tests/fuzz/NAME.finding-*.
set -u
BUILD=${BUILD:-build/fuzz}
seconds=${FUZZ_SECONDS:-60}
root=$(cd "$(dirname "$0")/../.." && pwd)
case $BUILD in /*) ;; *) BUILD=$root/$BUILD ;; esac
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0
found=0
for prog in "$BUILD"/tests/fuzz/fuzz_*; do
    case $prog in *.o | *.d | *.log | *finding-*) continue ;; esac
    [ -x "$prog" ] || continue
    name=${prog##*/fuzz_}
    if [ $# -gt 0 ]; then
        case " $* " in *" $name "*) ;; *) continue ;; esac
    fi
    found=$((found + 1))
    mkdir -p "$out/$name"
    if [ -d "$root/tests/fuzz/corpus/$name" ]; then
        cp -r "$root/tests/fuzz/corpus/$name/." "$out/$name/"
    fi
    log=$BUILD/tests/fuzz/$name.log
    dict=
    if [ -f "$root/tests/fuzz/corpus/$name.dict" ]; then
        dict=-dict=$root/tests/fuzz/corpus/$name.dict
    fi
    export PENSTOCK_ROOT="$root"
    if (cd "$out" && timeout $((seconds + 120)) "$prog" -max_total_time="$seconds" -timeout=10 \
        -rss_limit_mb=2048 -print_final_stats=1 $dict \
        -artifact_prefix="$BUILD/tests/fuzz/$name.finding-" "$out/$name") >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        cov=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
        echo "ok - fuzz_$name: ${runs:-0} runs in $seconds s, coverage ${cov:-0}"
    else
        failed=$((failed + 1))
        echo "not ok - fuzz_$name: see $log"
        tail -n 40 "$log" | sed 's/^/    /'
    fi
done
if [ "$found" -eq 0 ]; then
    echo "not ok - no fuzz target in $BUILD/tests/fuzz"
    exit 1
fi
[ "$failed" -eq 0 ]

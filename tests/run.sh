#!/bin/sh
# Run test programs, two at a time; the last line is "N passed, N failed, N skipped".
#
#   tests/run.sh PROGRAM...
#
# A C test is a cmocka program; a shell test (*.sh) prints "ok - name", "not ok - name" or
# "skip - name: reason", one a line. Each runs in its own temporary directory with a time limit.
set -u
BUILD=${BUILD:-build}
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
jobs=${JOBS:-$(nproc)}
cat >"$out/one.sh" <<'EOF'
prog=$1; log=$2; limit=$3
dir=$(mktemp -d); cd "$dir" || exit 1
start=$(date +%s.%N)
case $prog in
*.sh) timeout -k 5 "$limit" sh "$prog" >"$log" 2>&1 ;;
*) CMOCKA_MESSAGE_OUTPUT=STDOUT timeout -k 5 "$limit" "$prog" >"$log" 2>&1 ;;
esac
echo "exit $?" >>"$log"
echo "seconds $(echo "$(date +%s.%N) $start" | awk '{printf "%.1f", $1 - $2}')" >>"$log"
cd / && rm -rf "$dir"
EOF
export PENSTOCK_ROOT="$root"
case $BUILD in /*) export PENSTOCK_BUILD="$BUILD" ;; *) export PENSTOCK_BUILD="$root/$BUILD" ;; esac
export PENSTOCK="$PENSTOCK_BUILD/penstock"
i=0
for p in "$@"; do
    case $p in /*) ;; *) p="$root/$p" ;; esac
    i=$((i + 1))
    printf '%s\0%s\0%s\0' "$p" "$out/$(printf %03d $i)" "${TEST_LIMIT:-300}"
done | xargs -0 -n 3 -P "$jobs" sh "$out/one.sh"
passed=0; failed=0; skipped=0; i=0
: >"$out/failures"
for p in "$@"; do
    i=$((i + 1)); log=$out/$(printf %03d $i)
    name=${p#"$BUILD"/}
    rc=$(sed -n 's/^exit //p' "$log" | tail -n 1); t=$(sed -n 's/^seconds //p' "$log" | tail -n 1)
    case $p in
    *.sh)
        ok=$(grep -c '^ok - ' "$log"); bad=$(grep -c '^not ok - ' "$log"); sk=$(grep -c '^skip - ' "$log") ;;
    *)
        ok=$(grep -c '^\[       OK \]' "$log"); bad=$(grep -c '^\[  FAILED  \] [A-Za-z_0-9]*$' "$log")
        sk=$(grep -c '^\[  SKIPPED \] [A-Za-z_0-9]*$' "$log")
        # cmocka repeats failed and skipped names in its summary
        bad=$(sed -n 's/^\[  FAILED  \] \([A-Za-z_0-9]*\)$/\1/p' "$log" | sort -u | wc -l)
        sk=$(sed -n 's/^\[  SKIPPED \] \([A-Za-z_0-9]*\)$/\1/p' "$log" | sort -u | wc -l) ;;
    esac
    if [ "$bad" -eq 0 ] && [ "$rc" != 0 ]; then bad=1; fi
    if [ $((ok + bad + sk)) -eq 0 ]; then bad=1; fi
    passed=$((passed + ok)); failed=$((failed + bad)); skipped=$((skipped + sk))
    printf '%-48s %4d ok %3d failed %3d skipped %7ss\n' "$name" "$ok" "$bad" "$sk" "$t"
    if [ "$bad" -gt 0 ]; then
        sed 's/^/    /' "$log" | tail -n 60
        { echo "FAILED $name (exit $rc, ${t}s)"; grep -aE "^not ok|FAILED|\\[  ERROR|error:|Sanitizer" "$log" | head -n 12; } >>"$out/failures"
    fi
    if [ "$sk" -gt 0 ]; then grep -i 'skip' "$log" | sed 's/^/    /' | head -n 8; fi
done
cat "$out/failures" # once more, where the eye is
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]

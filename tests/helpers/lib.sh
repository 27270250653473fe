# What the shell tests share. Use: . "$PENSTOCK_ROOT/tests/helpers/lib.sh"
#
# Run by tests/run.sh in an own temporary directory with PENSTOCK_ROOT, PENSTOCK_BUILD and PENSTOCK set; by hand:
#   cd $(mktemp -d) && PENSTOCK_ROOT=... PENSTOCK_BUILD=... PENSTOCK=... sh .../test_x.sh
# A test ends with `finish`.
: "${PENSTOCK_ROOT:?set by tests/run.sh}" "${PENSTOCK_BUILD:?}" "${PENSTOCK:?}"
helpers=$PENSTOCK_BUILD/tests/helpers
models=$PENSTOCK_ROOT/tests/golden/models
shared=$PENSTOCK_ROOT/../shared/data
failures=0

# One line of the protocol; a failure also shows the log of what was run last, indented.
ok() { echo "ok - $1"; }
not_ok() {
    echo "not ok - $1"
    if [ -f log ]; then tail -n "${LOG_LINES:-12}" log | sed 's/^/    | /'; fi
    failures=$((failures + 1))
}

# check NAME COMMAND...: the command must succeed.
check() {
    check_name=$1
    shift
    if "$@" >log 2>&1; then ok "$check_name"; else
        echo "command: $*" >>log
        not_ok "$check_name"
    fi
}

# penstock ARG...: the program, silent on success; output and errors are kept in out and err, both in log.
penstock() {
    "$PENSTOCK" "$@" >out 2>err
    rc=$?
    { echo "penstock $*: exit $rc"; cat out err; } >log
    return $rc
}

# expect_exit NAME CODE ARG...: penstock ARG... must end with CODE.
expect_exit() {
    expect_name=$1 expect_code=$2
    shift 2
    penstock "$@"
    if [ "$rc" -eq "$expect_code" ]; then ok "$expect_name"; else
        echo "exit $rc where $expect_code was due" >>log
        not_ok "$expect_name"
    fi
}

# within A B ATOL: |A - B| <= ATOL, and both are numbers.
within() {
    echo "$1 and $2 within $3?"
    awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN {
        if (a == "" || b == "" || a + 0 != a || b + 0 != b) exit 1
        d = a - b; if (d < 0) d = -d; exit !(d <= t) }'
}

# A new directory in memory where the machine lets us have one, else among the temporary files.
memory_dir() { mktemp -d /dev/shm/penstock.XXXXXX 2>/dev/null || mktemp -d; }
json_get() { "$helpers/json_get" "$@"; }
st_compare() { "$helpers/st_compare" "$@"; }

# Names of the golden models; with an argument, those stored in that type (bf16).
golden_models() {
    for dir in "$models"/*/; do
        name=$(basename "$dir")
        [ -d "$dir/model" ] || continue
        grep -q "\"$1" "$dir/model/config.json" || continue
        echo "$name"
    done
}

finish() { if [ "$failures" -eq 0 ]; then exit 0; else exit 1; fi; }

#!/bin/sh
# Does any step take much longer than the others? Methods that renew a subspace, or change what trains, every so
# many steps: the longest step over the median one. `tools/bench/refresh.sh`.
#
#   METHODS="galore natural-galore fira apollo apollo-mini lisa badam"
#   STEPS=40 GAP=10      steps of a run; steps between two refreshes of a matrix, or two choices of layers
#   REPEATS=5            identical runs: least times count, since what other programs take only adds
#   SHAPE="4 512 1408 8 4" SEQ=64 MICRO=1 THREADS=1   as in stream_lib.sh
#   RANK=64  OPTIONS=""  more options for every run, as "--optim-basis svd" or "--optim-refresh-together true"
#   RAW=NAME             keep the raw lines in docs/benchmarks/raw/NAME.txt
#
# The first step, in which every matrix finds its first subspace and memory is touched for the first time, is told
# apart. Prints, for each method: the median of the steps from the second on, the longest and the shortest of them and
# the first step over it.
SHAPE=${SHAPE:-4 512 1408 8 4}
SEQ=${SEQ:-64}
MICRO=${MICRO:-1}
THREADS=${THREADS:-1}
STEPS=${STEPS:-40}
WORK=${WORK:-${BUILD:-build}/bench/refresh}
. "$(dirname "$0")/stream_lib.sh"
methods=${METHODS:-galore natural-galore fira apollo apollo-mini lisa badam}
gap=${GAP:-10}
rank=${RANK:-64}
repeats=${REPEATS:-5}
raw=$work/refresh.txt
[ -z "${RAW:-}" ] || raw=$root/docs/benchmarks/raw/$RAW.txt

options() { # METHOD
    case $1 in
        lisa) echo "--lisa-interval-steps $gap" ;;
        badam) echo "--switch-block-every $gap" ;;
        apollo-mini) echo "--optim-update-gap $gap" ;;
        *) echo "--optim-rank $rank --optim-update-gap $gap" ;;
    esac
}

run() { # METHOD REPEAT: one raw line a step
    rm -rf "$work/run"
    # shellcheck disable=SC2046,SC2086 # options are lists of words
    "$penstock" train --model "$model" --data "$work/rows.jsonl" --output "$work/run" --method full --optimizer "$1" \
        --max-steps "$steps" --max-seq-len "$seq" --batch-size 1 --format tokens --grad-accum "$micro" --threads "$threads" \
        --learning-rate 1e-4 --lr-scheduler constant $(options "$1") ${OPTIONS:-} >"$work/log" 2>&1 ||
        { cat "$work/log" >&2; exit 1; }
    awk -v m="$1" -v r="$2" 'match($0, /"step":[0-9]+/) { s = substr($0, RSTART + 7, RLENGTH - 7)
        if (match($0, /"step_s":[0-9.]+/)) print m, r, s, substr($0, RSTART + 9, RLENGTH - 9) }' "$work/run/metrics.jsonl"
}

make_model
make_rows
{
    headline refresh
    echo "# steps $steps, gap $gap, rank $rank, $repeats runs each${OPTIONS:+, $OPTIONS}; lines: method run step seconds"
    r=0
    while [ $r -lt "$repeats" ]; do
        for m in $methods; do run "$m" $r; done
        r=$((r + 1))
    done
} | tee "$raw" | grep '^#'
# Steps that do the same work are one class: those that as many steps part from the last refresh, or those of one choice of
# layers. A class's time is the least of its steps in all runs.
summary() {
    grep -E '^[a-z0-9-]+ [0-9]+ [0-9]+ [0-9.]+$' "$raw" | awk -v gap="$gap" -v steps="$steps" '
    function class(m, s) { return m == "lisa" || m == "badam" ? int((s - 1) / gap) : (s - 1) % gap }
    { if (!($1 in seen)) { seen[$1] = 1; order[++count] = $1 }
      key = $3 > 1 ? $1 " " class($1, $3) : $1 " first"
      if (!(key in least) || $4 < least[key]) least[key] = $4 }
    END {
        printf "%-15s %10s %16s %14s %13s\n", "method", "median s", "longest/median", "least/median", "first/median"
        for (i = 1; i <= count; i++) {
            m = order[i]; n = 0
            for (s = 2; s <= steps; s++) {
                x = least[m " " class(m, s)] + 0
                for (j = ++n; j > 1 && v[j - 1] > x; j--) v[j] = v[j - 1]
                v[j] = x
            }
            mid = n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
            printf "%-15s %10.4f %16.2f %14.2f %13.2f\n", m, mid, v[n] / mid, v[1] / mid, least[m " first"] / mid
        }
    }'
}
summary

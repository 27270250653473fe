#!/bin/sh
# Full fine-tuning through the tiers: how much of each lane hides behind the others: tools/bench/stream_full.sh, part of
# `make bench-stream`.
#
#   CELLS="disk_state ..."   lanes to throttle;   FACTORS="0.5 1 2"   lane time over compute time
#   STRATEGY=vertical  HOST=1400MiB   what streams, and the budget
#
# Model: 4 layers of the 1.1B shape, vocabulary 2048. Each cell throttles one lane so that it takes FACTOR times as long as
# compute, and runs the same schedule pipelined and with --serial. efficiency = (serial - pipelined) / (serial - longest),
# longest = the busiest lane of the pipelined run; medians of the counted steps. of_longest = pipelined / longest.
SHAPE=${SHAPE:-4 2048 5632 32 4}
SEQ=${SEQ:-256}
MICRO=${MICRO:-2}
STEPS=${STEPS:-3}
. "$(dirname "$0")/stream_lib.sh"
cells=${CELLS:-disk_state disk_write cpu_optim disk_weights}
factors=${FACTORS:-0.5 1 2}
strategy=${STRATEGY:-vertical}
host=${HOST:-1400MiB}
prepare
headline "full fine-tuning, $strategy, $host"
flags="--method full --strategy $strategy --host-mem $host --max-seq-len $seq --grad-accum $micro"

# shellcheck disable=SC2086
params=$(set -- $shape; calc "$1 * (2 * $2 * $2 + 2 * $2 * $2 * $5 / $4 + 3 * $2 * $3) + 2 * 2048 * $2")
lane_busy() { # RUN LANE: median busy seconds
    grep "^raw $1 " "$work/$1.raw" | tail -n +2 | awk -v lane="$2" '
        { print match($0, "\"" lane "\":\\{\"busy_s\":[-+.0-9e]+") ? substr($0, RSTART + length(lane) + 13, RLENGTH - length(lane) - 13) + 0 : 0 }' |
        sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}
full_run() { # NAME FLAGS...
    name=$1
    run "$@" >"$work/$name.raw"
    cut -c1-2000 "$work/$name.raw"
}
# shellcheck disable=SC2086
full_run free $flags
compute=$(med free compute)
: >"$work/full.txt"
for lane in $cells; do
    busy=$(lane_busy free "$lane")
    case $lane in # about what the lane moves in a step: the factor need not be exact
        cpu_optim) amount=$params ;;
        disk_state) amount=$(calc "$params * 10") ;;
        disk_write) amount=$(calc "$params * 12") ;;
        *) amount=$(calc "$(med free disk_bytes) - $params * 10") ;;
    esac
    echo "lane $lane: free $busy s a step, compute $compute s, amount ${amount:-?}"
    for factor in $factors; do
        rate=$(calc "${amount:-1} / ($factor * $compute)")
        # shellcheck disable=SC2086
        full_run pipelined $flags --throttle "$lane=$rate"
        # shellcheck disable=SC2086
        full_run serial $flags --throttle "$lane=$rate" --serial true
        longest=$(for l in compute disk_weights disk_state disk_write cpu_optim; do lane_busy pipelined $l; done | sort -g | tail -n 1)
        awk -v cell="$lane" -v f="$factor" -v s="$(med serial step)" -v m="$(med pipelined step)" -v l="$longest" \
            -v c="$(med pipelined compute)" -v b="$(lane_busy pipelined "$lane")" -v p="$(med pipelined predicted)" 'BEGIN {
                e = (s - m) / (s - l)
                printf "%-13s x%-4s serial %7.3f  pipelined %7.3f (compute %6.3f, lane %6.3f)  longest %6.3f  of_longest %5.3f  predicted %6.3f  efficiency %5.2f %s\n",
                    cell, f, s, m, c, b, l, m / l, p, e, (e >= 0.85 ? "" : "below 0.85") }' | tee -a "$work/full.txt"
    done
done
echo
cat "$work/full.txt"

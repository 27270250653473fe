#!/bin/sh
# Full fine-tuning through the tiers: how much of each lane hides behind the others: tools/bench/stream_full.sh, part of
# `make bench-stream`.
#
#   CELLS="disk_state ..."   lanes to throttle;   FACTORS="0.5 1 2"   lane time over compute time
#   STRATEGY=vertical  CLIP=none  HOST=1600MiB   what streams, how it clips, and the budget
#   SHAPE="16 1024 2816 16 2" HOST=1300MiB       more layers, about as many parameters
#
# Model: 4 layers of the 1.1B shape, vocabulary 2048. Each cell throttles one lane so that it takes FACTOR times as long as
# compute by the plan, and runs the same placement pipelined and with --serial. efficiency = (serial - pipelined) / (serial -
# longest), longest = the busiest lane of the pipelined run; medians of the counted steps. of_longest = pipelined / longest.
SHAPE=${SHAPE:-4 2048 5632 32 4}
SEQ=${SEQ:-256}
MICRO=${MICRO:-2}
STEPS=${STEPS:-3}
. "$(dirname "$0")/stream_lib.sh"
cells=${CELLS:-disk_state disk_write cpu_optim disk_weights}
factors=${FACTORS:-0.5 1 2}
strategy=${STRATEGY:-vertical}
clip=${CLIP:-none}
host=${HOST:-1600MiB}
prepare
headline "full fine-tuning, $strategy, clip $clip, $host"
flags="--method full --clip $clip --host-mem $host --max-seq-len $seq --grad-accum $micro"

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
planned() { # LANE: busy seconds of a step in the plan
    sed -n "s/.*\"lanes_busy_s\":{\([^}]*\)}.*/,\1,/p" "$work/plan.json" | sed -n "s/.*,\"$1\":\([-+.0-9e]*\),.*/\1/p"
}
# A rate with which the lane is busy for FACTOR times the compute of the plan; leaves the placement.
fit() { # LANE FACTOR
    more="--strategy $strategy"
    if [ "$1" = disk_weights ]; then more="$more --offload-weights disk"; fi # or they would stay in memory
    rate=1e9
    for pass in 1 2 3 4 5; do
        # shellcheck disable=SC2086
        "$penstock" plan --model "$model" --data "$work/rows.jsonl" --format tokens --packing false --import never --output "$work/run" \
            --batch-size 1 --threads "$threads" --hardware "$hardware" $flags $more --throttle "$1=$rate" --json \
            --export-placement "$work/placement.json" >"$work/plan.json" 2>"$work/plan.log" || { cat "$work/plan.log"; return 1; }
        if [ $pass -eq 5 ]; then break; fi # the rate that this plan was made with
        rate=$(calc "$rate * ($(planned "$1") + 1e-9) / ($2 * $(planned compute))")
    done
}
: >"$work/full.txt"
for lane in $cells; do
    for factor in $factors; do
        fit "$lane" "$factor"
        # shellcheck disable=SC2086
        full_run pipelined $flags --placement "$work/placement.json" --throttle "$lane=$rate"
        # shellcheck disable=SC2086
        full_run serial $flags --placement "$work/placement.json" --throttle "$lane=$rate" --serial true
        longest=$(for l in compute disk_weights disk_state disk_write cpu_optim; do lane_busy pipelined $l; done | sort -g | tail -n 1)
        note=$(sed -n 's/.*"why":"\([^;]*\);.*/\1/p' "$work/plan.json")
        awk -v cell="$lane" -v f="$factor" -v s="$(med serial step)" -v m="$(med pipelined step)" -v l="$longest" -v note="$note" \
            -v c="$(med pipelined compute)" -v b="$(lane_busy pipelined "$lane")" -v p="$(med pipelined predicted)" 'BEGIN {
                e = (s - m) / (s - l)
                printf "%-13s x%-4s serial %7.3f  pipelined %7.3f (compute %6.3f, lane %6.3f)  longest %6.3f  of_longest %5.3f  predicted %6.3f  efficiency %5.2f %s\n    %s\n",
                    cell, f, s, m, c, b, l, m / l, p, e, (e >= 0.85 ? "" : "below 0.85"), note }' | tee -a "$work/full.txt"
    done
done
echo
cat "$work/full.txt"

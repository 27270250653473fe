#!/bin/sh
# How much of the transfers hides behind compute: tools/bench/stream_overlap.sh, or `make bench-stream`.
#
#   CELLS="cpu:disk_weights ..."   device:lane cells;  FACTORS="0.5 1 2"   lane time over compute time
#   INTERLEAVE=N   d2h: a pass of 8 micro-batches, N of them forward while N others go backward (placement member)
#
# Each cell throttles one lane so that it takes FACTOR times as long as compute, and runs the same schedule pipelined
# and with --serial. efficiency = (serial - pipelined) / (serial - longest), longest = the busiest lane of the
# pipelined run; medians of the counted steps. Weights stream through 4 slots and saved activations are kept, so that
# forward and backward ask for the same bytes and the same compute; for d2h the boundaries move and are recomputed from.
# floor: boundaries leave during the forward pass only (a third of compute with recomputation) and come back during
# the backward pass only, so that without interleaved micro-batches step >= max(forward, d2h) + backward.
. "$(dirname "$0")/stream_lib.sh"
cells=${CELLS:-cpu:disk_weights emu:disk_weights emu:h2d emu:d2h}
factors=${FACTORS:-0.5 1 2}
prepare
headline overlap

flags_of() { # CELL: device, placement and micro-batches
    case $1 in
        cpu:disk_weights) placement "$work/p.json" stream-lora "$micro" 4 disk true device ;;
        emu:disk_weights) placement "$work/p.json" stream-lora "$micro" 4 disk true device ;;
        emu:h2d) placement "$work/p.json" stream-lora "$micro" 4 host true device ;;
        emu:d2h | emu:h2d-x) # boundaries out, and boundaries back
            if [ -n "${INTERLEAVE:-}" ]; then
                interleave=$INTERLEAVE placement "$work/p.json" resident 8 0 device false host $((2 * INTERLEAVE + 4))
            else
                placement "$work/p.json" resident 1 0 device false host
            fi
            echo "--device emu --gpu-mem 4GiB --placement $work/p.json --max-seq-len $((seq / 4)) --grad-accum 8"
            return ;;
        *) echo "stream_overlap: no cell $1" >&2; exit 2 ;;
    esac
    echo "--device ${1%%:*} --placement $work/p.json --max-seq-len $seq --grad-accum $micro $([ "${1%%:*}" = emu ] && echo --gpu-mem 4GiB)"
}

: >"$work/overlap.txt"
for cell in $cells; do
    lane=${cell#*:}
    lane=${lane%-x}
    flags=$(flags_of "$cell")
    # shellcheck disable=SC2046,SC2086 # lists of words
    run "free" $flags $(throttle)
    bytes=$(med free "$([ "$lane" = disk_weights ] && echo disk_bytes || echo "${lane}_bytes")")
    compute=$(med free compute)
    echo "cell $cell: compute $compute s, $bytes bytes a step on $lane"
    for factor in $factors; do
        rate=$(calc "$bytes / ($factor * $compute)")
        # shellcheck disable=SC2046,SC2086
        run pipelined $flags $(throttle "$lane=$rate")
        # shellcheck disable=SC2046,SC2086
        run serial $flags $(throttle "$lane=$rate") --serial true
        longest=$(for l in compute disk_weights h2d d2h; do med pipelined $l; done | sort -g | tail -n 1)
        awk -v cell="$cell" -v f="$factor" -v s="$(med serial step)" -v m="$(med pipelined step)" -v l="$longest" \
            -v c="$(med pipelined compute)" -v b="$(med pipelined "$lane")" -v lane="$lane" -v p="$(med pipelined predicted)" -v sc="$(med serial compute)" -v interleave="${INTERLEAVE:-}" 'BEGIN {
                floor = "-"
                if (cell == "emu:d2h" && !interleave) floor = sprintf("%.3f", (b > c / 3 ? b : c / 3) + c * 2 / 3)
                if (cell == "emu:h2d-x" && !interleave) floor = sprintf("%.3f", c / 3 + (b > c * 2 / 3 ? b : c * 2 / 3))
                printf "%-18s x%-4s serial %7.3f (compute %6.3f)  pipelined %7.3f (compute %6.3f, %s %6.3f)  longest %6.3f  predicted %6.3f  floor %s  efficiency %5.2f %s%s\n",
                    cell, f, s, sc, m, c, lane, b, l, p, floor, (s - m) / (s - l), ((s - m) / (s - l) >= 0.85 ? "" : "below 0.85"),
                    (sc > 1.1 * c || c > 1.1 * sc ? " (the machine changed between the two runs)" : "") }' | tee -a "$work/overlap.txt"
    done
done
echo
cat "$work/overlap.txt"

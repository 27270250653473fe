#!/bin/sh
# What each idea of the schedule gains, where it matters: tools/bench/stream_ablate.sh, or `make bench-stream`.
#
#   DISK=2   time of the disk (cpu) or of the link (emu) over compute, for the full schedule
#
# Disk-bound: a base streamed through half as many slots as layers, 4 micro-batches a step in one pass. Link-bound
# (emu): boundaries moved to host memory and back. Each line: step time, bytes, and the step time over the full one's.
SEQ=${SEQ:-64}
MICRO=${MICRO:-4}
STEPS=${STEPS:-3}
. "$(dirname "$0")/stream_lib.sh"
ratio=${DISK:-2}
prepare
headline ablate
common="--max-seq-len $seq --grad-accum $micro"

line() { # CELL NAME REFERENCE: a row of the table from run NAME
    awk -v cell="$1" -v name="$2" -v s="$(med "$2" step)" -v c="$(med "$2" compute)" -v r="$(med "$2" disk_bytes)" -v h="$(med "$2" h2d_bytes)" \
        -v d="$(med "$2" d2h_bytes)" -v ref="$3" -v p="$(med "$2" predicted)" 'BEGIN {
            printf "%-6s %-22s step %7.3f s  compute %7.3f s  read %7.1f h2d %7.1f d2h %6.1f MB  x %5.2f  predicted %7.3f (%+5.1f%%)\n",
                cell, name, s, c, r / 1e6, h / 1e6, d / 1e6, s / ref, p, 100 * (p / s - 1) }' | tee -a "$work/ablate.txt"
}

: >"$work/ablate.txt"
slots=$((layers / 2))
placement "$work/layer-major.json" stream-lora "$micro" "$slots" disk false device
placement "$work/horizontal.json" horizontal 1 "$slots" disk false device
major="--device cpu --placement $work/layer-major.json $common"
# shellcheck disable=SC2046,SC2086 # lists of words
run free $major $(throttle)
# the wait for the disk in the disk-bound cells, and (prefetch) a disk as fast as compute
for cell in disk:$ratio even:1; do
    rate=$(calc "$(med free disk_bytes) / (${cell#*:} * $(med free compute))")
    t=$(throttle "disk_weights=$rate")
    cell=${cell%%:*}
    echo "cell $cell: disk_weights=$rate"
    # shellcheck disable=SC2086
    run all-on $major $t
    full=$(med all-on step)
    line "$cell" all-on "$full"
    for idea in turns cross-step prefetch; do
        # shellcheck disable=SC2086
        run "no-$idea" $major $t --ablate "$idea"
        line "$cell" "no-$idea" "$full"
    done
    [ "$cell" = disk ] || continue
    # shellcheck disable=SC2086
    run no-layer-major --device cpu --placement "$work/horizontal.json" $common $t
    line "$cell" no-layer-major "$full"
    steps=2 # eight times the bytes: one step counts
    # shellcheck disable=SC2086
    run no-layer-major-turns --device cpu --placement "$work/horizontal.json" $common $t --ablate turns
    line "$cell" no-layer-major-turns "$full"
    steps=$STEPS
done
# boundaries out and back; a ring of half of them, so that the other half is served from memory
placement "$work/moved.json" resident 1 0 device false host "$slots"
moved="--device emu --gpu-mem 4GiB --placement $work/moved.json $common"
# shellcheck disable=SC2046,SC2086
run free-moved $moved $(throttle)
out=$(calc "$(med free-moved d2h_bytes) / $(med free-moved compute)")
t=$(throttle "d2h=$out,h2d=$out")
echo "cell link: $t"
# shellcheck disable=SC2086
run all-on $moved $t
full=$(med all-on step)
line link all-on "$full"
# shellcheck disable=SC2086
run no-forwarding $moved $t --ablate forwarding
line link no-forwarding "$full"
echo
cat "$work/ablate.txt"

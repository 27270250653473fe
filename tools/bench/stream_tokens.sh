#!/bin/sh
# Tokens/s against tokens per pass over a streamed base: tools/bench/stream_tokens.sh, or `make bench-stream`.
#
#   GROUPS_="2 4 6 8 12 16"   micro-batches of a pass; the disk is throttled so that N* is 8 of them
#   KEEP=true                 false: everything recomputed; then at N* no order of tasks is better than 0.857 (a third of
#                             the compute, but half of the reads, fall into the forward half of a pass)
#
# Below N* the disk's time for one pass binds, above it compute: tokens/s = rate * min(1, N / N*), rate = tokens/s of
# compute alone. N* measured = rate * bytes a pass / throttle; N* planned = break_even_tokens of plan.json.
# Allowed: 5% off outside of 0.7 to 1.4 N*, 15% inside.
SEQ=${SEQ:-32}
. "$(dirname "$0")/stream_lib.sh"
groups=${GROUPS_:-2 4 6 8 12 16}
keep=${KEEP:-true}
prepare
headline tokens

pass() { # NAME GROUP THROTTLE
    placement "$work/p.json" stream-lora "$2" 6 disk "$keep" device
    # shellcheck disable=SC2046 # a flag and its value
    run "$1" --device cpu --placement "$work/p.json" --max-seq-len "$seq" --grad-accum "$2" $(throttle "$3")
}

pass free 8 ""
bytes=$(med free disk_bytes)
compute=$(med free compute)
rate=$(calc "$bytes / $compute")
echo "calibration: 8 micro-batches of $seq tokens take $compute s, a pass reads $bytes bytes: disk_weights=$rate"
: >"$work/tokens.txt"
for group in $groups; do
    pass "group-$group" "$group" "disk_weights=$rate"
    planned=$(sed 's/.*"break_even_tokens":\([0-9.e+]*\).*/\1/' "$work/run/plan.json")
    # compute of this very run, so that a machine that slows down does not look like a bad overlap
    awk -v n="$((group * seq))" -v s="$(med "group-$group" step)" -v c="$(med "group-$group" compute)" -v b="$(med "group-$group" disk_bytes)" \
        -v r="$rate" -v cal="$compute" -v cn="$((8 * seq))" -v planned="$planned" -v p="$(med "group-$group" predicted)" 'BEGIN {
            top = cn / cal; star = top * b / r; x = n / star; ideal = x < 1 ? x : 1; got = n / s / top
            limit = x < 0.7 || x > 1.4 ? 0.05 : 0.15; off = got / ideal - 1
            own = n / c; xo = n / (own * b / r); io = xo < 1 ? xo : 1; offo = n / s / own / io - 1
            printf "N %5d  N/N* %5.2f  tokens/s %7.1f  of compute alone %5.3f  min(1,N/N*) %5.3f  off %+5.1f%% (against compute of the run %+5.1f%%)  N* %.0f planned %.0f  predicted %+5.1f%% %s\n",
                n, x, n / s, got, ideal, 100 * off, 100 * offo, star, planned, 100 * (p / s - 1), (off < 0 ? -off : off) <= limit ? "" : "out of bounds" }' |
        tee -a "$work/tokens.txt"
done
echo
cat "$work/tokens.txt"

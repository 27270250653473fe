#!/bin/sh
# Predicted beside measured step times: tools/bench/stream_predict.sh, or `make bench-stream`.
#
#   CONFIGS="..."   which of the configurations below; CELLS="..." which of the cells of strategies
#   VARIANTS="..."  strategies of a cell: NAME, NAME:recompute or NAME:no-IDEA (--ablate)
#   TRIES=2         how often a configuration whose brackets differ is tried again
#
# The profile is measured by `penstock bench`; throttles are the user's and known to both. Each configuration is
# bracketed by a calibration: a short run that only computes. Where compute is the bound, the prediction is that of the
# profile times what the brackets took over what the profile says of them (this machine's speed changes by the hour). Where the two differ by over 5%, the machine changed
# meanwhile: the measurement is discarded, counted and tried again. Then strategies side by side: rank correlation of
# predicted and measured, and `auto` beside the best that was fixed by hand.
STEPS=${STEPS:-3}
. "$(dirname "$0")/stream_lib.sh"
configs=${CONFIGS-resident-keep resident-recompute stream-unbound emu-resident disk-keep disk-recompute disk-group-1 disk-emu disk-no-turns link-host link-host-group-1 link-moved}
cells=${CELLS-cpu-small cpu-small-slow emu-host emu-disk}
variants=${VARIANTS:-resident stream-lora stream-lora:recompute stream-lora:no-turns stream-lora:no-prefetch horizontal auto}
tries=${TRIES:-2}
prepare
headline predict
micro=4
tokens="--max-seq-len $((seq / 2)) --grad-accum $micro"
slots=$((layers / 4))

calibrate() { # NAME: prints seconds of compute alone
    placement "$work/c.json" resident 1 0 device true device
    all=$steps
    steps=3
    # shellcheck disable=SC2046,SC2086 # lists of words
    run "$1" --device cpu --placement "$work/c.json" $tokens $(throttle)
    steps=$all
}

# what a throttled lane moves in a step, from a run without throttle; cached
lane_rate() { # DEVICE PLACEMENT LANE FACTOR ABLATE: bytes/s so that the lane takes FACTOR times compute alone
    key=free-$1-$2-$3$5
    # shellcheck disable=SC2046,SC2086
    [ -f "$work/$key.tsv" ] || run "$key" $(device_flags "$1") --placement "$work/$2.json" $tokens $(throttle) $5 >&2
    calc "$(med "$key" "$([ "$3" = disk_weights ] && echo disk_bytes || echo "$3_bytes")") / ($4 * $base)"
}

device_flags() {
    [ "$1" = emu ] && echo "--device emu --gpu-mem 4GiB" || echo "--device cpu"
}

# CONFIG: bound, device, placement, lane, factor, ablation
describe() {
    case $1 in
        resident-keep) echo compute cpu resident-keep - 0 - ;;
        resident-recompute) echo compute cpu resident-recompute - 0 - ;;
        stream-unbound) echo compute cpu stream-recompute - 0 - ;;
        emu-resident) echo compute emu resident-recompute - 0 - ;;
        disk-keep) echo disk cpu stream-keep disk_weights 2 - ;;
        disk-recompute) echo disk cpu stream-recompute disk_weights 3 - ;;
        disk-group-1) echo disk cpu group-1 disk_weights 3 - ;;
        disk-emu) echo disk emu stream-recompute disk_weights 2 - ;;
        disk-no-turns) echo disk cpu stream-recompute disk_weights 2 turns ;;
        link-host) echo link emu host h2d 2 - ;;
        link-host-group-1) echo link emu host-1 h2d 3 - ;;
        link-moved) echo link emu moved d2h 2 - ;;
        *) echo "stream_predict: no configuration $1" >&2; exit 2 ;;
    esac
}

placement "$work/resident-keep.json" resident 1 0 device true device
placement "$work/resident-recompute.json" resident 1 0 device false device
placement "$work/stream-keep.json" stream-lora $micro "$slots" disk true device
placement "$work/stream-recompute.json" stream-lora $micro "$slots" disk false device
placement "$work/group-1.json" horizontal 1 "$slots" disk false device
placement "$work/host.json" stream-lora $micro "$slots" host false device
placement "$work/host-1.json" horizontal 1 "$slots" host false device
placement "$work/moved.json" resident 1 0 device false host "$slots"

error_line() { # NAME BOUND BEFORE AFTER
    awk -v name="$1" -v bound="$2" -v s="$(med "$1" step)" -v raw="$(med "$1" predicted)" -v b="$3" -v a="$4" \
        -v q="$(med bracket predicted)" 'BEGIN {
        p = bound == "compute" ? raw * (b + a) / 2 / q : raw
        apart = a > b ? a / b - 1 : b / a - 1
        printf "%-20s %-8s predicted %7.3f s  measured %7.3f s  error %+5.1f%%  (by the profile alone %.3f s)  brackets %.3f %.3f (%.1f%% apart)%s\n",
            name, bound, p, s, 100 * (p / s - 1), raw, b, a, 100 * apart, (apart > 0.05 ? " discarded" : "") }'
}

rm -f "$work"/free-*.tsv
: >"$work/predict.txt"
: >"$work/discarded.txt"
if [ -n "$configs" ]; then
    calibrate bracket
    base=$(med bracket compute)
    for config in $configs; do
        # shellcheck disable=SC2046 # six words
        set -- $(describe "$config")
        bound=$1 device=$2 place=$3 lane=$4 factor=$5 ablate=
        [ "$6" = - ] || ablate="--ablate $6"
        limit=
        if [ "$lane" != - ]; then
            limit=$lane=$(lane_rate "$device" "$place" "$lane" "$factor" "$ablate")
            [ "$place" = moved ] && limit=$limit,h2d=${limit#*=}
        fi
        try=0
        calibrate bracket
        while :; do
            before=$(med bracket compute)
            # shellcheck disable=SC2046,SC2086
            run "$config" $(device_flags "$device") --placement "$work/$place.json" $tokens $(throttle "$limit") $ablate
            calibrate bracket
            after=$(med bracket compute)
            text=$(error_line "$config" "$bound" "$before" "$after")
            echo "$text"
            case $text in
                *discarded) echo "$text" >>"$work/discarded.txt" ;;
                *) echo "$text" >>"$work/predict.txt"; break ;;
            esac
            try=$((try + 1))
            [ "$try" -le "$tries" ] || break
        done
    done
fi

# Strategies side by side: the planner chooses within each. Budgets lie between what streaming needs and what resident
# needs, so that resident does not fit and memory for caching is scarce.
need() { # DEVICE STRATEGY TIER: bytes of the smallest sufficient budget
    # shellcheck disable=SC2046,SC2086
    "$penstock" plan --model "$model" --device "$1" $([ "$1" = emu ] && echo --gpu-mem 1MiB) --host-mem 1MiB --strategy "$2" $tokens \
        --threads "$threads" --hardware "$hardware" --json true 2>/dev/null | sed -n "s/.*\"needs\".*\"$3\":\([0-9]*\).*/\1/p"
}

between() { # DEVICE TIER SHARE: MiB
    awk -v a="$(need "$1" stream-lora "$2")" -v b="$(need "$1" resident "$2")" -v s="$3" 'BEGIN { printf "%dMiB", (a + s * (b - a)) / 1048576 + 4 }'
}

# CELL: device flags, budgets and throttle: a pass over the weights takes 1.5 or 3 times as long as compute
cell_flags() {
    bytes=$(wc -c <"$model/model.safetensors")
    case $1 in
        cpu-small) echo "--device cpu --host-mem $(between cpu host 0.4)" "disk_weights=$(calc "$bytes / (1.5 * $base)")" ;;
        cpu-small-slow) echo "--device cpu --host-mem $(between cpu host 0.2)" "disk_weights=$(calc "$bytes / (3 * $base)")" ;;
        emu-host) echo "--device emu --gpu-mem $(between emu device 0.3) --host-mem 4GiB" "h2d=$(calc "$bytes / (1.5 * $base)")" ;;
        emu-disk) echo "--device emu --gpu-mem $(between emu device 0.3) --host-mem $(($(need emu stream-lora host) / 1048576 + 64))MiB" "disk_weights=$(calc "$bytes / (1.5 * $base)")" ;;
        *) echo "stream_predict: no cell $1" >&2; exit 2 ;;
    esac
}

: >"$work/cells.txt"
for cell in $cells; do
    calibrate bracket
    before=$(med bracket compute)
    base=$before
    flags=$(cell_flags "$cell")
    limit=${flags##* }
    flags=${flags% *}
    : >"$work/cell.txt"
    for variant in $variants; do
        strategy=${variant%%:*}
        name=$(echo "$cell-$variant" | tr ':' '-')
        extra=
        case $variant in
            *:recompute) extra="--offload-activations recompute" ;;
            *:no-*) extra="--ablate ${variant#*:no-}" ;;
        esac
        # shellcheck disable=SC2046,SC2086
        if run "$name" $flags --strategy "$strategy" $tokens $(throttle "$limit") $extra; then
            echo "$variant $(med "$name" predicted) $(med "$name" step) $(sed 's/.*"strategy":"\([^"]*\)".*/\1/' "$work/run/plan.json")" >>"$work/cell.txt"
        else
            echo "cell $cell: $variant does not fit"
        fi
    done
    calibrate bracket
    after=$(med bracket compute)
    awk -v cell="$cell" -v b="$before" -v a="$after" '
        { printf "cell %-15s %-24s predicted %7.3f s  measured %7.3f s  error %+5.1f%%  (%s)\n", cell, $1, $2, $3, 100 * ($2 / $3 - 1), $4 }
        $1 == "auto" { auto = $3; chosen = $4; next }
        { n++; p[n] = $2; m[n] = $3; if (n == 1 || $3 < best) best = $3; if ($3 > worst) worst = $3 }
        END {
            for (i = 1; i <= n; i++) for (j = 1; j <= n; j++) { rp[i] += (p[j] < p[i]) + (p[j] == p[i]) / 2; rm[i] += (m[j] < m[i]) + (m[j] == m[i]) / 2 }
            for (i = 1; i <= n; i++) d += (rp[i] - rm[i]) ^ 2
            apart = a > b ? a / b - 1 : b / a - 1
            printf "cell %-15s %d strategies, apart by %.0f%%; Spearman %s; auto (%s) over the best fixed: %+.1f%%; brackets %.1f%% apart%s\n", cell, n,
                100 * (worst / best - 1), (n > 1 ? sprintf("%.2f", 1 - 6 * d / (n * (n * n - 1))) : "-"), chosen, 100 * (auto / best - 1), 100 * apart, (apart > 0.05 ? " discarded" : "") }' "$work/cell.txt" |
        tee -a "$work/cells.txt"
done
echo
cat "$work/predict.txt"
echo "$(wc -l <"$work/predict.txt") measured, $(wc -l <"$work/discarded.txt") discarded because the brackets differed by over 5%"
sed 's/.*measured *\([0-9.]*\) s.*/&/' "$work/predict.txt" | awk '
    { match($0, /predicted +[0-9.]+/); p[NR] = substr($0, RSTART + 9, RLENGTH - 9) + 0; match($0, /measured +[0-9.]+/); m[NR] = substr($0, RSTART + 8, RLENGTH - 8) + 0
      e = p[NR] / m[NR] - 1; e = e < 0 ? -e : e; if (e > most) most = e; within += e <= 0.1 }
    END { for (i = 1; i <= NR; i++) { rp = rm = 0.5; for (j = 1; j <= NR; j++) { rp += (p[j] < p[i]) + (p[j] == p[i]) / 2; rm += (m[j] < m[i]) + (m[j] == m[i]) / 2 } d += (rp - rm) ^ 2 }
          if (NR > 1) printf "%d of %d within 10%%, largest error %.1f%%, Spearman over all %.3f\n", within, NR, 100 * most, 1 - 6 * d / (NR * (NR * NR - 1)) }'
cat "$work/cells.txt"

#!/bin/sh
# Strategies of full fine-tuning side by side, predicted beside measured: tools/bench/stream_strategies.sh.
#
#   CELLS="..."       NAME:HOST-MEM:TOKENS[:THROTTLE] each: budget, tokens of a micro-batch, lanes that are slowed down
#   STRATEGIES="..."  of each cell; `auto` is the planner's choice over all of them
#   STEPS=3           steps a run; the first does not count
#   LIMIT=320         seconds after which no further run begins (it says which were left out)
#
# Model: 4 layers of the 1.1B shape, vocabulary 2048. A cell prints a line for each strategy: seconds a step, predicted
# seconds, the busiest lane and its seconds, bytes read and written a step, the highest memory of the run; then rank
# correlation (Spearman) of predicted and measured, and `auto` over the best strategy fixed by hand and over the run that
# fixed the strategy it chose (the machine's noise). At the end the rank correlation over all cells. A strategy that does
# not fit a budget says what it needs. Throttles are known to the plan. Where steps were clipped and their updates done
# again, the plan's time for that is part of the prediction (fuyou). The profile is measured anew unless HARDWARE names one.
SHAPE=${SHAPE:-4 2048 5632 32 4}
MICRO=${MICRO:-2}
STEPS=${STEPS:-3}
. "$(dirname "$0")/stream_lib.sh"
disk=disk_weights=1GiB,disk_state=1GiB,disk_write=1GiB
cells=${CELLS:-roomy:3600MiB:128 tight:1000MiB:128 few-tokens:1000MiB:32 slow-disk:1000MiB:64:$disk}
strategies=${STRATEGIES:-resident zero-offload zero-infinity fuyou vertical update-next-forward auto}
limit=${LIMIT:-320}
begin=$(date +%s)
[ -n "${HARDWARE:-}" ] || rm -f "$hardware"
prepare
headline "strategies of full fine-tuning"

lanes() { # RUN: the lane that is busy longest and its median seconds
    for lane in compute disk_weights disk_state disk_write cpu_optim; do
        grep "^raw $1 " "$work/$1.raw" | tail -n +2 | awk -v lane="$lane" '
            { print match($0, "\"" lane "\":\\{\"busy_s\":[-+.0-9e]+") ? substr($0, RSTART + length(lane) + 13, RLENGTH - length(lane) - 13) + 0 : 0 }' |
            sort -g | awk -v lane="$lane" '{ v[NR] = $1 } END { print (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2), lane }'
    done | sort -g | tail -n 1
}

written() { # RUN: median bytes written in a counted step
    grep "^raw $1 " "$work/$1.raw" | tail -n +2 | sed 's/.*"disk_write_bytes":\([0-9]*\).*/\1/' | sort -g |
        awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# Spearman (ranks of ties averaged, Pearson of ranks) of columns 3 and 4 of the lines on stdin, or -
spearman() {
    awk '{ n++; p[n] = $3; m[n] = $4 }
        END {
            for (i = 1; i <= n; i++) for (j = 1; j <= n; j++) { rp[i] += (p[j] < p[i]) + (p[j] == p[i]) / 2; rm[i] += (m[j] < m[i]) + (m[j] == m[i]) / 2 }
            for (i = 1; i <= n; i++) { a += rp[i] / n; b += rm[i] / n }
            for (i = 1; i <= n; i++) { x += (rp[i] - a) * (rm[i] - b); y += (rp[i] - a) ^ 2; z += (rm[i] - b) ^ 2 }
            if (n > 1 && y * z > 0) printf "%.2f", x / sqrt(y * z); else printf "-"
        }'
}

one() { # CELL STRATEGY FLAGS...: a line, and "CELL STRATEGY PREDICTED MEASURED CHOSEN" in $work/all.txt
    cell=$1 strategy=$2
    shift 2
    name=$cell-$strategy
    if [ $(($(date +%s) - begin)) -gt "$limit" ]; then
        echo "cell $cell $strategy: left out, $limit s are over" | tee -a "$work/strategies.txt"
        return
    fi
    if ! run "$name" "$@" --strategy "$strategy" >"$work/$name.raw" 2>&1; then
        echo "cell $cell $strategy: not run: $(grep -v warning "$work/$name.raw" | head -n 1 | cut -c1-200)" | tee -a "$work/strategies.txt"
        return
    fi
    chosen=$(sed 's/.*"strategy":"\([^"]*\)".*/\1/' "$work/run/plan.json" | head -n 1)
    peak=$(sed -n 's/.*"event":"end".*"peak_bytes":{[^}]*"host":\([0-9]*\).*/\1/p' "$work/run/metrics.jsonl" | head -n 1)
    redo=0
    if tail -n 1 "$work/$name.raw" | grep -q '"redo_bytes":[1-9]'; then
        redo=$("$penstock" plan --model "$model" --threads "$threads" --hardware "$hardware" --strategy "$strategy" --json true "$@" 2>/dev/null |
            sed -n 's/.*"redo_s":\([-+.0-9e]*\).*/\1/p')
    fi
    predicted=$(calc "$(med "$name" predicted) + ${redo:-0}")
    cut -c1-2000 "$work/$name.raw"
    echo "$cell $strategy $predicted $(med "$name" step) $chosen" >>"$work/all.txt"
    awk -v cell="$cell" -v s="$strategy" -v c="$chosen" -v p="$predicted" -v redo="${redo:-0}" -v m="$(med "$name" step)" -v lane="$(lanes "$name")" \
        -v r="$(med "$name" disk_bytes)" -v w="$(written "$name")" -v k="${peak:-0}" -v t="$(med "$name" tokens)" 'BEGIN {
            split(lane, l, " ")
            printf "cell %-10s %-19s %7.3f s  %6.1f tokens/s  predicted %7.3f s (%+6.1f%%)  busiest %-12s %7.3f s  read %5.2f GB  written %5.2f GB  memory %6.1f MiB%s%s\n",
                cell, s, m, t / m, p, 100 * (p / m - 1), l[2], l[1], r / 1e9, w / 1e9, k / 1048576, (s == c ? "" : "  = " c),
                (redo > 0 ? sprintf("  (%.3f s of the prediction: updates done again)", redo) : "") }' | tee -a "$work/strategies.txt"
}

summary() { # CELL
    grep "^$1 " "$work/all.txt" >"$work/cell.txt" || return 0
    rho=$(grep -v "^$1 auto " "$work/cell.txt" | spearman)
    awk -v cell="$1" -v rho="$rho" '
        $2 == "auto" { auto = $4; chosen = $5; next }
        { n++; took[$2] = $4; if (n == 1 || $4 < best) { best = $4; name = $2 } if ($4 > worst) worst = $4; if ($2 == "zero-infinity") infinity = $4 }
        END {
            if (!n) exit
            printf "cell %-10s %d strategies, apart by %.0f%%; Spearman %s", cell, n, 100 * (worst / best - 1), rho
            if (auto) printf "; auto (%s) over the best fixed (%s): %+.1f%%", chosen, name, 100 * (auto / best - 1)
            if (auto && took[chosen]) printf " (over the same fixed: %+.1f%%)", 100 * (auto / took[chosen] - 1)
            if (infinity && auto) printf "; zero-infinity over auto: %.2f", infinity / auto
            print "" }' "$work/cell.txt" | tee -a "$work/strategies.txt"
}

: >"$work/strategies.txt"
: >"$work/all.txt"
for spec in $cells; do
    cell=${spec%%:*}
    rest=${spec#*:}
    host=${rest%%:*}
    rest=${rest#*:}
    tokens=${rest%%:*}
    slow=
    [ "$rest" = "$tokens" ] || slow=${rest#*:}
    if [ $(($(date +%s) - begin)) -gt "$limit" ]; then
        echo "cell $cell: left out, $limit s are over" | tee -a "$work/strategies.txt"
        continue
    fi
    echo "cell $cell: --host-mem $host, $MICRO micro-batches of $tokens tokens${slow:+, --throttle $slow}; load $(cut -d' ' -f1-3 /proc/loadavg)" | tee -a "$work/strategies.txt"
    for strategy in $strategies; do
        # shellcheck disable=SC2046 # a list of words
        one "$cell" "$strategy" --method full --host-mem "$host" --max-seq-len "$tokens" --grad-accum "$micro" $(throttle "$slow")
    done
    summary "$cell"
done
echo
cat "$work/strategies.txt"
grep -v " auto " "$work/all.txt" >"$work/fixed.txt" || true
echo "Spearman of predicted and measured over all $(wc -l <"$work/fixed.txt") fixed runs: $(spearman <"$work/fixed.txt"); $(($(date +%s) - begin)) s; load $(cut -d' ' -f1-3 /proc/loadavg)"
rm -rf "$work/run"

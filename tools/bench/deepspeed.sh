#!/bin/sh
# Full fine-tuning from disk beside DeepSpeed's ZeRO-3 with NVMe offload, on the CPU: tools/bench/deepspeed.sh, by hand.
#
#   DS_PYTHON=python3      interpreter with deepspeed, torch, transformers, accelerate; without one it says so and stops
#   BUDGETS="1000MiB 1700MiB"   --host-mem of Penstock's runs
#   RUNS="..."             of Penstock: strategies;   DEEPSPEED="nvme:nvme:off:on ..."   optimizer:params:pipeline:checkpointing
#   ROUNDS=1 STEPS=4       rounds over all runs (they alternate), steps a run; the first does not count
#   TORCH_EXTENSIONS_DIR   where DeepSpeed's operators are kept once built (minutes)
#
# Same weights (4 layers of the 1.1B shape, vocabulary 2048, bf16), same tokens, 2 micro-batches of 256, AdamW with rate
# 1e-4, clip 1; losses and norms are printed to see that both do the same. Bytes and CPU seconds a step are the kernel's
# (/proc/PID/io, stat), seconds are each side's own. Memory is VmHWM: of Penstock the whole process; of DeepSpeed the steps
# alone, interpreter and imports given beside it ("of which"). CPU seconds say less of a busy machine's load than seconds.
SHAPE=${SHAPE:-4 2048 5632 32 4}
SEQ=${SEQ:-256}
MICRO=${MICRO:-2}
. "$(dirname "$0")/stream_lib.sh"
python=${DS_PYTHON:-python3}
budgets=${BUDGETS:-1000MiB 1700MiB}
strategies=${RUNS:-zero-infinity auto}
deepspeed=${DEEPSPEED:-nvme:nvme:off:off nvme:nvme:on:off cpu:cpu:off:off}
rounds=${ROUNDS:-1}
script=$root/tools/bench/deepspeed_llama.py
export DS_ACCELERATOR=cpu OMP_NUM_THREADS="$threads" TOKENIZERS_PARALLELISM=false
case $python in */*) PATH=$(dirname "$python"):$PATH ;; esac # ninja
if ! version=$("$python" "$script" --check 2>"$work/deepspeed.log"); then
    tail -n 3 "$work/deepspeed.log"
    echo "skip - deepspeed.sh: DeepSpeed cannot be run with $python (DS_PYTHON): NOTHING WAS MEASURED"
    exit 77
fi
prepare
headline "beside DeepSpeed"
echo "# $(echo "$version" | tail -n 1); $micro micro-batches of $seq tokens"

# Every 0.2 s: finished steps, bytes read and written, CPU seconds, peak memory; until the process ends.
watch() { # PID METRICS
    while [ -r "/proc/$1/io" ]; do
        n=0
        [ ! -f "$2" ] || while read -r _; do n=$((n + 1)); done <"$2"
        while read -r key value; do
            case $key in read_bytes:) r=$value ;; write_bytes:) w=$value ;; esac
        done <"/proc/$1/io"
        while read -r key value _; do
            [ "$key" != VmHWM: ] || peak=$value
        done <"/proc/$1/status"
        read -r _ _ _ _ _ _ _ _ _ _ _ _ _ user system _ <"/proc/$1/stat"
        echo "$n ${r:-0} ${w:-0} $((user + system)) ${peak:-0}"
        sleep 0.2
    done 2>"$work/watch.err"
}

# Bytes a step are those between the ends of the first and the last step but one: the last is followed by the result.
ours() { # STRATEGY BUDGET
    rm -rf "$work/run"
    "$penstock" train --model "$model" --data "$work/rows.jsonl" --format tokens --output "$work/run" --packing false --import never \
        --shuffle false --batch-size 1 --max-steps "$steps" --threads "$threads" --hardware "$hardware" --lr-scheduler constant \
        --warmup-steps 0 --learning-rate 1e-4 --progress none --method full --max-seq-len "$seq" --grad-accum "$micro" \
        --host-mem "$2" --strategy "$1" >"$work/run.log" 2>&1 &
    pid=$!
    watch $pid "$work/run/metrics.jsonl" >"$work/watch.txt"
    if ! wait $pid; then
        echo "not run: penstock $1 $2: $(grep -v warning "$work/run.log" | head -n 1)"
        return
    fi
    chosen=$(sed 's/.*"strategy":"\([^"]*\)".*/\1/' "$work/run/plan.json" | head -n 1)
    grep '"step_s"' "$work/run/metrics.jsonl" | grep -v '"event"' | cut -c1-700 | sed "s|^|raw penstock $1 $2 |"
    awk -v steps="$steps" -v ticks="$(getconf CLK_TCK)" -v name="penstock $1 $2$([ "$1" = "$chosen" ] || echo " ($chosen)")" '
        function value(s, key) { return match(s, "\"" key "\":[-+.0-9e]+") ? substr(s, RSTART + length(key) + 3, RLENGTH - length(key) - 3) + 0 : 0 }
        FNR == NR { if (!($1 in t)) { r[$1] = $2; w[$1] = $3; t[$1] = $4 } if ($5 > peak) peak = $5; next }
        /"event"/ { next }
        { n++; s[n] = value($0, "step_s"); tokens = value($0, "tokens"); loss = loss sprintf(" %.4f", value($0, "loss")) }
        END {
            for (i = 2; i <= n; i++) for (j = i + 1; j <= n; j++) if (s[j] < s[i]) { x = s[i]; s[i] = s[j]; s[j] = x }
            m = n % 2 ? (s[(n + 1) / 2] + s[(n + 3) / 2]) / 2 : s[n / 2 + 1]
            k = steps - 2
            printf "%-46s %7.2f s (%.2f to %.2f) %7.1f tokens/s  CPU %5.1f s  read %5.2f GB  written %5.2f GB  VmHWM %6.0f MiB (no interpreter)  losses%s\n", name, m, s[2], s[n],
                tokens / m, (t[steps - 1] - t[1]) / k / ticks, (r[steps - 1] - r[1]) / k / 1e9, (w[steps - 1] - w[1]) / k / 1e9, peak / 1024, loss }' "$work/watch.txt" "$work/run/metrics.jsonl" |
        tee -a "$work/deepspeed.txt"
}

theirs() { # OPTIMIZER:PARAMS:PIPELINE:CHECKPOINTING
    # shellcheck disable=SC2046 # four words
    set -- $(echo "$1" | tr ':' ' ') "$1"
    optimizer=$1 params=$2 pipeline=$3 recompute=$4
    shift 4
    if ! "$python" "$script" --model "$model" --data "$work/rows.jsonl" --seq-len "$seq" --micro "$micro" --steps "$steps" --threads "$threads" \
        --work "$work" --optimizer "$optimizer" --params "$params" --pipeline "$pipeline" --checkpointing "$recompute" >"$work/deepspeed.out" 2>"$work/deepspeed.log"; then
        echo "not run: deepspeed $1: $(grep -v '^ ' "$work/deepspeed.log" | tail -n 1)" | tee -a "$work/deepspeed.txt"
        return
    fi
    grep '^{' "$work/deepspeed.out" >"$work/deepspeed.jsonl"
    sed "s|^|raw deepspeed $1 |" "$work/deepspeed.jsonl"
    awk -v name="deepspeed states $optimizer, weights $params$([ "$pipeline" = off ] || echo ", pipelined")$([ "$recompute" = off ] || echo ", recomputing")" '
        function value(key) { return match($0, "\"" key "\": [-+.0-9e]+") ? substr($0, RSTART + length(key) + 4, RLENGTH - length(key) - 4) + 0 : 0 }
        function median(v, n, i, j, x, c) { for (i = 2; i <= n; i++) c[i - 1] = v[i]; n--
            for (i = 1; i <= n; i++) for (j = i + 1; j <= n; j++) if (c[j] < c[i]) { x = c[i]; c[i] = c[j]; c[j] = x }
            least = c[1]; most = c[n]; return n % 2 ? c[(n + 1) / 2] : (c[n / 2] + c[n / 2 + 1]) / 2 }
        /"setup_s"/ { setup = value("setup_s") }
        /"step"/ { n++; s[n] = value("step_s"); r[n] = value("disk_read_bytes"); w[n] = value("disk_write_bytes"); u[n] = value("cpu_s"); tps = value("tokens_per_s") * s[n]; loss = loss sprintf(" %.4f", value("loss")) }
        /"memory"/ { i = value("interpreter_bytes"); p = value("peak_steps_bytes"); q = value("peak_setup_bytes") }
        END { rr = median(r, n); ww = median(w, n); uu = median(u, n); m = median(s, n)
            printf "%-46s %7.2f s (%.2f to %.2f) %7.1f tokens/s  CPU %5.1f s  read %5.2f GB  written %5.2f GB  VmHWM %6.0f MiB (of which interpreter %.0f; setup %.0f s, %.0f MiB)  losses%s\n",
                name, m, least, most, tps / m, uu, rr / 1e9, ww / 1e9, p / 1048576, i / 1048576, setup, q / 1048576, loss }' "$work/deepspeed.jsonl" |
        tee -a "$work/deepspeed.txt"
}

: >"$work/deepspeed.txt"
round=0
while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    for budget in $budgets; do
        for strategy in $strategies; do
            ours "$strategy" "$budget"
        done
    done
    for offload in $deepspeed; do
        theirs "$offload"
    done
    echo "round $round: load $(cut -d' ' -f1-3 /proc/loadavg)" | tee -a "$work/deepspeed.txt"
done
echo
cat "$work/deepspeed.txt"
rm -rf "$work/run" "$work/deepspeed-spill"

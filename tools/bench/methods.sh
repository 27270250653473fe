#!/bin/sh
# Optimizers and adapters compared: `make bench-methods`, or tools/bench/methods.sh.
#
#   METHODS="adamw lora ..."   names of `penstock list optimizers` and `list adapters`; all by default
#   TASKS="stories demo"       tasks; `stories` alone by default
#   STEPS=40 DEMO_STEPS=300    steps of a run
#   FULL_FACTORS="0.1 0.3 1 3" LORA_FACTORS="1 3 10 30"   learning rates tried, as multiples of rate() below
#   SEED=42  THREADS=1  WORK=BUILD/bench/methods
#   SHARED=../shared           where data/models/stories260K and data/datasets/stories_text.jsonl are
#   RAW=NAME                   keep the raw lines in docs/benchmarks/raw/NAME.txt
#
# Task `stories`: stories260K goes on with stories that it wrote itself at temperature 0.8: 360 rows to train, the last 40
# held out; 2 sequences of 512 tokens a step. Task `demo`: examples/demo, one row a step, 200 held-out rows. Optimizers run
# with --method full, adapters with AdamW; bf16; cosine, 3% warm-up. Each rate is a run of its own; where the lowest or the
# highest is the best by held-out loss, up to two more beyond it follow (`edge`: still so). Nine steps more with everything
# on the disk that may be there (zero-infinity, or stream-lora) give the bytes: means without the first step. Times are
# over AdamW's, by median seconds of a step and by CPU seconds of the whole process, of a method's fastest run.
# The demo has one run a method, at the best rate of `stories`, or at rate() where `stories` did not run.
# At the end: what the planner says of the 1.1B shape (nothing runs there).
set -eu
export LC_ALL=C
BUILD=${BUILD:-build}
root=$(cd "$(dirname "$0")/../.." && pwd)
case $BUILD in /*) ;; *) BUILD=$root/$BUILD ;; esac
work=${WORK:-$BUILD/bench/methods}
penstock=$BUILD/penstock
steps=${STEPS:-40}
demo_steps=${DEMO_STEPS:-300}
full_factors=${FULL_FACTORS:-0.1 0.3 1 3}
lora_factors=${LORA_FACTORS:-1 3 10 30}
shared=${SHARED:-$root/../shared}
stories=$shared/data/datasets/stories_text.jsonl
optimizers=$("$penstock" list optimizers)
adapters=$("$penstock" list adapters)
methods=${METHODS:-$optimizers $adapters}
tasks=${TASKS:-stories}
mkdir -p "$work"
raw=$work/methods.txt
[ -z "${RAW:-}" ] || raw=$root/docs/benchmarks/raw/$RAW.txt

rate() { # METHOD: a usual learning rate for training; lisa and badam: adamw's; adapters: Penstock's default
    case $1 in
        adamw | adamw8bit | lisa | badam | microadam | adafactor) echo 1e-3 ;;
        sgd) echo 1e-1 ;;
        lion) echo 1e-4 ;;
        galore | natural-galore | fira | apollo | apollo-mini) echo 1e-2 ;;
        muon) echo 2e-2 ;;
        mezo) echo 1e-6 ;;
        vera) echo 2e-3 ;;
        ia3) echo 3e-3 ;;
        norms | bias) echo 1e-3 ;;
        nlora) echo 2e-5 ;;
        *) echo 2e-4 ;;
    esac
}

options() { # METHOD: what a model of width 64 and a run of 40 steps need: a rank below the width, several subspaces or blocks
    case $1 in
        galore | natural-galore | fira | apollo) echo "--optim-rank 16 --optim-update-gap 20" ;;
        sgd) echo "--momentum 0.9" ;;
        lisa) echo "--lisa-interval-steps 10" ;;
        badam) echo "--switch-block-every 8" ;;
    esac
}

is_adapter() { echo "$adapters" | grep -qx "$1"; }

choose() { # METHOD: the flags that choose it
    if is_adapter "$1"; then echo "--method $1"; else echo "--method full --optimizer $1 $(options "$1")"; fi
}

calc() { awk "BEGIN { printf \"%.6g\", $1 }"; }

first() { # KEY FILE: value of its first occurrence
    grep -o "\"$1\":[-+.0-9e]*" "$2" | head -n 1 | cut -d: -f2
}

last() { # KEY FILE: value of its last occurrence
    grep -o "\"$1\":[-+.0-9e]*" "$2" | tail -n 1 | cut -d: -f2
}

median_step() { # RUN: seconds of a step, the first not counted
    grep '"step_s"' "$1/metrics.jsonl" | grep -v '"event"' | tail -n +2 | grep -o '"step_s":[.0-9e-]*' | cut -d: -f2 |
        sort -g | awk '{ v[NR] = $1 } END { print NR ? (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2) : 0 }'
}

mean() { # KEY: over the steps of $work/run, the first not counted
    grep '"step_s"' "$work/run/metrics.jsonl" | grep -v '"event"' | tail -n +2 | grep -o "\"$1\":[.0-9e-]*" | cut -d: -f2 |
        awk '{ s += $1 } END { printf "%.0f", s / NR }'
}

train() { # METHOD RATE STEPS FLAGS...: one run in $work/run, its events in $work/log; CPU seconds in $cpu
    method=$1 lr=$2 count=$3
    shift 3
    rm -rf "$work/run"
    # shellcheck disable=SC2046 # flags are words
    (
        "$penstock" train $(choose "$method") --learning-rate "$lr" --max-steps "$count" --output "$work/run" --seed "${SEED:-42}" \
            --batch-size 1 --threads "${THREADS:-1}" --progress none --json "$@" >"$work/log" 2>"$work/errors" || exit 1
        times >"$work/times"
    ) || return 1
    cpu=$(awk 'NR == 2 { for (i = 1; i <= 2; i++) { split($i, t, "[ms]"); s += t[1] * 60 + t[2] } print s }' "$work/times")
}

# A line of results:
#   raw TASK METHOD rate R factor F steps N loss L trainable P state_bytes B step_s S cpu_s C
measure() { # TASK METHOD FACTOR STEPS FLAGS...
    task=$1 m=$2 factor=$3 n=$4
    shift 4
    r=$(calc "$(rate "$m") * $factor")
    if ! train "$m" "$r" "$n" "$@"; then
        echo "raw $task $m rate $r factor $factor failed: $(tr '\n' ' ' <"$work/errors" | cut -c1-300)"
        return
    fi
    state=$(cat "$work/run"/checkpoint-*/optimizer.safetensors | wc -c)
    echo "raw $task $m rate $r factor $factor steps $n loss $(last eval_loss "$work/log") trainable" \
        "$(last trainable_parameters "$work/log") state_bytes $state step_s $(median_step "$work/run") cpu_s $cpu"
}

# raw stream METHOD parameters P trainable T disk_read R disk_write W: bytes of a step
stream() { # METHOD FLAGS...
    m=$1
    shift
    where="--strategy zero-infinity --offload-optimizer disk --offload-weights disk"
    ! is_adapter "$m" || where="--strategy stream-lora --offload-weights disk --import never"
    # shellcheck disable=SC2086
    if ! train "$m" "$(rate "$m")" 9 "$@" $where; then
        echo "raw stream $m failed: $(tr '\n' ' ' <"$work/errors" | cut -c1-300)"
        return
    fi
    echo "raw stream $m parameters $(last parameters "$work/log") trainable $(last trainable_parameters "$work/log")" \
        "disk_read $(mean disk_read_bytes) disk_write $(mean disk_write_bytes)"
}

# raw plan METHOD BUDGET fits|needs ...: the 1.1B shape, full fine-tuning, 8 sequences of 2048 tokens a step
plan() { # METHOD BUDGET
    "$penstock" plan --model "$root/examples/shapes/tinyllama-1.1b.json" --method full --optimizer "$1" --host-mem "$2" --json \
        >"$work/plan" 2>/dev/null || { echo "raw plan $1 $2 needs $(first host "$work/plan")"; return; }
    echo "raw plan $1 $2 fits strategy $(grep -o '"strategy":"[a-z-]*"' "$work/plan" | head -n 1 | cut -d'"' -f4)" \
        "step_s $(first step_s "$work/plan") disk_read $(first disk_read "$work/plan") disk_write $(first disk_write "$work/plan")" \
        "disk $(grep -o '"peak_bytes":{[^}]*}' "$work/plan" | grep -o '"disk":[0-9]*' | cut -d: -f2)"
}

beyond() { # METHOD LOWEST HIGHEST FLAGS...: go on where the best rate is the last one on its side
    name=$1 low=$2 high=$3
    shift 3
    for more in 1 2; do
        b=$(best stories "$name" | cut -d' ' -f5)
        if [ -z "$b" ] || [ "$low" = "$high" ]; then
            return
        elif [ "$b" = "$low" ]; then
            low=$(calc "$low / 3")
            measure stories "$name" "$low" "$steps" "$@"
        elif [ "$b" = "$high" ]; then
            high=$(calc "$high * 3")
            measure stories "$name" "$high" "$steps" "$@"
        fi
    done
}

run_stories() {
    [ -f "$stories" ] || { echo "skip - stories: $stories is missing"; return; }
    model=$shared/data/models/stories260K
    head -n 360 "$stories" >"$work/train.jsonl"
    tail -n +361 "$stories" >"$work/held.jsonl"
    flags="--model $model --data $work/train.jsonl --max-seq-len 512 --grad-accum 2"
    echo "raw stories before loss $("$penstock" eval --model "$model" --data "$work/held.jsonl" --max-seq-len 512 --json \
        2>/dev/null | grep -o '"loss":[.0-9]*' | cut -d: -f2)"
    for name in $methods; do
        factors=$full_factors
        ! is_adapter "$name" || factors=$lora_factors
        for f in $factors; do
            # shellcheck disable=SC2086
            measure stories "$name" "$f" "$steps" $flags --eval-data "$work/held.jsonl"
            [ -s "$work/errors" ] && [ ! -d "$work/run" ] && break
        done
        # shellcheck disable=SC2086
        beyond "$name" "${factors%% *}" "${factors##* }" $flags --eval-data "$work/held.jsonl"
        # shellcheck disable=SC2086
        stream "$name" $flags
    done
    # How far the machine has drifted since the first run of AdamW.
    # shellcheck disable=SC2086
    measure again adamw 1 "$steps" $flags --eval-data "$work/held.jsonl"
}

run_demo() {
    data=$BUILD/examples/demo_data
    model=$root/examples/demo/base
    "$data" task train "$demo_steps" 1 >"$work/demo.jsonl"
    "$data" task test 200 99 >"$work/demo_test.jsonl"
    echo "raw demo before loss $("$penstock" eval --model "$model" --data "$work/demo_test.jsonl" --max-seq-len 256 --json \
        2>/dev/null | grep -o '"loss":[.0-9]*' | cut -d: -f2)"
    for name in $methods; do
        f=$(best stories "$name" | cut -d' ' -f5)
        measure demo "$name" "${f:-1}" "$demo_steps" --model "$model" --data "$work/demo.jsonl" --eval-data "$work/demo_test.jsonl" \
            --max-seq-len 256 --grad-accum 1 --packing false
    done
}

best() { # TASK METHOD: its line with the lowest loss: METHOD ... without "raw TASK"
    grep "^raw $1 $2 rate .* loss [0-9]" "$raw" | sort -g -k 11,11 | head -n 1 | cut -d' ' -f3-
}

fastest() { # TASK METHOD: seconds of a step, CPU seconds of a run
    grep "^raw $1 $2 rate .* loss [0-9]" "$raw" | awk '
        { if (NR == 1 || $17 + 0 < s) s = $17 + 0; if (NR == 1 || $19 + 0 < c) c = $19 + 0 } END { print s, c }'
}

table() { # TASK
    reference=$(fastest "$1" adamw)
    echo
    echo "| $1 | rate | held-out loss | trained | state bytes / trained | read, written / parameter, step | step | CPU |"
    echo "|---|---|---|---|---|---|---|---|"
    for name in $methods; do
        { echo "reference $reference"; grep "^raw stream $name " "$raw" || :; grep "^raw $1 $name rate" "$raw" || :; } | awk -v name="$name" '
            $1 == "reference" { step = $2; cpu = $3; next }
            $2 == "stream" { io = $4 == "failed:" ? "failed" : sprintf("%.2f, %.2f", $9 / $5, $11 / $5); next }
            $6 == "factor" && $8 == "failed:" { failed = $0; next }
            {
                n++
                if (n == 1 || $5 + 0 < low) low = $5 + 0
                if (n == 1 || $5 + 0 > high) high = $5 + 0
                if (n == 1 || $17 + 0 < s) s = $17 + 0
                if (n == 1 || $19 + 0 < c) c = $19 + 0
                if (n == 1 || $11 + 0 < loss) { lr = $5 + 0; loss = $11 + 0; trained = $13; state = $15 }
            }
            END {
                if (!n) { print "| `" name "` | | not run | | | | | |"; exit }
                edge = n > 1 && (lr == low || lr == high) ? " edge" : ""
                printf "| `%s` | %g%s | %.4f | %d | %.2f | %s | %s | %s |\n", name, lr, edge, loss, trained, state / trained,
                    io == "" ? "-" : io, step ? sprintf("%.2f", s / step) : "-", cpu ? sprintf("%.2f", c / cpu) : "-"
            }'
    done
}

main() {
    echo "# methods, $(date -u +%Y-%m-%d), $("$penstock" version | head -n 1), $(sed -n 's/model name.*: //p' /proc/cpuinfo | head -n 1)," \
        "${THREADS:-1} thread, load $(cut -d' ' -f1-3 /proc/loadavg)"
    for t in $tasks; do "run_$t"; done
    for o in adamw galore apollo-mini; do
        for budget in 1GiB 1700MiB; do plan "$o" "$budget"; done
    done
    echo "# load at the end $(cut -d' ' -f1-3 /proc/loadavg)"
}

main >"$raw"
for t in $tasks; do table "$t"; done | tee "$work/table.md"

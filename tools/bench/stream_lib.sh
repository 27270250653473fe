# Shared by tools/bench/stream*.sh: a model whose layers stream, runs, and what their metrics say. Sourced.
#
# Environment (all optional):
#   BUILD=build  WORK=BUILD/bench/stream  THREADS=all cores
#   STEPS=4      steps a run; the first is warm-up and does not count
#   SHAPE="40 640 1792 10 2"   layers, hidden, intermediate, heads, kv heads of the model
#   SEQ=128 MICRO=2            tokens of a micro-batch, micro-batches of a step
#   HARDWARE=FILE              profile to plan with; default: measured here, once a folder WORK
#   COMPUTE=FLOPS              throttle compute to this rate too: what is left is the schedule's doing, not the
#                              machine's (to look for weak spots on a busy machine; never for figures to quote)
set -eu
export LC_ALL=C
BUILD=${BUILD:-build}
root=$(cd "$(dirname "$0")/../.." && pwd)
case $BUILD in /*) ;; *) BUILD=$root/$BUILD ;; esac
work=${WORK:-$BUILD/bench/stream}
steps=${STEPS:-4}
threads=${THREADS:-$(nproc)}
shape=${SHAPE:-40 640 1792 10 2}
seq=${SEQ:-128}
micro=${MICRO:-2}
layers=${shape%% *}
model=$work/model-$(echo "$shape" | tr ' ' '-')
hardware=${HARDWARE:-$work/hardware.json}
penstock=$BUILD/penstock
mkdir -p "$work"

make_model() {
    [ -f "$model/config.json" ] && return
    # shellcheck disable=SC2086 # the shape is a list of words
    set -- $shape
    cat >"$work/config.json" <<END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 2048, "hidden_size": $2,
 "intermediate_size": $3, "num_hidden_layers": $1, "num_attention_heads": $4, "num_key_value_heads": $5,
 "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu",
 "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": false, "initializer_range": 0.02,
 "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}
END
    "$penstock" init --config "$work/config.json" --output "$model" --seed 1 --dtype bf16 >&2
}

make_rows() { # random ids; long rows are cut to --max-seq-len
    [ -f "$work/rows.jsonl" ] && return
    awk 'BEGIN { srand(7); for (r = 0; r < 128; r++) { printf "{\"input_ids\":["
        for (i = 0; i < 2048; i++) printf "%s%d", i ? "," : "", 3 + int(rand() * 2000); print "]}" } }' >"$work/rows.jsonl"
}

# The planner's rates, measured here unless HARDWARE names a file. `bench disk` would write for two minutes: these
# files are read from the host's memory, and short rates are what the runs see.
make_profile() {
    [ -f "$hardware" ] && return
    "$penstock" bench --threads "$threads" --nvme-path "$work" --disk-seconds 1 --output "$hardware" >"$work/bench.log" 2>&1 ||
        { cat "$work/bench.log"; exit 1; }
}

prepare() {
    make_model
    make_rows
    make_profile
}

headline() { # PART
    echo "# $1, $(date -u +%Y-%m-%d), $("$penstock" version | head -n 1), $(sed -n 's/model name.*: //p' /proc/cpuinfo | head -n 1), $threads threads"
    echo "# model: layers hidden intermediate heads kv heads = $shape; micro-batch of $seq tokens; load: $(cut -d' ' -f1-3 /proc/loadavg)"
}

# A placement file: every layer alike.
# placement FILE STRATEGY GROUP SLOTS WEIGHTS KEEP BOUNDARY [X_RING]
#   WEIGHTS device|host|disk; with SLOTS 0 nothing is streamed. KEEP true|false. BOUNDARY device|host|disk
#   $interleave, where it is set, becomes a member of its own
placement() {
    awk -v n="$layers" -v strategy="$2" -v group="$3" -v slots="$4" -v tier="$5" -v keep="$6" -v boundary="$7" -v ring="${8:-0}" -v interleave="${interleave:-}" '
    function list(x, i, s) { s = x; for (i = 1; i < n; i++) s = s "," x; return "[" s "]" }
    BEGIN {
        if (!ring) ring = boundary == "device" ? group : group + 3
        printf "{\"version\":1,\"strategy\":\"%s\",\"group\":%d,\"eval_group\":%d,\"near_slots\":%d,\"raw_slots\":%d,", strategy, group, group, slots, (tier == "disk" ? 3 : 0)
        if (interleave) printf "\"interleave\":%d,", interleave
        printf "\"x_ring\":%d,\"host_ring\":%d,", ring, (boundary == "disk" ? 4 : 0)
        printf "\"weights\":{\"embed\":\"device\",\"head\":\"device\",\"layers\":%s},", list("\"" tier "\"")
        printf "\"activations\":%s}\n", list("{\"keep\":" keep ",\"boundary\":\"" boundary "\"}")
    }' >"$1"
}

# run NAME FLAGS...: one training run; its steps, raw, on stdout and as a table in $work/NAME.tsv:
# step_s, compute, disk_weights, h2d, d2h busy_s, disk_read, h2d, d2h bytes, predicted_step_s, tokens
run() {
    name=$1
    shift
    rm -rf "$work/run"
    "$penstock" train --model "$model" --data "$work/rows.jsonl" --format tokens --output "$work/run" --packing false --import never \
        --shuffle false --batch-size 1 --max-steps "$steps" --threads "$threads" --hardware "$hardware" \
        --learning-rate 1e-4 --progress none "$@" >"$work/run.log" 2>&1 || { cat "$work/run.log"; return 1; }
    grep '"step_s"' "$work/run/metrics.jsonl" | grep -v '"event"' | sed "s|^|raw $name |; s/,\"epoch.*\"tokens\":/,\"tokens\":/"
    grep '"step_s"' "$work/run/metrics.jsonl" | grep -v '"event"' | tail -n +2 | awk '
    function value(s, key) { return match(s, "\"" key "\":[-+.0-9e]+") ? substr(s, RSTART + length(key) + 3, RLENGTH - length(key) - 3) + 0 : 0 }
    function busy(lane) { return match($0, "\"" lane "\":\\{\"busy_s\":[-+.0-9e]+") ? substr($0, RSTART + length(lane) + 13, RLENGTH - length(lane) - 13) + 0 : 0 }
    { print value($0, "step_s"), busy("compute"), busy("disk_weights"), busy("h2d"), busy("d2h"), value($0, "disk_read_bytes"),
        value($0, "h2d_bytes"), value($0, "d2h_bytes"), value($0, "predicted_step_s"), value($0, "tokens"), busy("disk_state"), busy("disk_write") }' >"$work/$name.tsv"
}

column() { # NAME: its number in the table
    case $1 in
        step) echo 1 ;; compute) echo 2 ;; disk_weights) echo 3 ;; h2d) echo 4 ;; d2h) echo 5 ;; disk_bytes) echo 6 ;;
        h2d_bytes) echo 7 ;; d2h_bytes) echo 8 ;; predicted) echo 9 ;; tokens) echo 10 ;;
    esac
}

med() { # RUN COLUMN: median over the counted steps
    awk -v c="$(column "$2")" '{ print $c }' "$work/$1.tsv" | sort -g |
        awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

calc() { awk "BEGIN { printf \"%.6g\", $1 }"; }

# LANE=RATE,... with COMPUTE in front where it is given: --throttle and its value, or nothing
throttle() { # [LANE=RATE]
    t=${COMPUTE:+compute=$COMPUTE}
    t=$t${1:+${t:+,}$1}
    [ -z "$t" ] || echo "--throttle $t"
}

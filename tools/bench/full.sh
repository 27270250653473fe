#!/bin/sh
# Training throughput beside PyTorch, in one run: `make bench-full`.
#
#   TORCH_PYTHON=python3   an interpreter with torch, transformers and peft; without one only Penstock runs
#   CASES="..."            model:seq:dtype:method:activations cells (default below)
#   STEPS=3                steps a run; the first is warm-up and does not count
#   MODES="eager compile"  of torch
#   WORK=DIR               where models are made (2.5 GB); default build/bench
#
# Each cell: the register peak before, Penstock, torch, the peak after. Output: raw lines, then a table with
# seconds a step (median without the first), tokens/s, HFU (matrix FLOPs of forward, backward and recomputation
# over time and peak), peak resident memory, and the ratio to the better torch mode.
set -eu
BUILD=${BUILD:-build}
root=$(cd "$(dirname "$0")/../.." && pwd)
case $BUILD in /*) ;; *) BUILD=$root/$BUILD ;; esac
work=${WORK:-$BUILD/bench}
steps=${STEPS:-3}
threads=${THREADS:-$(nproc)}
cases=${CASES:-"tinyllama-1.1b:2048:bf16:lora:recompute tinyllama-1.1b:2048:bf16:full:recompute \
smollm2-135m:512:bf16:lora:host smollm2-135m:2048:bf16:lora:host smollm2-135m:512:fp32:lora:host \
smollm2-135m:2048:fp32:lora:host smollm2-135m:512:bf16:full:host smollm2-135m:2048:bf16:full:host \
smollm2-135m:512:fp32:full:host smollm2-135m:2048:fp32:full:host"}
mkdir -p "$work"
table=$work/table.txt
: >"$table"

make_model() {
    [ -f "$work/$1/config.json" ] && return
    "$BUILD/penstock" init --config "$root/examples/shapes/$1.json" --output "$work/$1" --seed 1 --dtype bf16 >&2
}

make_rows() { # SEQ: random ids below 30000, one row a step
    awk -v n="$1" -v rows="$steps" 'BEGIN { srand(7); for (r = 0; r < rows; r++) { printf "{\"input_ids\":[";
        for (i = 0; i < n; i++) printf "%s%d", i ? "," : "", 3 + int(rand() * 29990); print "]}" } }' >"$work/rows.jsonl"
}

peak() { # DTYPE: register peak in GFLOP/s
    "$BUILD/tools/bench/gemm" --threads "$threads" --math "$1" --group peak
}

penstock_cell() { # MODEL SEQ DTYPE METHOD ACTIVATIONS
    out=$work/run
    rm -rf "$out"
    "$BUILD/penstock" train --model "$work/$1" --data "$work/rows.jsonl" --format tokens --output "$out" \
        --max-seq-len "$2" --packing false --shuffle false --batch-size 1 --grad-accum 1 --max-steps "$steps" \
        --dtype "$3" --method "$4" --offload-activations "$5" --threads "$threads" --learning-rate 1e-4 \
        --progress none >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    echo "penstock $* $(sed 's/,"lanes.*//; s/$/}/' "$out/metrics.jsonl" | tr '\n' ' ')"
    sed -n 's/.*"step":\([0-9]*\),.*"step_s":\([0-9.]*\).*/\1 \2/p' "$out/metrics.jsonl" | awk '$1 > 1 { print $2 }' |
        sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }' >"$work/seconds"
    sed -n 's/.*"event":"end".*"host":\([0-9]*\),"disk".*/\1/p' "$out/metrics.jsonl" | head -n 1 >"$work/rss"
}

torch_cell() { # MODE MODEL SEQ DTYPE METHOD ACTIVATIONS
    flag=
    [ "$6" = recompute ] && flag=--checkpointing
    line=$(OMP_NUM_THREADS=$threads "$TORCH_PYTHON" "$root/tools/reference/bench_torch.py" --model "$work/$2" \
        --data "$work/rows.jsonl" --method "$5" --dtype "$4" --steps "$steps" --mode "$1" --threads "$threads" \
        $flag 2>"$work/torch.log" | tail -n 1) || line=
    [ -n "$line" ] || { echo "torch $1 failed: $(tail -n 1 "$work/torch.log")"; return 1; }
    echo "torch $1 $line"
    echo "$line" | sed 's/.*"step_s": \[\([^]]*\)\].*/\1/' | tr ',' '\n' | tail -n +2 | sort -n |
        awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }' >"$work/torch.$1.seconds"
    echo "$line" | sed 's/.*"peak_rss": \([0-9]*\).*/\1/' >"$work/torch.$1.rss"
}

echo "# $(date -u +%Y-%m-%d) $("$BUILD/penstock" version | head -n 1), $(sed -n 's/model name.*: //p' /proc/cpuinfo | head -n 1), $threads threads"
for cell in $cases; do
    IFS=: read -r model seq dtype method acts <<EOF
$cell
EOF
    make_model "$model"
    make_rows "$seq"
    math=$dtype
    [ "$dtype" = fp32 ] && math=f32
    before=$(peak "$math")
    penstock_cell "$model" "$seq" "$dtype" "$method" "$acts"
    rm -f "$work"/torch.*.seconds "$work"/torch.*.rss
    if [ -n "${TORCH_PYTHON:-}" ]; then
        for mode in ${MODES:-eager compile}; do torch_cell "$mode" "$model" "$seq" "$dtype" "$method" "$acts" || true; done
    fi
    after=$(peak "$math")
    echo "peak $math before $before after $after GFLOP/s"
    # FLOPs a token: forward 2P; backward 2P for the inputs, 2P more for the weights of full; recomputation 2P less
    # the last linear of a layer; attention 4*T*a a token and pass over half the matrix.
    awk -v cell="$cell" -v t="$seq" -v s="$(cat "$work/seconds")" -v rss="$(cat "$work/rss")" -v p1="$before" -v p2="$after" \
        -v e="$(cat "$work/torch.eager.seconds" 2>/dev/null || echo 0)" -v c="$(cat "$work/torch.compile.seconds" 2>/dev/null || echo 0)" \
        -v er="$(cat "$work/torch.eager.rss" 2>/dev/null || echo 0)" -v cr="$(cat "$work/torch.compile.rss" 2>/dev/null || echo 0)" \
        -v method="$method" -v acts="$acts" '
        /"vocab_size"/ { v = $2 + 0 } /"hidden_size"/ { h = $2 + 0 } /"intermediate_size"/ { f = $2 + 0 }
        /"num_hidden_layers"/ { l = $2 + 0 } /"num_attention_heads"/ { nh = $2 + 0 } /"num_key_value_heads"/ { kv = $2 + 0 }
        END {
            d = h / nh; lin = l * (2 * h * h + 2 * h * kv * d + 3 * h * f); head = v * h
            att = l * 2 * t * h # 4 T a over half the matrix, a token, one pass
            fwd = 2 * (lin + head) + att; bwd = 2 * (lin + head) + 2.5 * att
            if (method == "full") bwd += 2 * (lin + head)
            re = acts == "recompute" ? 2 * (lin - l * h * f) + att : 0
            peak = (p1 + p2) / 2 * 1e9
            best = e; if (c > 0 && (e == 0 || c < e)) best = c
            printf "%-40s %8.2f s/step %8.1f tok/s  HFU %4.1f%%  MFU %4.1f%%  rss %6.2f GiB | torch eager %8.2f s %6.2f GiB  compile %8.2f s %6.2f GiB | speed-up %s\n",
                cell, s, t / s, 100 * (fwd + bwd + re) * t / s / peak, 100 * (fwd + bwd) * t / s / peak, rss / 2^30,
                e, er / 2^30, c, cr / 2^30, (best > 0 ? sprintf("%.2f", best / s) : "-")
        }' "$root/examples/shapes/$model.json" >>"$table"
    tail -n 1 "$table"
done
echo
cat "$table"

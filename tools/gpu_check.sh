#!/bin/sh
# Check Penstock on a GPU: kernels, gradients and curves, equal bits, speed.
#
#   tools/gpu_check.sh [a] [b] [c] [d]      parts, default all:
#     a   what kernels are made of, every kernel against its reference, the plug-in; compute-sanitizer if it is there
#     b   gradients per tensor and 50-step loss curves, CUDA against the CPU and against torch's golden numbers
#     c   the same bits: every strategy, budget and back end gives the same adapter, gradients and metrics
#     d   benchmarks (tools/bench/gpu_*), each a ratio within one run
#   --emulate       a dry run without a GPU at tiny sizes, with the emulated plug-in of EMU_BUILD (default: the build)
#   --out DIR       where logs go (default: $OUT, or gpu-check-out)
#   --seconds N     for the whole (default 520)
#
# Runs in a working tree that is built (`make all tests gpu-bundle`), or unpacked from build/gpu-bundle.tgz on a machine
# with the driver, CUDA 13, gcc and python3 with torch; it needs no network. Each part has its own time limit and log
# (a.log, b.log, c.log, d.log); a part that fails does not stop the others. The table comes last, and in summary.txt.
# Exit code: 0 all is well, 1 something is not, 2 it cannot run.
set -u
self=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
PENSTOCK_ROOT=$(dirname "$(dirname "$self")")
PENSTOCK_BUILD=${PENSTOCK_BUILD:-$PENSTOCK_ROOT/build}
export PENSTOCK_ROOT PENSTOCK_BUILD
models=$PENSTOCK_ROOT/tests/golden/models
helpers=$PENSTOCK_BUILD/tests/helpers

usage() { sed -n '2,/^set -u/s/^# \{0,1\}//p' "$self"; }
die() {
    echo "gpu_check: $*" >&2
    exit 2
}

# ---- what the parts share ----

# row VERDICT NAME VALUE: a line of the table. VERDICT: ok, FAIL, skip, note for what has no limit, MISS for a goal of speed
# that is not reached, which is no failure of the check.
row() {
    printf '%s|%s|%s|%s\n' "$part" "$1" "$2" "$3" >>"$work/rows"
    printf '%s %s: %s\n' "$1" "$2" "$3"
}

# verdict CODE: what an exit code says.
verdict() { if [ "$1" -eq 0 ]; then echo ok; else echo FAIL; fi; }

# train NAME FLAGS...: a run into ./NAME, gradients in NAME.grads; its words are shown when it fails.
train() {
    train_name=$1
    shift
    "$PENSTOCK" train --output "$train_name" --dump-grads "$train_name.grads" --format tokens --progress none "$@" \
        >"$train_name.out" 2>&1
    rc=$?
    if [ $rc -ne 0 ]; then
        echo "train $train_name $*: exit $rc"
        tail -n 5 "$train_name.out" | sed 's/^/    | /'
    fi
    return $rc
}

# make_model DIR FAMILY HIDDEN INTERMEDIATE LAYERS HEADS KV_HEADS HEAD_DIM VOCAB WINDOW: random weights, bf16.
make_model() {
    case $2 in
    qwen3) arch=Qwen3ForCausalLM ;;
    mistral) arch=MistralForCausalLM ;;
    *) arch=LlamaForCausalLM ;;
    esac
    cat >"$1.json" <<END
{"architectures": ["$arch"], "model_type": "$2", "hidden_size": $3, "intermediate_size": $4, "num_hidden_layers": $5,
 "num_attention_heads": $6, "num_key_value_heads": $7, "head_dim": $8, "vocab_size": $9, "sliding_window": ${10},
 "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
 "attention_bias": false, "tie_word_embeddings": false, "torch_dtype": "bfloat16"}
END
    "$PENSTOCK" init --config "$1.json" --output "$1" --seed 3 --dtype bf16
}

# ---- a: kernels ----

# One test program: cmocka's words, counted.
run_test() {
    name=$(basename "$1")
    mkdir -p "$name.dir"
    start=$(date +%s)
    (cd "$name.dir" && CMOCKA_MESSAGE_OUTPUT=STDOUT timeout --foreground -k 5 90 "$1") >"$name.txt" 2>&1
    rc=$?
    ok=$(grep -c '^\[       OK \]' "$name.txt")
    bad=$(sed -n 's/^\[  FAILED  \] \([A-Za-z_0-9]*\)$/\1/p' "$name.txt" | sort -u | wc -l)
    skipped=$(sed -n 's/^\[  SKIPPED \] \([A-Za-z_0-9]*\)$/\1/p' "$name.txt" | sort -u | wc -l)
    if [ "$ok" -eq 0 ]; then rc=1; fi
    row "$(verdict $rc)" "$name" "$ok ok, $bad failed, $skipped skipped, $(($(date +%s) - start)) s (exit $rc)"
    if [ $rc -ne 0 ]; then tail -n 40 "$name.txt"; fi
}

# sanitize TOOL LIMIT NAME COMMAND...: no error is reported; not finished within LIMIT seconds is no failure.
sanitize() {
    tool=$1 limit=$2 name=$3
    shift 3
    timeout --foreground -k 5 "$limit" "$sanitizer" --tool "$tool" --error-exitcode 9 "$@" >sanitizer.txt 2>&1
    rc=$?
    said=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' sanitizer.txt | tail -n 1 | sed 's/^=* *//')
    reports=$(grep -Ec '^=+ *(Invalid|Error: Race|Race reported|Uninitialized|Program hit)' sanitizer.txt)
    if [ $rc -eq 0 ]; then
        row ok "$tool: $name" "$said"
    elif { [ $rc -eq 124 ] || [ $rc -eq 137 ]; } && [ "$reports" -eq 0 ]; then
        row note "$tool: $name" "not finished in $limit s, nothing reported until then"
    else
        row FAIL "$tool: $name" "exit $rc, $reports reports, ${said:-no summary}"
        tail -n 60 sanitizer.txt
    fi
}

part_a() {
    tests=$PENSTOCK_BUILD/gpu/tests/cuda
    if [ -n "$emulate" ]; then tests=$EMU_BUILD/tests/cuda; fi
    run_test "$tests/test_fragment_layout" # before all else: the layouts come from documents
    run_test "$tests/test_building_blocks_cuda"
    for test in "$tests"/test_*; do
        case $test in
        *.o | *.d | */test_fragment_layout | */test_building_blocks_cuda | */test_emu*) continue ;;
        *_rope_cuda | *_swiglu_cuda | *_plugin) ;;
        *) if [ -n "$emulate" ]; then continue; fi ;; # make test runs them
        esac
        run_test "$test"
    done
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
    if [ -n "$emulate" ] || [ -z "$sanitizer" ]; then
        if [ -n "$emulate" ]; then why="the emulation checks"; else why="not found"; fi
        row skip "compute-sanitizer" "$why"
        return
    fi
    make_model small llama 128 192 2 2 1 64 512 null
    make_rows 12 40 120 512 7 >rows.jsonl
    sanitize memcheck 45 "a LoRA step" "$PENSTOCK" train --model small --data rows.jsonl --format tokens --max-seq-len 128 \
        --grad-accum 1 --max-steps 1 --device cuda --gpu-mem 4GiB --progress none --output sanitized
    sanitize racecheck 15 "barriers, copies, fragments" "$tests/test_building_blocks_cuda"
    sanitize racecheck 30 "attention" "$tests/test_attention_cuda"
}

# ---- b: gradients and curves ----

# The worst line of st_compare, short.
worst() { sed -n 's/^\([0-9]*\) tensors.*relative \([^,]*\),.*/\1 tensors, worst relative error \2/p' "$1" | tail -n 1; }

# golden MODEL METHOD: one step in fp32 on CUDA against the gradients that torch (and PEFT) gave.
golden() {
    prefix=grad. adapter=
    if [ "$2" = lora ]; then prefix=lora.grad. adapter="--adapter $models/$1/adapter"; fi
    told=golden-$1-$2.txt
    # shellcheck disable=SC2086
    train "golden-$1-$2" --model "$models/$1/model" --data "$models/$1/rows.jsonl" --method "$2" --dtype fp32 --max-steps 1 \
        --shuffle false --max-seq-len 160 --packing false --batch-size 2 --grad-accum 3 $cuda $adapter >"$told" &&
        "$helpers/st_compare" "$models/$1/golden.safetensors" "golden-$1-$2.grads" --expected-prefix $prefix --rtol 1e-5 >>"$told"
    rc=$?
    cat "$told"
    said=$(worst "$told")
    row "$(verdict $rc)" "fp32 $2 $1, CUDA against torch" "${said:-the run failed}"
}

# relative_errors EXPECTED ACTUAL: "NAME ERROR" of each tensor.
relative_errors() { "$helpers/st_compare" "$1" "$2" --rtol 1 --verbose | sed -n 's/^\([^ ]*\): relative \([^ ]*\) .*/\1 \2/p'; }

# The CPU and CUDA in both types on one model: fp32 within a limit; bf16 no farther from the CPU's fp32 than the CPU's own
# bf16 is, but for half of that and 1e-3 (both round to bf16 at the same places, sums differ in order).
against_cpu() { # NAME FP32_LIMIT FLAGS...
    name=$1 limit=$2
    shift 2
    rc=0
    for dtype in fp32 bf16; do
        train cpu-$dtype --device cpu --dtype $dtype "$@" || rc=1
        # shellcheck disable=SC2086
        train cuda-$dtype --dtype $dtype $cuda "$@" || rc=1
    done
    if [ $rc -eq 0 ]; then
        "$helpers/st_compare" cpu-fp32.grads cuda-fp32.grads --rtol "$limit" >compared
        row "$(verdict $?)" "fp32 $name, CUDA against CPU" "$(worst compared)"
        relative_errors cpu-fp32.grads cuda-bf16.grads >errors
        relative_errors cpu-fp32.grads cpu-bf16.grads | paste -d ' ' errors - | awk '
            $1 != $3 || $2 + 0 != $2 || $4 + 0 != $4 { print "not comparable: " $0; bad = 1; next }
            { n++; q = $2 / (1.5 * $4 + 1e-3); if (q > worst) { worst = q; line = $0 } if (q > 1) { print "BAD " $0; bad = 1 } }
            $2 > most { most = $2 } $4 > own { own = $4 }
            END { printf "%d tensors, worst error %.3g, the CPU'\''s own %.3g\n", n, most, own; exit bad || n == 0 }' >compared
        rc=$?
        cat compared
        row "$(verdict $rc)" "bf16 $name, against the CPU's fp32" "$(tail -n 1 compared)"
    else
        row FAIL "$name" "a run failed"
    fi
    rm -rf cpu-* cuda-*
}

# both_methods NAME FP32_LIMIT FLAGS...: LoRA with A and B both away from zero, then full.
both_methods() {
    both_name=$1 both_limit=$2
    shift 2
    train adapter --device cpu --dtype fp32 "$@" --max-steps 2 --learning-rate 2e-2 || row FAIL "$both_name" "no adapter"
    against_cpu "lora $both_name" "$both_limit" --max-steps 1 --method lora --adapter adapter "$@"
    against_cpu "full $both_name" "$both_limit" --max-steps 1 --method full "$@"
    rm -rf adapter
}

# curve NAME LIMIT_OF_RELATIVE_LOSS FLAGS...: 50 steps on the CPU and on CUDA.
curve() {
    name=$1 limit=$2
    shift 2
    rc=1
    # shellcheck disable=SC2086
    if train cpu --device cpu --max-steps 50 "$@" && train cuda $cuda --max-steps 50 "$@"; then
        step_losses() { sed -n 's/^{"step":[0-9]*,"epoch":[^,]*,"loss":\([^,]*\),.*/\1/p' "$1/metrics.jsonl"; }
        step_losses cpu >cpu.losses
        step_losses cuda | paste -d ' ' cpu.losses - | awk -v limit="$limit" '
            $1 + 0 != $1 || $2 + 0 != $2 { exit bad = 1 }
            NR == 1 { first = $1 }
            { d = ($1 - $2) / $1; if (d < 0) d = -d; if (d > worst) worst = d; last = $1 }
            END { printf "%d steps, loss %.4f to %.4f, worst relative difference %.2g\n", NR, first, last, worst
                  exit bad || NR != 50 || worst > limit || last > 0.98 * first }' >compared
        rc=$?
    fi
    said=$(cat compared)
    row "$(verdict $rc)" "$name" "${said:-a run failed}"
    : >compared
    rm -rf cpu cuda
}

# Rows that can be learnt: each token follows from the one before.
make_learnable() { # COUNT LENGTH VOCAB
    awk -v n="$1" -v len="$2" -v v="$3" 'BEGIN {
        for (r = 0; r < n; r++) {
            x = (r * 7) % v; line = x
            for (i = 1; i < len; i++) { x = (x * 3 + 5) % v; line = line "," x }
            printf "{\"input_ids\":[%s]}\n", line
        } }'
}

part_b() {
    : >compared
    list=$(cd "$models" && for dir in */golden.safetensors; do dirname "$dir"; done)
    if [ -n "$emulate" ]; then list=qwen3_tied; fi
    for model in $list; do
        golden "$model" full &
        golden "$model" lora &
        wait
    done
    layers=2 seq=64 vocab=256 lens="20 60" hidden=96 inter=128 steps_len=17
    if [ -z "$emulate" ]; then seq=1024 vocab=4000 lens="200 1000" hidden=768 inter=2048 steps_len=257; fi
    # shellcheck disable=SC2086
    make_rows 40 $lens $vocab 7 >rows.jsonl
    for dim in 64 80 96 128 256; do
        family=llama window=null
        case $dim in
        96) family=mistral window=$((seq / 3)) ;;
        128) family=qwen3 ;;
        esac
        if [ -n "$emulate" ] && [ $dim != 64 ]; then continue; fi
        make_model model-$dim $family $hidden $inter $layers 4 2 $dim $vocab $window
        both_methods "head_dim $dim, $seq tokens" 2e-5 --model model-$dim --data rows.jsonl --max-seq-len $seq \
            --grad-accum 2 --shuffle false
        if [ $dim != 64 ]; then rm -rf model-$dim; fi
    done
    make_learnable 100 $steps_len 97 >learnable.jsonl
    for dtype in fp32 bf16; do
        limit=1e-4
        if [ $dtype = bf16 ]; then limit=2e-2; fi
        curve "50 steps $dtype lora, CUDA against CPU" "$limit" --method lora --dtype $dtype --model model-64 \
            --data learnable.jsonl --max-seq-len $steps_len --grad-accum 1 --learning-rate 3e-3
        curve "50 steps $dtype full, CUDA against CPU" "$limit" --method full --dtype $dtype --model model-64 \
            --data learnable.jsonl --max-seq-len $steps_len --grad-accum 1 --learning-rate 1e-3
    done
}

# ---- c: the same bits ----

# What of a run must not depend on where things are: result, gradients, losses and norms.
same_run() { # WANT GOT
    losses "$1" >want.losses
    losses "$2" >got.losses
    same_count=0
    for file in "$1"/*.safetensors; do
        cmp "$file" "$2${file#"$1"}" || return 1
        same_count=$((same_count + 1))
    done
    [ $same_count -gt 0 ] && [ -s want.losses ] && diff want.losses got.losses && cmp "$1.grads" "$2.grads"
}

# matrix NAME COMMON_FLAGS: every line of ./variants against the first; a combination that the program refuses (exit 2 or 3)
# is counted, all others must run. On a GPU three at a time.
matrix() {
    name=$1 jobs=3
    shift
    if [ -n "$emulate" ]; then jobs=1; fi
    same=0 differ=0 refused=0 count=0
    while read -r flags; do
        count=$((count + 1))
        # shellcheck disable=SC2086
        (
            train got-$count "$@" $flags
            echo "$rc" >got-$count.rc
        ) </dev/null &
        if [ $((count % jobs)) -eq 0 ]; then wait; fi
    done <variants
    wait
    count=0
    while read -r flags; do
        count=$((count + 1))
        case $(cat got-$count.rc) in
        0) if same_run got-1 got-$count; then same=$((same + 1)); else
            echo "DIFFERENT: $name: $flags"
            differ=$((differ + 1))
        fi ;;
        2 | 3) refused=$((refused + 1)) ;;
        *) differ=$((differ + 1)) ;;
        esac
    done <variants
    rm -rf got-*
    rc=1
    if [ $differ -eq 0 ] && [ $same -ge 5 ]; then rc=0; fi
    row "$(verdict $rc)" "$name" "$same the same, $differ not, $refused refused"
}

# Every strategy but auto, with sets of flags, budgets and back ends; `list_variants short`: fewer.
list_variants() {
    small=1GiB
    if [ -n "$emulate" ]; then small=64MiB; fi
    echo "--gpu-mem 4GiB --strategy resident"
    echo "--gpu-mem 4GiB --strategy resident" # again
    for strategy in $("$PENSTOCK" list strategies | grep -vx auto); do
        echo "--gpu-mem 4GiB --strategy $strategy --offload-activations recompute"
        echo "--gpu-mem 3GiB --strategy $strategy --offload-weights disk --offload-activations host"
        echo "--gpu-mem $small --strategy $strategy --prefetch-depth 1 --queue-depth 1 --storage threads"
        if [ "$1" = short ]; then continue; fi
        echo "--gpu-mem 2GiB --strategy $strategy --offload-weights host --offload-activations disk"
        echo "--gpu-mem 4GiB --strategy $strategy --offload-weights disk --offload-activations disk --delay-seed 5"
        echo "--gpu-mem 4GiB --strategy $strategy --serial"
        echo "--gpu-mem 4GiB --strategy $strategy --prefetch-depth 4 --storage io_uring"
    done
    echo "--gpu-mem $small --strategy auto"
    echo "--gpu-mem 4GiB --strategy auto --threads 1"
}

part_c() {
    seq=64 vocab=256 lens="20 60" hidden=96 inter=128 layers=2 heads=2
    if [ -z "$emulate" ]; then seq=512 vocab=8000 lens="100 500" hidden=512 inter=1408 layers=4 heads=8; fi
    make_model model llama $hidden $inter $layers $heads 2 64 $vocab null
    # shellcheck disable=SC2086
    make_rows 60 $lens $vocab 9 >rows.jsonl
    for method in lora full; do
        for dtype in bf16 fp32; do
            list_variants short >variants
            if [ $method-$dtype = lora-bf16 ]; then
                if [ -z "$emulate" ]; then list_variants long >variants; fi
            elif [ -n "$emulate" ]; then
                continue
            fi
            matrix "$method $dtype: strategies, budgets, back ends" --model model --data rows.jsonl --max-seq-len $seq \
                --max-steps 2 --grad-accum 3 --learning-rate 1e-3 --device cuda --method $method --dtype $dtype
        done
    done
}

# ---- d: benchmarks ----

# Figures of $GPU_CHECK_OUT/figures.jsonl that were added since line $1, as rows; those with a goal are ok or MISS.
figure_rows() {
    tail -n +"$(($1 + 1))" "$GPU_CHECK_OUT/figures.jsonl" | python3 -c '
import json, sys
def show(x):
    return x if isinstance(x, str) else "-" if x is None else f"{x:.4g}"
for line in sys.stdin:
    f = json.loads(line)
    if "case" not in f:
        continue
    if f.get("ratio") is None:
        known = [f"{k} {show(x)}" for k, x in f.items() if k not in ("part", "case") and isinstance(x, (int, float, str))]
        text = "- " + f.get("why", ", ".join(known) or "not measured")[-160:]
    else:
        text = "ratio {:.3f}: ours {}, {} {} {}".format(f["ratio"], show(f["ours"]), f["against"], show(f["other"]), f["unit"])
    if "met" in f:
        text += ", goal " + f["goal"]
    word = "note" if "met" not in f else "ok" if f["met"] else "MISS"
    print("{}|{} {}|{}".format(word, f["part"], f["case"], text).replace("\n", " "))' >figure-rows
    while IFS='|' read -r word name text; do row "$word" "$name" "$text"; done <figure-rows
}

# share PROGRAM: how much of the time is its, beside the others.
share() { case $1 in *steps* | *budget* | *train*) echo 4 ;; *) echo 1 ;; esac; }

# Each program of tools/bench/gpu_*.py in turn: ceilings first, what trains last, the time shared out.
part_d() {
    began=$(date +%s)
    : >"$GPU_CHECK_OUT/figures.jsonl"
    command -v python3 >/dev/null || {
        row skip "benchmarks" "no python3"
        return
    }
    list='' shares=0
    for order in ceilings '' last; do
        for program in "$PENSTOCK_ROOT"/tools/bench/gpu_*.py; do
            case $program in
            */gpu_figures.py) continue ;;
            *ceilings*) kind=ceilings ;;
            *) kind= && [ "$(share "$program")" -eq 1 ] || kind=last ;;
            esac
            if [ "$kind" = "$order" ]; then list="$list $program" shares=$((shares + $(share "$program"))); fi
        done
    done
    for program in $list; do
        left=$((GPU_CHECK_SECONDS - ($(date +%s) - began)))
        mine=$((left * $(share "$program") / shares))
        shares=$((shares - $(share "$program")))
        before=$(wc -l <"$GPU_CHECK_OUT/figures.jsonl")
        if [ -n "$emulate" ]; then mine=5; fi
        if [ $mine -lt 2 ]; then
            row FAIL "$(basename "$program")" "no time left"
            continue
        fi
        timeout --foreground -k 5 $((mine + 60)) python3 "$program" --seconds $mine --out "$GPU_CHECK_OUT/figures.jsonl" --build "$PENSTOCK_BUILD" \
            ${emulate:+--tiny}
        rc=$?
        figure_rows "$before"
        row "$(verdict $rc)" "$(basename "$program")" "exit $rc, $(($(wc -l <"$GPU_CHECK_OUT/figures.jsonl") - before)) lines"
    done
}

# ---- the machine ----

# libcublasLt of CUDA 13: the toolkit's, or that of torch's packages.
find_cublaslt() {
    wheels=$(python3 -c 'import importlib.util as u
s = u.find_spec("nvidia")
print(*(s.submodule_search_locations if s else []))' 2>/dev/null)
    for dir in /usr/local/cuda/lib64 /usr/local/cuda-13*/lib64 /usr/local/cuda/targets/x86_64-linux/lib \
        ${wheels:+"$wheels"/cu13/lib "$wheels"/cublas/lib} /usr/lib/x86_64-linux-gnu; do
        if [ -e "$dir/libcublasLt.so.13" ]; then
            echo "$dir/libcublasLt.so.13"
            return
        fi
    done
}

# In a bundle the plug-in looks for cuBLASLt beside itself.
link_cublaslt() {
    if [ ! -d "$PENSTOCK_ROOT/lib" ] || [ -n "$emulate" ]; then return; fi
    lt=$(find_cublaslt)
    [ -n "$lt" ] || die "libcublasLt.so.13 is not found: neither CUDA 13 nor a torch for CUDA 13 is installed"
    ln -sfn "$lt" "$PENSTOCK_BUILD/libcublasLt.so.13" || die "unpack the bundle where it can be written"
}

describe_machine() {
    date -u '+%Y-%m-%d %H:%M UTC'
    cat "$PENSTOCK_ROOT/COMMIT" 2>/dev/null || git -C "$PENSTOCK_ROOT" describe --always --dirty 2>/dev/null
    "$PENSTOCK" version
    uname -srm
    sed -n 's/^model name[^:]*: /cpu: /p' /proc/cpuinfo | sort | uniq -c
    sed -n 1p /proc/meminfo
    nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used,clocks.max.sm,power.limit,pcie.link.gen.max,pcie.link.width.max \
        --format=csv 2>&1
    nvidia-smi -q 2>/dev/null | grep -E 'CUDA Version|MIG Mode|Persistence' | head -n 6
    (nvcc --version || /usr/local/cuda/bin/nvcc --version) 2>/dev/null | tail -n 2
    python3 -c 'import torch; print("torch", torch.__version__, torch.version.cuda)' 2>&1 | tail -n 1
    echo "cuBLASLt: $(ldd "$PENSTOCK_CUDA_PLUGIN" | sed -n 's/.*libcublasLt.so.13 => \([^ ]*\).*/\1/p' | xargs -r readlink -f)"
    "$PENSTOCK" doctor
}

# ---- the whole ----

parts='' emulate='' seconds=520 one='' out=${OUT:-gpu-check-out}
while [ $# -gt 0 ]; do
    case $1 in
    a | b | c | d) parts="$parts $1" ;;
    --emulate) emulate=yes ;;
    --out)
        [ $# -ge 2 ] || die "--out needs a folder"
        out=$2
        shift
        ;;
    --seconds)
        [ $# -ge 2 ] && [ "$2" -gt 0 ] 2>/dev/null || die "--seconds needs a number"
        seconds=$2
        shift
        ;;
    --help | -h)
        usage
        exit 0
        ;;
    --part) # inside: one part, in the current folder
        one=$2
        shift
        ;;
    *) die "what is '$1'? See --help" ;;
    esac
    shift
done
parts=${parts:-a b c d}
cuda="--device cuda --gpu-mem 4GiB"
EMU_BUILD=${EMU_BUILD:-$PENSTOCK_BUILD}

if [ -n "$one" ]; then
    part=$one
    . "$PENSTOCK_ROOT/tests/helpers/runs.sh"
    "part_$one"
    exit 0
fi

[ -x "$PENSTOCK_BUILD/penstock" ] || die "$PENSTOCK_BUILD/penstock is missing: build first, or unpack the bundle"
mkdir -p "$out" || die "cannot write to $out"
out=$(cd "$out" && pwd)
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
running=
trap '[ -z "$running" ] || kill "$running"; exit 130' INT TERM
export work EMU_BUILD
link_cublaslt
export PENSTOCK="$PENSTOCK_BUILD/penstock"
if [ -n "$emulate" ]; then
    PENSTOCK_CUDA_PLUGIN=$EMU_BUILD/libpenstock_cuda_emu.so
    [ -e "$PENSTOCK_CUDA_PLUGIN" ] || die "$PENSTOCK_CUDA_PLUGIN is missing: make tests builds it where nvcc is"
else
    PENSTOCK_CUDA_PLUGIN=$PENSTOCK_BUILD/libpenstock_cuda.so
    [ -e "$PENSTOCK_CUDA_PLUGIN" ] || die "$PENSTOCK_CUDA_PLUGIN is missing"
fi
export PENSTOCK_CUDA_PLUGIN
if [ -z "$emulate" ] && [ ! -e /dev/nvidiactl ] && ! command -v nvidia-smi >/dev/null && ! ldconfig -p | grep -q 'libcuda\.so\.1'; then
    die "no NVIDIA driver here; --emulate is the dry run"
fi
: >"$work/rows"
describe_machine >"$out/machine.txt" 2>&1
cat "$out/machine.txt"
start=$(date +%s)

for part in $parts; do
    left=$((seconds - ($(date +%s) - start)))
    case $part in
    a) limit=170 ;;
    b) limit=150 ;;
    c) limit=110 ;;
    d) limit=$seconds ;;
    esac
    if [ "$limit" -gt "$left" ]; then limit=$left; fi
    if [ "$limit" -le 0 ]; then
        row FAIL "part $part" "no time left"
        continue
    fi
    mkdir "$work/$part"
    began=$(date +%s)
    # What runs inside stays in the process group of this timeout, so that nothing outlives the part.
    (cd "$work/$part" && GPU_CHECK_SECONDS=$((limit - 5)) GPU_CHECK_OUT=$out exec timeout -k 5 "$limit" sh "$self" \
        --part "$part" ${emulate:+--emulate}) >"$out/$part.log" 2>&1 &
    running=$!
    wait $running
    rc=$?
    running=
    case $rc in
    0) row note "part $part" "$(($(date +%s) - began)) s" >>"$out/$part.log" ;;
    124 | 137) row FAIL "part $part" "not finished in $limit s" ;;
    *) row FAIL "part $part" "ended with exit $rc" ;;
    esac
    rm -rf "${work:?}/$part"
    # Logs stay small enough to be carried.
    if [ "$(wc -c <"$out/$part.log")" -gt 8000000 ]; then
        tail -c 8000000 "$out/$part.log" >"$work/tail" && mv "$work/tail" "$out/$part.log"
    fi
done

{
    if [ -n "$emulate" ]; then echo "EMULATED: no GPU was used"; fi
    awk -F '|' '{ printf "%s  %-4s  %-58s %s\n", $1, $2, $3, $4 }' "$work/rows"
    awk -F '|' '{ n[$2]++ } END { printf "%d ok, %d failed, %d skipped, %d goals missed", n["ok"], n["FAIL"], n["skip"], n["MISS"] }' "$work/rows"
    echo " in $(($(date +%s) - start)) s"
} | tee "$out/summary.txt"
if grep -q '|FAIL|' "$work/rows"; then exit 1; fi
grep -q '|ok|' "$work/rows"

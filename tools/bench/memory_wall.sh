#!/bin/sh
# LoRA on a model larger than its memory: the TinyLlama-1.1B shape in bf16 (2.2 GB) with
# --host-mem 600MiB inside a memory cgroup of 768 MiB without swap (cgroup v1 or v2; needs root, else
# it runs without the group and says so). Prints what was planned, what was measured from outside, and
# whether the adapter equals that of the resident run byte for byte.
#
# usage: memory_wall.sh [WORKDIR]        BUILD=build STEPS=2 SEQ=256 ACCUM=4
set -eu
BUILD=${BUILD:-build}
penstock=$BUILD/penstock
work=${1:-$(mktemp -d)}
steps=${STEPS:-2}
seq=${SEQ:-256}
accum=${ACCUM:-4}
limit=$((768 << 20))
model=$work/model-1.1b

mkdir -p "$work"
[ -f "$model/config.json" ] ||
    "$penstock" init --config examples/shapes/tinyllama-1.1b.json --dtype bf16 --seed 1 \
        --output "$model" >/dev/null
awk -v n=$((steps * accum)) -v len="$seq" 'BEGIN { srand(1)
    for (i = 0; i < n; i++) {
        row = ""
        for (j = 0; j < len; j++) row = row (j ? "," : "") int(rand() * 32000)
        printf "{\"input_ids\":[%s],\"labels\":[%s]}\n", row, row
    } }' >"$work/rows.jsonl"

group=
enter() { :; }
if [ -w /sys/fs/cgroup/memory ] && [ -f /sys/fs/cgroup/memory/memory.limit_in_bytes ]; then
    group=/sys/fs/cgroup/memory/penstock-wall-$$
    mkdir "$group"
    echo $limit >"$group/memory.limit_in_bytes"
    [ ! -w "$group/memory.memsw.limit_in_bytes" ] || echo $limit >"$group/memory.memsw.limit_in_bytes"
elif [ -w /sys/fs/cgroup/cgroup.procs ] && grep -q memory /sys/fs/cgroup/cgroup.subtree_control; then
    group=/sys/fs/cgroup/penstock-wall-$$
    mkdir "$group"
    echo $limit >"$group/memory.max"
    echo 0 >"$group/memory.swap.max" || :
else
    echo "no memory cgroup can be made here: measured without one"
fi
trap '[ -z "$group" ] || rmdir "$group" 2>/dev/null || :' EXIT

run() { # NAME in|out ARGS...
    name=$1
    where=$2
    shift 2
    rm -rf "$work/$name"
    (
        if [ "$where" = in ] && [ -n "$group" ]; then sh -c 'echo $PPID' >"$group/cgroup.procs"; fi
        exec "$BUILD/tests/helpers/peak_rss" "$work/$name.rss" "$penstock" train --model "$model" \
            --data "$work/rows.jsonl" --format tokens --max-seq-len "$seq" --grad-accum "$accum" \
            --max-steps "$steps" --output "$work/$name" --progress plain "$@"
    ) >"$work/$name.log" 2>&1
}

run small in --host-mem 600MiB
grep -E '^(plan|predicted|memory|step |  (compute|disk))' "$work/small.log"
run whole out --strategy resident
rss=$(($(cat "$work/small.rss") * 1024))
plan=$(sed 's/.*"peak_bytes":{"device":[0-9]*,"host":\([0-9]*\).*/\1/' "$work/small/plan.json")
awk -v r="$rss" -v p="$plan" 'BEGIN { b = 600 * 1048576
    printf "peak rss from outside %.1f MiB, planned %.1f MiB (%.2f of it), budget 600 MiB: %s\n",
           r / 1048576, p / 1048576, r / p, (r <= b && r >= 0.8 * p) ? "ok" : "NOT OK" }'
if cmp -s "$work/small/adapter_model.safetensors" "$work/whole/adapter_model.safetensors"; then
    echo "adapter equal to the resident run's, byte for byte: ok"
else
    echo "adapter DIFFERS from the resident run's"
    exit 1
fi

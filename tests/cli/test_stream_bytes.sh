# Really streamed: what the plan says, what metrics.jsonl says and what the kernel has counted (/proc/PID/io) agree
# within 1%, in each direction. Runs of n and 2n steps are compared, so that what loading reads falls out.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
# Models and spill files on the file system of the working directory, results in memory: not counted.
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
ln -s "$PWD" "$scratch/disk"
cd "$scratch" || exit 1

cat >config.json <<END
{"model_type":"llama","hidden_size":128,"intermediate_size":384,"num_hidden_layers":12,"num_attention_heads":4,
"num_key_value_heads":2,"head_dim":32,"vocab_size":261,"rms_norm_eps":1e-5,"tie_word_embeddings":false,
"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"max_position_embeddings":256,"rope_theta":100.0}
END
check "model" penstock init --config config.json --output disk/model --seed 5 --dtype bf16
mkdir disk/spill disk/odd && cp disk/model/*.json disk/odd
check "model at odd offsets" "$helpers/st_rewrite" disk/model/model.safetensors disk/odd F16 2 7
make_rows 32 60 60 261 3 >rows.jsonl
sync

counted() { sed -n "s/^$2: //p" "$1"; }
# run STEPS ARG...: leaves run-STEPS and io-STEPS
run() {
    steps=$1
    shift
    rm -rf "run-$steps"
    "$helpers/run_io" "io-$steps" "$PENSTOCK" train --model "disk/$model" --data rows.jsonl --format tokens \
        --max-seq-len 64 --packing false --grad-accum 4 --max-steps "$steps" --lora-r 4 --threads 1 \
        --progress none --import never --nvme-path disk/spill --output "run-$steps" "$@" >out 2>err
    rc=$?
    { echo "run $steps $*: exit $rc"; cat out err; } >>log
    return $rc
}
# near NAME A B: within 1%
near() {
    echo "$1: $2 and $3" >>log
    awk -v a="$2" -v b="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(b > 0 && d <= 0.01 * b) }'
}
# moved DIRECTION: plan, metrics and kernel, of n steps
moved() {
    said=$(($(json_get --last "run-$((2 * n))/metrics.jsonl" "disk_$1_bytes") - \
        $(json_get --last "run-$n/metrics.jsonl" "disk_$1_bytes")))
    planned=$((n * $(json_get run-$n/plan.json traffic_bytes."disk_$1")))
    kernel=$(($(counted "io-$((2 * n))" "$1_bytes") - $(counted "io-$n" "$1_bytes")))
}
# close_to DIRECTION: plan, metrics and kernel
close_to() {
    moved "$1"
    near "planned and said" "$said" "$planned" && near "said and counted" "$kernel" "$said"
}
# try WHAT ARG...: both runs, once
try() {
    what=$1
    shift
    run $n "$@" && run $((2 * n)) "$@" || return
    close_to read && { [ "$what" = read ] || close_to write; }
}
# agree WHAT ARG...: WHAT is read, or both. What a loading run finds in the page cache is not for us to say: another
# run decides then.
agree() {
    name="$model: $1:$(shift && for a in "$@"; do printf ' %s' "$a"; done)"
    : >log
    if try "$@" || try "$@" || try "$@"; then ok "$name"; else
        moved read
        if [ "$kernel" -eq 0 ]; then echo "skip - $name: the kernel counts nothing on this file system"; else
            not_ok "$name"
        fi
    fi
}
n=5
model=model
agree read --strategy stream-lora --prefetch-depth 2 --host-mem 38MiB
agree read --strategy stream-lora --offload-weights disk --device emu --storage threads
agree both --strategy horizontal --offload-activations disk --ablate forwarding
agree both --strategy stream-lora --offload-activations disk --ablate turns,cross-step,forwarding --storage threads
model=odd
agree read --strategy horizontal --prefetch-depth 1 --storage io_uring
agree both --strategy stream-lora --offload-activations disk --device emu --ablate forwarding,layer-major
finish

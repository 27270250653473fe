# Recompute levels and moved activations, from budget to result. On the emulated device with the virtual clock a budget
# between those of all kept and all recomputed makes some of each, faster than all recomputed; with host memory to spare
# what layers keep is moved there; each run takes the time that its plan says and gives the same adapter. On the CPU
# kept activations go to the disk and back.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
ln -s "$PWD" "$scratch/disk"
cd "$scratch" || exit 1

cat >config.json <<END
{"model_type":"qwen3","hidden_size":128,"intermediate_size":384,"num_hidden_layers":6,"num_attention_heads":4,
"num_key_value_heads":2,"head_dim":32,"vocab_size":261,"rms_norm_eps":1e-6,"tie_word_embeddings":true,
"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"max_position_embeddings":512,"rope_theta":10000.0}
END
check "model" penstock init --config config.json --output model --seed 5 --dtype bf16
make_rows 12 180 76 260 3 >rows.jsonl
flags="--model model --data rows.jsonl --format tokens --max-seq-len 256 --batch-size 2 --grad-accum 2 --lora-r 4
    --lora-dropout 0.1 --learning-rate 1e-3 --threads 1 --max-steps 2"
emu="--device emu --strategy resident"
number() { grep -o "\"$2\":[0-9.e+-]*" "$1" | head -n 1 | cut -d: -f2; }
device_mib() { # ARG...: that the plan needs
    # shellcheck disable=SC2086
    penstock plan $flags $emu --json "$@" || return
    sed -n 's/.*"peak_bytes":{"device":\([0-9]*\).*/\1/p' out | awk '{ print int($1 / 1048576) + 1 }'
}
# run NAME ARG...: leaves $took, as the plan says
run() {
    name=$1
    shift
    # shellcheck disable=SC2086
    check "$name: runs" penstock train $flags $emu --emu-clock virtual --output "$name" --progress none "$@"
    took=$(number "$name/metrics.jsonl" step_s)
    grep '"loss"' "$name/metrics.jsonl" | tail -n 1 >last
    took=$(number last step_s) said=$(number last predicted_step_s)
    check "$name: takes the time that its plan says" within "$took" "$said" "$(awk -v s="$said" 'BEGIN { print s * 1e-3 }')"
}
faster() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > 0 && a < 0.99 * b) }'; }

all=$(device_mib --offload-activations device)
none=$(device_mib --offload-activations recompute)
check "kept activations take memory" test "${all:-0}" -ge $((${none:-0} + 6))
middle=$(((all + none) / 2))
run kept --offload-activations device
kept_s=$took
run recomputed --offload-activations recompute --gpu-mem "${none}MiB"
recomputed_s=$took
check "recomputing takes longer" faster "$kept_s" "$recomputed_s"
check "it gives the same adapter" cmp kept/adapter_model.safetensors recomputed/adapter_model.safetensors

# Host memory for what is there anyway, not for activations.
# shellcheck disable=SC2086
expect_exit "too little host memory: exit 3" 3 train $flags $emu --gpu-mem "${all}MiB" --host-mem 1MiB \
    --output none --progress none
host=$(sed -n "s/.*smallest sufficient budget is --host-mem \([0-9]*\)MiB.*/\1/p" err)
run some --gpu-mem "${middle}MiB" --host-mem "${host}MiB"
check "half the memory: a level between" grep -q '"keep": *"R[123]"' some/plan.json
check "nothing is moved" sh -c "! grep -q '\"saved\": *\"host\"' some/plan.json"
check "faster than recomputing all" faster "$took" "$recomputed_s"
check "the same adapter" cmp kept/adapter_model.safetensors some/adapter_model.safetensors
some_s=$took
run moved --gpu-mem "${middle}MiB"
check "with host memory to spare it is moved there" grep -q '"saved": *"host"' moved/plan.json
check "faster than recomputing some" faster "$took" "$some_s"
check "the same adapter again" cmp kept/adapter_model.safetensors moved/adapter_model.safetensors

# --- to the disk and back ---
layer() { printf '{"keep":%s,"saved":"%s","boundary":"%s"}' "$1" "$2" "$3"; }
placement() { # NEAR FAR LEVEL...
    near=$1 far=$2
    shift 2
    acts=$(for level in "$@"; do layer "$level" "$far" "$far"; printf ,; done)
    echo "{\"version\":1,\"strategy\":\"resident\",\"group\":2,\"x_ring\":3,\"host_ring\":2,\"saved_ring\":2,
        \"weights\":{\"embed\":\"$near\",\"layers\":[\"$near\",\"$near\",\"$near\",\"$near\",\"$near\",\"$near\"],
        \"head\":\"$near\"},\"activations\":[${acts%,}]}"
}
mkdir disk/spill
# shellcheck disable=SC2086
{
    placement host disk true '"R1"' '"R2"' '"R3"' true '"R1"' >cpu.json
    placement device disk '"R3"' true '"R1"' '"R2"' true '"R3"' >emu.json
    check "cpu: to the disk and back" penstock train $flags --placement cpu.json --nvme-path disk/spill --output cpu \
        --progress none --storage threads
    check "it is written" test "$(json_get --last cpu/metrics.jsonl disk_write_bytes)" -gt 4000000
    check "as much as the plan says" test "$(json_get --last cpu/metrics.jsonl disk_write_bytes)" -eq \
        $((2 * $(json_get cpu/plan.json traffic_bytes.disk_write)))
    check "cpu: the same adapter" cmp kept/adapter_model.safetensors cpu/adapter_model.safetensors
    check "emu: by way of the host" penstock train $flags --device emu --placement emu.json --nvme-path disk/spill \
        --output emu --progress none --delay-seed 3
    check "emu: the same adapter" cmp kept/adapter_model.safetensors emu/adapter_model.safetensors
    check "the plan names what is moved" penstock plan $flags --placement cpu.json --nvme-path disk/spill
    check "by tier" grep -q "(6 to disk)" out
    check "a schedule goes out" penstock plan $flags --placement cpu.json --nvme-path disk/spill \
        --export-schedule schedule.json
    check "and back in" penstock train $flags --placement cpu.json --schedule schedule.json --nvme-path disk/spill \
        --output again --progress none
    check "with the same result" cmp kept/adapter_model.safetensors again/adapter_model.safetensors
    sed 's/"R2"/false/' cpu.json >nothing.json
    expect_exit "moving what keeps nothing: exit 2" 2 plan $flags --placement nothing.json
    check "names the layer" grep -q "layer 2 keeps nothing" err
    sed 's/"saved_ring":2/"saved_ring":0/' cpu.json >ringless.json
    expect_exit "no buffer on the way: exit 2" 2 plan $flags --placement ringless.json
    sed 's/"R2"/"R5"/' cpu.json >level.json
    expect_exit "an unknown level: exit 4" 4 plan $flags --placement level.json
}
finish

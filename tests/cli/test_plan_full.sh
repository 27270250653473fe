# Plans of full fine-tuning through the tiers: on the emulated device with the virtual clock every strategy takes the
# time that its plan says, and gives the resident run's result; where states live, what is written, what a limit does.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"

cat >config.json <<END
{"model_type":"llama","hidden_size":128,"intermediate_size":352,"num_hidden_layers":4,"num_attention_heads":4,
"num_key_value_heads":2,"vocab_size":512,"rms_norm_eps":1e-5,"tie_word_embeddings":false,
"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"max_position_embeddings":256,"rope_theta":10000.0}
END
check "model" penstock init --config config.json --output model --seed 5 --dtype bf16
make_rows 24 40 90 500 3 >rows.jsonl
flags="--model model --data rows.jsonl --format tokens --max-seq-len 64 --batch-size 1 --grad-accum 3 --method full
    --learning-rate 1e-3 --threads 1"
emu="--device emu --gpu-mem 8MiB --host-mem 90MiB"
number() { grep -o "\"$2\":[0-9.e+-]*" "$1" | head -n 1 | cut -d: -f2; }

# shellcheck disable=SC2086 # lists of words
{
check "resident run" penstock train $flags --max-steps 4 --output resident --progress none --strategy resident
for s in zero-offload zero-infinity vertical fuyou update-next-forward; do
    # fuyou does clipped steps again, which a plan tells apart
    clip=$([ $s = fuyou ] && echo "--clip none" || echo "--clip exact")
    check "$s runs" penstock train $flags --max-steps 4 --output $s --progress none --strategy $s $emu $clip \
        --emu-clock virtual
    grep '"loss"' $s/metrics.jsonl | tail -n 1 >last
    took=$(number last step_s) said=$(number last predicted_step_s)
    check "$s takes the time that its plan says" within "$took" "$said" "$(awk -v s="$said" 'BEGIN { print s * 1e-3 }')"
    [ $s = fuyou ] || check "$s gives resident's result" cmp resident/model.safetensors $s/model.safetensors
done
check "zero-offload with layers in host memory gives resident's result" penstock train $flags --max-steps 4 \
    --output small --progress none --strategy zero-offload --device emu --gpu-mem 6MiB --host-mem 90MiB
check "its weights wait on the host" grep -q '"layers": *\["host"' small/plan.json
check "and its result is resident's" cmp resident/model.safetensors small/model.safetensors

plan="plan $flags $emu --json"
check "a plan with states on disk" penstock $plan --strategy vertical
check "tells that every step is a checkpoint" grep -q '"commit":{"every_step":true' out
check "tells when units are updated" grep -q '"update":"' out
check "tells where states live" grep -q '"optimizer":{"embed":"disk"' out
written=$(sed -n 's/.*"disk_write":\([0-9]*\),.*"h2d".*/\1/p' out)
check "writes 12 bytes a parameter at least" test "${written:-0}" -ge $((12 * 860000))
cp out first.json
check "its placement is taken back" penstock $plan --placement first.json
check "with the same time" within "$(number out step_s)" "$(number first.json step_s)" 1e-9
check "states in memory: commits at intervals" penstock $plan --offload-optimizer host
check "tells what a commit writes" grep -q '"commit":{"every_step":false,"interval_s":[0-9.]*,"bytes":[1-9]' out
check "--offload-optimizer disk" penstock $plan --offload-optimizer disk
check "puts every state there" grep -q '"optimizer":{"embed":"disk"' out
expect_exit "--offload-optimizer device is refused on cpu" 2 plan $flags --device cpu --offload-optimizer device
expect_exit "stream-lora is refused" 2 plan $flags --strategy stream-lora
expect_exit "adapters have no such strategy" 2 plan --model model --max-seq-len 64 --device cpu --strategy fuyou

expect_exit "a write limit that is too low" 3 $plan --strategy vertical --nvme-write-limit 1MiB
limit=$(sed -n 's/.*"write_per_day":\([0-9]*\).*/\1/p' out)
check "names one that would do" test "${limit:-0}" -gt 1048576
check "which does" penstock $plan --strategy vertical --nvme-write-limit $((limit / 1048576 + 1))MiB
check "a plan that writes nothing keeps any limit" penstock $plan --nvme-write-limit 1MiB
check "and writes nothing" grep -q '"disk_write":0' out
tinyllama="--model $PENSTOCK_ROOT/examples/shapes/tinyllama-1.1b.json --method full --max-seq-len 128 --batch-size 2
    --grad-accum 1 --threads 2 --json"
for optimizer in adamw galore; do
    check "all 1.1 billion parameters by $optimizer within 1 GiB" penstock plan $tinyllama --optimizer $optimizer \
        --device cpu --host-mem 1GiB
    check "with the gradients of embedding and head not in memory" \
        grep -q '"gradients":{"embed":"disk",.*"head":"disk"}' out
done
expect_exit "a disk without room for both copies" 3 $plan --strategy vertical --nvme-mem 10MiB
}
finish

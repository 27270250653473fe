# Whole runs on the CUDA device, its kernels emulated on the host: the same bits wherever weights and
# activations live, whatever strategy, group, budget or order, and after a resume. Needs the emulated
# plug-in, which is built where nvcc is found. Its streams hold every operation back until something
# that waits for it asks, or for a random time: what is not ordered by an event happens too late.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"

plugin=$PENSTOCK_BUILD/libpenstock_cuda_emu.so
if [ ! -e "$plugin" ]; then
    echo "skip - runs on the emulated CUDA device: the build found no nvcc"
    exit 0
fi
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
ln -s "$PWD" "$scratch/disk"
cd "$scratch" || exit 1
export PENSTOCK_CUDA_PLUGIN="$plugin"

# Layers of 3 and 6 KiB, the second stored in other types than those of the computation.
shape() { # NAME TYPE HIDDEN INTERMEDIATE LAYERS TIED
    cat >"disk/$1.json" <<END
{"model_type":"$2","hidden_size":$3,"intermediate_size":$4,"num_hidden_layers":$5,"num_attention_heads":4,
"num_key_value_heads":2,"head_dim":$(($3 / 4)),"vocab_size":261,"rms_norm_eps":1e-5,"tie_word_embeddings":$6,
"hidden_act":"silu","bos_token_id":257,"eos_token_id":258,"max_position_embeddings":256,"rope_theta":1000.0}
END
}
init() { # NAME SEED DTYPE
    penstock init --config "disk/$1.json" --output "disk/$1" --seed "$2" --dtype "$3" \
        --tokenizer "$PENSTOCK_ROOT/tests/golden/byte_tokenizer"
}
shape small llama 16 40 5 false
shape tied qwen3 24 56 3 true
check "small model" init small 5 bf16
check "tied model" init tied 6 fp32
check "every stored type by turns" eval 'mkdir disk/mixed && cp disk/small/*.json disk/mixed &&
    "$helpers/st_rewrite" disk/small/model.safetensors disk/mixed mixed 2 3'
make_rows 7 4 30 257 3 >rows.jsonl
make_rows 3 3 20 257 4 >held_out.jsonl

# Windows of 3 micro-batches: the second one has one micro-batch, of one row.
run() { # DIR ARG...
    dir=$1
    shift
    rm -rf "$dir"
    # shellcheck disable=SC2086
    penstock train --model "$model" --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 \
        --grad-accum 3 --packing false --epochs 1 --learning-rate 3e-3 --device cuda --threads 1 \
        --progress none --eval-data held_out.jsonl --eval-steps 2 --save-steps 1 \
        --save-total-limit 9 --output "$dir" --dump-grads "$dir.grads" $common "$@"
}
equal() { # DIR DIR
    same_files "$1" "$2" && same_losses "$1" "$2" && cmp "$1.grads" "$2.grads" &&
        cmp "$1/checkpoint-1/optimizer.safetensors" "$2/checkpoint-1/optimizer.safetensors"
}
same() { # ARG...: with them the bits of the reference
    name="$label:$(for a in "$@"; do printf ' %s' "$a"; done)"
    run other "$@"
    if [ "$rc" -ne 0 ]; then
        not_ok "$name: runs"
    elif equal ref other >log 2>&1; then
        ok "$name"
    else
        not_ok "$name"
    fi
}
# Weights and moments of a run that streams them; it does not keep all gradients of a step.
same_full() { # ARG...
    name="$label:$(for a in "$@"; do printf ' %s' "$a"; done)"
    run other "$@"
    if [ "$rc" -ne 0 ]; then
        not_ok "$name: runs"
    elif (same_losses ref other && for file in model.safetensors checkpoint-1/optimizer.safetensors \
        checkpoint-2/optimizer.safetensors checkpoint-2/model.safetensors; do
        cmp "ref/$file" "other/$file" || exit 1
    done) >log 2>&1; then
        ok "$name"
    else
        not_ok "$name"
    fi
}
reference() { # MODEL LABEL ARG...
    model=$1 label=$2
    shift 2
    common=$*
    if run ref --strategy resident; then ok "$label: resident"; else not_ok "$label: resident"; fi
    check "$label: it learns something" test "$(train_losses ref | wc -l)" -eq 2
}
lora="--method lora --lora-r 4 --lora-dropout 0.1"

# shellcheck disable=SC2086
reference disk/small "lora bf16" $lora --dtype bf16
same --strategy auto --delay-seed 1
same --strategy stream-lora
same --strategy stream-lora --offload-weights host --prefetch-depth 2 --delay-seed 2
same --strategy stream-lora --offload-weights disk --prefetch-depth 3 --storage threads --delay-seed 3
same --strategy stream-lora --offload-weights disk --storage ram --queue-depth 1 --offload-activations host
same --strategy stream-lora --offload-weights disk --offload-activations disk --delay-seed 4
same --strategy stream-lora --offload-activations device --ablate prefetch,turns,cross-step,forwarding,layer-major
same --strategy horizontal --offload-weights host --offload-activations disk --delay-seed 5
same --strategy resident --offload-activations host
same --strategy resident --offload-activations disk --ablate forwarding
same --strategy stream-lora --offload-weights disk --offload-activations disk --serial
boundary='{"keep":"R2","boundary":"host"},{"keep":true,"saved":"host","boundary":"device"},
{"keep":"R3","saved":"disk","boundary":"disk"},{"keep":false,"boundary":"device"},
{"keep":"R1","saved":"disk","boundary":"host"}'
cat >placed.json <<END
{"version":1,"strategy":"stream-lora","group":3,"eval_group":2,"near_slots":2,"raw_slots":2,"interleave":0,"x_ring":5,
"host_ring":3,"saved_ring":2,"weights":{"embed":"host","layers":["disk","device","host","disk","disk"],"head":"device"},
"activations":[$boundary]}
END
same --placement placed.json --delay-seed 6
sed -e 's/"group":3/"group":2/' -e 's/"interleave":0/"interleave":1/' -e 's/"x_ring":5/"x_ring":4/' placed.json >lots.json
same --placement lots.json --delay-seed 7
run other --strategy stream-lora --gpu-mem 1MiB
least=$(sed -n "s/.*smallest sufficient budget is --gpu-mem \([0-9]*\)MiB.*/\1/p" err)
check "--gpu-mem 1MiB is too little, exit 3" test "$rc" -eq 3 -a -n "$least"
same --strategy stream-lora --gpu-mem "${least}MiB"
same --strategy auto --gpu-mem "$((least + 2))MiB"

# shellcheck disable=SC2086
reference disk/mixed "lora bf16, types by turns" $lora --dtype bf16
same --strategy stream-lora --offload-weights disk --prefetch-depth 2 --delay-seed 8
same --strategy horizontal --offload-weights host
# shellcheck disable=SC2086
reference disk/tied "lora fp32, tied" $lora --dtype fp32 --lora-layers last:2
same --strategy stream-lora --offload-weights disk --offload-activations disk --delay-seed 9
seed=20
while read -r model dtype strategies; do
    reference "disk/$model" "full $dtype, $model" --method full --dtype "$dtype"
    same --strategy resident --offload-activations recompute --serial
    for strategy in $strategies; do
        seed=$((seed + 1))
        rm -rf disk/nvme && mkdir disk/nvme
        same_full --strategy "$strategy" --nvme-path disk/nvme --delay-seed $seed
    done
done <<END
small bf16 zero-offload fuyou zero-infinity auto
small fp32 update-next-forward vertical
tied fp32 zero-offload zero-infinity vertical fuyou update-next-forward
tied bf16 vertical
END

# --- resumed under another strategy ---
resumed() { # CHECKPOINT ARG...: as if only so many steps had been made
    at=$1
    shift
    rm -rf other other.grads
    cp -r ref other && cp ref.grads other.grads && rm -rf other/checkpoint-2 other/adapter_* other/model*
    # shellcheck disable=SC2086
    penstock train --model "$model" --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 \
        --grad-accum 3 --packing false --epochs 1 --learning-rate 3e-3 --device cuda --threads 1 \
        --progress plain --eval-data held_out.jsonl --eval-steps 2 --save-steps 1 \
        --save-total-limit 9 --output other --resume $common "$@"
    grep "at step $at\$" err >>log || rc=1
    name="$label from $at:$(for a in "$@"; do printf ' %s' "$a"; done)"
    if [ "$rc" -eq 0 ] && equal ref other >>log 2>&1; then ok "$name"; else not_ok "$name"; fi
}
reference disk/small "resumed full" --method full --dtype bf16
resumed 1 --strategy resident
# shellcheck disable=SC2086
reference disk/small "resumed lora" $lora --dtype bf16
resumed 1 --strategy stream-lora --offload-weights disk --offload-activations disk --delay-seed 11

# --- evaluation and generation with the adapter that this made ---
ask() { # FILE COMMAND ARG...: what it prints, without what depends on time
    to=$1
    shift
    penstock "$@" || return
    sed -e 's/"tokens_per_s":[^,}]*//' -e 's/"seconds_per_token":[^,}]*//' out >"$to"
}
same_answer() { # NAME COMMAND ARG...
    name=$1
    shift
    if ask answer "$@" && cmp want answer >>log && test -s want; then ok "$name"; else not_ok "$name"; fi
}
base="--model disk/small --adapter ref --device cuda --dtype bf16"
evaluate="eval --data held_out.jsonl --format tokens --max-seq-len 32 --threads 1 --json"
prompts="generate --max-new-tokens 6 --temperature 0.8 --top-k 20 --seed 3 --threads 1 --json --prompts prompts.txt"
printf 'one two\nthree\na longer third one\n' >prompts.txt
# shellcheck disable=SC2086
{
    ask want $evaluate $base --strategy resident --logits logits.ref
    check "eval" test "$rc" -eq 0
    for how in "--strategy stream-lora --offload-weights disk --prefetch-depth 2" \
        "--strategy stream-lora --offload-weights host --serial"; do
        same_answer "eval $how" $evaluate $base --logits logits $how
        check "logits $how" cmp logits.ref logits
    done
    ask want $prompts $base --strategy resident
    check "generate" test "$rc" -eq 0 -a "$(wc -l <want)" -eq 3
    same_answer "generate from the disk" $prompts $base --strategy stream-lora --offload-weights disk
    same_answer "generate from memory" $prompts $base --strategy stream-lora --offload-weights host
}
finish

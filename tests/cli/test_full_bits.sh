# Full fine-tuning through the tiers gives the bits of the resident run, whatever the strategy, the disk back end, the
# budget and the device: losses, norms, evaluations, weights, optimizer states and checkpoints, byte for byte, with
# clipping that bites, steps that are not finite, tied weights, an uneven last window, evaluations and checkpoints on
# the way.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
# Models and stores on the file system of the working directory, where access is direct if it can be; results in memory.
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
ln -s "$PWD" "$scratch/disk"
cd "$scratch" || exit 1
mkdir disk/nvme disk/nvme2

shape() { # NAME TYPE HIDDEN INTERMEDIATE LAYERS VOCAB TIED
    cat >"disk/$1.json" <<END
{"model_type":"$2","hidden_size":$3,"intermediate_size":$4,"num_hidden_layers":$5,"num_attention_heads":4,
"num_key_value_heads":2,"head_dim":$(($3 / 4)),"vocab_size":$6,"rms_norm_eps":1e-5,"tie_word_embeddings":$7,
"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"max_position_embeddings":256,"rope_theta":100.0}
END
    check "model $1" penstock init --config "disk/$1.json" --output "disk/$1" --seed 5 --dtype "$8"
}
shape untied llama 32 80 4 97 false bf16
shape tied qwen3 32 72 3 97 true fp32
# 9 rows in windows of 2 x 2: the last window of an epoch has one micro-batch of one row.
make_rows 9 4 30 97 3 >rows.jsonl
make_rows 5 3 20 97 4 >held_out.jsonl

run() { # DIR ARG...
    dir=$1
    shift
    rm -rf "$dir"
    # shellcheck disable=SC2086
    penstock train --model "$model" --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 --grad-accum 2 \
        --packing false --method full --learning-rate 3e-3 --threads 1 --progress none --save-steps 3 \
        --save-total-limit 9 --output "$dir" $common "$@"
}
equal() { # DIR DIR
    same_files "$1" "$2" && same_losses "$1" "$2" &&
        cmp "$1/checkpoint-3/optimizer.safetensors" "$2/checkpoint-3/optimizer.safetensors" &&
        cmp "$1/checkpoint-3/model.safetensors" "$2/checkpoint-3/model.safetensors"
}
total() { json_get --last "$1/metrics.jsonl" "$2"; }
# same WHAT ARG...: with ARG, the bits of the reference; WHAT: state (it lies on disk) or memory
same() {
    what=$1
    shift
    name="$label:$(for a in "$@"; do printf ' %s' "$a"; done)"
    run other "$@"
    if [ "$rc" -ne "${code:-0}" ]; then
        not_ok "$name: exit $rc"
        return
    fi
    equal ref other >log 2>&1 || {
        not_ok "$name"
        return
    }
    moved=$(total other disk_write_bytes)
    echo "written: $moved" >log
    if [ "$what" = memory ] || [ "${moved:-0}" -gt 100000 ]; then ok "$name"; else not_ok "$name: $what"; fi
}
reference() { # MODEL LABEL ARG...: what every run of this model is compared with
    model=$1 label=$2
    shift 2
    common=$*
    run ref --strategy resident
    check "$label: resident" test "$rc" -eq "${code:-0}"
}
disk_strategies="zero-infinity fuyou vertical update-next-forward"

evals="--epochs 2 --eval-data held_out.jsonl --eval-steps 2"
reference disk/untied "bf16, clipped" $evals --max-grad-norm 0.5
check "an uneven last window: six steps" test "$(train_losses ref | wc -l)" -eq 6
train_losses ref >log
check "clipping bites" test "$(train_losses ref | awk '$(NF-1) < 1' | wc -l)" -ge 4
same memory --strategy zero-offload
same memory --strategy auto
for s in $disk_strategies; do
    same state --strategy "$s"
done
same state --strategy vertical --storage io_uring
same state --strategy fuyou --storage threads
same state --strategy zero-infinity --storage ram
same state --strategy update-next-forward --storage threads --queue-depth 2
same state --strategy vertical --threads 2 --serial
same state --strategy zero-infinity --nvme-path disk/nvme --nvme-path disk/nvme2
same state --strategy vertical --spill-mode inplace
run other --strategy fuyou --spill-mode inplace
check "inplace, updates that may be taken back: exit 2" test "$rc" -eq 2
for s in zero-offload $disk_strategies; do
    what=state
    [ "$s" = zero-offload ] && what=memory
    same $what --strategy "$s" --device emu
done
same state --strategy fuyou --device emu --storage ram

# In fp32 no rounding hides in what order the head's and the embedding's parts of a tied gradient are added.
reference disk/tied "fp32, tied" $evals --dtype fp32 --max-grad-norm 1000
for s in $disk_strategies; do
    same state --strategy "$s"
    same state --strategy "$s" --device emu
done
reference disk/tied "bf16, tied, clipped" $evals --max-grad-norm 0.5
for s in $disk_strategies; do
    same state --strategy "$s"
done

# From a checkpoint, under another strategy: the first step's updates can be taken back.
reference disk/untied "resumed from a checkpoint" $evals --max-grad-norm 0.5
for s in zero-offload $disk_strategies; do
    for device in cpu emu; do
        rm -rf other && cp -r ref other
        rm -rf other/checkpoint-6 other/model.safetensors
        # shellcheck disable=SC2086
        penstock train --model "$model" --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 \
            --grad-accum 2 --packing false --method full --learning-rate 3e-3 --threads 1 --progress none \
            --save-steps 3 --save-total-limit 9 --output other $common --strategy "$s" --device $device --resume
        if equal ref other >>log 2>&1; then ok "$label: $s, $device"; else not_ok "$label: $s, $device"; fi
    done
done

# Budgets: from the smallest that a plan finds to more than enough.
reference disk/untied "budgets" --epochs 2
for s in zero-infinity vertical; do
    # shellcheck disable=SC2086
    penstock plan --model disk/untied --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 --grad-accum 2 \
        --packing false --method full --threads 1 --nvme-path disk/nvme --host-mem 1MiB --strategy $s --json
    least=$(json_get out needs.host)
    check "$s: the smallest budget is named" test "${least:-0}" -gt 1000000
    for more in 0 40000 200000 4000000; do
        same state --strategy $s --host-mem $((least + more))
    done
done

# --- clip modes ---
for clip in delayed per-tensor none; do
    norm="--max-grad-norm 0.5"
    [ $clip = none ] && norm=""
    reference disk/untied "--clip $clip" --epochs 1 --clip $clip $norm
    for s in fuyou vertical; do
        same state --strategy $s
    done
done

# --- steps that are not finite ---
# Rows with token 96 cannot be computed: the first norm's weight is huge in dimension 7, which is 0 in the embeddings
# of all other tokens. The frozen part has it, the layers after it train.
cp -r disk/untied disk/poisoned && chmod -R u+w disk/poisoned
file=disk/poisoned/model.safetensors
header=$(od -An -tu8 -N8 $file | tr -d ' ')
begin_of() { # TENSOR: its first byte in $file
    at=$(head -c $((header + 8)) $file | tail -c "$header" |
        sed "s/.*\"$1\":{[^}]*\"data_offsets\":\[\([0-9]*\),.*/\1/")
    echo $((header + 8 + at))
}
put() { dd of=$file bs=1 seek="$1" conv=notrunc 2>/dev/null; } # OFFSET: bytes from standard input
embed=$(begin_of model.embed_tokens.weight) id=0
while [ $id -lt 96 ]; do
    printf '\000\000' | put $((embed + (id * 32 + 7) * 2))
    id=$((id + 1))
done
printf '\200\077' | put $((embed + (96 * 32 + 7) * 2))                                          # 1
printf '\177\177' | put $(($(begin_of model.layers.0.input_layernorm.weight) + 7 * 2)) # the largest
make_rows 8 5 20 96 21 >good.jsonl
cp rows.jsonl kept.jsonl
awk '{ print } NR == 3 { print "{\"input_ids\":[96,1,2,3]}" }' good.jsonl >rows.jsonl
reference disk/poisoned "not finite" --epochs 2 --train-layers last:3 --max-grad-norm 0.5
check "a step of each epoch is skipped" test "$(grep -c '"skipped":true' ref/metrics.jsonl)" -eq 2
for s in $disk_strategies; do
    same state --strategy "$s"
done
same state --strategy fuyou --device emu
# Everything trains, and a learning rate of 100 throws the weights out of the range where anything is finite.
cp kept.jsonl rows.jsonl
code=5
reference disk/untied "diverged" --epochs 30 --learning-rate 100 --weight-decay 100 --clip none --warmup-steps 0
check "ten steps are skipped" test "$(grep -c '"skipped":true' ref/metrics.jsonl)" -eq 10
for s in fuyou vertical; do
    same state --strategy "$s"
done
same memory --strategy update-next-forward
code=0
check "no store is left behind by a run that is complete" test -z "$(ls disk/nvme disk/nvme2 | grep penstock)"
finish

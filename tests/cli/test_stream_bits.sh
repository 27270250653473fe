# The same bits wherever weights and activations live, whoever reads them and in whatever order: losses, gradients,
# evaluations, adapters and checkpoints of streamed runs are compared byte for byte with those of the resident run.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
# Models, and some spill files, on the file system of the working directory, where access is direct if it can be;
# results in memory, for they are synchronised often.
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
ln -s "$PWD" "$scratch/disk"
cd "$scratch" || exit 1

# --- models: layers of 3 KiB to 200 KiB, stored in every way ---
shape() { # NAME TYPE HIDDEN INTERMEDIATE LAYERS VOCAB TIED
    cat >"disk/$1.json" <<END
{"model_type":"$2","hidden_size":$3,"intermediate_size":$4,"num_hidden_layers":$5,"num_attention_heads":4,
"num_key_value_heads":2,"head_dim":$(($3 / 4)),"vocab_size":$6,"rms_norm_eps":1e-5,"tie_word_embeddings":$7,
"hidden_act":"silu","bos_token_id":257,"eos_token_id":258,"max_position_embeddings":256,"rope_theta":1000.0}
END
}
init() { # NAME SEED DTYPE
    penstock init --config "disk/$1.json" --output "disk/$1" --seed "$2" --dtype "$3" \
        --tokenizer "$PENSTOCK_ROOT/tests/golden/byte_tokenizer"
}
rewrite() { # FROM TO DTYPE SHARDS PAD
    mkdir "disk/$2" && cp disk/"$1"/*.json "disk/$2" &&
        "$helpers/st_rewrite" "disk/$1/model.safetensors" "disk/$2" "$3" "$4" "$5"
}
link_files() { # FROM TO: as a hub's snapshot, links to blobs elsewhere
    mkdir "disk/$2" disk/blobs && for file in disk/"$1"/*; do
        name=$(basename "$file")
        cp "$file" "disk/blobs/$name.blob" && ln -s "../blobs/$name.blob" "disk/$2/$name" || return 1
    done
}
shape small llama 16 40 7 261 false
shape tied qwen3 24 56 5 261 true
shape wide llama 64 160 16 261 false
check "small model" init small 5 bf16
check "tied model" init tied 6 fp32
check "model of more layers" init wide 7 bf16
check "tensors at odd offsets, in three files" rewrite small odd BF16 3 7
check "the same as links" link_files odd links
check "half precision, odd, two files" rewrite tied half F16 2 5
check "every type by turns" rewrite small mixed mixed 2 3
make_rows 23 4 30 257 3 >rows.jsonl
make_rows 7 3 20 257 4 >held_out.jsonl

# --- one run, and what it must equal ---
# 23 rows in windows of 3 x 2: the last window of an epoch has one micro-batch of one row.
run() { # DIR ARG...
    dir=$1
    shift
    rm -rf "$dir"
    # shellcheck disable=SC2086
    penstock train --model "$model" --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 \
        --grad-accum 3 --packing false --epochs 2 --lora-r 4 --lora-dropout 0.1 --learning-rate 3e-3 \
        --threads 1 --progress none --eval-data held_out.jsonl --eval-steps 3 --save-steps 3 \
        --save-total-limit 9 --output "$dir" --dump-grads "$dir.grads" $common "$@"
}
equal() { # DIR DIR
    same_files "$1" "$2" && same_losses "$1" "$2" && cmp "$1.grads" "$2.grads" &&
        cmp "$1/checkpoint-3/optimizer.safetensors" "$2/checkpoint-3/optimizer.safetensors"
}
# Bytes that the run says it has read; weights that stay where they are read nothing.
read_bytes() { json_get --last "$1/metrics.jsonl" disk_read_bytes; }
written_bytes() { json_get --last "$1/metrics.jsonl" disk_write_bytes; }

# same WHAT ARG...: streamed with ARG, the bits of the reference; WHAT: streamed, spilled or resident
same() {
    what=$1
    shift
    name="$label:$(for a in "$@"; do printf ' %s' "$a"; done)"
    run other "$@"
    if [ "$rc" -ne 0 ]; then
        not_ok "$name: runs"
        return
    fi
    equal ref other >log 2>&1 || {
        not_ok "$name"
        return
    }
    case $what in
    streamed) moved=$(read_bytes other) ;;
    spilled) moved=$(written_bytes other) ;;
    *) moved=1 ;;
    esac
    echo "moved: $moved bytes" >log
    if [ "${moved:-0}" -gt 0 ]; then ok "$name"; else not_ok "$name: $what"; fi
}
reference() { # MODEL LABEL ARG...: what every run of this model is compared with
    model=$1 label=$2
    shift 2
    common=$*
    if run ref --strategy resident; then ok "$label: resident"; else not_ok "$label: resident"; fi
    check "$label: nothing is read" test "$(read_bytes ref)" -eq 0
}

reference disk/small "3 KiB layers"
check "a last window that is not full" test "$(train_losses ref | wc -l)" -eq 8
same streamed --strategy stream-lora
same streamed --strategy stream-lora --storage io_uring
same streamed --strategy stream-lora --storage threads
same streamed --strategy stream-lora --storage ram
same streamed --strategy horizontal
same streamed --strategy stream-lora --prefetch-depth 1
same streamed --strategy stream-lora --prefetch-depth 2 --queue-depth 1
same streamed --strategy horizontal --prefetch-depth 3 --queue-depth 2 --storage threads
same streamed --strategy stream-lora --prefetch-depth 4 --queue-depth 64
same streamed --strategy stream-lora --prefetch-depth 5 --queue-depth 7 --storage ram
same streamed --strategy stream-lora --serial
same streamed --strategy stream-lora --threads 2
for idea in prefetch turns cross-step forwarding layer-major prefetch,turns,cross-step,forwarding,layer-major; do
    same streamed --strategy stream-lora --prefetch-depth 2 --offload-activations disk --ablate $idea
done
same spilled --strategy stream-lora --offload-activations disk --storage threads
same spilled --strategy resident --offload-activations disk
same spilled --strategy stream-lora --offload-activations disk --storage ram
same resident --strategy resident --offload-activations recompute
same streamed --strategy stream-lora --offload-activations host
same streamed --strategy stream-lora --offload-activations recompute
same streamed --strategy stream-lora --delay-seed 1 --prefetch-depth 2
same spilled --strategy stream-lora --delay-seed 2 --offload-activations disk --prefetch-depth 3
same spilled --strategy horizontal --delay-seed 3 --offload-activations disk --storage threads
same spilled --strategy stream-lora --delay-seed 4 --offload-activations disk --device emu --prefetch-depth 2
same streamed --strategy stream-lora --throttle disk_weights=20MiB
same resident --strategy resident --device emu
same streamed --strategy stream-lora --device emu --offload-weights disk --emu-clock virtual
same streamed --strategy horizontal --device emu --offload-weights disk --offload-activations device
same streamed --strategy stream-lora --device emu --offload-weights disk --offload-activations host --serial
same spilled --strategy stream-lora --device emu --offload-activations disk --storage threads
same spilled --strategy resident --device emu --offload-activations disk --ablate forwarding
same resident --strategy stream-lora --device emu --offload-weights host --prefetch-depth 2
mkdir disk/a disk/b
same spilled --strategy stream-lora --offload-activations disk --nvme-path disk/a --nvme-path disk/b
same streamed --strategy stream-lora --import always --nvme-path disk/a --prefetch-depth 2
layer='{"keep":false,"boundary":"device"}' half='{"keep":"R2","boundary":"device"}'
cat >all.json <<END
{"version":1,"strategy":"stream-lora","near_slots":2,"raw_slots":2,"weights":{"embed":"disk","head":"device",
"layers":["disk","disk","disk","disk","disk","disk","disk"]},
"activations":[$layer,$half,$layer,$half,$half,$layer,$layer]}
END
same streamed --placement all.json --import always --nvme-path disk/a
same streamed --placement all.json --import always --nvme-path disk/a --device emu

reference disk/odd "odd offsets, three files"
same streamed --strategy stream-lora
same streamed --strategy stream-lora --storage threads --queue-depth 3 --device emu --offload-weights disk
reference disk/links "links"
same streamed --strategy stream-lora --prefetch-depth 2 --storage io_uring
reference disk/mixed "F16, F32 and BF16 by turns"
same streamed --strategy stream-lora --prefetch-depth 2
same streamed --strategy horizontal --device emu --offload-weights disk --delay-seed 5
reference disk/mixed "all types as fp32" --dtype fp32
same streamed --strategy stream-lora --storage threads
same spilled --strategy stream-lora --device emu --offload-activations disk
reference disk/half "F16, tied" --dtype bf16
same streamed --strategy stream-lora --prefetch-depth 1
same streamed --strategy horizontal --device emu --offload-weights disk --prefetch-depth 2
same streamed --strategy stream-lora --offload-activations disk --ablate forwarding
reference disk/tied "F32 as bf16, tied, last layers" --dtype bf16 --lora-layers last:2
same streamed --strategy stream-lora --prefetch-depth 1
same spilled --strategy stream-lora --device emu --offload-activations disk --ablate forwarding --nvme-path disk/a
reference disk/tied "F32, tied" --dtype fp32
same streamed --strategy stream-lora --prefetch-depth 2
cp -r disk/tied tied
reference tied "F32, tied, in memory" --dtype fp32
same spilled --strategy stream-lora --storage io_uring --offload-activations disk

# --- budgets: from the smallest one that the program names upwards ---
smallest() { # FLAG ARG...: sets $least, MiB
    flag=$1
    shift
    run other "$@" "$flag" 1MiB
    least=$(sed -n "s/.*smallest sufficient budget is $flag \([0-9]*\)MiB.*/\1/p" err)
    check "$label: $flag 1MiB is too little, exit 3" test "$rc" -eq 3 -a -n "$least"
}
reference disk/wide "many layers" --max-seq-len 256 --dtype fp32
smallest --host-mem --strategy stream-lora
for more in 0 2 4 8; do
    same streamed --strategy stream-lora --host-mem $((least + more))MiB
done
same resident --host-mem $((least + 3))MiB
smallest --gpu-mem --strategy stream-lora --device emu
for more in 0 2 6; do
    same resident --strategy stream-lora --device emu --gpu-mem $((least + more))MiB
done
same resident --device emu --gpu-mem $((least + 1))MiB

# --- placements drawn at random: any tier for any unit, layers kept or recomputed, any numbers ---
placement() { # SEED LAYERS TIED DISCRETE
    awk -v x=$(($1 * 7919 + 17)) -v n="$2" -v tied="$3" -v emu="$4" '
    function draw(m) { x = (x * 16807) % 2147483647; return int(x / 64) % m }
    function tier(off) {
        if (draw(100) >= off) return emu ? "device" : "host"
        return emu && draw(2) ? "host" : "disk"
    }
    function level(   r) {
        r = draw(5)
        return draw(100) >= keep ? "false" : r ? "\"R" r "\"" : "true"
    }
    BEGIN {
        for (i = 0; i < 9; i++) draw(2)
        off = draw(4) * 33; spill = draw(4) * 33; keep = draw(4) * 33
        group = 1 + draw(4)
        lots = draw(3) ? 0 : 1 + draw(2)
        printf "{\"version\":1,\"strategy\":\"stream-lora\",\"group\":%d,\"eval_group\":%d,\"near_slots\":%d,", group,
            1 + draw(4), 1 + draw(n)
        printf "\"raw_slots\":%d,\"interleave\":%d,\"x_ring\":%d,\"host_ring\":%d,\n", 1 + draw(3), lots,
            (lots ? 2 * lots : group) + 1 + draw(3), 2 + draw(3)
        printf "\"weights\":{\"embed\":\"%s\",\"layers\":[", tied ? (emu ? "device" : "host") : tier(off)
        for (i = 0; i < n; i++) printf "%s\"%s\"", i ? "," : "", tier(off)
        printf "],\"head\":\"%s\"},\n\"activations\":[", emu ? "device" : "host"
        for (i = 0; i < n; i++)
            printf "%s{\"keep\":%s,\"boundary\":\"%s\"}", i ? "," : "", level(), tier(spill)
        print "]}"
    }'
}
placements() { # FIRST LAST LAYERS TIED: on the present reference, by turns on cpu and emu
    seed=$1
    while [ "$seed" -le "$2" ]; do
        device=cpu
        [ $((seed % 2)) -eq 0 ] && device=emu
        placement "$seed" "$3" "$4" $(((seed + 1) % 2)) >"placement-$seed.json"
        same resident --device $device --placement "placement-$seed.json" $extra
        seed=$((seed + 1))
    done
}
extra=""
reference disk/small "placed"
placements 1 10 7 0
reference disk/mixed "placed" --dtype bf16
placements 11 16 7 0
extra="--delay-seed 9"
reference disk/half "placed" --dtype bf16
placements 17 20 5 1

# --- resumed under another strategy, budget and device ---
reference disk/small "resumed"
run streamed --strategy stream-lora --offload-activations disk
resumed() { # FROM CHECKPOINT ARG...: as if only so many steps had been made
    rm -rf other other.grads
    cp -r "$1" other && cp ref.grads other.grads
    for dir in other/checkpoint-*; do
        [ "${dir##*-}" -gt "$2" ] && rm -r "$dir"
    done
    rm -f other/adapter_*
    from=$1 at=$2
    shift 2
    # shellcheck disable=SC2086
    penstock train --model "$model" --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 \
        --grad-accum 3 --packing false --epochs 2 --lora-r 4 --lora-dropout 0.1 --learning-rate 3e-3 \
        --threads 1 --progress plain --eval-data held_out.jsonl --eval-steps 3 --save-steps 3 \
        --save-total-limit 9 --output other --resume $common "$@"
    grep "at step $at\$" err >>log || rc=1
    name="$label from $from at $at:$(for a in "$@"; do printf ' %s' "$a"; done)"
    if [ "$rc" -eq 0 ] && equal ref other >>log 2>&1; then ok "$name"; else not_ok "$name"; fi
}
resumed ref 3 --strategy stream-lora --prefetch-depth 2
resumed ref 6 --strategy stream-lora --device emu --offload-activations disk
resumed streamed 3 --strategy resident
resumed streamed 6 --strategy horizontal --storage threads --host-mem 64MiB
resumed streamed 3 --strategy stream-lora --device emu --gpu-mem 16MiB --offload-activations host

# --- evaluation and generation of a streamed base ---
# ask FILE COMMAND ARG...: what `penstock COMMAND` prints, without what depends on time
ask() {
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
evaluate="eval --data held_out.jsonl --format tokens --max-seq-len 32 --threads 1 --json"
prompts="generate --max-new-tokens 6 --temperature 0.8 --top-k 20 --seed 3 --threads 1 --json --prompts prompts.txt"
printf 'one two\nthree\na longer third one, of another length\nx\nthe last\n' >prompts.txt
for stored in small half mixed; do
    reference disk/$stored "$stored" --dtype bf16
    rm -rf adapter && cp -r ref adapter
    base="--model disk/$stored --adapter adapter"
    # shellcheck disable=SC2086
    {
        ask want $evaluate $base --strategy resident --logits logits.ref
        check "$stored: eval" test "$rc" -eq 0
        for how in "--strategy stream-lora" \
            "--strategy stream-lora --prefetch-depth 1 --device emu --offload-weights disk" \
            "--strategy stream-lora --storage threads --queue-depth 1 --serial"; do
            same_answer "$stored: eval $how" $evaluate $base --logits logits $how
            check "$stored: logits $how" cmp logits.ref logits
        done
        ask want $prompts $base --strategy resident
        check "$stored: generate" test "$rc" -eq 0 -a "$(wc -l <want)" -eq 5
        for how in "--strategy stream-lora" \
            "--strategy stream-lora --prefetch-depth 2 --device emu --offload-weights disk" \
            "--strategy stream-lora --storage ram --prefetch-depth 1"; do
            same_answer "$stored: generate $how" $prompts $base $how
        done
        # Really from the disk: they fail when it does.
        export PENSTOCK_FAULT=read:1:eio:always
        expect_exit "$stored: eval from a disk that fails" 1 $evaluate $base --strategy stream-lora
        expect_exit "$stored: generate from a disk that fails" 1 $prompts $base --strategy stream-lora
        unset PENSTOCK_FAULT
    }
done
finish

# Disks that fail, one operation at a time: every read of two steps fails once, fails for good, comes short, arrives
# damaged, hangs; writes of the spill file fail, come short, hang, meet a full disk, are torn or dropped. What can be
# mended gives the same bytes, what cannot ends with the exit code of cli.md and names file and offset; never other
# bytes with exit 0. Then: no io_uring, no locked memory, no huge pages, a model that is cut or changed, SIGINT.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
# Models and spill files on the file system of the working directory, results in memory.
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
ln -s "$PWD" "$scratch/disk"
cd "$scratch" || exit 1

cat >config.json <<END
{"model_type":"llama","hidden_size":16,"intermediate_size":40,"num_hidden_layers":10,"num_attention_heads":4,
"num_key_value_heads":2,"head_dim":4,"vocab_size":61,"rms_norm_eps":1e-5,"tie_word_embeddings":false,
"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"max_position_embeddings":256,"rope_theta":100.0}
END
check "model" penstock init --config config.json --output disk/model --seed 5 --dtype bf16
make_rows 12 8 30 61 3 >rows.jsonl

# All layers from the disk through three slots; all boundaries, and what three layers keep, to it and back.
placement() { # DEVICE TIER WEIGHTS: near tier of this device, tier of the weights
    layers=$(printf '"%s",' "$3" "$3" "$3" "$3" "$3" "$3" "$3" "$3" "$3" "$3")
    acts=$(for i in 1 2 3; do printf '{"keep":false,"boundary":"disk"},'; done
        for i in 4 5 6; do printf '{"keep":"R%s","saved":"disk","boundary":"disk"},' $((i - 3)); done
        for i in 7 8 9 10; do printf '{"keep":false,"boundary":"disk"},'; done)
    echo "{\"version\":1,\"strategy\":\"stream-lora\",\"near_slots\":3,\"raw_slots\":2,\"x_ring\":2,\"host_ring\":2,\"saved_ring\":1,
        \"weights\":{\"embed\":\"$3\",\"layers\":[${layers%,}],\"head\":\"$2\"},\"activations\":[${acts%,}]}" >"$1.json"
}
placement cpu host disk
placement emu device disk
placement spill host host
mkdir disk/spill
base="train --model disk/model --data rows.jsonl --format tokens --max-seq-len 64 --packing false --grad-accum 1
    --lora-r 4 --learning-rate 3e-3 --threads 1 --progress none --nvme-path disk/spill
    --import ${import:-never}"
common="$base --max-steps 2"
run() { # FAULT ARG...: sets $rc
    rm -rf other
    PENSTOCK_FAULT=$1 PENSTOCK_IO_WARN_S=${warn_s:-30} PENSTOCK_IO_ABORT_S=${abort_s:-120}
    export PENSTOCK_FAULT PENSTOCK_IO_WARN_S PENSTOCK_IO_ABORT_S
    shift
    # shellcheck disable=SC2086
    penstock $common --output other "$@"
    unset PENSTOCK_FAULT PENSTOCK_IO_WARN_S PENSTOCK_IO_ABORT_S
}
warn_s="" abort_s=""
run "" --placement cpu.json
check "without faults" test "$rc" -eq 0
mv other ref
check "all weights and boundaries come from the disk" test "$(json_get --last ref/metrics.jsonl disk_read_bytes)" \
    -gt 150000 -a "$(json_get --last ref/metrics.jsonl disk_write_bytes)" -gt 30000

# A name for each kind of result; what is not as it should be is printed once a kind.
same_bits() {
    [ "$rc" -eq 0 ] && cmp ref/adapter_model.safetensors other/adapter_model.safetensors && same_losses ref other
}
expect_same() { # NAME: as check, but keeps the log of the run
    if same_bits >>log 2>&1; then ok "$1"; else not_ok "$1"; fi
}
names_place() { grep -E "disk/(model/model.safetensors|spill/.*): .*(offset|bytes) [0-9]+" err; }
fails() { [ "$rc" -eq 1 ] && names_place && [ ! -e other/adapter_model.safetensors ]; }
damaged() { [ "$rc" -eq 4 ] && names_place && [ ! -e other/adapter_model.safetensors ]; }
hangs() { [ "$rc" -eq 1 ] && grep -E 'disk/.*: storage: no completion for .* in flight' err; }
# Of the reads ahead after the last step nothing depends.
unharmed() { damaged || same_bits; }

# every NAME FAULT CHECK ARG...: CHECK must hold for every N from 1 to $last
every() {
    name=$1 fault=$2 holds=$3
    shift 3
    n=1 bad=""
    while [ $n -le "$last" ]; do
        run "$op:$n:$fault" "$@"
        $holds >>log 2>&1 || { bad="$bad $n"; cp log log.bad; }
        n=$((n + 1))
    done
    if [ -z "$bad" ] && [ "$last" -gt 0 ]; then ok "$name, each of $last ${op}s"; else
        [ -z "$bad" ] || mv log.bad log
        not_ok "$name: not as it should be at$bad"
    fi
}
# How many reads or writes there are: the first N that a fault for good does not find.
count() { # ARG...: sets $last
    n=1
    run "$op:$n:eio:always" "$@"
    while [ "$rc" -eq 1 ] && [ $n -lt 200 ]; do
        n=$((n + 1))
        run "$op:$n:eio:always" "$@"
        if [ "$rc" -eq 1 ] && ! names_place >/dev/null; then
            not_ok "$op $n fails for good: names file and offset"
        fi
    done
    last=$((n - 1))
    same_bits >>log 2>&1 || not_ok "past the last $op nothing fails"
}

op="read"
count --placement cpu.json
check "reads fail for good: exit 1, for each of $last" test "$last" -ge 20 -a "$last" -le 60
every "fails once" eio same_bits --placement cpu.json
every "comes short" short same_bits --placement cpu.json --storage threads
every "comes short by an odd number" short=100 same_bits --placement cpu.json
every "arrives damaged" flip=4099 unharmed --placement cpu.json
last=$((last / 2))
every "is interrupted" eintr same_bits --placement cpu.json --storage threads
every "fails for good, emu" enodata:always fails --placement emu.json
every "arrives damaged, emu" flip unharmed --placement emu.json --storage threads
last=20 warn_s=0.05 abort_s=0.15
every "hangs" hang hangs --placement cpu.json
warn_s=0.2 abort_s=1.5
run read:7:hang --placement cpu.json
check "a hang is warned of, with file and offset" grep -E 'in flight: read disk/model/.* offset [0-9]+, ' err
warn_s="" abort_s=""
run "read:*:delay=3,seed=4,reorder" --placement cpu.json --queue-depth 8
expect_same "late and out of order: the same bits"

# What only the spill file is asked for.
count --placement spill.json
check "reads of the spill file fail for good" test "$last" -ge 16
every "spill: arrives damaged" flip damaged --placement spill.json
op="write"
count --placement spill.json
check "writes fail for good: exit 1, for each of $last" test "$last" -ge 16
every "fails, for a write is not repeated" eio fails --placement spill.json
every "full disk" enospc fails --placement spill.json
check "the remedy is named" grep -q 'free space' err
every "comes short" short same_bits --placement spill.json
every "is torn" tear=0 damaged --placement spill.json
every "is dropped" drop damaged --placement spill.json --storage threads
last=3 warn_s=0.05 abort_s=0.15
every "hangs" hang hangs --placement spill.json
warn_s="" abort_s=""
check "no spill file is left" test -z "$(ls disk/spill)"

# A compressed import of the base is checked as the base is.
op="read" last=4 common="$base --max-steps 1 --import always"
run "" --placement cpu.json
import_rc=$rc
mv other/adapter_model.safetensors imported
rm -rf disk/spill/penstock-model* disk/spill/penstock-import*
common="$base --max-steps 1"
run "" --placement cpu.json
cmp imported other/adapter_model.safetensors >>log 2>&1
check "an import gives the same bits" test $? -eq 0 -a "$import_rc" -eq 0
mkdir spoilt
common="$base --max-steps 1 --import always"
run "" --placement cpu.json
for file in disk/spill/penstock-import*/*; do
    bytes=$(wc -c <"$file")
    [ "$bytes" -gt 8192 ] || continue
    cp "$file" spoilt/file && touch -r "$file" spoilt/file
    printf '\125\252' | dd of="$file" bs=1 seek=$((bytes / 2)) conv=notrunc 2>>log
    touch -r spoilt/file "$file"
done
run "" --placement cpu.json
check "a damaged import is noticed" test "$rc" -eq 4
check "and named" grep -q "disk/spill/penstock-import" err
rm -rf disk/spill/penstock-model* disk/spill/penstock-import*

# --- what the first read of all is compared with ---
# Nothing, if the unit is read once in the whole run: a damaged bit then goes unnoticed (a weight that is not finite
# would not). The table beside the run tells the next one, whichever of the two reads was the damaged one.
sed 's/"near_slots":3/"near_slots":11/; s/"boundary":"disk"/"boundary":"host"/g' cpu.json >once.json
common="$base --max-steps 2 --save-steps 1"
rewind() { rm -rf other/checkpoint-2 other/adapter_*; } # as if stopped after the first step
again() { # FAULT: a run of one step, then the second one under FAULT
    rewind
    mv other kept
    PENSTOCK_FAULT=$1
    export PENSTOCK_FAULT
    # shellcheck disable=SC2086
    penstock $common --output kept --resume --placement once.json
    unset PENSTOCK_FAULT
    mv kept other
}
op="read"
run "" --placement once.json
check "the table of checksums is kept beside the run" test -s other/base.checksums
again ""
expect_same "resumed with the table"
again read:5:flip=36006
check "a damaged first read of the resumed run is noticed" damaged
run read:5:flip=36006 --placement once.json # in the middle of what is read: not of a neighbour's page
cmp ref/adapter_model.safetensors other/adapter_model.safetensors >log 2>&1
check "a damaged only read is not noticed" test $? -eq 1 -a "$rc" -eq 0
again ""
check "but the next run notices it" damaged
common="$base --max-steps 2"

# --- the model's file changes ---
run "" --placement cpu.json --save-steps 1
rewind
size=$(wc -c <disk/model/model.safetensors)
cp disk/model/model.safetensors whole && touch -r disk/model/model.safetensors stamp
printf '\001' | dd of=disk/model/model.safetensors bs=1 seek=$((size / 2)) conv=notrunc 2>log
touch -r stamp disk/model/model.safetensors
cmp whole disk/model/model.safetensors >log
check "another byte in the model" test $? -eq 1
# shellcheck disable=SC2086
penstock $common --save-steps 1 --placement cpu.json --output other --resume
check "a model that has changed between two runs is noticed" damaged
cp whole disk/model/model.safetensors

# Slow enough to be interfered with: 0.2 s and more a step.
slow="--throttle disk_weights=600KiB --placement cpu.json"
wait_lines() { # FILE COUNT
    tries=0
    until [ -f "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ] || [ $tries -gt 400 ]; do
        sleep 0.02
        tries=$((tries + 1))
    done
}
rm -rf other
# shellcheck disable=SC2086
"$PENSTOCK" $base --max-steps 50 --output other $slow >out 2>err &
pid=$!
wait_lines other/metrics.jsonl 1
truncate -s $((size / 2)) disk/model/model.safetensors
wait $pid
rc=$?
{ echo "exit $rc"; cat err; } >log
check "a model cut off during the run: exit 4" test "$rc" -eq 4
check "the message says so" \
    grep -E 'model.safetensors: file shorter than planned: it ends before offset [0-9]+' err
cp whole disk/model/model.safetensors
truncate -s $((size - 100)) disk/model/model.safetensors
run "" --placement cpu.json
check "a model cut off before the run: exit 4" test "$rc" -eq 4
cp whole disk/model/model.safetensors

# --- SIGINT in a streamed step ---
common="$base --max-steps 4"
run "" --placement cpu.json
rm -rf ref && mv other ref
for number in 2 15; do
    rm -rf other
    # shellcheck disable=SC2086
    "$helpers/signal_when" other/metrics.jsonl 1 $number "$PENSTOCK" $common --output other $slow >out 2>err
    rc=$?
    { echo "exit $rc"; cat err; ls -a other; } >log
    check "signal $number: exit $((128 + number))" test "$rc" -eq $((128 + number))
    steps=$(train_losses other | wc -l)
    check "signal $number: a checkpoint of the last step" \
        test -e "other/checkpoint-$steps/manifest.json" -a "$steps" -lt 4
    check "signal $number: no spill file is left" test -z "$(ls disk/spill)"
    # shellcheck disable=SC2086
    penstock $common --output other --placement emu.json --device emu --resume
    expect_same "signal $number: resumed, the same bits"
done

# --- what a machine may refuse ---
refused() { # PROGRAM ARG...: sets $rc
    rm -rf other
    # shellcheck disable=SC2086
    "$@" $common --placement cpu.json --progress plain --output other >out 2>err
    rc=$?
    { echo "$* $common: exit $rc"; cat err; } >log
}
refused "$helpers/without" io_uring "$PENSTOCK"
if [ "$rc" -eq 125 ]; then echo "skip - no io_uring: the kernel takes no seccomp filter"; else
    expect_same "io_uring refused: the same bits"
    check "io_uring refused: it says so" grep -q 'io_uring cannot be used: .*; using pread and pwrite on threads' err
fi
refused "$helpers/without" huge_pages "$PENSTOCK"
if [ "$rc" -eq 125 ]; then echo "skip - no huge pages: the kernel cannot be told"; else
    expect_same "no huge pages: the same bits"
    check "no huge pages: it says so" grep -qE 'arena lies on (4 KiB pages|hugetlb)' err
fi
if [ "$(id -u)" -eq 0 ] && setpriv --reuid=65534 --clear-groups true 2>/dev/null; then
    # Another user, in a directory of its own, may lock 64 KiB, and then nothing. Older kernels count the rings
    # themselves: then io_uring is refused.
    chmod 755 . disk/. disk/model && chmod 644 disk/model/*
    mkdir user user/spill && cp "$PENSTOCK" user/program && chown -R 65534 user
    flat=$(echo "$common" | tr '\n' ' ' | sed 's,disk/spill,user/spill,')
    for kib in 64 0; do
        rm -rf user/run
        # shellcheck disable=SC2086
        setpriv --reuid=65534 --clear-groups sh -c "ulimit -l $kib && exec user/program $flat \
            --placement cpu.json --progress plain --output user/run" >out 2>err
        rc=$?
        { echo "exit $rc"; cat err; } >log
        rm -rf other && cp -r user/run other 2>>log
        expect_same "memlock $kib KiB: the same bits"
        check "memlock $kib KiB: it says so" grep -E 'RLIMIT_MEMLOCK|io_uring cannot be used: .*; using' err
    done
else
    echo "skip - memlock: not root, or no setpriv: no other user to be"
fi
finish

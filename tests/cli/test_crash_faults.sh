# A spill store on a disk that fails: every write of the streamed part of two steps, in full fine-tuning with all states
# on disk (flushes, and files beside the store: test_crash_calls.sh). The run ends with exit 1 and a message that names the
# file, the commit before stays, and a resume gives the bits of the undisturbed run. Then disks without room, file
# systems that are read-only, and two processes on one --output.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
scratch=$(memory_dir)
trap 'umount "$scratch/small" 2>/dev/null; rm -rf "$scratch"' EXIT
ln -s "$PWD" "$scratch/disk"
cd "$scratch" || exit 1
stride=7
if [ -n "${PENSTOCK_CRASH:-}" ]; then stride=1; fi
cat >config.json <<END
{"model_type":"llama","hidden_size":32,"intermediate_size":80,"num_hidden_layers":3,"num_attention_heads":4,
"num_key_value_heads":2,"head_dim":8,"vocab_size":97,"rms_norm_eps":1e-5,"tie_word_embeddings":false,
"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"max_position_embeddings":256,"rope_theta":100.0}
END
check "model" penstock init --config config.json --output disk/model --seed 5 --dtype bf16
make_rows 9 4 30 97 3 >rows.jsonl
base="train --model disk/model --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 --grad-accum 2
    --packing false --learning-rate 3e-3 --threads 1 --method full --max-grad-norm 0.5 --progress none"
# shellcheck disable=SC2086
penstock $base --max-steps 2 --strategy resident --output ref
check "without faults" test "$rc" -eq 0

run() { # FAULT ARG...: sets $rc
    rm -rf other
    PENSTOCK_FAULT=$1
    export PENSTOCK_FAULT
    shift
    # shellcheck disable=SC2086
    penstock $base --max-steps 2 --output other "$@"
    unset PENSTOCK_FAULT
}
same_bits() {
    [ "$rc" -eq 0 ] && cmp ref/model.safetensors other/model.safetensors && same_losses ref other &&
        cmp ref/checkpoint-2/optimizer.safetensors other/checkpoint-2/optimizer.safetensors
}
names_file() { grep -E 'spill/.*(data-|penstock-)|other/' err; }
resumes() { # ARG...
    # shellcheck disable=SC2086
    penstock $base --max-steps 2 --output other --resume "$@"
    same_bits
}
# every STRATEGY OP FAULT: until no operation of that number is there
every() {
    strategy=$1 op=$2 fault=$3
    n=1 bad="" count=0
    while [ $n -lt 400 ]; do
        run "$op:$n:$fault" --strategy "$strategy"
        [ "$rc" -eq 0 ] && break
        count=$((count + 1))
        { [ "$rc" -eq 1 ] && names_file && [ ! -e other/model.safetensors ]; } >>log 2>&1 || {
            bad="$bad $n"
            cp log log.bad
        }
        resumes --strategy "$strategy" >>log 2>&1 || {
            bad="$bad $n(resumed)"
            cp log log.bad
        }
        n=$((n + stride))
    done
    if [ -z "$bad" ] && [ $count -gt 0 ]; then ok "$strategy: $op $fault, $count places: exit 1, resumed"; else
        [ -z "$bad" ] || mv log.bad log
        not_ok "$strategy: $op $fault: not as it should be at$bad"
    fi
    same_bits >>log 2>&1 || not_ok "$strategy: past the last $op nothing fails"
}
for strategy in vertical fuyou; do
    every $strategy write eio:always
done
every vertical write enospc:always

# --- no room ---
if [ "$(id -u)" -eq 0 ] && mkdir small && mount -t tmpfs -o size=1m none small 2>>log; then
    rm -rf other
    # shellcheck disable=SC2086
    penstock $base --max-steps 2 --strategy vertical --nvme-path small --output other
    check "a store without room: exit 3, before anything is made" test "$rc" -eq 3
    check "it says what is missing" grep -qE 'MiB|KiB|bytes' err
    check "and leaves nothing" test -z "$(ls small)"
    mount -o remount,size=64m,ro small
    # shellcheck disable=SC2086
    penstock $base --max-steps 2 --strategy vertical --nvme-path small --output other
    check "a read-only file system: exit 1" test "$rc" -eq 1
    check "it is named" grep -q 'small' err
    check "and what to do" grep -q 'mount it writable' err
    umount small
else
    echo "skip - no room: not root, or no tmpfs"
fi

# --- what cannot be read may be whole: it is not given up for it ---
mkdir one two
paths="--nvme-path one --nvme-path two"
rm -rf other
# shellcheck disable=SC2086
"$helpers/signal_when" other/metrics.jsonl 1 9 "$PENSTOCK" $base --max-steps 2 --strategy vertical --throttle compute=3e7 \
    $paths --output other >out 2>err
check "a run on two disks is killed" test $? -eq 137
store=$(ls -d one/penstock-*)
# shellcheck disable=SC2086
{
    cp "$store/data-0" whole-0
    dd if=/dev/zero of="$store/data-0" bs=4096 seek=256 count=1 conv=notrunc 2>/dev/null
    printf 'damaged' | dd of="$store/data-0" bs=4096 seek=512 conv=notrunc 2>/dev/null
    printf 'damaged' | dd of="$store/data-0" bs=4096 seek=256 conv=notrunc 2>/dev/null
    penstock $base --max-steps 2 --strategy vertical $paths --output other --resume
    check "no superblock is whole: exit 4" test "$rc" -eq 4
    check "it says what may be done" grep -q -- '--resume' err
    penstock $base --max-steps 2 --strategy vertical $paths --output other
    check "a new run in its place: exit 4" test "$rc" -eq 4
    check "nothing was removed" test -f "$store/data-0"
    mv "$store/data-0" damaged-0
    penstock $base --max-steps 2 --strategy vertical $paths --output other --resume
    check "the first file is gone: exit 4 or 1" test "$rc" -eq 4 -o "$rc" -eq 1
    check "the second one is still there" test -n "$(ls two/penstock-*/data-1)"
    cp whole-0 "$store/data-0"
    penstock $base --max-steps 2 --strategy vertical --nvme-path two --nvme-path one --progress plain --output other --resume
    check "put back, and the disks in another order: goes on" grep -q 'last commit of the spill store' err
    check "with the bits of the undisturbed run" same_bits
}

# --- checkpoints asked for while the run goes on, one of which is read meanwhile ---
# shellcheck disable=SC2086
penstock $base --max-steps 6 --strategy resident --output ref6
for strategy in vertical fuyou update-next-forward; do
    rm -rf other
    (
        tries=0
        until [ -f other/checkpoint-2/manifest.json ] || [ $tries -gt 1000 ]; do
            sleep 0.02
            tries=$((tries + 1))
        done
        "$PENSTOCK" eval --model other/checkpoint-2 --data rows.jsonl --format tokens --json >eval_2 2>eval_err
        echo $? >eval_rc
    ) &
    reader=$!
    # shellcheck disable=SC2086
    "$helpers/signal_when" other/metrics.jsonl 3 10 "$PENSTOCK" $base --max-steps 6 --strategy $strategy --eval-data rows.jsonl \
        --eval-steps 2 --save-steps 2 --save-total-limit 9 --throttle compute=2e8 --output other >out 2>err
    rc=$?
    { echo "exit $rc"; cat err; } >log
    check "$strategy: asked for a checkpoint: exit 0" test $rc -eq 0
    wait $reader
    check "$strategy: one was made between the others" test "$(find other -name manifest.json | wc -l)" -ge 3
    check "$strategy: the bits of a run without" cmp ref6/model.safetensors other/model.safetensors
    check "$strategy: and the optimizer" cmp ref6/checkpoint-6/optimizer.safetensors other/checkpoint-6/optimizer.safetensors
    check "$strategy: a checkpoint could be evaluated meanwhile" test "$(cat eval_rc)" -eq 0
    check "$strategy: with the loss that the run had" within "$(json_get eval_2 loss)" \
        "$(sed -n 's/^{"step":2,"eval_loss":\([^,]*\),.*/\1/p' other/metrics.jsonl)" 1e-6
    check "$strategy: how long the run stood is said" \
        awk -v x="$(json_get --last other/metrics.jsonl save_s)" 'BEGIN { exit !(x > 0) }'
done

# --- two processes ---
rm -rf other
# shellcheck disable=SC2086
"$PENSTOCK" $base --max-steps 6 --strategy vertical --throttle compute=3e7 --output other >first 2>&1 &
pid=$!
tries=0
until [ -s other/metrics.jsonl ] || [ $tries -gt 200 ]; do
    sleep 0.02
    tries=$((tries + 1))
done
begin=$(date +%s%N)
# shellcheck disable=SC2086
penstock $base --max-steps 6 --strategy vertical --throttle compute=3e7 --output other --resume
took=$((($(date +%s%N) - begin) / 1000000))
check "a second process on one --output: exit 1" test "$rc" -eq 1
check "at once ($took ms)" test $took -lt 3000
check "it says why" grep -qiE 'lock|in use|another process' err
kill $pid 2>/dev/null
wait $pid
cp first log
check "the first one was not disturbed" test $? -eq 0
# shellcheck disable=SC2086
penstock $base --max-steps 6 --strategy vertical --output other --resume
check "and goes on after its end" test "$rc" -eq 0
finish

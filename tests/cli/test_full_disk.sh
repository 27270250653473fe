# A disk that fills while a checkpoint is written: exit 1, the checkpoint before stays whole, and a run resumed from
# it ends with the bits of one that never stopped.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
if [ "${1:-}" != inside ]; then
    if ! unshare -rm true 2>/dev/null; then
        echo "skip - full disk: no right to mount a small file system (unshare -rm)"
        exit 0
    fi
    exec unshare -rm sh "$0" inside
fi
mkdir small
mount -t tmpfs -o size=4m none small || {
    echo "skip - full disk: tmpfs cannot be mounted"
    exit 0
}
base=$models/llama_untied
train() {
    penstock train --model "$base/model" --data "$base/rows.jsonl" --format tokens --method full \
        --dtype fp32 --max-steps 12 --save-steps 4 --batch-size 2 --grad-accum 2 \
        --learning-rate 1e-3 --progress none "$@"
}
train --output whole
check "the run without trouble" test "$rc" -eq 0
# Before the start there is room for all that the run will write; once the first checkpoint is there, something else
# takes it.
(
    until [ -f small/run/checkpoint-4/manifest.json ]; do sleep 0.01; done
    dd if=/dev/zero of=small/other bs=64k 2>/dev/null
) &
train --output small/run --throttle compute=20000000
wait
check "a full disk: exit 1" test "$rc" -eq 1
check "the message says so" grep -qi 'space' err
ls -lR small >log 2>&1
check "the checkpoint before is whole" test -f small/run/checkpoint-4/manifest.json
check "the new one is not there" test ! -e small/run/checkpoint-8
cp -r small/run moved
train --output moved --resume auto --progress plain
cp err log
check "the copy resumes" test "$rc" -eq 0
check "from the checkpoint before" grep -q 'at step 4$' err
check "and ends with the same bits" cmp whole/model.safetensors moved/model.safetensors
# A streamed run, whose store is elsewhere: what was committed since is kept too, and it goes on where it is once there is
# room.
rm -rf small/other small/run
mkdir nvme
(
    until [ -f small/run/checkpoint-4/manifest.json ]; do sleep 0.01; done
    dd if=/dev/zero of=small/other bs=64k 2>/dev/null
) &
train --output small/run --strategy vertical --nvme-path nvme --throttle compute=20000000
wait
check "streamed, a full disk: exit 1" test "$rc" -eq 1
check "streamed: the message says what to do" grep -q 'free space on that disk, then go on with --resume' err
check "streamed: the checkpoint before is whole" test -f small/run/checkpoint-4/manifest.json
check "streamed: the new one is not there" test ! -e small/run/checkpoint-8
logged=$(grep -c '"loss"' small/run/metrics.jsonl)
rm small/other
train --output small/run --strategy fuyou --nvme-path nvme --resume --progress plain
cp err log
check "streamed: goes on" test "$rc" -eq 0
at=$(sed -n 's/.*the last commit of the spill store at step \([0-9]*\)$/\1/p' err)
check "streamed: from the last commit ($at)" test "${at:-0}" -ge $((logged - 1))
check "streamed: with the same bits" cmp whole/model.safetensors small/run/model.safetensors
check "streamed: and every line" test "$(grep -c '"loss"' small/run/metrics.jsonl)" -eq 12
# Where there is no room from the beginning, nothing is begun.
rm -rf small/other small/run
dd if=/dev/zero of=small/other bs=64k count=56 2>/dev/null
train --output small/run
check "no room from the beginning: exit 3" test "$rc" -eq 3
check "it says how much is needed" grep -qi 'space\|room' err
umount small
finish

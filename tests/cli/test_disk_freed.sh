# A disk that another program fills: exit 1 and what to do about it, the last checkpoint whole; when the space is
# free again the run resumes in place and ends as if nothing had been. LoRA and full. See also test_full_disk.sh.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
if [ "${1:-}" != inside ]; then
    if ! unshare -rm true 2>/dev/null; then
        echo "skip - a freed disk: no right to mount a small file system (unshare -rm)"
        exit 0
    fi
    exec unshare -rm sh "$0" inside
fi
mkdir small
if ! mount -t tmpfs -o size=4m none small; then
    echo "skip - a freed disk: tmpfs cannot be mounted"
    exit 0
fi
make_rows 40 5 30 97 41 >rows.jsonl
for mode in "lora --lora-dropout 0.1 --lora-r 8" "full"; do
    method=${mode%% *}
    args="train --model $models/llama_untied/model --data rows.jsonl --format tokens --dtype fp32 --max-steps 24
        --grad-accum 2 --learning-rate 1e-3 --save-steps 4 --save-total-limit 3 --progress none --method $mode"
    # shellcheck disable=SC2086
    {
        check "$method: the run without trouble" penstock $args --output whole
        # Stop after a checkpoint, fill what is left but for two blocks, go on.
        "$helpers/signal_when" small/run/checkpoint-4/manifest.json 1 9 "$PENSTOCK" $args --output small/run >log 2>&1
        before=$(find small/run -name 'checkpoint-*' | sort | tr '\n' ' ')
        dd if=/dev/zero of=small/filler bs=4k 2>/dev/null
        truncate -s -64k small/filler
        expect_exit "$method: a full disk: exit 1" 1 $args --output small/run --resume
    }
    cp err log
    check "$method: the message says what to do" grep -q 'free space on that disk, then go on with --resume' err
    check "$method: and names the file" grep -q 'small/run/.*checkpoint-' err
    check "$method: no checkpoint came or went" test \
        "$(find small/run -name 'checkpoint-*' | sort | tr '\n' ' ')" = "$before"
    check "$method: nothing half-written is left" test -z "$(find small/run -name '*tmp*')"
    rm small/filler
    # shellcheck disable=SC2086
    check "$method: with space again it resumes" penstock $args --output small/run --resume
    check "$method: the same files" same_files whole small/run
    check "$method: the same losses" same_losses whole small/run
    rm -rf whole* small/*
done
umount small
finish

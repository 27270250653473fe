# Every exit code of the contract is produced: 0 1 2 3 4 5 130 143.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
tiny=$models/llama_untied
train() { # CODE NAME ARG...: train on the tiny model; a later flag takes the place of an earlier one
    code=$1 name=$2
    shift 2
    expect_exit "$name: exit $code" "$code" train --format tokens --dtype fp32 --progress none "$@"
}

expect_exit "version: exit 0" 0 version
train 0 "a run that ends" --model "$tiny/model" --data "$tiny/rows.jsonl" --output run --max-steps 2

echo x >file
train 1 "an output that cannot be made" --model "$tiny/model" --data "$tiny/rows.jsonl" \
    --output file/run --max-steps 1
expect_exit "logits that cannot be written: exit 1" 1 eval --model "$tiny/model" --format tokens \
    --data "$tiny/rows.jsonl" --dtype fp32 --logits file/logits.safetensors
if [ -w /dev/full ]; then
    "$PENSTOCK" version >/dev/full 2>err
    rc=$?
    cp err log
    check "a full standard output: exit 1" test "$rc" -eq 1
fi

train 2 "an unknown flag" --model "$tiny/model" --data "$tiny/rows.jsonl" --output run2 --no-such 1
train 2 "a value out of range" --model "$tiny/model" --data "$tiny/rows.jsonl" --output run2 --lora-r 0
train 2 "no model" --data "$tiny/rows.jsonl" --output run2
expect_exit "no such command: exit 2" 2 tran
expect_exit "no command: exit 2" 2

train 3 "a budget that is too small" --model "$tiny/model" --data "$tiny/rows.jsonl" --output run3 \
    --host-mem 1MiB
check "the message names the budget that would do" grep -E '[0-9.]+ ?[KMGT]i?B' err
check "nothing was made" test ! -e run3/metrics.jsonl

copy_model() { rm -rf "$1" && cp -r "$tiny/model" "$1" && chmod -R u+w "$1"; }
copy_model cut
size=$(wc -c <cut/model.safetensors)
head -c $((size - 100)) "$tiny/model/model.safetensors" >cut/model.safetensors
train 4 "a truncated model file" --model cut --data "$tiny/rows.jsonl" --output run4
check "the message names the file" grep -q model.safetensors err
copy_model other
sed 's/"llama"/"mamba"/;s/LlamaForCausalLM/MambaForCausalLM/' "$tiny/model/config.json" >other/config.json
train 4 "a family that is not supported" --model other --data "$tiny/rows.jsonl" --output run4
check "the message names the family" grep -qi mamba err
copy_model lost
rm lost/model.safetensors
train 4 "a model without weights" --model lost --data "$tiny/rows.jsonl" --output run4
{ cat "$tiny/rows.jsonl"; echo '{"input_ids":[1,2,'; } >bad.jsonl
train 4 "a data row that is not JSON" --model "$tiny/model" --data bad.jsonl --output run4
check "the message names file and line" grep -q 'bad.jsonl:7' err
echo '{"input_ids":[1,2,96,97]}' >high.jsonl
train 4 "an id beyond the vocabulary" --model "$tiny/model" --data high.jsonl --output run4
echo '{"input_ids":[1,2,3],"labels":[-100,-100,-100]}' >blank.jsonl
train 4 "nothing to train on" --model "$tiny/model" --data blank.jsonl --output run4

copy_model huge
# The last tensor is model.norm.weight, (40,) fp32: the largest finite number makes every logit overflow.
i=0
while [ $i -lt 40 ]; do
    printf '\377\377\177\177'
    i=$((i + 1))
done | dd of=huge/model.safetensors bs=1 seek=$((size - 160)) conv=notrunc 2>/dev/null
train 5 "ten non-finite steps in a row" --model huge --data "$tiny/rows.jsonl" --output run5 \
    --max-steps 40
steps=$(grep -c '"step"' run5/metrics.jsonl)
check "it ended at the tenth" test "$steps" -le 11

for pair in 2:130 15:143; do
    signal=${pair%:*} code=${pair#*:}
    rm -rf stopped
    "$helpers/signal_when" stopped/metrics.jsonl 3 "$signal" "$PENSTOCK" train --model "$tiny/model" \
        --data "$tiny/rows.jsonl" --format tokens --dtype fp32 --output stopped --max-steps 100000 \
        --progress none >out 2>err
    rc=$?
    { echo "exit $rc"; cat out err; ls stopped; } >log
    check "stopped by signal $signal: exit $code" test "$rc" -eq "$code"
    check "signal $signal leaves a whole checkpoint" test -n \
        "$(find stopped -path '*checkpoint-*' -name manifest.json)"
done
finish

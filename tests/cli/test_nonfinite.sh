# The non-finite rule: a step whose loss or gradient is not finite changes nothing; ten in a row end the run
# with exit 5 and a checkpoint that is whole and finite.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
tiny=$models/llama_untied
train() { # DIR ARG...
    train_dir=$1
    shift
    penstock train --format tokens --dtype fp32 --grad-accum 1 --packing false --lr-scheduler constant \
        --warmup-steps 0 --save-steps 1 --save-total-limit 99 --progress none --output "$train_dir" "$@"
}
count() { grep -c "$1" "$2/metrics.jsonl"; }
# all_finite FILE: a safetensors file of fp32 tensors without NaN or Inf.
all_finite() {
    header=$(od -An -tu8 -N8 "$1" | tr -d ' ')
    od -An -v -tf4 -j $((header + 8)) "$1" >values
    [ -s values ] && ! grep -i -m 1 'nan\|inf' values
}
same_tensors() { # CHECKPOINT CHECKPOINT NAME: with the optimizer's state
    cmp "$1/$3" "$2/$3" && cmp "$1/optimizer.safetensors" "$2/optimizer.safetensors"
}

# A learning rate of 100 throws the weights out of the range where anything is finite.
for method in full lora; do
    file=model.safetensors
    if [ $method = lora ]; then file=adapter_model.safetensors; fi
    dir=explode-$method
    train $dir --model "$tiny/model" --data "$tiny/rows.jsonl" --method $method --learning-rate 100 \
        --weight-decay 100 --clip none --max-steps 60
    check "$method: exit 5" test "$rc" -eq 5
    cp err log
    check "$method: the message says what to do" grep -q 'lower --learning-rate' err
    last=$(count '"step"' $dir)
    check "$method: ten skipped steps and no more" test "$(count '"skipped":true' $dir)" -eq 10
    check "$method: they are the last ten" test \
        "$(tail -n 10 $dir/metrics.jsonl | grep -c '"loss":null.*"skipped":true')" -eq 10
    check "$method: the steps before were made" test "$last" -gt 10
    good=$((last - 10))
    check "$method: the last checkpoint is whole" test -e "$dir/checkpoint-$last/manifest.json"
    check "$method: no weight or state changed since the last good step" same_tensors \
        $dir/checkpoint-$good "$dir/checkpoint-$last" $file
    check "$method: the good steps did change them" test -n \
        "$(cmp $dir/checkpoint-1/$file "$tiny/model/model.safetensors" 2>&1)"
    check "$method: its weights are finite" all_finite "$dir/checkpoint-$last/$file"
    check "$method: its optimizer state is finite" all_finite "$dir/checkpoint-$last/optimizer.safetensors"
    check "$method: the updates are counted" test \
        "$(json_get "$dir/checkpoint-$last/trainer_state.json" updates)" = "$good"
    check "$method: there is no result" test ! -e $dir/$file
done

# A run that is killed in the middle of the ten goes on counting: from the commit between two steps of a run that keeps
# its states in memory, and from that inside a step of one that streams them.
last=$(count '"step"' explode-full) good=$((last - 10))
for strategy in resident vertical; do
    dir=killed-$strategy more=""
    if [ $strategy = resident ]; then more="--commit-interval 1"; fi
    set -- train --format tokens --dtype fp32 --grad-accum 1 --packing false --lr-scheduler constant --warmup-steps 0 \
        --model "$tiny/model" --data "$tiny/rows.jsonl" --method full --learning-rate 100 --weight-decay 100 \
        --clip none --max-steps 60 --progress none --output $dir --strategy $strategy $more
    "$helpers/signal_when" $dir/metrics.jsonl $((good + 5)) 9 "$PENSTOCK" "$@" --throttle compute=2e7 >out 2>err
    rc=$?
    { echo "exit $rc"; cat err; } >log
    check "$strategy: killed among the ten" test $rc -eq 137
    penstock "$@" --resume
    check "$strategy: exit 5" test "$rc" -eq 5
    check "$strategy: ten skipped steps and no more" test "$(count '"skipped":true' $dir)" -eq 10
    check "$strategy: after the same step" test "$(count '"step"' $dir)" -eq "$last"
    check "$strategy: the state is that of a run that was not killed" same_tensors "$dir/checkpoint-$last" \
        "explode-full/checkpoint-$last" model.safetensors
done

# A model in which rows with token 96 cannot be computed: the first norm's weight is huge in dimension 7, which is 0
# in the embeddings of all other tokens. The others train on as if the bad steps had not been.
cp -r "$tiny/model" poisoned && chmod -R u+w poisoned
file=poisoned/model.safetensors
header=$(od -An -tu8 -N8 $file | tr -d ' ')
begin_of() { # TENSOR: its first byte in $file
    at=$(head -c $((header + 8)) $file | tail -c "$header" |
        sed "s/.*\"$1\":{[^}]*\"data_offsets\":\[\([0-9]*\),.*/\1/")
    echo $((header + 8 + at))
}
put() { dd of=$file bs=1 seek="$1" conv=notrunc 2>/dev/null; } # OFFSET: bytes from standard input
embed=$(begin_of model.embed_tokens.weight) id=0
while [ $id -lt 96 ]; do
    printf '\000\000\000\000' | put $((embed + (id * 40 + 7) * 4))
    id=$((id + 1))
done
printf '\000\000\200\077' | put $((embed + (96 * 40 + 7) * 4))                               # 1
printf '\377\377\177\177' | put $(($(begin_of model.layers.0.input_layernorm.weight) + 7 * 4)) # FLT_MAX
make_rows 12 5 20 96 21 >good.jsonl
# Good and bad in turn, then four bad ones: never ten in a row.
awk '{ print } NR % 2 == 0 { print "{\"input_ids\":[96,1,2,3]}" }
    NR == 6 { for (i = 0; i < 3; i++) print "{\"input_ids\":[4,96,1,2,3]}" }' good.jsonl >mixed.jsonl
for method in lora full; do
    file=adapter_model.safetensors extra="--lora-dropout 0"
    if [ $method = full ]; then file=model.safetensors extra="--train-layers last:1"; fi
    # shellcheck disable=SC2086
    {
        train good-$method --model poisoned --data good.jsonl --shuffle false --method $method $extra
        check "$method: without the bad rows: exit 0" test "$rc" -eq 0
        check "$method: without the bad rows nothing is skipped" test "$(count '"skipped":true' good-$method)" -eq 0
        train mixed-$method --model poisoned --data mixed.jsonl --shuffle false --method $method $extra
    }
    check "$method: with bad rows now and then: exit 0" test "$rc" -eq 0
    check "$method: the bad steps are skipped" test "$(count '"skipped":true' mixed-$method)" -eq 9
    check "$method: nine of them in the summary" test "$(json_get --last mixed-$method/metrics.jsonl skipped)" -eq 9
    check "$method: twelve updates" test "$(json_get --last mixed-$method/metrics.jsonl updates)" -eq 12
    check "$method: the weights are those of a run without the bad rows" cmp mixed-$method/$file good-$method/$file
    check "$method: the state too" cmp mixed-$method/checkpoint-21/optimizer.safetensors \
        good-$method/checkpoint-12/optimizer.safetensors
done

# An evaluation that is not finite is no better than any other.
train eval --model poisoned --data good.jsonl --method lora --eval-data mixed.jsonl --eval-steps 4
check "a non-finite evaluation does not end the run" test "$rc" -eq 0
check "it is logged as null" test "$(count '"eval_loss":null' eval)" -ge 3
expect_exit "eval with a non-finite loss: exit 5" 5 eval --model poisoned --data mixed.jsonl --format tokens \
    --dtype fp32
finish

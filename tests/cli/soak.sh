# 2,000 steps of full fine-tuning with all states on disk (a commit each, checkpoints and evaluations on the way): memory
# grows by less than 1 KiB a step, the number of descriptors and the size of the store do not change. SOAK_STEPS: another
# number; SOAK_STRATEGY: another strategy than vertical.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
steps=${SOAK_STEPS:-2000} strategy=${SOAK_STRATEGY:-vertical}
cat >config.json <<END
{"model_type":"llama","hidden_size":32,"intermediate_size":80,"num_hidden_layers":4,"num_attention_heads":4,
"num_key_value_heads":2,"head_dim":8,"vocab_size":97,"rms_norm_eps":1e-5,"tie_word_embeddings":false,
"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"max_position_embeddings":256,"rope_theta":100.0}
END
check "model" penstock init --config config.json --output model --seed 5 --dtype bf16
make_rows 40 4 30 97 3 >rows.jsonl
make_rows 4 3 20 97 4 >held_out.jsonl
"$PENSTOCK" train --model model --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 --grad-accum 2 \
    --packing false --learning-rate 1e-4 --threads 1 --method full --max-grad-norm 0.5 --max-steps "$steps" \
    --strategy "$strategy" --eval-data held_out.jsonl --eval-steps 250 --save-steps 500 --progress none --output run \
    >out 2>err &
pid=$!
: >samples
while kill -0 $pid 2>>log; do
    step=$(sed -n '$s/^{"step":\([0-9]*\),.*/\1/p' run/metrics.jsonl 2>>log)
    rss=$(awk '/^VmRSS/ { print $2 }' /proc/$pid/status 2>>log)
    # shellcheck disable=SC2012
    open=$(ls /proc/$pid/fd 2>>log | wc -l)
    store=$(du -s --apparent-size -k run/spill 2>>log | awk '{ print $1 }')
    [ -n "$step" ] && [ -n "$rss" ] && echo "$step $rss $open $store" >>samples
    sleep 0.2
done
wait $pid
rc=$?
{ echo "exit $rc"; cat err; tail -n 3 samples; } >log
check "$steps steps: exit 0" test $rc -eq 0
# The first half fills caches: a first evaluation and the first checkpoints, whose list of steps grows, leave the heap
# larger by 2 MiB once. The last samples may lie in the end of the run.
awk -v n="$steps" '$1 > n / 2 && $1 < n * 0.99' samples >steady
awk '{ n++; x += $1; y += $2; xx += $1 * $1; xy += $1 * $2 } END {
    if (n < 10) exit 1
    printf "%.6f\n", (n * xy - x * y) / (n * xx - x * x) }' steady >slope
echo "samples: $(wc -l <steady), RSS slope: $(cat slope) KiB a step, descriptors: $(awk '{ print $3 }' steady |
    sort -un | tr '\n' ' '), store: $(awk '{ print $4 }' steady | sort -un | tr '\n' ' ')KiB"
check "RSS grows by less than 1 KiB a step" awk '{ exit !($1 < 1) }' slope
# A checkpoint and an evaluation have files open for a moment: what most samples see is the same at both ends.
usual() { awk -v c="$1" '{ print $c }' "$2" | sort -n | uniq -c | sort -rn | awk 'NR == 1 { print $2 }'; }
half=$(($(wc -l <steady) / 2))
head -n $half steady >early
tail -n $half steady >late
check "descriptors: as many in the second half" test "$(usual 3 early)" -eq "$(usual 3 late)"
check "the store keeps its size" test "$(awk '{ print $4 }' steady | sort -un | wc -l)" -eq 1
# shellcheck disable=SC2012
check "two checkpoints are kept" test "$(ls -d run/checkpoint-* | wc -l)" -eq 2
finish

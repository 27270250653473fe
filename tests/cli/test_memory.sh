# Memory is linear in the sequence length: from 4096 to 8192 tokens peak memory grows at most 2.2 times as much as from
# 2048 to 4096 (a matrix of attention scores would make it 4 times), and --host-mem is kept.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"

cat >config.json <<EOF
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256, "hidden_size": 128,
 "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
 "max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
 "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2}
EOF
penstock init --config config.json --output model --seed 1 --dtype fp32
check "init" test "$rc" -eq 0
for t in 2048 4096 8192; do
    awk -v n=$t 'BEGIN { printf "{\"input_ids\":[5"; for (i = 1; i < n; i++) printf ",%d", 3 + i * 7 % 250
        print "]}" }' >rows.$t.jsonl
done

for case in "lora bf16 host" "full fp32 recompute"; do
    set -- $case
    for t in 2048 4096 8192; do
        rm -rf run
        "$helpers/peak_rss" rss.$t "$PENSTOCK" train --model model --data rows.$t.jsonl --format tokens \
            --method "$1" --dtype "$2" --offload-activations "$3" --max-seq-len $t --max-steps 1 \
            --batch-size 1 --grad-accum 1 --output run --progress none >log 2>&1
        rc=$?
        check "$case: $t tokens" test $rc -eq 0
    done
    check "$case: growth" awk -v a="$(cat rss.2048)" -v b="$(cat rss.4096)" -v c="$(cat rss.8192)" \
        'BEGIN { print a, b, c " KiB, ratio", (c - b) / (b - a); exit !(b > a && (c - b) <= 2.2 * (b - a)) }'
    [ -n "${SHOW:-}" ] && cat log
    # The promise of metrics.jsonl's last line: what was predicted is what was used, within 10%, and above.
    predicted=$(json_get --last run/metrics.jsonl predicted_peak_bytes.host)
    check "$case: peak within the prediction" awk -v p="$predicted" -v m="$(cat rss.8192)" \
        'BEGIN { print "predicted", p, "measured", m * 1024; exit !(m * 1024 <= p * 1.1) }'
    [ -n "${SHOW:-}" ] && cat log
done

# The plan names the smallest budget; that budget is enough, and kept.
rm -rf run
expect_exit "a budget of 8 MiB: exit 3" 3 train --model model --data rows.8192.jsonl --format tokens \
    --max-seq-len 8192 --max-steps 1 --output run --host-mem 8MiB --progress none
need=$(grep -oE '[0-9.]+ ?[KMG]iB' err | tail -n 1 | tr -d ' ')
cp err log
"$helpers/peak_rss" rss "$PENSTOCK" train --model model --data rows.8192.jsonl --format tokens \
    --max-seq-len 8192 --max-steps 1 --output run --host-mem "$need" --progress none >log 2>&1
rc=$?
check "the budget that the message names ($need) is enough" test $rc -eq 0
check "and is kept" awk -v need="$need" -v m="$(cat rss)" 'BEGIN {
    unit = need ~ /G/ ? 1048576 : need ~ /M/ ? 1024 : 1; print need, m " KiB"; exit !(m <= need * unit * 1.02) }'
[ -n "${SHOW:-}" ] && cat log
finish

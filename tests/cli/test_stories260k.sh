# The pretrained model stories260K against its float64 reference: cross-entropy of each text within 1e-5, logits of
# the last position within 1e-4, 32 greedy tokens equal, and its tokenizer's ids.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
model=$shared/models/stories260K
reference=$model/reference.json
if [ ! -f "$reference" ]; then
    echo "skip - stories260k: $reference is missing"
    exit 0
fi

max_difference() { # two columns: largest |a - b|, and the same number of lines
    awk -v t="$1" '{ n++; d = $1 - $2; if (d < 0) d = -d; if (!(d <= m)) m = d; if (NF != 2) bad = 1 }
        END { print n " values, largest difference " m; exit !(n > 0 && !bad && m <= t) }' pairs
}

count=$(json_get "$reference" cases.#)
i=0
while [ "$i" -lt "$count" ]; do
    ids=$(json_get "$reference" "cases.$i.ids")
    printf '{"input_ids":[%s]}\n' "$(echo "$ids" | tr ' ' ',')" >row.jsonl
    rm -f logits.safetensors
    if penstock eval --model "$model" --data row.jsonl --format tokens --dtype fp32 --json \
        --logits logits.safetensors; then
        check "case $i: cross-entropy" within "$(json_get out loss)" \
            "$(json_get "$reference" "cases.$i.mean_ce_nats")" 1e-5
        json_get "$reference" "cases.$i.last_logits" | tr ' ' '\n' >want
        "$helpers/st_print" logits.safetensors row.0 -1 >have
        paste -d ' ' want have >pairs
        check "case $i: last logits" max_difference 1e-4
    else
        not_ok "case $i: eval runs"
    fi
    text=$(json_get "$reference" "cases.$i.text" && echo x)
    text=${text%?x}
    penstock data tokenize --model "$model" --text "$text" --add-special-tokens true
    # The reference cut its texts to 512 tokens.
    check "case $i: ids of the text" test "$(json_get out '' | cut -d ' ' -f 1-512)" = "$ids"
    greedy=$(json_get "$reference" "cases.$i.greedy_32")
    if [ -n "$greedy" ]; then
        penstock generate --model "$model" --dtype fp32 --prompt "$text" --temperature 0 \
            --max-new-tokens 32 --json
        check "case $i: prompt ids" test "$(json_get out prompt_ids)" = "$ids"
        check "case $i: 32 greedy tokens" test "$(json_get out ids)" = "$greedy"
    fi
    i=$((i + 1))
done
finish

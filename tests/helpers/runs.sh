# For shell tests about whole training runs. Use after lib.sh: . "$PENSTOCK_ROOT/tests/helpers/runs.sh"

# make_rows COUNT MIN MAX VOCAB SEED: rows of token ids of random length in [MIN, MAX], a third with a masked
# beginning. The same bytes everywhere.
make_rows() {
    awk -v n="$1" -v lo="$2" -v hi="$3" -v v="$4" -v x="$5" '
    function next_random(m) { x = (x * 16807) % 2147483647; return int(x / 64) % m }
    BEGIN {
        for (r = 0; r < n; r++) {
            len = lo + next_random(hi - lo + 1); ids = ""; labels = ""
            for (i = 0; i < len; i++) {
                id = next_random(v)
                ids = ids (i ? "," : "") id
                labels = labels (i ? "," : "") (i < len / 3 ? -100 : id)
            }
            if (r % 3 == 1) printf "{\"input_ids\":[%s],\"labels\":[%s]}\n", ids, labels
            else printf "{\"input_ids\":[%s]}\n", ids
        }
    }'
}

# losses DIR: what metrics.jsonl says that must not depend on time: steps and evaluations, in order.
losses() {
    sed -n -e 's/^\({"step":[0-9]*,"epoch":[^,]*,"loss":[^,]*,"grad_norm":[^,]*,"learning_rate":[^,]*,"tokens":[0-9]*,"label_tokens":[0-9]*\),.*"clip_coef":\([^,]*\),.*"skipped":\([a-z]*\).*/\1 \2 \3/p' \
        -e 's/^\({"step":[0-9]*,"eval_loss":[^,]*,"eval_rows":[0-9]*,"eval_label_tokens":[0-9]*\),.*/\1/p' "$1/metrics.jsonl"
}
train_losses() { losses "$1" | grep -v eval_loss; }

# same_files DIR DIR: every file of the result, and of the last checkpoint, byte for byte.
same_files() {
    # shellcheck disable=SC2012
    last=$(ls -d "$1"/checkpoint-* | sed 's/.*checkpoint-//' | sort -n | tail -n 1)
    found=0
    for file in "$1"/*.safetensors "$1"/*config.json "$1/checkpoint-$last"/*; do
        [ -f "$file" ] || continue
        found=$((found + 1))
        case $file in
        */config.resolved.yaml) continue ;; # names --output
        */manifest.json) continue ;;        # hashes it
        */trainer_state.json)
            if [ -n "$ignore_state" ]; then continue; fi ;;
        esac
        cmp "$file" "$2${file#"$1"}" || return 1
    done
    [ "$found" -ge 5 ] || { echo "only $found files in $1"; return 1; }
}
ignore_state=

# same_losses DIR DIR: and there are some.
same_losses() {
    losses "$1" >"$1.losses"
    losses "$2" >"$2.losses"
    [ -s "$1.losses" ] && diff "$1.losses" "$2.losses"
}

# Runs that are killed at random instants, again and again, then resumed, under other strategies and budgets too (at every
# call: test_crash_calls.sh). What comes out is the result of the run that nobody killed, byte for byte, and no resume
# goes back further than the step before the last one logged. PENSTOCK_CRASH=1: more kills.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
ln -s "$PWD" "$scratch/disk"
cd "$scratch" || exit 1
whole=${PENSTOCK_CRASH:-}
kills=8
if [ -n "$whole" ]; then kills=200; fi

cat >config.json <<END
{"model_type":"llama","hidden_size":32,"intermediate_size":80,"num_hidden_layers":4,"num_attention_heads":4,
"num_key_value_heads":2,"head_dim":8,"vocab_size":97,"rms_norm_eps":1e-5,"tie_word_embeddings":false,
"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"max_position_embeddings":256,"rope_theta":100.0}
END
check "model" penstock init --config config.json --output disk/model --seed 5 --dtype bf16
make_rows 9 4 30 97 3 >rows.jsonl
make_rows 4 3 20 97 4 >held_out.jsonl
flags="train --model disk/model --data rows.jsonl --format tokens --max-seq-len 32 --batch-size 2 --grad-accum 2
    --packing false --learning-rate 3e-3 --threads 1 --eval-data held_out.jsonl --eval-steps 2"
full="$flags --method full --max-grad-norm 0.5 --max-steps"

# What of a run may be compared with that of another: the result and the losses.
same_result() { # DIR DIR
    cmp "$1/$file" "$2/$file" && same_losses "$1" "$2" || return 1
    for optimizer in "$1"/checkpoint-*/optimizer.safetensors; do newest=$optimizer; done
    cmp "$newest" "$2${newest#"$1"}"
}
logged() { # DIR: last step in its metrics
    n=$(sed -n 's/^{"step":\([0-9]*\),.*"loss".*/\1/p' "$1/metrics.jsonl" 2>>err | tail -n 1)
    echo "${n:-0}"
}
# A whole number below $1, the same ones in every run.
seed=7
random() {
    seed=$(awk -v x=$seed 'BEGIN { print (x * 16807) % 2147483647 }')
    drawn=$((seed / 64 % $1))
}
pick() { # WORD...: one of them, into $picked
    random $#
    shift "$drawn"
    picked=$1
}
# A process that is killed after so many milliseconds: exit 137.
killed() { # MS ARG...
    ms=$1
    shift
    timeout -s KILL "$(awk -v m="$ms" 'BEGIN { printf "%.3f", m / 1000 }')" "$PENSTOCK" "$@" >out 2>err
    rc=$?
    { echo "killed after $ms ms: exit $rc: $*"; cat out err; } >>log
}
# The step that a run said it goes on from.
resumed_at() {
    n=$(sed -n 's/.* at step \([0-9]*\)$/\1/p' out err | tail -n 1)
    echo "${n:-0}"
}
recovered() { # BEFORE: of a resumed run that has said so
    grep -q ' at step [0-9]*$' out err || return 0
    [ "$(resumed_at)" -ge $(($1 - 1)) ]
}

# Of the strategies that keep states in memory where there is room, and then are asked to commit every step.
commits() {
    case $picked in
    fuyou | vertical) more="" ;;
    *) more="--commit-interval 1" ;;
    esac
}

# kill_often NAME DIR COUNT ARGS STRATEGY...: kills and resumes, each time with one of the strategies, until COUNT
# kills have struck; runs that end before that are compared and begun anew.
kill_often() {
    name=$1 dir=$2 count=$3 args=$4
    shift 4
    rm -rf "$dir"
    struck=0 tries=0 ends=0 wrong=0 lost=0 refused=0
    : >log
    while [ $struck -lt "$count" ] && [ $tries -lt $((count * 4)) ] && [ $wrong -eq 0 ]; do
        tries=$((tries + 1))
        before=0 resume=""
        if [ -d "$dir" ]; then before=$(logged "$dir") resume=--resume; fi
        pick "$@"
        random "$span"
        commits
        # shellcheck disable=SC2086
        killed $((drawn + 5)) $args --progress plain --strategy $picked $more $extra $resume --output "$dir"
        if [ -n "$resume" ] && ! recovered "$before"; then
            lost=$((lost + 1))
            echo "went back from step $before to $(resumed_at)" >>log
        fi
        case $rc in
        137) struck=$((struck + 1)) ;;
        0)
            ends=$((ends + 1))
            span=$((span * 3 / 4 + 10)) # the kill came too late: it was measured on a busier machine
            same_result "$golden" "$dir" >>log 2>&1 || wrong=$((wrong + 1))
            rm -rf "$dir"
            ;;
        4) refused=$((refused + 1)) wrong=$((wrong + 1)) ;;
        *) wrong=$((wrong + 1)) ;;
        esac
    done
    if [ -d "$dir" ] && [ $wrong -eq 0 ]; then
        pick "$@"
        commits
        # shellcheck disable=SC2086
        killed 60000 $args --progress plain --strategy $picked $more $extra --resume --output "$dir"
        ends=$((ends + 1))
        { [ $rc -eq 0 ] && same_result "$golden" "$dir" >>log 2>&1; } || wrong=$((wrong + 1))
    fi
    grep "went back" log >went || true
    echo "$struck kills, $ends ends, $wrong wrong, $lost times further back, $refused refused" >>log
    sed "s,^,   ," went >>log
}
survives() {
    kill_often "$@"
    if [ $wrong -eq 0 ] && [ $lost -eq 0 ] && [ $struck -ge $(($3 / 2)) ]; then
        ok "$name: $struck kills, $ends ends"
    else not_ok "$name"; fi
}

# Milliseconds of a run without kills.
measure() {
    begin=$(date +%s%N)
    # shellcheck disable=SC2086
    penstock $1 --progress none $extra --strategy "$2" --output timed
    span=$((($(date +%s%N) - begin) / 1000000))
    rm -rf timed
}
# Slow enough that the kills strike steps rather than start and end.
extra="--throttle compute=1e9"
file=model.safetensors
# shellcheck disable=SC2086
penstock $full 8 --strategy resident --progress none --output golden
check "the run that nobody kills" test "$rc" -eq 0
golden=golden
measure "$full 8" vertical
echo "a run takes $span ms" >log
check "a run takes a while" test "$span" -gt 50
for s in zero-infinity fuyou vertical update-next-forward; do
    survives "killed, $s" killed $((kills / 4)) "$full 8" $s
done
survives "killed, resumed under any strategy" killed $((kills / 2)) "$full 8" zero-infinity fuyou vertical \
    update-next-forward
survives "killed, resident with commits" killed $((kills / 4)) "$full 8" resident
survives "killed, zero-offload with commits" killed $((kills / 4)) "$full 8" zero-offload
# Without a second slot a kill during a step leaves a mixture.
extra="--throttle disk_write=1MiB --spill-mode inplace"
measure "$full 8" vertical
kill_often "inplace" killed 20 "$full 8" vertical
echo "$struck kills, $wrong wrong" >>log
if [ $wrong -gt 0 ]; then ok "the control: --spill-mode inplace does not survive"; else
    not_ok "the control: --spill-mode inplace survived $struck kills"
fi

# --- adapters, whose frozen parts (seeded or taken from the weights) come back too ---
file=adapter_model.safetensors
for method in lora dora pissa vera; do
    lora="$flags --method $method --lora-r 4 --max-steps 8"
    extra=""
    # shellcheck disable=SC2086
    penstock $lora --progress none --strategy resident --output golden-$method
    check "$method: the run that nobody kills" test "$rc" -eq 0
    golden=golden-$method
    extra="--throttle compute=1e9"
    survives "killed, $method with commits" killed $((kills / 5)) "$lora" resident stream-lora
done

# --- budgets: half and double ---
file=model.safetensors golden=golden
host=50000000
for next in 34700000 100000000; do
    rm -rf other
    # shellcheck disable=SC2086
    "$helpers/signal_when" other/metrics.jsonl 4 9 "$PENSTOCK" $full 8 --progress none --strategy vertical \
        --throttle compute=1e9 --host-mem $host --output other >out 2>err
    rc=$?
    { echo "exit $rc"; cat err; } >log
    check "killed after the fourth step" test $rc -eq 137
    before=$(logged other)
    # shellcheck disable=SC2086
    penstock $full 8 --progress plain --strategy fuyou --host-mem $next --output other --resume
    check "--host-mem $host, resumed with $next: goes on from the step before the last" recovered "$before"
    check "--host-mem $host: which is not the beginning" test "$(resumed_at)" -ge 1
    check "--host-mem $host, resumed with $next: the same bits" same_result golden other
done
# shellcheck disable=SC2086
penstock $full 8 --progress none --strategy vertical --output other --resume --learning-rate 1e-3
check "another learning rate: exit 2" test "$rc" -eq 2
check "which is named" grep -q 'learning-rate' err

finish

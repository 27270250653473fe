# Strikes at single calls of whole runs of full fine-tuning from the disk, with an evaluation and a checkpoint in the
# middle: killed before every system call that touches a file, counted over all threads and files; every write, flush and
# name that fails, alone or with all after it; every allocation that fails. Then resumed: no step is lost that was logged
# but the last, and what comes out is byte for byte what a run has that nobody disturbed.
# PENSTOCK_CRASH=1: at every number, else at some of them.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
ln -s "$PWD" "$scratch/disk"
cd "$scratch" || exit 1
whole=${PENSTOCK_CRASH:-}
some=5 # numbers of each kind
if [ -n "$whole" ]; then some=1000000; fi
at_call=$helpers/at_call
fail_alloc=$PENSTOCK_BUILD/tests/preload/fail_alloc.so

cat >config.json <<END
{"model_type":"llama","hidden_size":16,"intermediate_size":32,"num_hidden_layers":3,"num_attention_heads":2,
"num_key_value_heads":1,"head_dim":8,"vocab_size":61,"rms_norm_eps":1e-5,"tie_word_embeddings":false,
"hidden_act":"silu","bos_token_id":1,"eos_token_id":2,"max_position_embeddings":64,"rope_theta":100.0}
END
check "model" penstock init --config config.json --output disk/model --seed 5 --dtype bf16
make_rows 5 4 16 61 3 >rows.jsonl
make_rows 3 3 12 61 4 >held_out.jsonl
base="train --model disk/model --data rows.jsonl --format tokens --max-seq-len 16 --batch-size 2 --packing false
    --learning-rate 3e-3 --threads 1 --method full --max-grad-norm 0.5 --eval-data held_out.jsonl --eval-steps 2
    --save-steps 2"
"$at_call" kill 0 all calls true
case $? in
0) ;;
125)
    echo "skip - strikes at calls: the kernel refuses seccomp's notifications"
    finish
    ;;
*) not_ok "the helper runs a program" ;;
esac
check "the helper kills" sh -c "'$at_call' kill 1 writes calls '$PENSTOCK' init --config config.json --output never
    [ \$? -eq 137 ] && grep -q '^\*1 ' calls && [ ! -e never/model.safetensors ]"
check "the helper fails a call" sh -c "'$at_call' eio 1 flushes calls '$PENSTOCK' init --config config.json --output never
    [ \$? -eq 1 ] && grep -q '^\*1 f' calls"

# Of the strategies that keep states in memory where there is room, and then are asked to commit every step.
flags() { # STRATEGY
    case $1 in
    fuyou | vertical) echo "--strategy $1" ;;
    *) echo "--strategy $1 --commit-interval 1" ;;
    esac
}
golden() { # STEPS
    # shellcheck disable=SC2086
    penstock $base --progress none --max-steps "$1" --strategy resident --output "golden$1"
    check "$1 steps that nobody disturbs" test "$rc" -eq 0
    for g in "golden$1"/checkpoint-*; do :; done
}
golden 2
golden 3
logged() { # DIR: last step in its metrics
    n=$(sed -n 's/^{"step":\([0-9]*\),.*"loss".*/\1/p' "$1/metrics.jsonl" 2>/dev/null | tail -n 1)
    echo "${n:-0}"
}
same_result() { # GOLDEN DIR: weights, optimizer, losses; nothing half-written stays
    cmp "$1/model.safetensors" "$2/model.safetensors" && same_losses "$1" "$2" || return 1
    for optimizer in "$1"/checkpoint-*/optimizer.safetensors; do
        cmp "$optimizer" "$2${optimizer#"$1"}" || return 1
    done
    ls -A "$2" | grep tmp && return 1
    [ ! -e "$2/spill" ] || ! ls -R "$2/spill" | grep data- || grep -q 'the spill store stays' err
}
# A resumed run says where it goes on, unless it begins anew: after nothing or one step.
recovered() { # BEFORE
    n=$(sed -n 's/.* at step \([0-9]*\)$/\1/p' out err | tail -n 1)
    [ "${n:-0}" -ge $(($1 - 1)) ]
}
# resume DIR STEPS STRATEGY: on from what is there, which must end well and with the same bits.
resume() {
    before=$(logged "$1")
    # shellcheck disable=SC2046,SC2086
    "$PENSTOCK" $base --progress plain --max-steps "$2" $(flags "$3") --output "$1" --resume >out 2>err
    rc=$?
    { echo "resumed: exit $rc, $before steps before"; cat out err; } >>log
    grep -q '"recovered":true' "$1/metrics.jsonl" && found=$((found + 1))
    [ $rc -eq 0 ] && recovered "$before" && same_result "golden$2" "$1" >>log 2>&1
}
another() { # STRATEGY N: for resuming
    case $(($2 % 3)) in 0) echo vertical ;; 1) echo fuyou ;; *) echo "$1" ;; esac
}
# step_of LAST: so that about $some numbers are struck
step_of() { n=$(($1 / some)) && echo $((n > 1 ? n : 1)); }
count_calls() { wc -l <calls; }

# each NAME LAST: runs `strike N` for N = 1.. and says which were wrong; strike sets hit=1 where the fault struck. Before
# the number $dense few are struck.
dense=1 hit=0
each() {
    each_name=$1 last=$2
    step=$(step_of $((last - dense + 1))) bad="" struck=0
    at=$((dense + (step - 1) / 2))
    if [ -n "$whole" ] && [ "$dense" -gt 1 ]; then at=1; fi
    while [ "$at" -le $((last + 1)) ]; do
        hit=0
        if ! strike "$at"; then
            bad="$bad $at"
            cp log log.bad
        fi
        struck=$((struck + hit))
        [ $hit -eq 1 ] || [ "$at" -lt "$last" ] || break
        if [ "$at" -lt "$dense" ]; then at=$((at + dense / 100 + 1)); else at=$((at + step)); fi
        [ "$at" -le "$last" ] || [ -z "$whole" ] || last=$((last + 1)) # until nothing is struck
    done
    if [ -z "$bad" ] && [ $struck -gt 0 ]; then ok "$each_name: $struck of $last"; else
        [ -z "$bad" ] || mv log.bad log
        not_ok "$each_name: wrong at$bad"
    fi
}

# --- kills ---
kill_at() { # N
    rm -rf run
    # shellcheck disable=SC2046,SC2086
    "$at_call" kill "$1" all calls "$PENSTOCK" $base --progress none --max-steps 3 $(flags $strategy) \
        $more --output run >out 2>err
    rc=$?
    { echo "kill at $1: exit $rc: $(tail -n 1 calls)"; cat err; } >log
}
strike_kill() {
    kill_at "$1"
    case $rc in
    0) same_result golden3 run >>log 2>&1 ;;
    137) hit=1 && resume run 3 "$(another $strategy "$1")" ;;
    *) return 1 ;;
    esac
}
strike() { strike_kill "$@"; }
more=""
if [ -n "$whole" ]; then
    kinds="vertical:threads vertical:io_uring fuyou:threads fuyou:io_uring zero-infinity:threads
        update-next-forward:threads zero-offload:threads resident:"
else kinds="vertical:threads fuyou:auto"; fi
found=0 # lines of metrics that came out of a commit
for kind in $kinds; do
    strategy=${kind%:*} storage=${kind#*:} more=""
    [ -z "$storage" ] || more="--storage $storage"
    kill_at 0
    check "$kind: not killed" test $rc -eq 0
    each "$strategy $storage: killed before a call" "$(count_calls)"
done
[ -z "$whole" ] || check "of some a kill came between commit and metrics ($found)" test $found -gt 0

# A kill while a killed run is being resumed: from a commit in the middle of the run.
strategy=vertical more=""
kill_at 0
half=$(awk '/ write .*metrics.jsonl/ { n++; at[n] = $1 } END { print at[2] }' calls)
rc=137
until [ $rc -ne 137 ] || [ "$(logged run)" -eq 2 ]; do # lanes take turns: not the same call in each run
    half=$((half + 3))
    kill_at "$half"
done
check "killed after the second step" test $rc -eq 137
cp -a run half
strike() { # N
    rm -rf run
    cp -a half run
    # shellcheck disable=SC2086
    "$at_call" kill "$1" all calls "$PENSTOCK" $base --progress none --max-steps 3 --strategy fuyou --output run \
        --resume >out 2>err
    rc=$?
    { echo "kill at $1 of the resumed run: exit $rc: $(tail -n 1 calls)"; cat err; } >log
    case $rc in
    0) same_result golden3 run >>log 2>&1 ;;
    137) hit=1 && resume run 3 vertical ;;
    *) return 1 ;;
    esac
}
strike 0
each "killed, resumed and killed again" "$(count_calls)"

# Calls that fail while a run is being resumed: what it would go on from must still be there for the next
# one. Reads are tried again.
strike() { # N
    rm -rf run
    cp -a half run
    # shellcheck disable=SC2086
    "$at_call" eio "$1" all calls "$PENSTOCK" $base --progress none --max-steps 3 --strategy vertical \
        --storage threads --output run --resume >out 2>err
    rc=$?
    { echo "eio at $1 of the resumed run: exit $rc: $(grep -m 1 '^\*' calls)"; cat err; } >log
    grep -q '^\*' calls && hit=1
    case $rc in
    0) return 0 ;;                           # of what may fail something may be missing
    127) grep -q '^\*.* /.*\.so' calls ;; # the loader, before the program
    1 | 3 | 4) [ -s err ] && resume run 3 vertical && grep -q 'at step [123]$' err ;;
    *) return 1 ;;
    esac
}
strike 0
each "killed, resumed, a call fails, resumed" "$(count_calls)"
# Without a second slot a kill in the middle of a step leaves a mixture, which must be noticed here.
strategy=vertical more="--spill-mode inplace"
kill_at 0
last=$(count_calls) damaged=0 struck=0
if [ -n "$whole" ]; then at=1; else at=$((last / 3)); fi
while [ "$at" -le "$last" ]; do
    kill_at "$at"
    if [ $rc -eq 137 ]; then
        struck=$((struck + 1))
        resume run 3 vertical || damaged=$((damaged + 1))
    fi
    [ -n "$whole" ] || [ $damaged -eq 0 ] || break
    at=$((at + 1))
done
echo "$struck kills, $damaged wrong" >log
check "the control: $damaged of $struck kills are not survived with --spill-mode inplace" test $damaged -gt 0
more=""

# --- calls that fail ---
# What must be: an exit of 1 with a message; nothing that is flushed, written or named again after a flush that failed.
# Calls that may fail without harm (a directory that cannot be removed) may pass, but the result must be right.
flushed_again() { # was a file flushed again after that had failed?
    awk '/^\*/ { name = $3; struck = 1; next } struck && $2 ~ /sync$/ && $3 == name { bad = 1; print } END { exit !bad }' calls
}
strike() { # N
    rm -rf run
    # shellcheck disable=SC2046,SC2086
    "$at_call" $fault "$1" $set calls "$PENSTOCK" $base --progress none --max-steps 2 $(flags $strategy) \
        --output run >out 2>err
    rc=$?
    { echo "$fault at $1: exit $rc: $(grep -m 1 '^\*' calls)"; cat err; } >log
    grep -q '^\*' calls && hit=1
    [ $hit -eq 1 ] || { [ $rc -eq 0 ] && same_result golden2 run >>log 2>&1; return $?; }
    case $rc in
    0)
        # without its flush a file is as good as not there, but a trace is no part of the result
        { [ $set != flushes ] || grep -q 'trace is not written' err; } && same_result golden2 run >>log 2>&1
        return $?
        ;;
    1 | 3) [ -s err ] ;;
    *) return 1 ;;
    esac || return 1
    case $fault in
    eio) ;;
    *) grep -qE 'free space|free some|mount it' err || return 1 ;; # what to do
    esac
    [ $set != flushes ] || ! flushed_again >>log || return 1
    resume run 2 "$(another $strategy "$1")"
}
if [ -n "$whole" ]; then
    strategies="vertical fuyou zero-infinity" faults="eio:writes enospc+:writes edquot:writes eio:flushes enospc+:names
        eio:names erofs+:names"
else strategies=vertical faults="enospc+:writes eio:flushes erofs+:names"; fi
for strategy in $strategies; do
    for kind in $faults; do
        fault=${kind%:*} set=${kind#*:}
        fault_kept=$fault fault=kill
        strike 0 || true
        fault=$fault_kept
        each "$strategy: $fault in $set" "$(count_calls)"
    done
done

# --- memory ---
if [ -e "$fail_alloc" ]; then
    strike() { # N
        rm -rf run
        # shellcheck disable=SC2046,SC2086
        FAIL_ALLOC=$1 FAIL_ALLOC_FILE=calls LD_PRELOAD=$fail_alloc "$PENSTOCK" $base --progress none --max-steps 2 \
            $(flags $strategy) --output run >out 2>err
        rc=$?
        { echo "allocation $1: exit $rc"; cat err; } >log
        [ "$1" -gt 0 ] && [ "$(cat calls)" -ge "$1" ] && hit=1
        case $rc in
        0) same_result golden2 run >>log 2>&1; return $? ;;
        1 | 3) grep -qi 'memory' err || return 1 ;;
        4) [ -s err ] || return 1 ;; # jansson takes some for an end of the text
        *) return 1 ;;
        esac
        [ -e run/run.json ] || return 0
        resume run 2 "$(another $strategy "$1")"
    }
    # Most of a short run's allocations are those of the plan, before anything is written: of them some are enough.
    first_write() { # the least number at which there is something already
        low=1 high=$last
        while [ $low -lt $high ]; do
            strike $(((low + high) / 2)) || true
            if [ -e run/run.json ]; then high=$(((low + high) / 2)); else low=$(((low + high) / 2 + 1)); fi
        done
        echo $low
    }
    strategy=fuyou
    last=0
    strike 0
    last=$(cat calls)
    dense=$(first_write)
    tail=$((last - dense))
    each "$strategy: an allocation fails, from $dense on" "$last"
    # And while a run is being resumed.
    strike() { # N
        rm -rf run
        cp -a half run
        # shellcheck disable=SC2086
        FAIL_ALLOC=$1 FAIL_ALLOC_FILE=calls LD_PRELOAD=$fail_alloc "$PENSTOCK" $base --progress none --max-steps 3 \
            --strategy fuyou --output run --resume >out 2>err
        rc=$?
        { echo "allocation $1 of the resumed run: exit $rc"; cat err; } >log
        [ "$1" -gt 0 ] && [ "$(cat calls)" -ge "$1" ] && hit=1
        case $rc in
        0) same_result golden3 run >>log 2>&1 ;;
        1 | 3 | 4) [ -s err ] && resume run 3 vertical && grep -q 'at step [123]$' err ;;
        *) return 1 ;;
        esac
    }
    last=0
    strike 0
    last=$(cat calls)
    dense=$((last - tail))
    each "killed, resumed, an allocation fails, resumed: from $dense on" "$last"
else echo "skip - allocations that fail: not with a sanitizer"; fi
finish

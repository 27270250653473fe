# Runs that stream the frozen base from a compressed import: the same bytes as without one, found again by the model's
# content, refused when damaged, made where it pays and nowhere else; what a plan says is what is read.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
cat >config.json <<END
{"model_type":"llama","hidden_size":128,"intermediate_size":384,"num_hidden_layers":6,"num_attention_heads":4,
"num_key_value_heads":2,"head_dim":32,"vocab_size":261,"rms_norm_eps":1e-5,"tie_word_embeddings":false,
"hidden_act":"silu","bos_token_id":257,"eos_token_id":258,"max_position_embeddings":256,"rope_theta":1000.0}
END
init() { # DIR SEED DTYPE
    penstock init --config config.json --output "$1" --seed "$2" --dtype "$3" \
        --tokenizer "$PENSTOCK_ROOT/tests/golden/byte_tokenizer"
}
check "a model in bf16" init model 3 bf16
check "a model in fp32" init wide 4 fp32
make_rows 20 4 30 257 3 >rows.jsonl
rows="--data rows.jsonl --format tokens --max-seq-len 32"
base="$rows --packing false"
args="train $base --batch-size 2 --grad-accum 2 --epochs 2 --lora-r 4 --lora-dropout 0.1 --learning-rate 3e-3
    --threads 2 --progress plain --strategy stream-lora --prefetch-depth 1"
run() { # OUTPUT ARG...
    dir=$1
    shift
    rm -rf "$dir"
    # shellcheck disable=SC2086
    penstock $args --output "$dir" "$@"
}
said() { cat err; grep -q "import: $1" err; }
is_silent() { cat err; ! grep -q 'import:' err; }
inodes() { find "$1" -path '*penstock-import-*' -type f -exec stat -c '%n %i %Y' {} + | sort; }
place() { find "$1" -maxdepth 1 -type d -name 'penstock-import-*'; }
equal() { same_files "$1" "$2" && same_losses "$1" "$2"; }
plan_get() { json_get "$1" "$2"; }

# --- the same bytes ---
mkdir nv
check "without" run plain --model model --import never
check "it speaks of no import" is_silent
check "with an import" run made --model model --import always --nvme-path nv
check "it says that it made one" said 'made, in nv'
check "the same bytes" equal plain made
check "fewer bytes are read than without" test \
    "$(plan_get made/plan.json traffic_bytes.disk_read)" -lt "$(plan_get plain/plan.json traffic_bytes.disk_read)"
reads() { sed -n 's/^{"step":'"$2"',.*"disk_read_bytes":\([0-9]*\).*/\1/p' "$1/metrics.jsonl"; }
check "a step reads what the plan says" test \
    "$(reads made 6)" -eq "$(plan_get made/plan.json traffic_bytes.disk_read)"
check "the plan counts its bytes" test "$(plan_get made/plan.json peak_bytes.disk)" -eq \
    "$(stat -c %s nv/penstock-import-????????????????????????????????/weights.bin)"
inodes nv >before
check "again" run again --model model --import always --nvme-path nv
check "it is reused" said 'reused, in nv'
inodes nv >after
check "not one file is made anew" cmp before after
check "the same bytes again" equal plain again
check "one task at a time" run serial --model model --import always --nvme-path nv --serial
check "one task at a time: the same bytes" equal plain serial
check "random delays" run delay --model model --import always --nvme-path nv --delay-seed 5 --storage threads
check "random delays: the same bytes" equal plain delay
check "on a device with memory of its own" run emu --model model --import always --nvme-path nv --device emu \
    --offload-weights disk
check "on a device: reused" said 'reused, in nv'
check "on a device: the same bytes" equal plain emu
check "fp32 files, without" run wide_plain --model wide --import never
check "fp32 files as bf16" run wide_made --model wide --import always --nvme-path nv
check "fp32 files: the same bytes" equal wide_plain wide_made
check "fp32 files: less than half is read" test \
    "$(($(plan_get wide_made/plan.json traffic_bytes.disk_read) * 2))" -lt \
    "$(plan_get wide_plain/plan.json traffic_bytes.disk_read)"
check "bf16 files computed in fp32, without" run exact_plain --model model --dtype fp32 --import never
check "bf16 files computed in fp32" run exact --model model --dtype fp32 --import always --nvme-path nv
check "bf16 files computed in fp32: the same bytes" equal exact_plain exact
check "under OUTPUT without --nvme-path" run inside --model model --import always
check "under OUTPUT: the same bytes" equal plain inside
# shellcheck disable=SC2086
{
    penstock eval --model model $rows --strategy stream-lora --threads 2 --json --import never
    json_get out loss >eval_plain
    penstock eval --model model $rows --strategy stream-lora --threads 2 --json --import always --nvme-path nv
    json_get out loss >eval_made
}
check "an evaluation" test "$rc" -eq 0 -a -s eval_plain
check "an evaluation: the same loss" cmp eval_plain eval_made

# --- found by content ---
cp -r model copy
check "a copy of the model elsewhere" run copied --model copy --import always --nvme-path nv
check "a copy: its content is compared" said 'reading the model to compare'
check "a copy: the import is reused" said 'reused, in nv'
check "a copy: the same bytes" cmp plain/adapter_model.safetensors copied/adapter_model.safetensors
rm -rf copy && init copy 9 bf16
check "another model in that place" run other_plain --model copy --import never
check "another model with an import" run other --model copy --import always --nvme-path nv
check "another model: an import of its own" said 'made, in nv'
check "another model: the same bytes" equal other_plain other

# --- resume ---
rm -rf resumed
# shellcheck disable=SC2086
"$helpers/signal_when" resumed/checkpoint-4/manifest.json 1 9 "$PENSTOCK" $args --save-steps 4 --save-total-limit 9 --output resumed --model model \
    --import always --nvme-path nv --throttle disk_weights=40MiB >log 2>&1
# shellcheck disable=SC2086
check "it goes on after a kill" penstock $args --save-steps 4 --save-total-limit 9 --output resumed --model model --import always --nvme-path nv --resume
check "after a kill: reused" said 'reused, in nv'
check "after a kill: the same bytes" equal plain resumed
rm -rf resumed/checkpoint-10 resumed/checkpoint-8 resumed/adapter*
# shellcheck disable=SC2086
check "it goes on without the import" penstock $args --save-steps 4 --save-total-limit 9 --output resumed --model model --import never --resume
check "without: the same bytes" equal plain resumed

# --- damage ---
rm -rf nv && mkdir nv
check "a new one" run made --model model --import always --nvme-path nv
import=$(place nv)
printf '\377\000\377\000' | dd of="$import/weights.bin" bs=1 seek=700000 conv=notrunc 2>/dev/null
# shellcheck disable=SC2086
expect_exit "damaged weights: exit 4" 4 $args --output damaged --model model --import always --nvme-path nv
cp err log
check "damaged weights: the file is named" grep -q "$import/weights.bin" err
check "damaged weights: and the remedy" grep -q "remove $import" err
check "damaged weights: no result" test ! -e damaged/adapter_model.safetensors
rm -rf "$import"
check "after the remedy" run made --model model --import always --nvme-path nv
check "after the remedy: made again" said 'made, in nv'
check "after the remedy: the same bytes" equal plain made
printf '\377' | dd of="$import/index.bin" bs=1 seek=200 conv=notrunc 2>/dev/null
check "a damaged index" run made --model model --import always --nvme-path nv
check "a damaged index: said" said 'the import.s index is damaged'
check "a damaged index: made again" said 'made, in nv'
check "a damaged index: the same bytes" equal plain made
truncate -s -4096 "$import/weights.bin"
check "weights cut short" run made --model model --import always --nvme-path nv
check "weights cut short: made again" said 'made, in nv'
check "weights cut short: the same bytes" equal plain made

# --- room ---
rm -rf nv && mkdir nv
# shellcheck disable=SC2086
expect_exit "too small --nvme-mem: exit 3" 3 $args --output small --model model --import always --nvme-path nv \
    --nvme-mem 1MiB
enough=$(sed -n 's/.*--nvme-mem \([0-9]*MiB\).*/\1/p' err)
cp err log
check "too small --nvme-mem: what suffices" test -n "$enough"
check "too small --nvme-mem: nothing is left" test -z "$(place nv)"
check "that budget suffices" run enough --model model --import always --nvme-path nv --nvme-mem "${enough:-1}"
# shellcheck disable=SC2086
expect_exit "one that is there counts as well" 3 $args --output small --model model --import always --nvme-path nv \
    --nvme-mem 1MiB
if unshare -rm true 2>/dev/null; then
    cat >full.sh <<'END'
mkdir -p tiny && mount -t tmpfs -o size=1m none tiny || exit 99
"$PENSTOCK" "$@" 2>err.full >out.full
echo $? >rc.full
find tiny -name 'penstock-import-*' -type d >left
END
    # shellcheck disable=SC2086
    unshare -rm sh full.sh $args --output full --model model --import always --nvme-path tiny
    cp err.full log
    check "a full disk: exit 1" test "$(cat rc.full)" -eq 1
    check "a full disk: says what is needed" grep -q 'tiny.*the import needs [0-9]* bytes' err.full
    check "a full disk: nothing is left" test ! -s left
    # shellcheck disable=SC2086
    unshare -rm sh full.sh $args --output full --model model --nvme-path tiny --throttle disk_weights=2MiB
    cp err.full log
    check "a full disk, auto: it goes on without" test "$(cat rc.full)" -eq 0
    check "a full disk, auto: and says so" grep -q 'warning: import: none is made' err.full
    check "a full disk, auto: the same bytes" equal plain full
else
    echo "skip - a full disk: no right to mount a small file system (unshare -rm)"
fi

# --- auto ---
rm -rf nv && mkdir nv
check "auto: a fast disk, not asked for" run auto --model model --nvme-path nv
check "auto: not asked for, nothing said" is_silent
check "auto: a fast disk" run auto --model model --nvme-path nv --import auto
check "auto: a fast disk needs none" said 'no: reads take'
check "auto: none is made" test -z "$(place nv)"
check "auto: a slow disk" run auto --model model --nvme-path nv --throttle disk_weights=4MiB
check "auto: a slow disk: yes" said 'yes: '
check "auto: a slow disk: made" said 'made, in nv'
check "auto: the same bytes" equal plain auto
check "auto: found" run auto --model model --nvme-path nv --throttle disk_weights=4MiB
check "auto: reused" said 'reused, in nv'
# shellcheck disable=SC2086
few="train $base --batch-size 2 --grad-accum 2 --max-steps 2 --lora-r 4 --threads 2 --progress plain
    --strategy stream-lora --prefetch-depth 1 --throttle disk_weights=4MiB"
rm -rf nv && mkdir nv
# shellcheck disable=SC2086
check "auto: two steps" penstock $few --output few --model model --nvme-path nv --import auto
check "auto: two steps are too few" said 'no: making one takes'
# shellcheck disable=SC2086
check "auto: nothing streamed" penstock train $base --max-steps 1 --progress plain --output whole --model model
check "auto: nothing streamed, nothing said" is_silent

# --- plans ---
rm -rf nv && mkdir nv
plan="plan --model model $base --batch-size 2 --grad-accum 2 --lora-r 4 --threads 2 --strategy stream-lora
    --prefetch-depth 1 --max-steps 1000 --nvme-path nv"
# shellcheck disable=SC2086
check "a plan with one" penstock $plan --import always --json
check "a plan: used" test "$(json_get out import.used)" = true
check "a plan: not there yet" test "$(json_get out import.exists)" = false
check "a plan: less is read" test "$(json_get out import.read_bytes)" -lt "$(json_get out import.plain_read_bytes)"
check "a plan makes nothing" test -z "$(ls nv)"
# shellcheck disable=SC2086
check "a plan as text" penstock $plan --throttle disk_weights=4MiB
cp out log
check "a plan as text: says where" grep -q '^import *would be made in nv: .* MiB instead of' out
check "a plan as text: and counts its bytes" grep -q 'imported weights' out

# --- what cannot be ---
# shellcheck disable=SC2086
{
    expect_exit "resident: exit 2" 2 train $base --model model --output no --strategy resident --import always
    expect_exit "full training: exit 2" 2 train $base --model model --output no --method full --import always
    expect_exit "fp32: exit 2" 2 $args --model wide --output no --dtype fp32 --import always
    cp err log
    check "fp32: says why" grep -q 'bf16' err
    expect_exit "no other word" 2 $args --model model --output no --import maybe
    expect_exit "never goes with everything" 0 train $base --model model --output yes --max-steps 1 \
        --strategy resident --import never --progress none
}
finish

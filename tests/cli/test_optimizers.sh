# Every optimizer that `penstock list optimizers` names trains, LoRA and full, and a run that is stopped and resumed ends
# with the bits of one that was not. Flags of one optimizer are refused for another.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
rows=$models/llama_untied/rows.jsonl
# large enough for 8-bit states: matrices of 4096 elements
sed -e 's/"hidden_size": 40/"hidden_size": 128/' -e 's/"intermediate_size": 52/"intermediate_size": 160/' \
    "$models/llama_untied/model/config.json" >config.json
penstock init --config config.json --output model --dtype fp32 --seed 1 || not_ok "init"

# set_command OPTIMIZER METHOD
set_command() {
    command="train --model model --data $rows --format tokens --method $2 --optimizer $1
        --max-steps 6 --batch-size 1 --grad-accum 2 --packing false --max-seq-len 64 --learning-rate 1e-3
        --save-steps 3 --save-total-limit 2 --threads 1 --progress none"
    if [ "$2" = lora ]; then command="$command --lora-r 32"; fi
    # low-rank methods: a rank that the tiny matrices have
    case $1 in
    galore | natural-galore | fira | apollo) command="$command --optim-rank 4 --optim-update-gap 2" ;;
    lisa) command="$command --lisa-activated-layers 1 --lisa-interval-steps 2" ;;
    mezo) command="$command --learning-rate 1e-4" ;;
    badam) command="$command --switch-block-every 2" ;;
    esac
}

moved() { # the result is not the start, and no weight is lost
    ! grep -q '"skipped":true' "$1/metrics.jsonl" && ! grep -qiE 'nan|inf' "$1/metrics.jsonl"
}

for optimizer in $("$PENSTOCK" list optimizers); do
    for method in lora full; do
        label="$optimizer, $method"
        set_command "$optimizer" "$method"
        rm -rf whole part
        # shellcheck disable=SC2086
        if ! penstock $command --output whole; then
            not_ok "$label: trains"
            continue
        fi
        check "$label: trains" moved whole
        # a run that ended after its third step: its checkpoint, without what came later
        cp -r whole part
        rm -rf part/checkpoint-6 part/*.safetensors
        # shellcheck disable=SC2086
        if penstock $command --output part --resume part/checkpoint-3; then
            check "$label: resumed, the same bits" same_files whole part
        else
            not_ok "$label: resumes"
        fi
    done
done

# BAdam, two steps a turn: in the second turn the last layer, embedding and head stay as they are
set_command badam full
rm -rf whole
# shellcheck disable=SC2086
penstock $command --output whole --max-steps 4 --save-steps 2 || not_ok "badam: trains four steps"
for frozen in model.layers.1. model.embed_tokens. lm_head. model.norm.; do
    check "badam: $frozen is frozen in the second turn" st_compare whole/checkpoint-2/model.safetensors \
        whole/model.safetensors --expected-prefix $frozen --actual-prefix $frozen --atol 0
done
check "badam: the first layer is not" sh -c "! '$helpers/st_compare' whole/checkpoint-2/model.safetensors \
    whole/model.safetensors --expected-prefix model.layers.0. --actual-prefix model.layers.0. --atol 0"

set_command adamw full
# shellcheck disable=SC2086
expect_exit "momentum with adamw: exit 2" 2 $command --output none --momentum 0.9
check "the message says who reads it" grep -q 'sgd' err
# shellcheck disable=SC2086
expect_exit "a state type that lion does not have: exit 2" 2 $command --output none --optimizer lion --optim-state 8bit
check "the message names those it has" grep -q 'fp32' err
# shellcheck disable=SC2086
expect_exit "8 bits for tensors that are all too small: exit 2" 2 $command --output none --optim-state 8bit --model "$models/llama_untied/model"
check "the message names the limit" grep -q '4096' err
# shellcheck disable=SC2086
expect_exit "stochastic rounding of LoRA: exit 2" 2 train --model model --data "$rows" \
    --format tokens --output none --stochastic-rounding
for state in "--optim-state bf16" "--stochastic-rounding" "--optimizer lion --optim-state bf16 --stochastic-rounding"; do
    rm -rf whole part
    # shellcheck disable=SC2086
    penstock $command --output whole $state || not_ok "full $state: trains"
    cp -r whole part
    rm -rf part/checkpoint-6 part/*.safetensors
    # shellcheck disable=SC2086
    penstock $command --output part $state --resume part/checkpoint-3 || not_ok "full $state: resumes"
    check "full $state: resumed, the same bits" same_files whole part
done
finish

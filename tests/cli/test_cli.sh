# The command line's manners: help, suggestions, options without effect, YAML, errors as JSON.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
tiny=$models/llama_untied
says() { # NAME REGEX FILE
    cp "$3" log
    check_log=$(cat "$3")
    if echo "$check_log" | grep -qiE -e "$2"; then ok "$1"; else not_ok "$1"; fi
}
refused() { # NAME REGEX ARG...: exit 2, and stderr says REGEX
    refused_name=$1 refused_regex=$2
    shift 2
    expect_exit "$refused_name: exit 2" 2 "$@"
    says "$refused_name: said why" "$refused_regex" err
}

for command in train eval generate export init inspect list version "data inspect" "data tokenize" \
    plan bench doctor; do
    # shellcheck disable=SC2086
    expect_exit "$command --help: exit 0" 0 $command --help
    says "$command --help names the command" "penstock $command" out
    check "$command --help is not on standard error" test ! -s err
done
penstock train --help
for flag in model output data method dtype lora-r learning-rate max-steps packing resume dump-grads; do
    says "train --help has --$flag" "--$flag" out
done
expect_exit "--help alone: exit 0" 0 --help

base="--model $tiny/model --data $tiny/rows.jsonl --output run --format tokens --dtype fp32 --progress none"
# shellcheck disable=SC2086
{
    refused "a misspelt flag" "learning-rate" train $base --lerning-rate 1e-3
    refused "a misspelt command" "train" trian $base
    refused "a misspelt value" "cosine" train $base --lr-scheduler cosin
    refused "a number that is none" "max-steps" train $base --max-steps ten
    refused "a flag without value" "max-steps" train $base --max-steps
    refused "a LoRA option in full fine-tuning" "lora-r" train $base --method full --lora-r 8
    refused "train-layers without full" "train-layers" train $base --method lora --train-layers last:1
    refused "a training option in eval" "learning-rate" eval --model "$tiny/model" \
        --data "$tiny/rows.jsonl" --format tokens --learning-rate 1
    refused "a sampling option in train" "temperature" train $base --temperature 1
    refused "a GPU's budget on cpu" "gpu-mem.*cpu" train $base --gpu-mem 1GiB
    refused "weights on a device that cpu has not" "offload-weights" train $base --offload-weights device
    refused "prefetching what is resident" "prefetch-depth.*resident" train $base --strategy resident \
        --prefetch-depth 2
    refused "a misspelt strategy" "stream-lora" train $base --strategy stream-lorra
    refused "a lane that is none" "disk_weights" train $base --throttle disk=1GiB
    refused "an idea that is none" "forwarding" train $base --ablate everything
    refused "an unknown part of bench" "gemm" bench gem
    refused "epochs beside max-steps" "epochs" train $base --epochs 2 --max-steps 3
    refused "an unknown chat template" "chatml" train --model "$tiny/model" --data "$tiny/rows.jsonl" \
        --output run --format messages --chat-template chatm
}

cat >run.yaml <<EOF
model_name_or_path: $tiny/model
data: $tiny/rows.jsonl
output-dir: from_file
format: tokens
dtype: fp32
max_steps: 3
lora_rank: 4
progress: none
EOF
expect_exit "a YAML file with aliases: exit 0" 0 train run.yaml --max-steps 2
check "a flag beats the file" test "$(grep -c '"loss"' from_file/metrics.jsonl)" -eq 2
says "the resolved configuration has the flag's value" 'max[-_]steps: 2' from_file/config.resolved.yaml
echo 'lora_rnk: 4' >>run.yaml
refused "a misspelt key" "lora.r" train run.yaml
says "the message names the file" "run.yaml" err

expect_exit "--json on a usage error: exit 2" 2 eval --model "$tiny/model" --no-such 1 --json
check "--json: the error has its code" test "$(json_get err error.code)" = 2
check "--json: the error has a message" test -n "$(json_get err error.message)"
check "--json: nothing on standard output" test ! -s out
echo '{"input_ids":[1,2' >bad.jsonl
expect_exit "--json on bad data: exit 4" 4 eval --model "$tiny/model" --data bad.jsonl --format tokens \
    --dtype fp32 --json
check "--json: the error has code 4" test "$(json_get err error.code)" = 4
says "--json: the error has the file" '"file": ?"[^"]*bad.jsonl' err

expect_exit "eval --json: exit 0" 0 eval --model "$tiny/model" --data "$tiny/rows.jsonl" \
    --format tokens --dtype fp32 --json
for key in loss perplexity rows tokens label_tokens tokens_per_s; do
    check "eval --json has $key" json_get out $key
done
expect_exit "inspect --json: exit 0" 0 inspect "$tiny/model" --json
check "inspect: a model" test "$(json_get out kind)" = model
check "inspect: supported" test "$(json_get out supported)" = true
expect_exit "inspect an adapter: exit 0" 0 inspect "$tiny/adapter" --json
check "inspect: an adapter" test "$(json_get out kind)" = adapter
expect_exit "list models: exit 0" 0 list models
for family in llama mistral qwen2 qwen3; do
    check "list models has $family" grep -qx $family out
done
expect_exit "list strategies: exit 0" 0 list strategies
for strategy in resident stream-lora horizontal auto; do
    check "list strategies has $strategy" grep -qx $strategy out
done
expect_exit "list --json: exit 0" 0 list optimizers --json
check "list --json is an array" test "$(json_get out 0)" = adamw
refused "list of what is not there" "optimizers" list optimisers
expect_exit "version --json: exit 0" 0 version --json
check "version --json has the version" json_get out version

# A row of one token has nothing to predict: it does not count in the loss.
{ echo '{"input_ids":[5]}'; cat "$tiny/rows.jsonl"; } >more.jsonl
penstock eval --model "$tiny/model" --data more.jsonl --format tokens --dtype fp32 --json
check "a row of one token changes no loss" within "$(json_get out loss)" \
    "$(json_get "$tiny/golden.json" loss)" 1e-5

# init, then eval: a random model is a whole model.
expect_exit "init: exit 0" 0 init --config "$models/qwen3_untied/model/config.json" --output made \
    --seed 3 --dtype fp32
sed 's/"vocab_size": *[0-9]*/"vocab_size": 4000/' "$models/qwen3_untied/model/config.json" >padded.json
check "a model padded past its tokenizer" penstock init --config padded.json --output padded \
    --tokenizer "$PENSTOCK_ROOT/tests/golden/byte_tokenizer" --seed 3
check "generates: what has no text is left out" penstock generate --model padded --prompt 'Hello' --max-new-tokens 16
expect_exit "the model of init evaluates: exit 0" 0 eval --model made --format tokens --dtype fp32 \
    --data "$models/qwen3_untied/rows.jsonl" --json
check "its loss is near that of guessing" within "$(json_get out loss)" 3.97 0.5
expect_exit "dry run: exit 0" 0 train --model "$tiny/model" --data "$tiny/rows.jsonl" --output dry \
    --format tokens --dtype fp32 --dry-run
check "a dry run makes no result" test ! -e dry/adapter_model.safetensors
finish

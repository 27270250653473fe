# The example program trains a golden model through the C interface of the library.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
m=$PENSTOCK_ROOT/tests/golden/models/llama_untied
example=$PENSTOCK_BUILD/examples/minimal
if "$example" "$m/model" "$m/rows.jsonl" out format=tokens max-steps=3 dtype=fp32 learning-rate=1e-2 \
    grad-accum=3 >run.log 2>&1; then
    check "the example trains three steps" test "$(grep -c '^step' run.log)" -eq 3
    check "its adapter is complete" test -s out/adapter_model.safetensors -a -s out/adapter_config.json
else
    cat run.log
    not_ok "the example runs"
fi
"$example" "$m/model" missing.jsonl out2 format=tokens >bad.log 2>&1
check "a missing file is reported" grep -q missing.jsonl bad.log
finish

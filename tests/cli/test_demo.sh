# The demo learns: one seed, at most 10% exact match before and at least 90% after (the demo exits 1 otherwise).
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
check "the demo reaches its mark" env BUILD="$PENSTOCK_BUILD" SEEDS=1 sh "$PENSTOCK_ROOT/examples/demo/run.sh"
finish

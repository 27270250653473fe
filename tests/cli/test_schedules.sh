# Every schedule that `penstock list schedules` names trains; its rates end where they should; options of one schedule
# are refused for another; beta2 by tokens.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
base=$models/llama_untied
command="train --model $base/model --data $base/rows.jsonl --format tokens --max-steps 20 --batch-size 1 --grad-accum 1
    --packing false --max-seq-len 64 --learning-rate 1e-3 --warmup-steps 4 --threads 1 --progress none"

rates() { sed -n 's/.*"learning_rate": *\([^,}]*\).*/\1/p' "$1/metrics.jsonl"; }
rate() { rates "$1" | sed -n "$2p"; }

for schedule in $("$PENSTOCK" list schedules); do
    more=
    case $schedule in
    refined) more="--lr-refine-from constant/metrics.jsonl" ;;
    power) more="--lr-power-a 0.05" ;;
    esac
    # shellcheck disable=SC2086
    if ! penstock $command --lr-scheduler "$schedule" $more --output "$schedule"; then
        not_ok "$schedule: trains"
        continue
    fi
    check "$schedule: logs twenty rates" test "$(rates "$schedule" | wc -l)" = 20
done
check "constant: the peak to the end" within "$(rate constant 20)" 1e-3 1e-12
check "warm-up: a quarter first" within "$(rate constant 1)" 2.5e-4 1e-12
check "cosine-restarts: two cycles of eight" within "$(rate cosine-restarts 13)" 1e-3 1e-12
check "inverse-sqrt: half at four times the warm-up" within "$(rate inverse-sqrt 17)" 5e-4 1e-12
check "refined: nothing in the last step" within "$(rate refined 20)" 0 0
check "power: the first rates are the largest" sh -c "test \"$(rates power | sort -g | tail -n 1)\" = \"$(rate power 5)\""

# shellcheck disable=SC2086
expect_exit "refined needs a file: exit 2" 2 $command --lr-scheduler refined --output none
# shellcheck disable=SC2086
expect_exit "a file without norms: exit 4" 4 $command --lr-scheduler refined --lr-refine-from "$base/rows.jsonl" --output none
# shellcheck disable=SC2086
expect_exit "cycles of the wrong schedule: exit 2" 2 $command --lr-cycles 3 --output none
# shellcheck disable=SC2086
expect_exit "a floor that inverse-sqrt has not: exit 2" 2 $command --lr-scheduler inverse-sqrt --min-lr-ratio 0.1 --output none
# shellcheck disable=SC2086
expect_exit "beta2 in two ways: exit 2" 2 $command --beta2 0.9 --beta2-half-life 1e6 --output none
# shellcheck disable=SC2086
expect_exit "beta2 of a method without: exit 2" 2 $command --optimizer sgd --beta2-half-life 1e6 --output none
# shellcheck disable=SC2086
check "beta2 by tokens: trains" "$PENSTOCK" $command --beta2-half-life 1e6 --output half
check "beta2 by tokens: another result" sh -c "! cmp -s half/adapter_model.safetensors cosine/adapter_model.safetensors"
finish

# Methods that need whole matrices, through the program: their own flags, defaults, errors, threads.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
scratch=$(memory_dir)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" || exit 1
model=$models/llama_untied/model
rows=$models/llama_untied/rows.jsonl

# set_command OPTIMIZER METHOD
set_command() {
    command="train --model $model --data $rows --format tokens --method $2 --optimizer $1
        --max-steps 4 --batch-size 1 --grad-accum 2 --packing false --max-seq-len 64 --learning-rate 1e-3
        --save-steps 2 --threads 1 --progress none"
}

# same_run LABEL FLAGS...: resumed, with other threads and from the disk, the same bits
same_run() {
    label=$1
    shift
    rm -rf whole part threads
    # shellcheck disable=SC2086
    penstock $command "$@" --output whole || { not_ok "$label: trains" && return; }
    cp -r whole part
    rm -rf part/checkpoint-4 part/*.safetensors
    # shellcheck disable=SC2086
    penstock $command "$@" --output part --resume part/checkpoint-2 || not_ok "$label: resumes"
    check "$label: resumed, the same bits" same_files whole part
    # shellcheck disable=SC2086
    penstock $command "$@" --output threads --threads 3 || not_ok "$label: three threads"
    check "$label: three threads, the same bits" same_files whole threads
    rm -rf disk
    # shellcheck disable=SC2086
    penstock $command "$@" --output disk --offload-optimizer disk --offload-weights disk || not_ok "$label: from the disk"
    check "$label: from the disk, the same bits" same_files whole disk
}

set_command galore full
same_run "defaults"
same_run "refreshes within" --optim-update-gap 2 --optim-moments rotate --optim-rank 3 --optim-proj-type reverse_std
penstock list optimizers >names
for flags in "galore --optim-state bf16" "fira --norm-growth-max 0 --optim-moments reset" "apollo --scale-front" "muon --match-rms-adamw --aux-lr-ratio 0.1" \
    "natural-galore --optim-history 2 --optim-damping 0.1"; do
    # shellcheck disable=SC2086
    set_command $(echo "$flags" | cut -d' ' -f1) full
    # shellcheck disable=SC2086,SC2046
    same_run "$flags" $(echo "$flags" | cut -s -d' ' -f2-)
done
set_command galore full
if ldconfig -p 2>/dev/null | grep -qE 'libopenblas.so.0|liblapack.so.3'; then
    same_run "full decompositions" --optim-basis svd --optim-rank 4
else
    echo "skip - full decompositions: no LAPACK"
fi

# shellcheck disable=SC2086
expect_exit "a rank over the least matrix: exit 2" 2 $command --output none --optim-rank 4096
check "it names flag and tensor" grep -q 'optim-rank 4096 is over the matrix model.layers.0' err
# shellcheck disable=SC2086
expect_exit "a flag of natural-galore with galore: exit 2" 2 $command --output none --optim-history 3
check "it says who reads it" grep -q 'natural-galore' err
# shellcheck disable=SC2086
expect_exit "bf16 states that are to be rotated: exit 2" 2 $command --output none --optim-state bf16 --optim-moments rotate
# shellcheck disable=SC2086
expect_exit "bf16 states, which muon does not have: exit 2" 2 $command --output none --optimizer muon --optim-state bf16
finish

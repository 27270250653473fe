# penstock bench sweep: every cell three times, what does not fit and what is refused as rows, errors of the grid.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
. "$PENSTOCK_ROOT/tests/helpers/runs.sh"
make_rows 24 5 30 97 31 >rows.jsonl
cat >grid.yaml <<END
# budgets x lengths
model: $models/llama_untied/model
data: rows.jsonl
format: tokens
host_mem: [1GiB, 1MiB]
max-seq-len:
  - 16
  - 32
max_steps: 3
threads: 1
END
# column NAME: its values, a line each, of cells.csv (no field before the machine's own has a comma).
column() {
    awk -v name="$1" '
    function split_row(line,   n, i, c, quoted, field) {
        n = 0; field = ""; quoted = 0
        for (i = 1; i <= length(line); i++) {
            c = substr(line, i, 1)
            if (c == "\"") quoted = !quoted
            else if (c == "," && !quoted) { f[++n] = field; field = "" }
            else field = field c
        }
        f[++n] = field
        return n
    }
    NR == 1 { n = split_row($0); for (i = 1; i <= n; i++) if (f[i] == name) at = i; if (!at) exit 1; next }
    { split_row($0); print f[at] }' cells.csv
}
values() { test "$(column "$1" | sort | uniq -c | awk '{ printf "%s%s*%s", sep, $2, $1; sep = " " }')" = "$2"; }
numbers() { # COLUMN: positive in every row that ran
    column status >status; column "$1" | paste status - | awk '$1 == "ok" && !($2 + 0 > 0) { exit 1 }'
}

expect_exit "a grid" 0 bench sweep grid.yaml --output cells.csv
check "two cells run three times, two do not fit" values status "infeasible*2 ok*6"
check "exit codes" values exit_code "0*6 3*2"
check "versioned" values version "1*8"
check "cells" values cell "0*3 1*3 2*1 3*1"
check "the grid's values" values host_mem "1GiB*6 1MiB*2"
for name in step_s tokens_per_s steps loss wall_s peak_rss_bytes plan_host_bytes; do
    check "measured: $name" numbers $name
done
plans() { # one plan a cell, whichever run
    column plan_hash | grep -c . >count && test "$(column plan_hash | grep . | sort -u | wc -l)" -eq 2
}
check "the plan's hash is the cell's" plans
check "same losses in every run of a cell" sh -c 'test "$1" = 2' sh "$(column loss | grep . | sort -u | wc -l)"
check "what does not fit says why" sh -c "grep infeasible cells.csv | grep -q -i 'mem\|budget'"
check "a page" grep -q "^| cell | host-mem | max-seq-len | status" cells.md
check "a line a cell" test "$(grep -c '^| [0-9]' cells.md)" -eq 4
check "no run is left" test ! -e cells.runs

expect_exit "as JSON" 0 bench sweep grid.yaml --output again.csv --json
check "counts" test "$(json_get out cells) $(json_get out runs) $(json_get out infeasible)" = "4 8 2"

cat >forbidden.yaml <<END
model: $models/llama_untied/model
data: rows.jsonl
format: tokens
method: [full, lora]
lora_r: 4
max_steps: 1
keep_runs: true
END
expect_exit "options that exclude each other" 0 bench sweep forbidden.yaml --output cells.csv
check "are refused rows" values status "ok*3 refused*1"
check "runs are kept" test -s cells.runs/cell-1-run-3/metrics.jsonl

cat >failing.yaml <<END
model: $models/llama_untied/model
data: [rows.jsonl, none.jsonl]
format: tokens
max_steps: 1
END
expect_exit "failing runs" 1 bench sweep failing.yaml --output cells.csv
check "are rows" values status "failed*3 ok*3"
check "with a message" sh -c "grep failed cells.csv | grep -q 'none.jsonl: No such file'"

bad() { # NAME LINE MESSAGE
    printf '%s\n' "$2" >bad.yaml
    expect_exit "$1" 2 bench sweep bad.yaml --output never.csv
    check "$1: says it" grep -E -e "$3" err
}
bad "an unknown option" "lora_rr: 4" "lora.rr"
bad "a bad value" "lora_r: [4, many]" "lora.r"
bad "too few repeats" "repeat: 2" "3 to 1000"
bad "the sweep's own option" "output: there" "belongs to the sweep"
bad "a nested value" "lora_r: {a: 1}" "nested"
bad "no YAML" "lora_r: [" "YAML"
bad "an empty grid" "repeat: 3" "empty"
bad "nothing that train takes" "lora_r: 4" "needs .--model"
expect_exit "no file" 2 bench sweep nowhere.yaml --output never.csv
check "nothing was written" test ! -e never.csv

"$PENSTOCK" plan --model "$models/llama_untied/model" --json >plan.json 2>log
if [ $? -eq 0 ] || [ $? -eq 3 ]; then
    expect_exit "simulation" 0 bench sweep grid.yaml --output cells.csv --simulate-only
    check "no run, a prediction" values status "infeasible*2 simulated*2"
else
    echo "skip - simulation: penstock plan does not work here"
fi
finish

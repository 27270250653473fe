#!/bin/sh
# The storage engine beside fio, same pattern, in one run: tools/bench/disk_fio.sh [DIRECTORY].
#
#   FILE_MIB=512      size of the test file (made in DIRECTORY, default the build folder, and removed)
#   ROUNDS=15         pairs a cell; ours and fio alternate, which comes first does too
#   CELLS="..."       op:chunk KiB:depth:pages; pages small (4 KiB) or huge (fio's buffers then lie on a tmpfs
#                     with huge pages, which takes root; else in malloc with glibc's tunable);
#                     reads first: fio's writes leave other data than our reads check
#
# On 4 KiB pages either program runs at one of two rates, a factor of two apart, by where the kernel happened to
# place its pages: those cells say little, and the engine runs on huge pages where it can.
#
# Both: io_uring, O_DIRECT, registered file and buffers, sequential, whole file once a pass. Prints each pair,
# then for each cell the medians and the median of the pairs' ratios ours/fio.
set -eu
BUILD=${BUILD:-build}
dir=${1:-$BUILD}
mib=${FILE_MIB:-512}
rounds=${ROUNDS:-15}
cells=${CELLS:-"read:1024:8:huge read:4096:1:huge read:4096:8:huge read:4096:8:small \
write:1024:8:huge write:4096:1:huge write:4096:8:huge"}
command -v fio >/dev/null 2>&1 || { echo "disk_fio: SKIPPED: fio is not installed (apt-get install fio)"; exit 0; }
disk=$BUILD/tools/bench/disk
file=$dir/disk_fio.bin
tmp=$(mktemp -d)
huge=
cleanup() {
    [ -z "$huge" ] || umount "$tmp/huge"
    rm -rf "$tmp" "$file"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

ours() { # OP KIB DEPTH PAGES
    "$disk" "$file" "$mib" --backend io_uring --op "$1" --chunk "$2" --depth "$3" --pages "$4" --passes 1 --raw --keep
}

theirs() { # OP KIB DEPTH PAGES: MB/s
    tunable=
    mem=malloc
    if [ "$4" = huge ] && [ -n "$huge" ]; then
        rm -f "$huge"
        truncate -s $(($2 * $3 + 1024))k "$huge"
        mem=mmapshared:$huge
    elif [ "$4" = huge ]; then
        tunable=glibc.malloc.hugetlb=1
    fi
    # terse version 3: read bandwidth in KiB/s is field 7, write 48
    GLIBC_TUNABLES=$tunable fio --name=pass --filename="$file" --rw="$1" --bs="$2k" --iodepth="$3" --size="${mib}m" \
        --direct=1 --ioengine=io_uring --registerfiles=1 --fixedbufs=1 --overwrite=1 --thread --mem="$mem" \
        --output-format=terse --terse-version=3 |
        awk -F';' -v f="$([ "$1" = read ] && echo 7 || echo 48)" '{ printf "%.0f\n", $f * 1024 / 1e6 }'
}

median() { sort -n "$1" | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

echo "# $(date -u +%Y-%m-%d) $(fio --version), $(uname -sr), $(sed -n 's/model name.*: //p' /proc/cpuinfo | head -n 1), $(nproc) CPUs"
echo "# file of $mib MiB, $rounds pairs a cell; load before: $(cut -d' ' -f1-3 /proc/loadavg)"
mkdir "$tmp/huge"
if mount -t tmpfs -o huge=always,size=512m none "$tmp/huge" 2>/dev/null; then huge=$tmp/huge/buffers; fi
"$disk" "$file" "$mib" --backend io_uring --op read --passes 1 --depth 1 --chunk 4096 --raw >/dev/null
for cell in $cells; do
    IFS=: read -r op kib depth pages <<END
$cell
END
    : >"$tmp/ours"; : >"$tmp/fio"; : >"$tmp/ratio"
    i=0
    while [ "$i" -lt "$rounds" ]; do
        if [ $((i % 2)) -eq 0 ]; then
            a=$(ours "$op" "$kib" "$depth" "$pages"); b=$(theirs "$op" "$kib" "$depth" "$pages")
        else
            b=$(theirs "$op" "$kib" "$depth" "$pages"); a=$(ours "$op" "$kib" "$depth" "$pages")
        fi
        echo "pair $cell ours $a fio $b MB/s"
        echo "$a" >>"$tmp/ours"; echo "$b" >>"$tmp/fio"
        awk -v a="$a" -v b="$b" 'BEGIN { print a / b }' >>"$tmp/ratio"
        i=$((i + 1))
    done
    printf '%-22s ours %6.0f  fio %6.0f MB/s  ratio %.3f\n' "$cell" "$(median "$tmp/ours")" "$(median "$tmp/fio")" \
        "$(median "$tmp/ratio")" | tee -a "$tmp/table"
done
echo
echo "# load after: $(cut -d' ' -f1-3 /proc/loadavg); buffers of fio: $([ -n "$huge" ] && echo shared memory || echo malloc)"
cat "$tmp/table"

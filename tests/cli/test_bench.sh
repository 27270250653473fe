# penstock bench: figures, the profile that it writes, what it leaves behind, errors.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
HOME=$PWD/home
export HOME
mkdir home disk

positive() { # FILE PATH...
    positive_file=$1
    shift
    for path in "$@"; do
        v=$(json_get "$positive_file" "$path") || return 1
        awk -v v="$v" 'BEGIN { exit !(v + 0 > 0) }' || { echo "$path is $v"; return 1; }
    done
}
empty() { test -z "$(ls -A "$1")"; }
says() { # NAME REGEX
    check "$1" grep -E -e "$2" err
}

expect_exit "all parts" 0 bench --quick --nvme-path disk --output all.json --disk-size 16MiB --threads 2
check "a table on standard output" grep -q "hardware profile: all.json" out
check "progress on standard error" grep -q "penstock: disk: " err
check "the disk's figures" positive all.json disk.0.read disk.0.write disk.0.mixed.read \
    disk.0.sustained.write
check "the processor's figures" positive all.json gemm.0.flops gemm.5.flops copy.host cpu_optim.params \
    interference.compute_by_disk interference.optim_by_compute
check "the test file is gone" empty disk

expect_exit "one part, as JSON" 0 bench copy --quick --output all.json --json
check "nothing on standard error" test ! -s err
cp out copy.json
check "JSON with the profile's members" positive copy.json version copy.host gemm.0.flops details.memory.copy
check "figures of other parts are kept" test "$(json_get copy.json kept)" = true

expect_exit "sustained of one second" 0 bench disk --quick --disk-seconds 1 --disk-size 16MiB --output one.json
check "the output says how long" grep -q "sustained over 1 s" out

expect_exit "rough figures do not become the profile of plans" 2 bench --quick
says "it says how" "name a file with --output"
check "no profile" test ! -e home/.config/penstock/hardware.json
expect_exit "a profile that cannot be written" 1 bench copy --output=/dev/null/x/y
(
    unset HOME
    "$PENSTOCK" bench cpu-optim >out 2>err
)
says "HOME is asked for" "HOME is not set"

expect_exit "no such directory" 2 bench disk --quick --output x.json --nvme-path nowhere
says "named" "nowhere.*no such directory|there is no such directory"
expect_exit "more than the disk holds" 1 bench disk --quick --output x.json --disk-size 1000TiB
says "needed and free" "needs [0-9]+ bytes, [0-9]+ are free"
expect_exit "an unknown part" 2 bench gem --quick --output x.json
says "a suggestion" "did you mean .gemm"
check "no profile after errors" test ! -e x.json

# A file system without room for the smallest test file.
if [ "$(id -u)" -eq 0 ] && mkdir full && mount -t tmpfs -o size=8m none full 2>log; then
    expect_exit "a small file system" 1 bench disk --quick --output x.json --nvme-path full
    says "a full disk is named" "full.*(needs|No space)"
    check "nothing is left there" empty full
    umount full
else
    echo "skip - a small file system: tmpfs cannot be mounted here"
fi
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
    mkdir locked && chmod 700 locked && chmod 755 . && chmod 777 disk
    setpriv --reuid=65534 --regid=65534 --clear-groups "$PENSTOCK" bench disk --quick \
        --nvme-path "$PWD/locked" --output "$PWD/disk/x.json" >out 2>err
    rc=$?
    cat out err >log
    check "a directory of somebody else: exit 1" test "$rc" -eq 1
    says "permission, and what to do" "Permission denied"
else
    echo "skip - a directory of somebody else: needs root and setpriv"
fi

# Killed while it streams: nothing is left.
"$PENSTOCK" bench disk --quick --disk-seconds 30 --disk-size 16MiB --nvme-path disk --output x.json \
    >out 2>err &
pid=$!
i=0
while ! grep -q sustained err && [ $i -lt 100 ]; do sleep 0.05; i=$((i + 1)); done
kill -INT $pid 2>/dev/null || kill -TERM $pid
wait $pid
rc=$?
check "a signal ends it" test "$rc" -ge 128
rm -f disk/x.json
check "a signal leaves no test file" empty disk
check "a signal leaves no profile" test ! -e x.json
finish

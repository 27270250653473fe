# penstock doctor: what it finds on this machine, what it says about what is not right, exit codes.
. "$PENSTOCK_ROOT/tests/helpers/lib.sh"
HOME=$PWD/home
export HOME
mkdir home disk

# Number of the check NAME in a report, and a member of it.
number() { # FILE NAME
    i=0
    while name=$(json_get "$1" "checks.$i.name" 2>/dev/null) && [ -n "$name" ]; do
        if [ "$name" = "$2" ]; then echo $i; return; fi
        i=$((i + 1))
    done
    return 1
}
member() { json_get "$1" "checks.$(number "$1" "$2").$3"; }
says() { # NAME FILE CHECK MEMBER REGEX
    member "$2" "$3" "$4" >said 2>&1
    check "$1" grep -E -e "$5" said
}

expect_exit "a usable machine" 0 doctor --nvme-path disk
check "marks" grep -E -q "^(ok|warn) +ram" out
expect_exit "as JSON" 0 doctor --nvme-path disk --json
cp out report.json
check "ok" test "$(json_get report.json ok)" = true
for name in cpu gpu driver ram cgroup swap huge_pages memlock io_uring filesystem o_direct free_space \
    hardware_profile; do
    check "checks $name" number report.json $name
done
check "two members, no more" sh -c "tr -d '\n' <report.json | grep -E -q '^\{\"ok\":true,\"checks\":\[.*\]\}$'"
says "no profile: what to do" report.json hardware_profile advice "penstock bench"
check "the directory is left empty" test -z "$(ls -A disk)"
[ -e /proc/driver/nvidia/version ] || says "no GPU is no failure" report.json gpu found "cpu and emu only"

expect_exit "no such directory" 1 doctor --nvme-path nowhere --json
cp out report.json
check "not ok" test "$(json_get report.json ok)" = false
says "named" report.json filesystem found "nowhere"
check "the error is JSON too" grep -q '"error"' err
expect_exit "the current directory" 0 doctor

mkdir -p home/.config/penstock
echo '{"version": 1}' >home/.config/penstock/hardware.json
expect_exit "a broken profile" 0 doctor --json
cp out report.json
says "is found" report.json hardware_profile found "cannot be used"
"$PENSTOCK" bench cpu-optim --quick --output home/.config/penstock/hardware.json >log 2>&1
expect_exit "a fresh profile" 0 doctor --json
cp out report.json
check "is right" test "$(member report.json hardware_profile ok)" = true
sed 's/"machine": "/"machine": "not /' home/.config/penstock/hardware.json >other
cp other home/.config/penstock/hardware.json
expect_exit "another machine's" 0 doctor --json
cp out report.json
says "is stale" report.json hardware_profile found "of another machine"
touch -d '400 days ago' home/.config/penstock/hardware.json
sed -i 's/"machine": "not /"machine": "/' other
cp other home/.config/penstock/hardware.json
touch -d '400 days ago' home/.config/penstock/hardware.json
expect_exit "an old one" 0 doctor --json
cp out report.json
says "is stale too" report.json hardware_profile found "days old"

shm=$(mktemp -d /dev/shm/penstock.XXXXXX 2>/dev/null)
if [ -n "$shm" ]; then
    expect_exit "memory as a disk" 0 doctor --nvme-path "$shm" --json
    cp out report.json
    rmdir "$shm"
    says "is a warning" report.json filesystem found "tmpfs: memory"
else
    echo "skip - memory as a disk: no /dev/shm"
fi

if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
    chmod 755 . && chmod 777 disk && mkdir locked && chmod 700 locked
    (
        ulimit -l 64
        setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all \
            "$PENSTOCK" doctor --nvme-path "$PWD/disk" --json >report.json
    )
    says "a small memlock limit" report.json memlock found "64.0 KiB.*no registered buffers"
    says "and what to do" report.json memlock advice "ulimit -l"
    setpriv --reuid=65534 --regid=65534 --clear-groups \
        "$PENSTOCK" doctor --nvme-path "$PWD/locked" >out 2>err
    rc=$?
    cat out err >log
    check "a directory of somebody else: exit 1" test "$rc" -eq 1
    check "a directory of somebody else: marked" grep -E -q "^BAD .*locked" out
else
    echo "skip - limits of an ordinary user: needs root and setpriv"
fi

# A stand-in for the driver's library: a machine with a GPU, and one whose driver fails.
cat >cuda.c <<'END'
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned f) { (void)f; return getenv("CUDA_BROKEN") ? 999 : 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = getenv("CUDA_NONE") ? 0 : 2; return 0; }
int cuDeviceGetName(char *s, int n, int d) { (void)d; strncpy(s, "Some GPU", (size_t)n); return 0; }
int cuDeviceTotalMem_v2(size_t *b, int d) { (void)d; *b = (size_t)24 << 30; return 0; }
END
if mkdir lib && ${CC:-cc} -shared -fPIC -o lib/libcuda.so.1 cuda.c 2>log; then
    LD_LIBRARY_PATH=$PWD/lib "$PENSTOCK" doctor --json >report.json 2>log
    says "a GPU" report.json gpu found "2, first: Some GPU, 24.0 GiB"
    says "its driver" report.json driver found "CUDA 13.0"
    CUDA_NONE=1 LD_LIBRARY_PATH=$PWD/lib "$PENSTOCK" doctor --json >report.json 2>log
    says "a driver without a GPU" report.json gpu found "none: cpu and emu only"
    CUDA_BROKEN=1 LD_LIBRARY_PATH=$PWD/lib "$PENSTOCK" doctor --json >report.json 2>log
    says "a driver that fails" report.json gpu found "fails with error 999"
    check "a driver that fails: usable all the same" test "$(json_get report.json ok)" = true
else
    echo "skip - a driver: no compiler for its stand-in"
fi

plugin=$PENSTOCK_BUILD/libpenstock_cuda_emu.so
if [ -e "$plugin" ]; then
    export PENSTOCK_CUDA_PLUGIN="$plugin"
    expect_exit "the emulated card" 0 doctor --nvme-path disk --json
    cp out report.json
    says "is described" report.json cuda found "emulated device \\(emulated\\), compute capability .* free, 16.0 MiB for CUDA"
    says "its memory on the host" report.json pinned found \
        "64.0 MiB page-locked and registered with io_uring: from the disk to the card without a copy"
    PENSTOCK_CUDA_PLUGIN="$PWD/absent.so" "$PENSTOCK" doctor --json >report.json 2>log
    says "a plug-in that is not there" report.json cuda found "absent.so"
    unset PENSTOCK_CUDA_PLUGIN
else
    echo "skip - the emulated card: the build found no nvcc"
fi

if command -v strace >/dev/null && strace -o trace true 2>/dev/null; then
    strace -f -o trace -e trace=io_uring_setup -e inject=io_uring_setup:error=EPERM \
        "$PENSTOCK" doctor --nvme-path disk --json >report.json 2>log
    says "io_uring refused" report.json io_uring found "refused.*pread and pwrite"
    says "io_uring refused: what to do" report.json io_uring advice "seccomp"
    check "io_uring refused: still usable" test "$(json_get report.json ok)" = true
else
    echo "skip - io_uring refused: needs strace"
fi
finish

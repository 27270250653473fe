#!/bin/sh
# Install what building and testing need; quick, silent and without network when nothing is missing.
#
# Debian and Ubuntu: by apt, as root or through sudo. Elsewhere: prints what to install and fails.
# PENSTOCK_SETUP_PROBE=1 only says what is missing (exit 1) or nothing (exit 0).
set -u

# program or header : Debian package
needs='
cc gcc
make make
jansson.h libjansson-dev
yaml.h libyaml-dev
pcre2.h libpcre2-dev
utf8proc.h libutf8proc-dev
xxhash.h libxxhash-dev
liburing.h liburing-dev
zstd.h libzstd-dev
cmocka.h libcmocka-dev
'
# library : Debian package. Of use (LAPACK: full decompositions in low-rank optimizers), not needed: loaded when asked for.
# Installed along with what is needed, and nothing is said when that does not work.
wants='
liblapack.so.3 libopenblas0-serial
'
# Where nvcc is, the CUDA kernels are compiled for the host too, to be tested.
if command -v nvcc >/dev/null 2>&1 || [ -x /usr/local/cuda/bin/nvcc ]; then
    needs="${needs}g++ g++
"
fi

# Where the compiler looks for headers, asked once.
include_dirs() {
    echo | "${CC:-cc}" -E -v - 2>&1 | sed -n '/^#include </,/^End of search list/p' | grep '^ '
}

has_header() {
    for dir in $dirs; do
        [ -e "$dir/$1" ] && return 0
    done
    return 1
}

find_missing() {
    missing=
    dirs=
    if command -v "${CC:-cc}" >/dev/null 2>&1; then dirs=$(include_dirs); fi
    while read -r what package; do
        case $what in
        '') continue ;;
        *.h) has_header "$what" && continue ;;
        cc) command -v "${CC:-cc}" >/dev/null 2>&1 && has_header stdio.h && continue ;;
        *) command -v "$what" >/dev/null 2>&1 && continue ;;
        esac
        [ "$what" = cc ] && package="$package libc6-dev"
        missing="$missing $package"
    done <<END
$needs
END
}

# Quietly; the log is shown only when it fails.
quietly() {
    log=$(mktemp) || exit 1
    if "$@" >"$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    cat "$log" >&2
    rm -f "$log"
    return 1
}

find_missing
[ -z "$missing" ] && exit 0
if [ -n "${PENSTOCK_SETUP_PROBE:-}" ]; then
    echo "missing:$missing"
    exit 1
fi

as_root=
if [ "$(id -u)" -ne 0 ]; then as_root=sudo; fi
if ! command -v apt-get >/dev/null 2>&1 || { [ -n "$as_root" ] && ! command -v sudo >/dev/null 2>&1; }; then
    echo "setup: please install these packages (Debian's names), then try again:$missing" >&2
    exit 1
fi
echo "setup: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
install() { quietly $as_root apt-get -qq -y -o DPkg::Lock::Timeout=120 --no-install-recommends install $missing; }
# The package lists of a fresh container are empty or old: fetch them only when they are needed.
if ! install 2>/dev/null; then
    quietly $as_root apt-get -qq update || echo "setup: apt-get update failed" >&2
    install || {
        echo "setup: could not install:$missing" >&2
        exit 1
    }
fi
echo "$wants" | while read -r what package; do
    if [ -z "$what" ] || /sbin/ldconfig -p 2>/dev/null | grep -q "$what"; then continue; fi
    $as_root apt-get -qq -y -o DPkg::Lock::Timeout=120 --no-install-recommends install "$package" >/dev/null 2>&1
done
find_missing
if [ -n "$missing" ]; then
    echo "setup: still missing after the installation:$missing" >&2
    exit 1
fi

# shellcheck shell=sh
# tools/setup.sh: silent and quick when everything is there; names the package when something is not.
: "${PENSTOCK_ROOT:?set by tests/run.sh}"
setup=$PENSTOCK_ROOT/tools/setup.sh
failures=0
ok() { echo "ok - $1"; }
not_ok() {
    echo "not ok - $1"
    [ -f out ] && sed 's/^/    | /' out
    failures=$((failures + 1))
}

# A network that is not used: no apt may be called.
mkdir bin
for tool in apt-get sudo; do
    printf '#!/bin/sh\necho "%s $*" >>"%s/called"\nexit 1\n' "$tool" "$PWD" >bin/$tool
    chmod +x bin/$tool
done

start=$(date +%s)
PATH=$PWD/bin:$PATH "$setup" >out 2>&1
rc=$?
took=$(($(date +%s) - start))
if [ $rc -eq 0 ] && [ ! -s out ]; then ok "silent when satisfied"; else not_ok "silent when satisfied"; fi
if [ ! -e called ]; then ok "no package manager when satisfied"; else not_ok "no package manager when satisfied"; fi
if [ "$took" -le 5 ]; then ok "quick when satisfied"; else not_ok "quick when satisfied ($took s)"; fi

# A compiler that knows no include directories: every header is missing.
cat >bin/nocc <<'END'
#!/bin/sh
echo '#include <...> search starts here:' >&2
echo ' /nonexistent' >&2
echo 'End of search list.' >&2
END
chmod +x bin/nocc
CC=$PWD/bin/nocc PENSTOCK_SETUP_PROBE=1 "$setup" >out 2>&1
rc=$?
if [ $rc -ne 0 ] && grep -q libjansson-dev out && grep -q libcmocka-dev out; then
    ok "a missing header is named by its package"
else
    not_ok "a missing header is named by its package"
fi

# A failing installation is reported, and the lists are fetched before the second try.
CC=$PWD/bin/nocc PATH=$PWD/bin:$PATH "$setup" >out 2>&1
rc=$?
if [ $rc -ne 0 ] && grep -q 'could not install' out; then
    ok "a failed installation is an error"
else
    not_ok "a failed installation is an error"
fi
if [ "$(grep -c update called)" -eq 1 ] && [ "$(grep -c ' install ' called)" -eq 2 ]; then
    ok "the package lists are fetched once, only when needed"
else
    cp called out
    not_ok "the package lists are fetched once, only when needed"
fi

# Elsewhere than on Debian: the names, and an error.
mkdir only
for tool in sh sed grep id mktemp cat rm dirname; do
    path=$(command -v $tool) && ln -s "$path" only/$tool
done
CC=$PWD/bin/nocc PATH=$PWD/only "$setup" >out 2>&1
rc=$?
if [ $rc -ne 0 ] && grep -q 'please install.*libyaml-dev' out; then
    ok "without apt the packages are printed"
else
    not_ok "without apt the packages are printed"
fi
[ $failures -eq 0 ]

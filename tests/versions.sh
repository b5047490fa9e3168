#!/bin/sh
# Unit tests and properties in other environments than the tests' own: with every lower bound of setup.py, and in the newest
# Python; with EDGEAGENT_ALL_VERSIONS in each later one. Words are pytest's. A Python that is not here is left out; in CI that
# is a failure.
set -eu
cd "$(dirname "$0")/.."
here=.venv/bin/python

# pip of the newest: those that come with Python know no later Python than themselves.
pip_wheel() {
    find .cache/pip -name 'pip-*.whl' 2>/dev/null | head -n 1
}

# environment NAME PYTHON EXTRA [PIP'S WORDS]: .cache/NAME with an extra of setup.py, made anew where that is newer.
environment() {
    folder=.cache/$1
    python=$2
    extra=$3
    shift 3
    [ -n "$(find "$folder/made" -newer setup.py 2>/dev/null)" ] && return
    rm -rf "$folder"
    [ -n "$(pip_wheel)" ] || $here -m pip download --quiet --disable-pip-version-check --no-deps --dest .cache/pip pip
    "$python" -m venv --without-pip "$folder"
    "$folder/bin/python" "$(pip_wheel)/pip" install --quiet --disable-pip-version-check --editable ".[$extra]" "$@" 2>&1 |
        grep -v "Warning\|\*\*\*\|!!\|^ *$" || true
    "$folder/bin/python" -c 'import agent, hypothesis, pytest'
    touch "$folder/made"
}

tests() {
    echo "== $1: $("$1/bin/python" --version)"
    folder=$1
    shift
    "$folder/bin/python" -m pytest -n 2 -k "not haproxy" "$@"
}

mkdir -p .cache
$here tests/lowest.py >.cache/lowest.txt
environment lowest "$($here -c 'import sys; print(sys._base_executable)')" test --constraint .cache/lowest.txt
tests .cache/lowest tests/unit "$@"
versions=forky:3.14
if [ -n "${EDGEAGENT_ALL_VERSIONS:-}" ]; then
    versions="trixie:3.13 $versions"
else # the properties are tried at length in the first Python; here what another Python makes of them
    HYPOTHESIS_PROFILE=${HYPOTHESIS_PROFILE:-again}
    export HYPOTHESIS_PROFILE
fi
for version in $versions; do
    later="$(pwd)/.cache/${version%:*}/usr/bin/python3.here"
    if [ ! -x "$later" ]; then
        echo "LEFT OUT: Python ${version#*:} is not here (\`make system\` as root on Debian gets it)" >&2
        [ "${CI:-}" = true ] && exit 1
        continue
    fi
    environment "python-${version#*:}" "$later" unit
    tests ".cache/python-${version#*:}" tests/unit tests/property "$@"
done

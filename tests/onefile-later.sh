#!/bin/sh
# The integration suite by the one file in later Pythons, compiled for each as `agent install` does it. Words are pytest's.
# The newest alone, or with EDGEAGENT_ALL_VERSIONS every one.
set -eu
cd "$(dirname "$0")/.."
one_file=$(find dist -name 'edgeagent-*.pyz' | head -n 1)
releases=forky
[ -z "${EDGEAGENT_ALL_VERSIONS:-}" ] || releases="trixie forky"
for release in $releases; do
    later="$(pwd)/.cache/$release/usr/bin/python3.here"
    if [ ! -x "$later" ]; then
        echo "LEFT OUT: the Python of Debian $release is not here (\`make system\` as root on Debian gets it)" >&2
        [ "${CI:-}" = true ] && exit 1
        continue
    fi
    mkdir -p ".cache/onefile-$release"
    compiled=.cache/onefile-$release/edgeagent.pyz
    "$later" -I -S -c 'import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from agent.tools import bytecode
Path(sys.argv[2]).write_bytes(bytecode.compiled(Path(sys.argv[1]).read_bytes()))' "$one_file" "$compiled"
    echo "== $("$later" --version)"
    EDGEAGENT_PYTHON=$later EDGEAGENT_ONE_FILE=$compiled .venv/bin/python -m pytest -n 2 --dist loadfile tests/integration "$@"
done

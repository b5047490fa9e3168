#!/usr/bin/env bash
# `agent check` on the desired states that differ from a commit. Exit as `agent check`, 2 where no file matches.
#
#   FILES    path patterns of git, one a line           (*desired*.yaml)
#   BASE     the commit to compare with; "" or one that is not here: all files that match
#   SOURCES  where edgeagent's sources are; "" : `agent` is on PATH already
set -euo pipefail

FILES=${FILES:-*desired*.yaml}
BASE=${BASE:-}
SOURCES=${SOURCES:-}

here=$(cd "$(dirname "$0")" && pwd)
agent=agent
if [ -n "$SOURCES" ]; then
    place=${RUNNER_TEMP:-$(mktemp -d)}/edgeagent
    python3 -m venv "$place"
    "$place/bin/python" -m pip install --quiet --disable-pip-version-check "$SOURCES"
    agent=$place/bin/agent
fi

# By files: of a process substitution, bash ignores that it failed, and nothing would be checked.
cd "$(git rev-parse --show-toplevel)"
list=$(mktemp)
trap 'rm -f "$list"' EXIT
mapfile -t patterns < <(printf '%s\n' "$FILES" | sed '/^[[:space:]]*$/d')
pathspecs=("${patterns[@]/#/:(top)}")
# A new branch has a base of zeros, and a shallow clone may not have it.
if [ -n "$BASE" ] && git cat-file -e "$BASE^{commit}" 2>/dev/null; then
    git diff -z --name-only --diff-filter=d "$BASE" HEAD -- "${pathspecs[@]}" >"$list"
else
    git ls-files -z -- "${pathspecs[@]}" >"$list"
fi
mapfile -d '' -t states <"$list"
if [ ${#states[@]} -eq 0 ]; then
    git ls-files -z -- "${pathspecs[@]}" >"$list"
    if [ ! -s "$list" ]; then
        echo "no file of this repository matches FILES: $FILES" >&2
        exit 2
    fi
    echo "no desired state has changed"
    exit 0
fi

code=0
"$agent" check -- "${states[@]}" || code=$?
if [ -n "${GITHUB_ACTIONS:-}" ] && [ "$code" -eq 3 ]; then
    "$agent" check --json -- "${states[@]}" >"$list" || true
    python3 "$here/annotations.py" <"$list"
fi
exit "$code"

#!/usr/bin/env bash
# `agent check` on the desired states that differ from a commit. Exit 0, or the worst of `agent check`.
#
#   FILES    path patterns of git, one a line           (*desired*.yaml)
#   BASE     the commit to compare with; "" or one that is not here: all files that match
#   SOURCES  where edgeagent's sources are; "" : `agent` is on PATH already
set -euo pipefail

FILES=${FILES:-*desired*.yaml}
BASE=${BASE:-}
SOURCES=${SOURCES:-}

agent=agent
if [ -n "$SOURCES" ]; then
    place=${RUNNER_TEMP:-$(mktemp -d)}/edgeagent
    python3 -m venv "$place"
    "$place/bin/python" -m pip install --quiet --disable-pip-version-check "$SOURCES"
    agent=$place/bin/agent
fi

mapfile -t patterns < <(printf '%s\n' "$FILES" | sed '/^[[:space:]]*$/d')
pathspecs=("${patterns[@]/#/:(top)}")
# A new branch has a base of zeros, and a shallow clone may not have it.
if [ -n "$BASE" ] && git cat-file -e "$BASE^{commit}" 2>/dev/null; then
    mapfile -d '' -t states < <(git diff -z --name-only --diff-filter=d "$BASE" HEAD -- "${pathspecs[@]}")
else
    mapfile -d '' -t states < <(git ls-files -z -- "${pathspecs[@]}")
fi
if [ ${#states[@]} -eq 0 ]; then
    echo "no desired state has changed"
    exit 0
fi

cd "$(git rev-parse --show-toplevel)"
code=0
"$agent" check -- "${states[@]}" || code=$?
if [ -n "${GITHUB_ACTIONS:-}" ] && [ "$code" -ne 0 ]; then
    "$agent" check --json -- "${states[@]}" | python3 "$(dirname "$0")/annotations.py"
fi
exit "$code"

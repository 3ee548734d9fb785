#!/usr/bin/env bash
# Everything that the Python client has to pass. Leaves Python out, and says so, where it cannot run.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
    || { echo "clients: left out Python (python3 3.10 or later is missing)"; exit 0; }
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || { echo "clients: left out Python (its venv is missing)"; exit 0; }

venv=build/venv
stamp=$venv/installed
if ! [ "$stamp" -nt pyproject.toml ]; then
    "$PYTHON" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -e '.[dev]'
    touch "$stamp"
fi

step() { echo "clients/python: $*"; "$@"; }
step "$venv/bin/ruff" check .
step "$venv/bin/ruff" format --check .
step "$venv/bin/mypy"
step "$venv/bin/ruff" check --config pyproject.toml ../conformance
step scripts/generate.sh --check
step "$venv/bin/python" -m pytest
rm -rf dist
step "$venv/bin/python" -m build --outdir dist . > build/build.log 2>&1 || { cat build/build.log; exit 1; }
step "$venv/bin/python" scripts/check_dist.py dist

#!/usr/bin/env bash
# Everything that the Python client has to pass. Leaves Python out, and says so, where it cannot run.
set -euo pipefail
cd "$(dirname "$0")/.."

reason=$(scripts/venv.sh) || { [ $? = 3 ] && echo "clients: left out Python ($reason)" && exit 0; exit 1; }
venv=build/venv

step() { echo "clients/python: $*"; "$@"; }
step "$venv/bin/ruff" check .
step "$venv/bin/ruff" format --check .
step "$venv/bin/mypy"
step "$venv/bin/ruff" check --config pyproject.toml ../conformance
step scripts/generate.sh --check
if "$venv/bin/python" -c 'import walcast_native' 2>/dev/null; then
    step cargo fmt --manifest-path native/Cargo.toml --check
    step cargo clippy --manifest-path native/Cargo.toml --quiet --locked -- -D warnings
    rm -rf build/native
    step "$venv/bin/maturin" sdist --manifest-path native/Cargo.toml --out build/native > build/native.log 2>&1 \
        || { cat build/native.log; exit 1; }
else
    echo "clients: left out Python's compiled reader (cargo is missing)"
fi
step "$venv/bin/python" -m pytest
rm -rf dist
step "$venv/bin/python" -m build --outdir dist . > build/build.log 2>&1 || { cat build/build.log; exit 1; }
step "$venv/bin/python" scripts/check_dist.py dist
if [ -n "${WALCAST_BIN:-}" ]; then
    step "$venv/bin/python" ../conformance/readme.py README.md scripts/run_snippet.sh
else
    echo "clients: left out the programs of Python's README (WALCAST_BIN is not set)"
fi

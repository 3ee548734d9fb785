#!/usr/bin/env bash
# An environment with the client as it is here and what its tests need, in build/venv; with the compiled reader where cargo is. Says why,
# and ends with 3, where there can be none.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { echo "python3 3.10 or later is missing"; exit 3; }
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || { echo "its venv is missing"; exit 3; }

venv=build/venv
if ! [ "$venv/installed" -nt pyproject.toml ]; then
    "$PYTHON" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -e '.[dev]'
    touch "$venv/installed"
fi
if command -v cargo >/dev/null; then
    if ! [ -e "$venv/native" ] || [ -n "$(find native/src native/*.toml native/*.lock native/*.pyi -newer "$venv/native")" ]; then
        PATH="$PWD/$venv/bin:$PATH" "$venv/bin/pip" install --quiet --disable-pip-version-check --no-build-isolation \
            --force-reinstall --no-deps ./native
        touch "$venv/native"
    fi
fi

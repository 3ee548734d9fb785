#!/usr/bin/env bash
# Generates src/walcast/v1 from the repository's proto. With --check: fails if what is committed differs.
# Needs Python with venv; installs the pinned generator into build/generate (needs PyPI the first time).
set -euo pipefail
cd "$(dirname "$0")/.."

GRPCIO_TOOLS=1.73.1   # oldest that we support at run time: see the ranges in pyproject.toml
SETUPTOOLS=80.9.0     # grpcio-tools imports pkg_resources, which later versions dropped
venv=build/generate
if ! [ -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import grpc_tools.protoc' 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "grpcio-tools==$GRPCIO_TOOLS" "setuptools==$SETUPTOOLS"
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$venv/bin/python" -W ignore -m grpc_tools.protoc -I ../../proto \
    --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
    walcast/v1/event.proto walcast/v1/walcast.proto
rm -f "$out/walcast/v1/event_pb2_grpc.py"   # no service in it
printf '"""Generated from proto/walcast/v1 by scripts/generate.sh."""\n' > "$out/walcast/v1/__init__.py"

if [ "${1:-}" = "--check" ]; then
    diff -r --exclude=__pycache__ "$out/walcast/v1" src/walcast/v1 \
        || { echo "src/walcast/v1 is stale: run clients/python/scripts/generate.sh" >&2; exit 1; }
else
    rm -rf src/walcast/v1
    cp -r "$out/walcast/v1" src/walcast/v1
fi

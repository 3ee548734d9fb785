#!/usr/bin/env bash
# Programs in an empty environment that has installed the package in dist as users do, from the sdist and then from the wheel: `build
# DIRECTORY`, then `run DIRECTORY NUMBER`; see ../conformance/readme.py.
set -euo pipefail
client=$(cd "$(dirname "$0")/.." && pwd)
if [ "$1" = run ]; then exec "$2/venv/bin/python" -u "$2/$3.python"; fi
"${PYTHON:-python3}" -m venv "$2/venv"
install=("$2/venv/bin/pip" install --quiet --disable-pip-version-check)
cd "$2"
"${install[@]}" "$client"/dist/*.tar.gz
venv/bin/python -c 'import walcast, walcast.v1.walcast_pb2'
"${install[@]}" --force-reinstall --no-deps "$client"/dist/*.whl
venv/bin/python -c 'import sys, walcast; print("installed", walcast.__version__, "in", sys.prefix)'

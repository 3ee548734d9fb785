#!/usr/bin/env bash
# The program of the `clients` benchmark: see clients/README.md. `bench.sh build` builds it, `bench.sh ADDRESS TABLE` is it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "${1:-}" = build ] || exec build/venv/bin/python scripts/bench.py "$@"
exec scripts/venv.sh

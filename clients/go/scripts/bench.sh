#!/usr/bin/env bash
# The program of the `clients` benchmark: see clients/README.md. `bench.sh build` builds it, `bench.sh ADDRESS TABLE` is it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "${1:-}" = build ] || exec build/bench "$@"
command -v go >/dev/null || { echo "go is missing"; exit 3; }
mkdir -p build
go build -o build/ ./internal/bench

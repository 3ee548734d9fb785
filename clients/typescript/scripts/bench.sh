#!/usr/bin/env bash
# The program of the `clients` benchmark: see clients/README.md. `bench.sh build` builds it, `bench.sh ADDRESS TABLE` is it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "${1:-}" = build ] || exec node build/test/bench.js "$@"
{ command -v node && command -v npm; } >/dev/null || { echo "node or npm is missing"; exit 3; }
node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' || { echo "Node 20 or later is missing"; exit 3; }
[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --silent --no-fund --no-audit
node_modules/.bin/tsc -p tsconfig.test.json

#!/usr/bin/env bash
# Everything that the TypeScript client has to pass. Leaves TypeScript out, and says so, where it cannot run.
set -euo pipefail
cd "$(dirname "$0")/.."

{ command -v node && command -v npm; } >/dev/null || { echo "clients: left out TypeScript (node or npm is missing)"; exit 0; }
node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' \
    || { echo "clients: left out TypeScript (Node 20 or later is missing)"; exit 0; }

step() { echo "clients/typescript: $*"; "$@"; }
[ node_modules/.package-lock.json -nt package-lock.json ] || step npm ci --no-fund --no-audit
step scripts/generate.sh --check
step npm run --silent lint
step npm test --silent
command -v python3 >/dev/null || { echo "clients: left out TypeScript's conformance scenario (python3 is missing)"; exit 0; }
step python3 ../conformance/run.py --runner "node $PWD/build/test/conformance_runner.js"
# The browser's client speaks gRPC-web to the same hub; credit and client certificates are not to be had there.
step python3 ../conformance/run.py --runner "node $PWD/build/test/conformance_runner.js web" types crash torn expired snapshot backfill failover
rm -f build/*.tgz
step npm pack --silent --pack-destination build
PACKAGE=$(echo "$PWD"/build/walcast-*.tgz)
export PACKAGE
step python3 ../conformance/readme.py README.md scripts/run_snippet.sh

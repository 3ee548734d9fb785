#!/usr/bin/env bash
# Generates src/gen from the repository's proto. With --check: fails if what is committed differs. Needs npx and `npm ci`.
set -euo pipefail
cd "$(dirname "$0")/.."

BUF=${BUF:-npx --yes @bufbuild/buf@1.75.0}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
$BUF generate --output "$out"

if [ "${1:-}" = "--check" ]; then
    diff -r "$out/walcast" src/gen/walcast || { echo "src/gen is stale: run clients/typescript/scripts/generate.sh" >&2; exit 1; }
else
    rm -rf src/gen
    mkdir -p src/gen
    cp -r "$out/walcast" src/gen/walcast
fi

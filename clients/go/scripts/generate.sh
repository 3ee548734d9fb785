#!/usr/bin/env bash
# Generates walcastpb from the repository's proto. With --check: fails if what is committed differs.
# Needs npx (for buf, which is protoc and the well-known types in one) and Go (for the plugins, by `go run`).
set -euo pipefail
cd "$(dirname "$0")/.."

BUF=${BUF:-npx --yes @bufbuild/buf@1.75.0}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
$BUF generate --output "$out"

if [ "${1:-}" = "--check" ]; then
    diff -r "$out/walcastpb" walcastpb || { echo "walcastpb is stale: run clients/go/scripts/generate.sh" >&2; exit 1; }
else
    rm -rf walcastpb
    cp -r "$out/walcastpb" walcastpb
fi

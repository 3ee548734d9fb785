#!/usr/bin/env bash
# The program of the `clients` benchmark: see clients/README.md. `bench.sh build` builds it, `bench.sh ADDRESS TABLE` is it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "${1:-}" = build ] || exec "${CARGO_TARGET_DIR:-target}/release/examples/bench" "$@"
CARGO=${CARGO:-cargo}
command -v "$CARGO" >/dev/null || { echo "cargo is missing"; exit 3; }
"$CARGO" build --quiet --locked --release --example bench

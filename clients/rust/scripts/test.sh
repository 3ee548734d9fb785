#!/usr/bin/env bash
# Everything that the Rust client has to pass. Leaves Rust out, and says so, where it cannot run.
set -euo pipefail
cd "$(dirname "$0")/.."

CARGO=${CARGO:-cargo}
command -v "$CARGO" >/dev/null || { echo "clients: left out Rust (cargo is missing)"; exit 0; }
[ -n "${WALCAST_BIN:-}" ] || echo "clients/rust: without WALCAST_BIN the conformance scenario and the README's programs are left out"

step() { echo "clients/rust: $*"; "$@"; }
step "$CARGO" fmt --check
step "$CARGO" clippy --quiet --locked --all-targets -- -D warnings
step "$CARGO" test --quiet --locked
step "$CARGO" package --quiet --locked --allow-dirty
"$CARGO" package --list --allow-dirty | grep -x 'proto/walcast/v1/event.proto' >/dev/null \
    || { echo "the package lacks the proto" >&2; exit 1; }
[ -z "${WALCAST_BIN:-}" ] || step python3 ../conformance/readme.py README.md scripts/run_snippet.sh

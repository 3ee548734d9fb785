#!/usr/bin/env bash
# Runs cargo-deny, built once and kept outside of target/. Its advisories need a database from the network and are
# therefore not part of this check: run `scripts/cargo-deny.sh check advisories` where that can be reached.
set -euo pipefail

version=0.20.2
root=${XDG_CACHE_HOME:-$HOME/.cache}/walcast/cargo-deny-$version
if command -v cargo-deny >/dev/null; then
    exec cargo-deny "$@"
fi
if [ ! -x "$root/bin/cargo-deny" ]; then
    # Without optimisation: it builds in a fraction of the time and runs for seconds.
    CARGO_TARGET_DIR=$(mktemp -d)
    export CARGO_TARGET_DIR
    trap 'rm -rf "$CARGO_TARGET_DIR"' EXIT
    cargo install --locked --debug --root "$root" --version "$version" cargo-deny
fi
"$root/bin/cargo-deny" "$@"

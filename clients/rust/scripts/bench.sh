#!/usr/bin/env bash
# Changes per second against a real hub. Arguments go to clients/conformance/bench.py. Only this crate is built with
# optimisation, not its dependencies: to measure what users get, set PROFILE=release.
set -euo pipefail
cd "$(dirname "$0")/.."
PROFILE=${PROFILE:-dev}
cargo build --quiet --example bench --profile "$PROFILE" --config 'profile.dev.package.walcast-client.opt-level=3'
directory=${CARGO_TARGET_DIR:-target}/$([ "$PROFILE" = dev ] && echo debug || echo "$PROFILE")
exec python3 ../conformance/bench.py --rounds 5 --bench "$directory/examples/bench" "$@"

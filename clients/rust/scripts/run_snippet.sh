#!/usr/bin/env bash
# Programs in a crate of their own that depends on what `cargo package` made, as users do: `build DIRECTORY`, then `run DIRECTORY NUMBER`; see
# ../conformance/readme.py.
set -euo pipefail
client=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$client/target}
if [ "$1" = run ]; then exec "$2/bin/$3"; fi
package=$(echo "$target"/package/walcast-client-*/)
cp "$package/Cargo.lock" "$2"
cd "$2"
{
    printf '[package]\nname = "snippet"\nversion = "0.0.0"\nedition = "2024"\n'
    printf '[dependencies]\nwalcast-client = { path = "%s" }\ntokio = { version = "1", features = ["full"] }\n' "$package"
    # The client's, so that what is built for its tests serves here.
    printf '[profile.dev]\nopt-level = 1\ndebug = "line-tables-only"\n[profile.dev.package."*"]\ndebug = false\n[workspace]\n'
    for program in *.rust; do printf '[[bin]]\nname = "snippet-%s"\npath = "%s"\n' "${program%.rust}" "$program"; done
} > Cargo.toml
CARGO_TARGET_DIR=$target "${CARGO:-cargo}" build --quiet
mkdir bin
for program in *.rust; do cp "$target/debug/snippet-${program%.rust}" "bin/${program%.rust}"; done

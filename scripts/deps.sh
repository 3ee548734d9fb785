#!/usr/bin/env bash
# Installs what is missing on Debian and Ubuntu, and nothing that is there. Tried in a chroot with nothing but
# debootstrap's minbase of Debian 12: the tools came, no cluster was made, and a second run installed nothing.
# Usage: scripts/deps.sh build|postgres|npm ...
set -euo pipefail

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else echo "cannot install packages: not root, and there is no sudo" >&2; exit 1
    fi
}

updated=
install() {
    command -v apt-get >/dev/null || { echo "please install: $* (no apt-get here)" >&2; exit 1; }
    [ -n "$updated" ] || { as_root apt-get update -qq; updated=yes; }
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

have_postgres() {
    { command -v initdb && command -v postgres; } >/dev/null && return 0
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && return 0
    command -v pg_config >/dev/null && [ -x "$(pg_config --bindir)/initdb" ]
}

# Debian starts a cluster when the server is installed. Nobody asked for one here, so the packages are told not to,
# and the setting is put back afterwards.
install_postgres() {
    install postgresql-common
    local conf=/etc/postgresql-common/createcluster.conf kept
    kept=$(mktemp)
    cp "$conf" "$kept"
    as_root sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' "$conf"
    install postgresql || { as_root cp "$kept" "$conf"; rm -f "$kept"; return 1; }
    as_root cp "$kept" "$conf"
    rm -f "$kept"
}

command -v cargo >/dev/null || { echo "please install Rust first: https://rustup.rs" >&2; exit 1; }
for what in "$@"; do
    case $what in
        build) { command -v cc && command -v make; } >/dev/null || { echo "installing build-essential"; install build-essential; } ;;
        postgres) have_postgres || { echo "installing postgresql"; install_postgres; } ;;
        npm) { command -v npm && command -v node; } >/dev/null || { echo "installing npm"; install nodejs npm; } ;;
        *) echo "usage: $0 build|postgres|npm ..." >&2; exit 2 ;;
    esac
done

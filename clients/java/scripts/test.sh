#!/usr/bin/env bash
# Everything that the Java client has to pass. Leaves Java out, and says so, where it cannot run.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v mvn >/dev/null || { echo "clients: left out Java (mvn is missing)"; exit 0; }
javac -version 2>&1 | grep -Eq 'javac (1[7-9]|[2-9][0-9])' || { echo "clients: left out Java (a JDK 17 or later is missing)"; exit 0; }
[ -n "${WALCAST_BIN:-}" ] || echo "clients/java: without WALCAST_BIN the conformance scenario and the README's programs are left out"

step() { echo "clients/java: $*"; "$@"; }
# Generates, compiles with -Xlint:all -Werror, tests, and packages the jar with its sources and javadoc.
step mvn --quiet --batch-mode clean package
step python3 scripts/check_dist.py
[ -z "${WALCAST_BIN:-}" ] || step python3 ../conformance/readme.py README.md scripts/run_snippet.sh

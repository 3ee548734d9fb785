#!/usr/bin/env bash
# The program of the `clients` benchmark: see clients/README.md. `bench.sh build` builds it, `bench.sh ADDRESS TABLE` is it.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" != build ]; then
    # shellcheck disable=SC2086
    exec java ${JAVA_BENCH_OPTIONS:-} -cp "target/test-classes:target/classes:$(cat target/classpath)" dev.walcast.Bench "$@"
fi
command -v mvn >/dev/null || { echo "mvn is missing"; exit 3; }
javac -version 2>&1 | grep -Eq 'javac (1[7-9]|[2-9][0-9])' || { echo "a JDK 17 or later is missing"; exit 3; }
mvn --quiet --batch-mode test-compile

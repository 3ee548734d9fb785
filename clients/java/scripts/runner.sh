#!/usr/bin/env bash
# The runner of the conformance scenario. Needs `mvn test-compile dependency:build-classpath` before: see test.sh.
here=$(cd "$(dirname "$0")/.." && pwd)
exec java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -cp "$here/target/test-classes:$here/target/classes:$(cat "$here/target/classpath")" \
    dev.walcast.ConformanceRunner "$@"

#!/usr/bin/env bash
# Changes per second against a real hub; needs `mvn test-compile` before. Arguments go to clients/conformance/bench.py.
here=$(cd "$(dirname "$0")/.." && pwd)
exec python3 "$here/../conformance/bench.py" --rounds 5 \
    --bench "java -cp $here/target/test-classes:$here/target/classes:$(cat "$here/target/classpath") dev.walcast.Bench" "$@"

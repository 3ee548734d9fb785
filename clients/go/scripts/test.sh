#!/usr/bin/env bash
# Everything that the Go client has to pass. Leaves Go out, and says so, where it cannot run.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(go env GOVERSION 2>/dev/null) || { echo "clients: left out Go (go is missing)"; exit 0; }
minor=${version#go1.}
minor=${minor%%[!0-9]*}
[ "${minor:-0}" -ge 23 ] || { echo "clients: left out Go (go 1.23 or later is missing)"; exit 0; }

step() { echo "clients/go: $*"; "$@"; }
unformatted=$(gofmt -l .)
[ -z "$unformatted" ] || { echo "clients/go: gofmt would change $unformatted" >&2; exit 1; }
step go vet ./...
step go mod verify
if command -v npx >/dev/null; then
    step scripts/generate.sh --check
else
    echo "clients: left out Go's generated code (npx is missing)"
fi
# Needs a newer Go than the client does.
if [ "$minor" -ge 25 ]; then
    step go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
else
    echo "clients: left out staticcheck for Go (go 1.25 or later is missing)"
fi
if [ "$(go env CGO_ENABLED)" = 1 ] && command -v cc >/dev/null; then
    step go test -race ./...
else
    step go test ./...
fi
command -v python3 >/dev/null || { echo "clients: left out Go's conformance scenario (python3 is missing)"; exit 0; }
mkdir -p build
step go build -o build/ ./internal/...
step python3 ../conformance/run.py --runner "$PWD/build/conformance"
step python3 ../conformance/readme.py README.md scripts/run_snippet.sh

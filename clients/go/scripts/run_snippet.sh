#!/usr/bin/env bash
# Runs a Go program in a module of its own that takes this client as its users do. Usage: run_snippet.sh DIRECTORY, which holds snippet.go.
set -euo pipefail
client=$(cd "$(dirname "$0")/.." && pwd)
cd "$1"
mv snippet.go main.go
cp "$client/go.sum" .
cat > go.mod <<MOD
module snippet

go $(cd "$client" && go list -m -f '{{.GoVersion}}')

require github.com/walcast/walcast/clients/go v0.0.0

replace github.com/walcast/walcast/clients/go => $client
MOD
go mod tidy 2>/dev/null
go build -o snippet .
exec ./snippet

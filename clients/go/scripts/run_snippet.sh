#!/usr/bin/env bash
# Programs in a module of their own that takes this client as its users do: `build DIRECTORY`, then `run DIRECTORY NUMBER`; see
# ../conformance/readme.py.
set -euo pipefail
client=$(cd "$(dirname "$0")/.." && pwd)
if [ "$1" = run ]; then exec "$2/bin/$3"; fi
cd "$2"
for program in *.go; do
    mkdir "${program%.go}"
    mv "$program" "${program%.go}/main.go"
done
cp "$client/go.sum" .
go mod init snippet 2>/dev/null
module=github.com/walcast/walcast/clients/go
go mod edit -require "$module@v0.0.0" -replace "$module=$client"
go mod tidy >tidy.log 2>&1 || { cat tidy.log >&2; exit 1; }
go build -o bin/ ./...

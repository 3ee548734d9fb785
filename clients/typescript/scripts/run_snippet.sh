#!/usr/bin/env bash
# Runs a program in a project of its own that has installed what `npm pack` makes, as users do. Usage: run_snippet.sh DIRECTORY, which holds
# snippet.ts. PACKAGE: the packed file.
set -euo pipefail
client=$(cd "$(dirname "$0")/.." && pwd)
cd "$1"
echo '{"name": "snippet", "private": true, "type": "module"}' > package.json
npm install --silent --no-fund --no-audit --prefer-offline "$PACKAGE" >&2
# The compiler and Node's types are this client's.
ln -s "$client/node_modules/@types" node_modules/@types
cat > tsconfig.json <<'JSON'
{ "compilerOptions": { "strict": true, "target": "es2022", "module": "nodenext", "moduleResolution": "nodenext", "types": ["node"] }, "files": ["snippet.ts"] }
JSON
"$client/node_modules/.bin/tsc" -p .
exec node snippet.js

#!/usr/bin/env bash
# Programs in an empty project that has installed what `npm pack` makes, as users do: `build DIRECTORY`, then `run DIRECTORY NUMBER`; see
# ../conformance/readme.py. PACKAGE: the packed file.
set -euo pipefail
client=$(cd "$(dirname "$0")/.." && pwd)
if [ "$1" = run ]; then exec node "$2/$3.js"; fi
cd "$2"
echo '{"name": "snippet", "private": true, "type": "module"}' > package.json
npm install --silent --no-fund --no-audit --prefer-offline "$PACKAGE"
# The compiler and Node's types are this client's.
ln -s "$client/node_modules/@types" node_modules/@types
cat > tsconfig.json <<'JSON'
{
  "compilerOptions": { "strict": true, "target": "es2022", "module": "nodenext", "moduleResolution": "nodenext", "types": ["node"] },
  "include": ["*.ts"]
}
JSON
"$client/node_modules/.bin/tsc" -p .

#!/usr/bin/env bash
# pypgoutput as a peer of the Python client: `pypgoutput.sh build` installs it, `pypgoutput.sh DSN PUBLICATION` reads orders.
set -euo pipefail
venv=${CARGO_TARGET_DIR:-$(dirname "$0")/../../target}/bench-peers/pypgoutput
[ "${1:-}" = build ] || exec "$venv/bin/python" "$(dirname "$0")/pypgoutput_reader.py" "$@"
python3 -c 'import ensurepip, venv' 2>/dev/null || { echo "python3 or its venv is missing"; exit 3; }
[ -e "$venv/installed" ] && exit
python3 -m venv --clear "$venv"
# It does not say that it needs the first major version of pydantic.
"$venv/bin/pip" install --quiet --disable-pip-version-check pypgoutput==0.0.3 psycopg2-binary 'pydantic<2' \
    || { echo "pypgoutput 0.0.3 cannot be installed"; exit 3; }
touch "$venv/installed"

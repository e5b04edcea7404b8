#!/bin/sh
# One command from a fresh clone (needs Python >= 3.11): installs into .venv, then trains on generated digits.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$python is older than Python 3.11; set PYTHON to a newer one." >&2
    exit 2
}
[ -x .venv/bin/pip ] || "$python" -m venv --clear .venv
if [ ! -e .venv/.ready ] || [ -n "$(find pyproject.toml -newer .venv/.ready)" ]; then
    echo "Installing dimdata and torch into .venv (minutes, the first time) ..." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
    touch .venv/.ready
fi

exec .venv/bin/python examples/quickstart.py

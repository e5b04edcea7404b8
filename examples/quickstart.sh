#!/bin/sh
# One command from a fresh clone (needs Python >= 3.11): installs into .venv, then trains on generated digits.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "$python is older than Python 3.11; set PYTHON to a newer one." >&2
    exit 2
}
if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then
    if [ -e .venv ] && [ ! -e .venv/.made-by-dimdata ]; then
        echo ".venv has no working pip and was not made by this script: give it pip, or move it away." >&2
        exit 2
    fi
    rm -rf .venv/bin .venv/lib .venv/pyvenv.cfg  # what an earlier call of ours left unfinished
    mkdir -p .venv
    touch .venv/.made-by-dimdata
    "$python" -m venv .venv
fi
if [ ! -e .venv/.ready ] || [ -n "$(find pyproject.toml -newer .venv/.ready)" ]; then
    echo "Installing dimdata and torch into .venv (minutes, the first time) ..." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
    touch .venv/.ready
fi

exec .venv/bin/python examples/quickstart.py

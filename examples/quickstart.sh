#!/bin/sh
# One command from a fresh clone (needs Python >= 3.11): installs into .venv, then trains on generated digits.
set -eu
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
if [ ! -e .venv/.ready ] || [ -n "$(find pyproject.toml -newer .venv/.ready)" ]; then
    echo "Installing dimdata and torch into .venv (minutes, the first time) ..." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
    touch .venv/.ready
fi

exec .venv/bin/python examples/quickstart.py

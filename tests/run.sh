#!/bin/sh
# One command from a fresh clone (needs Python >= 3.11): installs into .venv, then runs tests, linter and type checker.
# Arguments go to pytest:  sh tests/run.sh -k dataset
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
if [ ! -e .venv/.tests-ready ] || [ -n "$(find pyproject.toml -newer .venv/.tests-ready)" ]; then
    echo "Installing dimdata, torch and the test tools into .venv (minutes, the first time) ..." >&2
    # Editable for those who work on it; in CI as a user would, so that what the wheel lacks is missed.
    if [ -n "${CI:-}" ]; then editable=""; else editable="--editable"; fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check $editable ".[dev]"
    touch .venv/.tests-ready
elif [ -n "${CI:-}" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
fi

# One thread a process: two processes of two threads each on two cores would only wait for one another.
OMP_NUM_THREADS=1 .venv/bin/pytest -n "${WORKERS:-2}" "$@"
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy

#!/usr/bin/env bash
# Runs linter, type checker and tests in an environment of their own.
# Arguments go to pytest, such as tests/converter -k rtn. With --fast first it leaves out the tests
# marked slow (those that take more than about two seconds alone) and ends within two minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
few=()
if [ "${1:-}" = --fast ]; then
    shift
    few=(-m "not slow")
fi
environment test cpu,olive,sweep,slurm,test
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$(dirname "$python")/lint-imports"
"$python" -m pytest -n 2 --dist worksteal "${few[@]}" "$@"

#!/usr/bin/env bash
# Runs linter, type checker and tests in an environment of their own.
# Arguments go to pytest, such as tests/converter -k rtn.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
environment test cpu,olive,sweep,slurm,test
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$(dirname "$python")/lint-imports"
"$python" -m pytest -n 2 --dist worksteal "$@"

#!/usr/bin/env bash
# Builds the documents as a site under .venv/site; a broken link is an error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
environment docs docs
"$python" -m mkdocs build --strict "$@"

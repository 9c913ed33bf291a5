#!/usr/bin/env bash
# Converts the built-in demo model to int4 and lets it tell a story.
# Arguments are added to the command, such as quant=none or output=FOLDER.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
environment demo cpu
"$python" -m converter.cli.main recipe=demo overwrite=true output=.venv/demo/model "$@"
"$python" scripts/tell_story.py .venv/demo/model

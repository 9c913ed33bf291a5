"""`convert olive-config recipe=NAME …`: a recipe as a workflow file of Olive, as far as it goes.

Olive runs the workflow (YAML) on a plain conversion, and gets what the recipe would give. Its first
lines say how to make that conversion, and what a workflow cannot express.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from converter.cli.compose import compose_recipe
from converter.cli.verbs import key_values
from converter.errors import together_with
from converter.graph.names import DATA_FILE, MODEL_FILE
from converter.olive.config import Workflow, workflow_of
from converter.output.writable import file_problems
from converter.storage.staging import LOCK, RECIPE_FILE
from converter.storage.user_path import user_path

ALONG = ("genai_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
"""Files that go with the model when the input folder does not exist yet."""
NOT_ALONG = (MODEL_FILE, DATA_FILE, LOCK, RECIPE_FILE)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    key_values(parser, "recipe=NAME and what a run takes further")
    parser.add_argument("--input", type=Path, help="the plain conversion; default: NAME-plain")
    parser.add_argument("--to", type=Path, help="file to write; default: the terminal")


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    with together_with(file_problems(parsed.to, new=True) if parsed.to else ()):
        recipe = compose_recipe(parsed.overrides)
        folder = user_path(parsed.input or f"{recipe.name}-plain")
        workflow = workflow_of(recipe, folder, _files(folder), f"{recipe.name}-olive")
    text = _text(workflow, parsed.overrides, folder)
    if parsed.to is None:
        sys.stdout.write(text)
        return 0
    with parsed.to.open("x", encoding="utf-8") as file:
        file.write(text)
    print(parsed.to)
    return 0


def _files(folder: Path) -> list[str]:
    if not folder.is_dir():
        return list(ALONG)
    return sorted(path.name for path in folder.iterdir() if path.name not in NOT_ALONG)


def _text(workflow: Workflow, words: Sequence[str], folder: Path) -> str:
    import yaml

    command = shlex.join([*words, *workflow.input_overrides, f"output={folder}"])
    comments = [
        "A workflow of Olive. First make its input:",
        f"  convert {command}",
        "then run it; CI=1 keeps Olive from waiting for its telemetry:",
        "  CI=1 olive run --config FILE",
        "What the recipe says and Olive cannot:",
        *(f"- {text}" for text in workflow.unsaid),
    ]
    body: str = yaml.safe_dump(workflow.values, sort_keys=False, allow_unicode=True)
    return "".join(f"# {line}\n" for line in comments) + body

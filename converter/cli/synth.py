"""`convert synth FOLDER recipe=NAME …`: write a seeded random checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from converter.cli.compose import compose_recipe
from converter.cli.verbs import key_values
from converter.errors import Problem, together_with
from converter.output.writable import place_problems
from converter.sources.synthetic import open_synthetic, write_checkpoint
from converter.storage.staging import open_folder


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    parser.add_argument("output", type=Path, help="folder to write")
    meaning = "recipe=NAME, source.dtype=float16, model.config.num_hidden_layers=2, …"
    key_values(parser, meaning)


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    output: Path = parsed.output.resolve()
    with together_with(_problems(output)):
        recipe = compose_recipe([*parsed.overrides, "source=synthetic", "source.path=null"])
        checkpoint = open_synthetic(recipe)
    with open_folder(output) as folder:
        write_checkpoint(checkpoint, folder)
    print(output)
    return 0


def _problems(output: Path) -> Iterator[Problem]:
    if output.exists():
        yield Problem(
            f"{output} exists already.", "a new folder", "choose another OUTPUT, or remove that one"
        )
    yield from place_problems(output)

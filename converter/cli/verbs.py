"""The verbs of the command, each a module of its name, and the parser that they share.

The verb `olive-config` is the module `converter/cli/olive_config.py`. Its docstring is its help,
`arguments` declares its words and options, and `run` takes what was parsed and gives the exit code.
A verb whose options no table can list has `run_words` instead, which takes the words as they are.

Little is imported here, and a verb only when it runs: help and TAB appear at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser

COMMAND, SECOND_NAME = "convert", "convert-genai"
"""The command, and its second name where `convert` is another program's."""
VERBS = {
    "list": "models, exports, recipes",
    "show": "a recipe, value by value",
    "diff": "how two recipes differ",
    "check": "validate without running",
    "new": "start a recipe file",
    "plan": "what a run will do",
    "explain": "what a folder is made of",
    "reproduce": "make a folder again",
    "chat": "talk to a folder's model",
    "bench": "a folder's speed",
    "eval": "a folder's error",
    "pick": "the best job of a sweep",
    "sample": "text to calibrate on",
    "synth": "a random checkpoint",
    "olive-config": "a recipe for Olive",
    "repo": "recipes that teams share",
    "cache": "list or clear the cache",
    "completion": "TAB for your shell",
}
"""Verb to what it is for, in 25 letters at most: help shows two of them on a line."""


def run_verb(verb: str, words: Sequence[str]) -> int:
    """Run a verb with the words that follow it; the exit code.

    Raises:
        ConvertError: what the verb could not do.
        SystemExit: help was asked for, or an option does not exist.
    """
    module, parser = module_of(verb), parser_of(verb)
    code: int = module.run_words(words) if parser is None else module.run(parser.parse_args(words))
    return code


def parser_of(verb: str) -> ArgumentParser | None:
    """The parser of a verb; None where the verb takes its words as they are."""
    module = module_of(verb)
    if hasattr(module, "run_words"):
        return None
    from argparse import ArgumentParser, RawDescriptionHelpFormatter

    parser = ArgumentParser(
        prog=f"{called_as()} {verb}",
        description=spelled(module.__doc__ or ""),
        formatter_class=RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    return parser


def help_of_words(verb: str) -> str | None:
    """The help of a verb that takes its words as they are; None where its parser gives it."""
    return spelled(module_of(verb).__doc__ or "") if parser_of(verb) is None else None


def key_values(parser: ArgumentParser, meaning: str = "as for a run") -> None:
    """Declare that a verb takes key=value words, as `overrides`."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=meaning)


def called_as() -> str:
    """The name by which the command was called."""
    return SECOND_NAME if Path(sys.argv[0]).stem == SECOND_NAME else COMMAND


def module_of(verb: str) -> Any:
    """The module of a verb, imported."""
    return import_module(f"converter.cli.{verb.replace('-', '_')}")


_COMMANDS = re.compile(rf"(?<![\w./-]){COMMAND}(?= (?:{'|'.join(VERBS)}|VERB|-|[a-z_.]+=)|:)")


def spelled(text: str) -> str:
    """A text with the commands in it as this user types them."""
    return text if called_as() == COMMAND else _COMMANDS.sub(called_as(), text)

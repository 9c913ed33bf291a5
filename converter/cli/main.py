"""The command `convert`.

Only the standard library is imported here: help and errors about the command line appear at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.recipe import Recipe

VERBS = {
    "list": ("converter.cli.listing", "recipes, one line each; words filter; `list passes`"),
    "show": ("converter.cli.show", "a composed recipe, and where each value comes from"),
    "diff": ("converter.cli.show:diff", "what two recipes do differently"),
    "check": ("converter.cli.check", "validate recipes, or a folder of them, without running"),
    "new": ("converter.cli.new", "write a recipe file to start from"),
    "pick": ("converter.cli.pick", "the best job of a sweep within limits"),
    "explain": ("converter.cli.provenance", "what a finished folder is made of"),
    "reproduce": ("converter.cli.provenance:reproduce", "make a folder again and compare hashes"),
    "repo": ("converter.cli.repo", "recipe repositories: add, list, update, remove, init"),
    "cache": ("converter.cli.cache", "what is kept for later runs: list, clear"),
    "completion": ("converter.cli.completion", "a TAB completion script for bash, zsh or fish"),
    "chat": ("converter.cli.chat", "talk to a converted model"),
    "sample": ("converter.cli.sample", "let a model write text to calibrate on"),
    "bench": ("converter.cli.bench", "measure how fast finished folders run"),
    "eval": ("converter.cli.evaluate", "compare finished folders with their float model"),
    "olive-config": ("converter.cli.olive_config", "write a recipe as a workflow of Olive"),
    "plan": ("converter.cli.plan", "say what a conversion will do, from headers alone"),
    "synth": ("converter.cli.synth", "write a synthetic checkpoint to disk"),
}
"""Verb to the module that runs it (`main`, or the function after a colon), and its purpose."""
SWEEPS = ("-m", "--multirun")
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 only if it did what was asked."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] == "--version":
        from converter import __version__

        print(__version__)
        return 0
    # onnxruntime and onnxruntime-genai report usage to their vendor unless told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    signal.signal(signal.SIGTERM, _interrupt)
    return _guarded(_verb(words[0]), words)


def _verb(word: str) -> Callable[[Sequence[str]], int]:
    if word in VERBS:
        place, _, name = VERBS[word][0].partition(":")
        verb: Callable[[Sequence[str]], int] = getattr(import_module(place), name or "main")
        return lambda words: verb(words[1:])
    if word in SWEEPS:
        from converter.cli import sweep

        return lambda words: sweep.main(words[1:])
    return _refuse if word.startswith("-") else run


def _refuse(words: Sequence[str]) -> int:
    """Hydra's own options, such as --config-dir, would read recipes that nothing has checked."""
    from converter.errors import ConvertError, Problem

    raise ConvertError(
        Problem(
            f"{words[0]!r} is not an option.",
            "-m for a sweep, --help or --version; folders of recipes come as ./FILE.yaml or NAME/…",
            "convert repo add NAME URL, or recipe=./FILE.yaml",
        )
    )


def run(words: Sequence[str]) -> int:
    """`convert recipe=NAME key=value …`"""
    from converter.cli.compose import compose_recipe

    recipe = compose_recipe(words)
    from converter.hashing import hashing_ahead

    with hashing_ahead(_local_weights(recipe)):
        with _imports():
            from converter.engine import run_recipe
            from converter.pass_registry import make_passes
            from converter.progress import show_progress

            passes = make_passes(recipe.passes)
        with show_progress() as progress:
            output = run_recipe(recipe, passes, progress)
    print(output)
    return 0


@contextlib.contextmanager
def _imports() -> Iterator[None]:
    """Import without looking for garbage: modules are not, and there are a million objects."""
    gc.disable()
    # Threads that compute outside of the interpreter come back to it soon, not after 5 ms.
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _local_weights(recipe: Recipe) -> list[Path]:
    """Files that the lock file will want the hash of, as far as their place is known already."""
    folder = recipe.source.path
    return sorted(Path(folder).expanduser().glob("*.safetensors")) if folder else []


def _guarded(verb: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    from converter.errors import ConvertError

    try:
        return verb(words)
    except ConvertError as error:
        count = len(error.problems)
        print(f"convert: {count} problem{'s' if count > 1 else ''}", file=sys.stderr)
        for problem in error.problems:
            print(f"- {problem}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("convert: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILED


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def help_text() -> str:
    """What `convert` alone prints."""
    from converter.cli.compose import group_choices, groups

    slots = {group: group_choices(group) for group in groups() if group != "recipe"}
    lines = [
        "convert: put a language model on ONNX Runtime GenAI, as a recipe says.",
        "",
        "  convert recipe=NAME [source.path=FOLDER] [output=FOLDER] [overwrite=true] [key=value …]",
        "  convert -m recipe=NAME key=a,b …    a sweep over all combinations, or -m sweep=NAME",
        *(f"  convert {verb:<28}{what}" for verb, (_, what) in VERBS.items()),
        "",
        "Try it:  convert recipe=demo",
        "",
        "Recipes (`convert list 7b cuda` shows those with both words, and what each is):",
        *_columns(group_choices("recipe")),
        "",
        "Slots, each with its choices (slot=choice, or slot.key=value):",
        *(f"  {group:<12}{', '.join(choices)}" for group, choices in slots.items()),
    ]
    return "\n".join(lines)


def _columns(names: Sequence[str], width: int = 100) -> list[str]:
    cell = max(map(len, names), default=0) + 2
    count = max(1, (width - 2) // cell)
    rows = [names[index : index + count] for index in range(0, len(names), count)]
    return ["  " + "".join(f"{name:<{cell}}" for name in row).rstrip() for row in rows]


def entry() -> None:
    """The console script: `main`, then the end of the process.

    After a conversion nothing is left to do, and taking PyTorch's modules down one by one costs
    half a second.
    """
    code, words = main(), sys.argv[1:]
    if words and words[0] not in VERBS and not words[0].startswith("-"):
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()

"""The command `convert`.

Only the standard library is imported here: help and errors about the command line appear at once.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.cli.verbs import VERBS, called_as, help_of_words, run_verb, spelled

if TYPE_CHECKING:
    from converter.errors import Problem
    from converter.recipe.schema import Recipe

SWEEPS = ("-m", "--multirun")
HELP = ("--help", "-h")
ANYWHERE = ("list", "show", "diff", "check", "new", "explain", "chat", "pick", "repo", "completion")
"""Verbs that read and write no weights by position, and so run on every system."""
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 only if it did what was asked."""
    words = list(sys.argv[1:] if arguments is None else arguments) or [HELP[0]]
    if words[:1] == ["help"]:
        words = [*words[1:2], HELP[0]]
    # onnxruntime and onnxruntime-genai report usage to their vendor unless told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    _tolerate_terminals()
    _end_by_interrupt()
    return _guarded(_dispatch, words)


def _dispatch(words: Sequence[str]) -> int:
    """Do what the first word names."""
    word, asks = words[0], _asks_for_help(words)
    if not asks and word not in (*ANYWHERE, "--version"):
        _check_system()
    if word in VERBS:
        text = help_of_words(word) if asks else None
        return run_verb(word, words[1:]) if text is None else _print(text)
    if word == "--version":
        from converter import __version__

        return _print(__version__)
    if word not in SWEEPS:
        _check_verb(words)
    if asks:
        return _print(help_text())
    if word in SWEEPS:
        from converter.cli import sweep

        return sweep.main(words[1:])
    return _refuse(words) if word.startswith("-") else run(words)


def _asks_for_help(words: Sequence[str]) -> bool:
    """Whether help stands among the words; what follows `--` is not meant for this command."""
    end = list(words).index("--") if "--" in words else len(words)
    return any(word in HELP for word in words[:end])


def _check_system() -> None:
    """Refuse a system without reads and writes by position, before anything is converted."""
    missing = [name for name in ("preadv", "pwrite") if not hasattr(os, name)]
    if missing:
        from converter.errors import ConvertError, Problem

        raise ConvertError(
            Problem(
                f"This system ({sys.platform}) lacks os.{' and os.'.join(missing)}.",
                "Linux or macOS; Windows runs the folders that they write",
                "run the command in WSL, in a container, or on another machine",
            )
        )


def _print(text: str) -> int:
    print(text)
    return 0


def _check_verb(words: Sequence[str]) -> None:
    """Refuse a first word that is more like a verb than like a recipe's name."""
    from converter.recipe.tree import RECIPE, built_in

    if "=" in words[0] or words[0].startswith(("-", "~")):
        return
    near = get_close_matches(words[0], [*built_in(RECIPE), *VERBS], n=1)
    if near and near[0] in VERBS:
        from converter.errors import ConvertError, Problem

        raise ConvertError(
            Problem(
                f"{words[0]!r} is not a verb.",
                f"{near[0]}, or another one that convert --help lists",
                shlex.join(["convert", near[0], *words[1:]]),
            )
        )


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
    from converter.storage.hashing import hashing_ahead

    with hashing_ahead(_local_weights(recipe)):
        with _imports():
            from converter.engine.execution import run_recipe
            from converter.engine.registry import make_passes
            from converter.progress import show_progress

            passes = make_passes(recipe.passes)
        with show_progress() as progress:
            output = run_recipe(recipe, passes, progress)
    print(output)
    return 0


@contextlib.contextmanager
def _imports() -> Iterator[None]:
    """Import without looking for garbage: modules are not, and there are a million objects.

    Not looking, and leaving them out of later looks, saves half a second of the 2.8 s that the
    processor works for `convert recipe=demo verify=none` (5 runs each).
    """
    gc.disable()
    # Threads that compute outside of the interpreter come back to it soon, not after 5 ms: hashing
    # a source beside the imports takes 1.7 s per GB instead of 2.2 s (4 runs each).
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _local_weights(recipe: Recipe) -> list[Path]:
    """Files that the lock file will want the hash of, as far as their place is known already."""
    from converter.storage.user_path import user_path

    folder = recipe.source.path
    return sorted(user_path(folder).glob("*.safetensors")) if folder else []


def _guarded(verb: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """What the verb gives; a problem is said in full, and a reader that has left is no problem."""
    from converter.errors import ConvertError

    try:
        return _printed(verb, words)
    except ConvertError as error:
        _say(error.problems)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"{called_as()}: interrupted; no result was published", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _stop_printing()
        return EXIT_FAILED
    except OSError as error:
        problem = _file_problem(error)
        if problem is None:
            raise
        _say([problem])
        return EXIT_FAILED


def _printed(verb: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """What the verb gives, once all that it printed has arrived."""
    try:
        code = verb(words)
    except SystemExit as ended:  # argparse's, after its help or its usage
        code = EXIT_USAGE if ended.code else 0
    print(end="", flush=True)
    return code


def _say(problems: Sequence[Problem]) -> None:
    count = len(problems)
    print(f"{called_as()}: {count} problem{'s' if count > 1 else ''}", file=sys.stderr)
    for problem in problems:
        print(f"- {spelled(str(problem))}", file=sys.stderr)


def _file_problem(error: OSError) -> Problem | None:
    """What a file, or the output of the command itself, could not take or give."""
    from converter.errors import Problem
    from converter.storage.staging import WRITE_ERRORS

    places = [str(name) for name in (error.filename, error.filename2) if name is not None]
    reason = "; ".join([error.strerror or str(error), *getattr(error, "__notes__", ())])
    if places:
        return Problem(
            f"Cannot read or write {' or '.join(places)}: {reason}.",
            "files that you may read, and places that you may write to",
            "correct the path or its permissions, or choose another place",
        )
    if error.errno not in WRITE_ERRORS:
        return None
    _stop_printing()
    return Problem(
        f"Cannot write the command's output: {reason}.",
        "a place with room",
        "send the output elsewhere, or free some room",
    )


def _stop_printing() -> None:
    """Send what is still to be printed nowhere, or Python fails on it once more at its end."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a number stays as it is
        printed = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, printed)
        os.close(nowhere)


def _tolerate_terminals() -> None:
    """Write `\\u2026` where a terminal's encoding lacks a character; read what it cannot say."""
    for stream, errors in (
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
        (sys.stdin, "replace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _end_by_interrupt() -> None:
    """Let what ends a process clear up first; `nohup` keeps on ignoring a terminal that closes."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def help_text() -> str:
    """What `convert` alone prints: a screen of 24 lines with 80 columns."""
    verbs = [f"{verb:<13}{what:<26}" for verb, what in VERBS.items()]
    half = (len(verbs) + 1) // 2
    lines = [
        "convert: a Hugging Face model to ONNX Runtime GenAI; a YAML recipe says how.",
        "",
        "  convert recipe=NAME [source.path=FOLDER] [output=FOLDER] [key=value …]",
        "  convert model=NAME export=NAME …    the same as recipe=MODEL_EXPORT",
        "  convert -m recipe=NAME key=a,b …    a sweep over all combinations",
        "  convert VERB …",
        "",
        *(f"  {one}{two}".rstrip() for one, two in zip(verbs[:half], verbs[half:], strict=True)),
        "",
        "Try `convert recipe=demo`, then `convert list` and `convert VERB --help`.",
    ]
    return spelled("\n".join(lines))


def entry() -> None:
    """The console script: `main`, then the end of the process.

    After a conversion nothing is left to do. Taking PyTorch's modules down one by one would cost
    the processor 0.3 s (5 runs of the demo each).
    """
    code, words = main(), sys.argv[1:]
    if words and words[0] not in VERBS and not words[0].startswith("-"):
        with contextlib.suppress(OSError):
            print(end="", flush=True)
            print(end="", flush=True, file=sys.stderr)
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()

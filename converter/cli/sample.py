"""`convert sample FOLDER OUTPUT`: let a converted model write text to calibrate on.

The text comes without temperature or cut-off. A calibrated conversion takes it with
calibration.text=OUTPUT.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from converter.errors import ConvertError, Problem, raise_if, together_with
from converter.output.writable import file_problems
from converter.runtime.sampling import SampleOptions, sample_texts
from converter.runtime.session import LARGEST_SEED, Runtime, number_problems, read_configs


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    defaults = SampleOptions()
    parser.add_argument("folder", type=Path, help="a folder that convert has written")
    parser.add_argument("output", type=Path, help="FILE.txt, or FILE.jsonl of a chat model")
    parser.add_argument("--tokens", type=int, default=defaults.tokens, help="tokens in all")
    parser.add_argument("--length", type=int, default=defaults.length, help="tokens of each text")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the draws")
    parser.add_argument("--plain", action="store_true", help="plain text, also from a chat model")


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    options = SampleOptions(parsed.tokens, parsed.length, parsed.seed, not parsed.plain)
    with together_with(_problems(parsed.output, options)):
        raise_if(_kind_problems(parsed.folder, parsed.output, options))
    lines = _sampled(parsed.folder, options)
    _write(parsed.output, lines)
    print(parsed.output)
    return 0


def _sampled(folder: Path, options: SampleOptions) -> list[str]:
    from converter.progress import show_progress

    runtime = Runtime(folder)
    with show_progress() as progress:
        progress.start("sample")
        return sample_texts(runtime, options, progress.advance)


def _problems(output: Path, options: SampleOptions) -> Iterator[Problem]:
    yield from file_problems(output, new=True)
    yield from number_problems("--tokens", options.tokens, 1)
    yield from number_problems("--length", options.length, 1)
    yield from number_problems("--seed", options.seed, 0, LARGEST_SEED)


def _kind_problems(folder: Path, output: Path, options: SampleOptions) -> Iterator[Problem]:
    """The wrong suffix for what the model in `folder` writes."""
    chats = options.chats and "chat_template" in read_configs(folder)[1]
    wanted, kind = (".jsonl", "chats") if chats else (".txt", "plain text")
    if output.suffix != wanted and not output.is_dir():
        yield Problem(
            f"{output} is no place for {kind}, which {folder} writes.",
            f"a file {wanted}",
            f"give {output.with_suffix(wanted)}" + (", or --plain" if chats else ""),
        )


def _write(output: Path, lines: Sequence[str]) -> None:
    """All of it or nothing; text that cannot get its name is kept, and the error says where."""
    separator = "\n" if output.suffix == ".jsonl" else "\n\n"
    content = (separator.join(lines) + "\n").encode()
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        _publish(partial, output)
    except OSError as error:
        kept = _kept(partial, content)
        raise ConvertError(
            Problem(
                f"{output} cannot be written: {error.strerror or error}.",
                "a new file in a folder that can be written",
                f"mv {kept} NEW{output.suffix}, where the text is kept",
            )
        ) from error
    partial.unlink()


def _publish(partial: Path, output: Path) -> None:
    """Give what is in `partial` its name, without ever replacing a file as a rename would."""
    try:
        os.link(partial, output)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        file = output.open("xb")
        try:
            with file:
                file.write(partial.read_bytes())
        except OSError:
            output.unlink(missing_ok=True)
            raise


def _kept(partial: Path, content: bytes) -> Path:
    """The file that holds all of `content`: `partial`, or one among the temporary files."""
    if partial.is_file() and partial.stat().st_size == len(content):
        return partial
    with contextlib.suppress(OSError):
        partial.unlink()
    number, name = tempfile.mkstemp(prefix="convert-sample-")
    with open(number, "wb") as file:
        file.write(content)
    return Path(name)

"""`convert sample`: let a converted model write text to calibrate on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from converter.errors import ConvertError, Problem, raise_if
from converter.sampling import SampleOptions, sample_texts, writes_chats


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    defaults = SampleOptions()
    parser = argparse.ArgumentParser(
        prog="convert sample",
        description="Let a converted model write text, as it comes without temperature or cut-off. "
        "A calibrated conversion takes it with calibration.text=OUTPUT.",
    )
    parser.add_argument("folder", type=Path, help="a folder that convert has written")
    parser.add_argument("output", type=Path, help="FILE.txt, or FILE.jsonl of a chat model")
    parser.add_argument("--tokens", type=int, default=defaults.tokens, help="in all")
    parser.add_argument("--length", type=int, default=defaults.length, help="of a text or turn")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--plain", action="store_true", help="plain text, also from a chat model")
    parsed = parser.parse_args(arguments)
    options = SampleOptions(parsed.tokens, parsed.length, parsed.seed, not parsed.plain)
    raise_if(_problems(parsed.output, options))
    lines = _sampled(parsed.folder, parsed.output, options)
    _write(parsed.output, lines)
    print(parsed.output)
    return 0


def _sampled(folder: Path, output: Path, options: SampleOptions) -> list[str]:
    from converter.progress import show_progress
    from converter.runtime import Runtime

    runtime = Runtime(folder)
    chats = writes_chats(runtime, options)
    wanted, kind = (".jsonl", "chats") if chats else (".txt", "plain text")
    if output.suffix != wanted:
        raise ConvertError(
            Problem(
                f"{output} for {kind} from {folder}",
                f"a file {wanted}",
                f"give {output.with_suffix(wanted)}" + (", or --plain" if chats else ""),
            )
        )
    with show_progress() as progress:
        progress.start("sample")
        return sample_texts(runtime, options, progress.advance)


def _problems(output: Path, options: SampleOptions) -> list[Problem]:
    found = []
    if output.exists():
        found.append(Problem(f"{output} exists already.", "a new file", "choose another name"))
    if not output.resolve().parent.is_dir():
        found.append(Problem(f"{output} is in no folder.", "a folder that exists", "make it first"))
    for name in ("tokens", "length"):
        value = getattr(options, name)
        if value < 1:
            found.append(Problem(f"--{name} {value}.", "at least 1", f"give --{name} 512"))
    return found


def _write(output: Path, lines: Sequence[str]) -> None:
    """All of it or nothing, also when the disk is full."""
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    separator = "\n" if output.suffix == ".jsonl" else "\n\n"
    try:
        partial.write_text(separator.join(lines) + "\n", encoding="utf-8")
        os.link(partial, output)  # unlike a rename, it never replaces a file
    finally:
        partial.unlink(missing_ok=True)

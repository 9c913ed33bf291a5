"""`convert bench FOLDER…`: measure how fast finished folders run on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from converter.errors import raise_if
from converter.output.writable import PICTURES, file_problems
from converter.progress import show_progress
from converter.speed.benchmarking import Report, bench, draw, folder_problems, table


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a converted model")
    parser.add_argument(
        "--prompt-lengths",
        type=_lengths,
        default=[16, 128, 512],
        help="tokens of the prompts, such as 16,128,512 (decoding follows the shortest)",
    )
    parser.add_argument("--new-tokens", type=_at_least(2), default=64, help="tokens to decode")
    parser.add_argument("--rounds", type=_at_least(1), default=3, help="processes a folder")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--picture", type=Path, help="also draw them here: .png or .svg")


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    folders = [folder.resolve() for folder in parsed.folders]
    raise_if(
        [
            *folder_problems(folders),
            *(file_problems(parsed.json) if parsed.json else ()),
            *(file_problems(parsed.picture, PICTURES) if parsed.picture else ()),
        ]
    )
    with show_progress() as progress:
        progress.start("bench")
        report = bench(
            folders, parsed.prompt_lengths, parsed.new_tokens, parsed.rounds, progress.advance
        )
    print(table(report))
    _write(report, parsed.json, parsed.picture)
    return 0


def _write(report: Report, figures: Path | None, picture: Path | None) -> None:
    from converter.storage.staging import replacing

    if figures:
        with replacing(figures.resolve()) as path:
            path.write_text(report.to_json(), encoding="utf-8")
    if picture:
        with replacing(picture.resolve()) as path:
            draw(report, path)


def _lengths(text: str) -> list[int]:
    return [_at_least(1)(part) for part in text.split(",")]


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"at least {least}, not {text}")
        return int(text)

    return number

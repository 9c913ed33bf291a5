"""Files that a verb leaves where its user says: what keeps them from being written.

The verbs ask before the work, so that hours of it do not end in a file that cannot be opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from converter.errors import Problem
from converter.machine.disk import nearest_folder

PICTURES = (".png", ".svg")
"""Suffixes of files that the charts are drawn to."""


def file_problems(path: Path, suffixes: Sequence[str] = (), new: bool = False) -> Iterator[Problem]:
    """Why `path` cannot be written, or has none of the `suffixes`; `new` keeps an older file."""
    if path.is_dir():
        name = f"NAME{suffixes[0]}" if suffixes else "NAME"
        yield Problem(f"{path} is a folder.", "a file", f"give {path / name}")
        return
    if suffixes and path.suffix not in suffixes:
        wanted = f"a file {' or '.join(suffixes)}"
        yield Problem(
            f"{path} ends with {path.suffix!r}.", wanted, f"give {path.with_suffix(suffixes[0])}"
        )
    if path.exists() and new:
        yield Problem(f"{path} exists already.", "a new file", "choose another name")
    elif path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        yield Problem(f"{path} cannot be replaced.", "a new file", "choose another name")
    else:
        yield from _parent_problems(path.resolve().parent, path)


def place_problems(output: Path) -> Iterator[Problem]:
    """Why the new folder `output` cannot be made; folders above it need not exist yet."""
    above = nearest_folder(output.resolve().parent)
    if not above.is_dir():
        yield Problem(f"{above}, above {output}, is a file.", "a folder", "choose another place")
    elif not _is_writable(above):
        yield _not_writable(above, output)


def _parent_problems(folder: Path, path: Path) -> Iterator[Problem]:
    if not folder.is_dir():
        yield Problem(
            f"{path} cannot be written: there is no folder {folder}.",
            "a folder that exists",
            f"mkdir -p {folder}, or choose another place",
        )
    elif not _is_writable(folder):
        yield _not_writable(folder, path)


def _not_writable(folder: Path, path: Path) -> Problem:
    return Problem(
        f"{path} cannot be written: {folder} is not writable.",
        "a folder that you may write to, on a disk that is not read-only",
        "choose another place",
    )


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)

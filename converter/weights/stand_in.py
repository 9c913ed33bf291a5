"""Files that stand where another should be: what a clone or a download left in its place."""

from __future__ import annotations

from pathlib import Path

from converter.errors import Problem

POINTER = b"version https://git-lfs.github.com/spec/"
PAGE = (b"<!doctype html", b"<html")


def stand_in(path: Path) -> Problem | None:
    """The problem of a file that is none of its kind: a Git LFS pointer, a web page, no bytes.

    None for any other file, and for one that cannot be read: whoever reads it says why.
    """
    if path.is_symlink() and not path.exists():
        return Problem(
            f"{path} is a link to {path.readlink()}, which does not exist.",
            "the file itself, or a link to it",
            "fetch the file again; a pruned cache of the hub leaves such links",
        )
    if path.exists() and not (path.is_file() or path.is_dir()):
        found = f"{path} is a pipe or a device, which is no file."
        return Problem(found, "a file", "remove it, and fetch the file again")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return None
    return _by_start(path, start)


def _by_start(path: Path, start: bytes) -> Problem | None:
    if start.startswith(POINTER):
        return Problem(
            f"{path} is a Git LFS pointer, a text of a few lines in the place of the file.",
            "the file itself",
            f"run `git lfs pull` in {path.parent}, or fetch the file from the hub",
        )
    if start.lstrip().lower().startswith(PAGE):
        return Problem(
            f"{path} is a web page in HTML, perhaps of a mirror that asks for a login.",
            "the file itself",
            "fetch the file again, with a token where the repository wants one",
        )
    if not start:
        return Problem(f"{path} is empty.", "a file with content", "fetch the file again")
    return None

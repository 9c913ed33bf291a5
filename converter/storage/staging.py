"""The output folder while it is being made: a temporary neighbour, renamed when complete.

A run that fails removes it; one that is killed leaves a folder whose name begins with a dot and
ends with the process number, which the next run into the same place removes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem
from converter.storage.hashing import file_entries

LOCK, RECIPE_FILE = "convert.lock.json", "recipe.yaml"
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


class Staging:
    """A folder that becomes `output` when `publish` is called."""

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder, self.output = folder, output
        self.lock: dict[str, Any] = {}
        """What goes into the lock file; passes add to it."""

    @staticmethod
    def nowhere() -> Staging:
        """A staging without a folder, for checks that write nothing."""
        return Staging(Path(os.devnull), Path(os.devnull))

    def publish(self, seconds: dict[str, float], facts: dict[str, Any]) -> None:
        """Write the lock file and rename the folder into place, replacing an older output.

        The files are hashed here, after the last pass that may have changed them. What lies in
        subfolders are reports; they hold seconds, which differ from run to run.
        """
        files = (path for path in self.folder.iterdir() if path.is_file())
        self.lock["files"] = file_entries(sorted(files))
        self.lock["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
        if facts:
            self.lock["facts"] = facts
        text = json.dumps(self.lock, indent=2, ensure_ascii=False) + "\n"
        (self.folder / LOCK).write_text(text, encoding="utf-8")
        self.rename()

    def rename(self) -> None:
        """Put the folder in the place of the output; an older output goes when it is there."""
        retired = _sibling(self.output, "old")
        with contextlib.suppress(FileNotFoundError):
            self.output.rename(retired)
        try:
            self.folder.rename(self.output)
        except OSError:
            if retired.exists():
                retired.rename(self.output)
            raise
        _remove(retired)


@contextmanager
def open_folder(output: Path) -> Iterator[Path]:
    """A temporary folder that becomes `output` if the context ends without an error."""
    with open_staging(output) as staging:
        yield staging.folder
        staging.rename()


@contextmanager
def open_staging(output: Path) -> Iterator[Staging]:
    """Make the temporary folder beside `output`; remove it unless it was published.

    Raises:
        ConvertError: the place cannot be written, or the disk is full.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _recover(output)
        folder = _sibling(output, "tmp")
        folder.mkdir()
    except OSError as error:
        raise ConvertError(_cannot_write(output.parent, error)) from error
    try:
        yield Staging(folder, output)
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        raise ConvertError(_cannot_write(folder, error)) from error
    finally:
        _remove(folder)


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A temporary folder beside another, removed at the end; a killed run's goes with the next."""
    with open_staging(beside) as staging:
        yield staging.folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path` that takes its place if the context ends without an error."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sibling(output: Path, kind: str) -> Path:
    return output.with_name(f".{output.name}.{kind}-{os.getpid()}")


def _recover(output: Path) -> None:
    """Clear what killed runs left: put an output back that was moved aside, drop the rest."""
    pattern = re.compile(rf"\.{re.escape(output.name)}\.(tmp|old)-(\d+)")
    for path in output.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None or _is_running(int(match[2])):
            continue
        if match[1] == "old" and not output.exists():
            path.rename(output)
        else:
            _remove(path)


def _is_running(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _cannot_write(folder: Path, error: OSError) -> Problem:
    free = ""
    with contextlib.suppress(OSError):
        free = f"; {shutil.disk_usage(folder.parent).free / 1e6:,.0f} MB are free there"
    return Problem(
        f"Cannot write {folder}: {error.strerror or error}{free}.",
        "a writable place with room for the result (`convert plan` says how much)",
        "set output=FOLDER to a place that has it",
    )

"""A place for caches where the usual one cannot be written: a folder of the user's own in /tmp.

In a container whose user has no home and may not write into the installation, a conversion still
has to keep compiled code and statistics somewhere.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from functools import cache
from pathlib import Path

from converter.machine.disk import nearest_folder


def is_writable(folder: Path) -> bool:
    """Whether `folder` may be written, or made where it does not exist yet."""
    try:
        return os.access(nearest_folder(folder), os.W_OK | os.X_OK)
    except OSError:  # a folder above it may not even be entered
        return False


@cache
def temporary_folder(name: str, wanted: str) -> Path:
    """A temporary folder in place of `wanted`, which cannot be written; says so once.

    It is kept for later runs. Nobody else may write there: what is read from it is trusted.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"convert-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        private = _is_private(folder)
    except OSError:
        private = False
    if not private:
        folder = Path(tempfile.mkdtemp(prefix="convert-"))
    (folder / name).mkdir(exist_ok=True)
    logging.getLogger("converter").warning(
        "%s cannot be written: %s is used in its place.", wanted, folder / name
    )
    return folder / name


def _is_private(folder: Path) -> bool:
    status = folder.lstat()
    own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return own and stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077

"""Where numba keeps the compiled kernels, so that they are compiled once on a machine."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numba

from converter.storage.fallback import is_writable, temporary_folder


@cache
def choose_kernel_cache() -> None:
    """Point numba to a temporary folder where neither of its usual places can be written.

    They are `__pycache__` beside the kernels, then the user's cache folder; without a place numba
    refuses to compile what it is told to cache. Called before a kernel is defined.
    """
    if numba.config.CACHE_DIR:
        return
    beside = Path(__file__).parent / "__pycache__"
    places = [beside if beside.exists() else beside.parent]
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not home.startswith("~"):
        places.append(Path(home) / "numba")
    if not any(map(is_writable, places)):
        numba.config.CACHE_DIR = str(temporary_folder("numba", "The cache of compiled code"))

"""How much memory this process takes."""

from __future__ import annotations

import sys
from contextlib import suppress


def process_memory() -> int:
    """Bytes that this process has held at its peak so far: the interpreter and its libraries."""
    if sys.platform == "win32":
        return 350_000_000  # not to be had from the standard library there
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def return_memory() -> None:
    """Give what was freed back to the system, where the C library keeps it and can be asked to.

    glibc keeps small blocks below one that is still in use: after a tokenizer, a hundred megabytes.
    """
    if sys.platform == "linux":
        import ctypes

        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)

"""How much memory this process takes."""

from __future__ import annotations

import sys


def process_memory() -> int:
    """Bytes that this process has held at its peak so far: the interpreter and its libraries."""
    if sys.platform == "win32":
        return 350_000_000  # not to be had from the standard library there
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

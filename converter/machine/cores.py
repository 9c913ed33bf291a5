"""How many cores this machine lends to the process."""

from __future__ import annotations

import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")


def physical_cores(topology: Path = TOPOLOGY) -> int:
    """Physical cores that the process may run on, at least 1.

    Two threads of one core share its arithmetic units, so a second one slows matrix products down.
    Where the system does not tell (only Linux does, in `topology`), all logical ones count.
    """
    allowed = _allowed()
    cores = set()
    for number in allowed:
        try:
            cores.add((topology / f"cpu{number}/topology/thread_siblings_list").read_text())
        except OSError:
            return max(1, len(allowed))
    return max(1, len(cores))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))

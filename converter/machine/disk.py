"""Room on disks: what the steps of a conversion need, and what is wrong when it is not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from converter.errors import Problem
from converter.progress import format_bytes

RESULT = "the result"
"""Purpose of the room that the finished folder takes."""


@dataclass(frozen=True)
class Room:
    """Bytes that a step needs in a folder, which need not exist yet, while it runs."""

    folder: Path
    nbytes: int
    purpose: str
    """What lies there, to follow `for`: `the result`."""
    remedy: str
    """What to type when the room is not there."""


def room_problems(rooms: Iterable[Room]) -> Iterator[Problem]:
    """Disks with less free than the steps need of them.

    What two steps need of one folder is not added up, because the first may have cleared its part
    away before the second; what different folders of one disk need is.
    """
    largest: dict[Path, Room] = {}
    for room in rooms:
        known = largest.get(room.folder)
        if known is None or room.nbytes > known.nbytes:
            largest[room.folder] = room
    disks: dict[int, list[Room]] = {}
    for room in largest.values():
        disks.setdefault(nearest_folder(room.folder).stat().st_dev, []).append(room)
    for group in disks.values():
        free, needed = free_bytes(group[0].folder), sum(room.nbytes for room in group)
        if free is not None and free < needed:
            yield _too_little(group, free)


def _too_little(rooms: list[Room], free: int) -> Problem:
    shares = [f"{format_bytes(room.nbytes)} for {room.purpose}" for room in rooms]
    return Problem(
        f"The disk of {' and '.join(str(room.folder) for room in rooms)} has "
        f"{format_bytes(free)} free.",
        f"at least {' and '.join(shares)}",
        ", or ".join([*(room.remedy for room in rooms), "free some"]),
    )


def free_bytes(folder: Path) -> int | None:
    """Bytes free on the disk on which `folder` lies or would lie; None when it does not say."""
    try:
        return shutil.disk_usage(nearest_folder(folder)).free
    except OSError:
        return None


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or the nearest of those above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())

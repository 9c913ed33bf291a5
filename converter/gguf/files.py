"""The files of a GGUF model: one, or those of a split one, `NAME-00001-of-00003.gguf`."""

from __future__ import annotations

import re
from pathlib import Path

from converter.errors import ConvertError, Problem

SUFFIX = ".gguf"
_SPLIT = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_OTHER_FILES = ("mmproj-*", "*-mmproj-*", "*.imatrix.gguf", "imatrix*")
"""Names of files beside a model that are none: projectors of images, importance matrices."""


def is_gguf(path: Path) -> bool:
    """Whether `path` is a GGUF file, or a folder with one."""
    if path.is_dir():
        return any(not _is_other(item) for item in path.glob(f"*{SUFFIX}"))
    return path.suffix.lower() == SUFFIX


def gguf_files(path: Path) -> list[Path] | None:
    """The files of the GGUF model at `path`, in order: a file, one of a split, or their folder.

    None where `path` is something else.

    Raises:
        ConvertError: a folder with several models, or a file of a split one is missing.
    """
    if path.is_dir():
        models = sorted({_first(item) for item in path.glob(f"*{SUFFIX}") if not _is_other(item)})
        if len(models) > 1:
            raise ConvertError(_several(path, models))
        return _parts(models[0]) if models else None
    return _parts(_first(path)) if path.suffix.lower() == SUFFIX else None


def _is_other(path: Path) -> bool:
    return any(path.match(pattern) for pattern in _OTHER_FILES)


def _first(path: Path) -> Path:
    found = _SPLIT.fullmatch(path.name)
    return path.with_name(f"{found['name']}-00001-of-{found['count']}.gguf") if found else path


def _parts(first: Path) -> list[Path]:
    found = _SPLIT.fullmatch(first.name)
    if found is None:
        return [first]
    count = int(found["count"])
    parts = [
        first.with_name(f"{found['name']}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConvertError(
            Problem(
                f"{first.parent} lacks {missing[0]}{more} of a model in {count} files.",
                "all files of the split model in one folder",
                "fetch the files that are missing",
            )
        )
    return parts


def _several(folder: Path, models: list[Path]) -> Problem:
    names = ", ".join(path.name for path in models[:3])
    return Problem(
        f"{folder} holds {len(models)} GGUF models: {names}{', …' if len(models) > 3 else ''}.",
        "one model",
        f"set source.path={models[0]}, or another file",
    )

"""Paths as a user writes them: with `~`, relative, or through links."""

from __future__ import annotations

from pathlib import Path

from converter.errors import ConvertError, Problem


def user_path(text: str | Path) -> Path:
    """The absolute path that `text` stands for.

    Raises:
        ConvertError: `~NAME` names no user, `~` has no home folder here, or links go in a circle.
    """
    try:
        return Path(text).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise ConvertError(
            Problem(
                f"{text} is no path here: {str(error).rstrip('.')}.",
                "a path from the root or from this folder; `~` stands for your home folder",
                "write the whole path",
            )
        ) from None

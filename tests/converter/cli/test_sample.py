"""The file of `convert sample`: text that took hours is never lost."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from converter.cli import sample
from converter.errors import ConvertError


def refuse(number: int) -> Any:
    def call(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return call


def kept(error: ConvertError) -> Path:
    """The file that the error's remedy moves."""
    return Path(str(error).partition("mv ")[2].split()[0])


def test_a_disk_without_hard_links_takes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    sample._write(tmp_path / "own.txt", ["a", "b"])
    assert (tmp_path / "own.txt").read_text() == "a\n\nb\n"
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appeared_meanwhile_stays_and_the_text_is_kept(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    (tmp_path / "own.jsonl").write_text("theirs")
    with pytest.raises(ConvertError) as caught:
        sample._write(tmp_path / "own.jsonl", ["{}", "{}"])
    assert (tmp_path / "own.jsonl").read_text() == "theirs"
    assert kept(caught.value).read_text() == "{}\n{}\n"


def test_text_that_the_folder_does_not_take_is_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(Path, "write_bytes", refuse(errno.ENOSPC))
    with pytest.raises(ConvertError, match="No space left") as caught:
        sample._write(tmp_path / "own.txt", ["a"])
    assert kept(caught.value).parent == tmp_path / "temporary"
    assert kept(caught.value).read_text() == "a\n"
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]

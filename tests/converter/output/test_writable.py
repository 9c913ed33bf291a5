"""Places where a result cannot be written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from converter.output.writable import PICTURES, file_problems, place_problems


def said(problems: Any) -> str:
    found = list(problems)
    assert all(item.expected and item.remedy for item in found)
    return "\n".join(map(str, found))


def test_a_new_file_and_one_to_replace_are_fine(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    assert not [*file_problems(tmp_path / "new.json"), *file_problems(tmp_path / "old.json")]
    assert not list(file_problems(tmp_path / "new.svg", PICTURES, new=True))


def test_what_cannot_be_written_says_why(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    assert "no folder" in said(file_problems(tmp_path / "none" / "x.json"))
    assert "is a folder" in said(file_problems(tmp_path))
    assert "exists already" in said(file_problems(tmp_path / "old.json", new=True))
    assert "no folder" in said(file_problems(tmp_path / "old.json" / "x.json"))
    assert "cannot be replaced" in said(file_problems(Path(os.devnull)))


@pytest.mark.parametrize("name", ["x.jpg", "x", "."])
def test_a_picture_has_a_suffix_that_can_be_drawn(name: str) -> None:
    assert ".png" in said(file_problems(Path(name), PICTURES))


def test_the_suffix_and_the_folder_are_said_together(tmp_path: Path) -> None:
    assert len(list(file_problems(tmp_path / "none" / "x.jpg", PICTURES))) == 2


def test_a_folder_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert f"{tmp_path} is not writable" in said(file_problems(tmp_path / "x.json"))
    assert f"{tmp_path} is not writable" in said(place_problems(tmp_path / "a" / "b"))


def test_a_new_folder_may_lie_in_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    assert not list(place_problems(tmp_path / "a" / "b"))
    (tmp_path / "file").write_text("")
    assert "is a file" in said(place_problems(tmp_path / "file" / "b"))

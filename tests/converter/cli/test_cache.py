"""`convert cache`: what is listed, and what clearing leaves."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from converter.cli.main import main
from converter.storage.cache import Cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path))
    found = Cache(tmp_path)
    for number, name in enumerate(("quantize", "evaluate")):

        def make(folder: Path, size: int = 1000 * (number + 1)) -> None:
            (folder / "content").write_bytes(bytes(size))

        found.get_or_make({"pass": name, "number": number}, make)
    return found


def said(capsys: pytest.CaptureFixture[str], action: str) -> list[str]:
    assert main(["cache", action]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_entry_has_a_line_and_the_last_one_their_sum(
    cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    *lines, last = said(capsys, "list")
    assert {line.split()[1] for line in lines} == {"quantize", "evaluate"}
    today = time.strftime("%Y-%m-%d")
    assert all(today in line for line in lines)
    assert last.startswith("2 entries, ") and str(cache.folder) in last
    nbytes = sum(entry.nbytes for entry in cache.entries())
    assert f"{nbytes / 1000:.2f} kB" in last


def test_clearing_leaves_what_may_be_in_use(
    cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "clear")[-1].startswith("0 of 2 entries removed")
    past = time.time() - 7200
    for path in [cache.folder, *cache.folder.rglob("*")]:
        os.utime(path, (past, past))
    assert said(capsys, "clear")[-1].startswith("2 of 2 entries removed")
    assert said(capsys, "list") == [f"0 entries, 0 B, in {cache.folder}"]


def test_an_empty_cache_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path / "none"))
    assert said(capsys, "list")[-1].startswith("0 entries")
    assert not (tmp_path / "none").exists()

"""Hashes are the library's own, whether taken at once, in pieces or ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blake3
import pytest

from converter.storage import hashing
from converter.storage.hashing import file_entries, hash_file, hashing_ahead


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000])
def test_pieces_make_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(hashing, "PIECE", 1000)
    path = tmp_path / "file"
    path.write_bytes(bytes(index % 251 for index in range(size)))
    expected = blake3.blake3(path.read_bytes()).hexdigest()
    assert hash_file(path) == expected
    assert file_entries([path], 2) == {"file": {"size": size, "blake3": expected}}


def test_hashing_ahead_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_text(path.name)
    read: list[Path] = []
    plain = hashing._hash

    def noted(path: Path, *rest: Any) -> str:
        read.append(path)
        return plain(path, *rest)

    monkeypatch.setattr(hashing, "_hash", noted)
    with hashing_ahead(paths):
        found = [hash_file(path) for path in (*paths, *paths)]
    expected = [blake3.blake3(path.read_bytes()).hexdigest() for path in paths]
    assert found == expected * 2
    assert read == [path.resolve() for path in paths]
    paths[0].write_text("changed since")
    assert hash_file(paths[0]) != expected[0]


def test_a_file_that_cannot_be_read_fails_whoever_asks(tmp_path: Path) -> None:
    with hashing_ahead([tmp_path / "missing"]), pytest.raises(FileNotFoundError):
        hash_file(tmp_path / "missing")

"""What a clone or a download leaves in the place of a file is named for what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from converter.errors import ConvertError
from converter.model.checkpoint import read_json
from converter.weights.safetensors_file import open_safetensors
from converter.weights.stand_in import stand_in
from converter.weights.torch_file import open_torch_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
READERS = [read_json, open_safetensors, open_torch_file]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, "Git LFS pointer"),
        (b"\n <!DOCTYPE html><title>Sign in</title>", "web page"),
        (b"<html>", "web page"),
        (b"", "is empty"),
    ],
)
def test_every_reader_names_it(
    tmp_path: Path, read: Callable[[Path], object], content: bytes, said: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ConvertError, match=said) as caught:
        read(path)
    assert len(caught.value.problems) == 1 and caught.value.problems[0].remedy


@pytest.mark.parametrize("read", READERS)
def test_a_link_to_nothing_is_no_file_that_is_not_there(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    (tmp_path / "file").symlink_to("../blobs/gone")
    with pytest.raises(ConvertError, match=r"link to \.\./blobs/gone"):
        read(tmp_path / "file")


def test_other_files_are_left_to_their_readers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert stand_in(path) is None and stand_in(tmp_path) is None
    path.write_bytes(b"{}")
    assert stand_in(path) is None

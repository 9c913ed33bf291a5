"""The head of a GGUF file: what the library reads, and what damaged files say."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import SIZES, add_value, tiny_llama, write_gguf

from converter.errors import ConvertError
from converter.gguf.header import read_header

VALUES = {
    "a.bool": True,
    "a.number": 7,
    "a.float": 1e-5,
    "a.text": "Größe",
    "a.numbers": [1, 2, 3],
    "a.floats": [0.5, 0.25],
    "a.flags": [True, False],
    "a.texts": ["one", "zwei ▁", ""],
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model.gguf", "Q8_0")


def test_places_and_metadata_are_the_librarys(model: Path) -> None:
    header, reader = read_header(model), gguf.GGUFReader(model)
    theirs = {
        item.name: (item.tensor_type.name, int(item.data_offset), int(item.n_bytes))
        for item in reader.tensors
    }
    assert {p.name: (p.kind, p.offset, p.nbytes) for p in header.tensors} == theirs
    shapes = {
        item.name: tuple(int(size) for size in reversed(item.shape)) for item in reader.tensors
    }
    assert {place.name: place.shape for place in header.tensors} == shapes
    for key, value in header.metadata.items():
        assert reader.fields[key].contents() == pytest.approx(value)


def test_values_of_every_type(tmp_path: Path) -> None:
    header = read_header(write_gguf(tmp_path / "a.gguf", "llama", {}, {}, whole=VALUES))
    for key, value in VALUES.items():
        found: Any = header.texts(key) or header.metadata[key]
        assert (list(found) if isinstance(found, tuple) else found) == value


@pytest.mark.parametrize(
    ("add", "value"),
    [
        ("add_uint8", 200), ("add_int8", -3), ("add_uint16", 60000), ("add_int16", -300),
        ("add_int32", -70000), ("add_uint64", 1 << 40), ("add_int64", -(1 << 40)),
        ("add_float64", 0.1),
    ],
)  # fmt: skip
def test_numbers_of_every_width(tmp_path: Path, add: str, value: float) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    getattr(writer, add)("a.value", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_header(tmp_path / "a.gguf").metadata["a.value"] == value


def test_an_alignment_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    for name in ("a", "b"):
        writer.add_tensor(name, np.full(3, ord(name), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    places = read_header(path).tensors
    assert [place.offset % 256 for place in places] == [0, 0]
    content = path.read_bytes()
    assert [content[p.offset : p.offset + 4] for p in places] == [
        struct.pack("<f", ord(name)) for name in "ab"
    ]


def test_a_file_cut_anywhere_is_cut_short(model: Path) -> None:
    content = model.read_bytes()
    head = read_header(model).tensors[0].offset
    for length in (*range(4, head, 97), head, len(content) - 1):
        model.write_bytes(content[:length])
        with pytest.raises(ConvertError, match="cut short") as caught:
            read_header(model)
        assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"GGML" + struct.pack("<I", 3), "does not begin with the letters GGUF"),
        (b"GGUF" + struct.pack("<I", 1), "its version is 1"),
        (b"GGUF" + struct.pack(">I", 3), "3 in big endian"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_what_is_no_file_of_this_format(model: Path, start: bytes, said: str) -> None:
    model.write_bytes(start + model.read_bytes()[len(start) :])
    with pytest.raises(ConvertError, match=said):
        read_header(model)


def test_an_unknown_type_is_named_with_its_tensor(tmp_path: Path) -> None:
    values = {"token_embd.weight": np.zeros((2, 32), np.float32)}
    path = write_gguf(tmp_path / "a.gguf", "llama", SIZES, values)
    content = bytearray(path.read_bytes())
    place = content.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16
    content[place : place + 4] = struct.pack("<I", 250)
    path.write_bytes(content)
    with pytest.raises(ConvertError, match=r"token_embd\.weight .* type 250"):
        read_header(path)


def test_a_list_of_impossible_length_is_no_list(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", "llama", {}, {}, whole={"a.numbers": [1, 2, 3]})
    content = bytearray(path.read_bytes())
    place = content.index(b"a.numbers") + len("a.numbers") + 8
    content[place : place + 8] = struct.pack("<Q", 1 << 60)
    path.write_bytes(content)
    with pytest.raises(ConvertError, match="cut short"):
        read_header(path)


def test_a_tensor_that_is_there_twice(tmp_path: Path) -> None:
    values = {"aaaa": np.zeros(3, np.float32), "aaab": np.zeros(3, np.float32)}
    path = write_gguf(tmp_path / "a.gguf", "llama", {}, values)
    path.write_bytes(path.read_bytes().replace(b"aaab", b"aaaa"))
    with pytest.raises(ConvertError, match="aaaa twice"):
        read_header(path)


def test_a_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", "llama", {}, {}, whole={"a.text": "abcdef"})
    path.write_bytes(path.read_bytes().replace(b"abcdef", b"abc\xff\xfe\xfd"))
    with pytest.raises(ConvertError, match="not UTF-8"):
        read_header(path)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, "llama", {}, {}, whole={"a.number": 1})
    assert read_header(path).metadata["a.number"] == 1
    write_gguf(path, "llama", {}, {}, whole={"a.number": 2, "a.other": 1})
    assert read_header(path).metadata["a.number"] == 2
    writer = gguf.GGUFWriter(path, "llama")
    add_value(writer, "a.number", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert read_header(path).metadata["a.number"] == 3

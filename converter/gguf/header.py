"""The head of a GGUF file: metadata, and where each tensor lies.

Source of the format: ggml's document of GGUF. The library `gguf` maps the whole file, and mapped
pages count as resident memory, so the head is read here by position; the library's table of types
tells what lies behind it. Lists of texts, such as a vocabulary, are read when asked for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from converter.errors import ConvertError, Problem
from converter.weights.stand_in import stand_in

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Bytes to which tensors are aligned where the metadata says nothing."""
MOST_DIMENSIONS = 4
_NUMBERS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
"""struct's letter of each type of value that has a fixed size."""
_TEXT, _LIST = 8, 9
_AGAIN = "fetch the file again"


@dataclass(frozen=True)
class TextList:
    """A list of texts in the metadata, not read yet."""

    count: int
    place: int
    """Byte of the file at which it begins."""


@dataclass(frozen=True)
class TensorPlace:
    """A tensor of a file: `shape` with the rows first, `kind` as ggml names it, such as Q4_0."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    """Byte of the file at which it begins."""
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What the head of a GGUF file says."""

    path: Path
    metadata: Mapping[str, Any]
    """Numbers, texts, lists of numbers, and lists of texts as `TextList`."""
    tensors: tuple[TensorPlace, ...]

    def texts(self, key: str) -> list[str] | None:
        """The list of texts at `key`; None where the file has none.

        Raises:
            ConvertError: a text is not UTF-8.
        """
        found = self.metadata.get(key)
        if not isinstance(found, TextList):
            return None
        with self.path.open("rb") as file:
            file.seek(found.place)
            stream = _Stream(self.path, file)
            return [stream.text() for _ in range(found.count)]


def read_header(path: Path) -> GgufHeader:
    """Read a file's head; a second time only when the file has changed.

    Raises:
        ConvertError: the file cannot be read, is cut short, or is no GGUF file of version 2 or 3 in
            little endian; or a tensor has a type that the library `gguf` does not know.
    """
    problem = stand_in(path)
    if problem is not None:
        raise ConvertError(problem)
    try:
        status = path.stat()
        return _read(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        found = f"{path} cannot be read: {error.strerror}."
        raise ConvertError(
            Problem(found, "a file that you may read", "check its permissions, or fetch it again")
        ) from None


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row of `columns` values in one of ggml's types."""
    block, size = _types()[kind]
    return columns // block * size


@lru_cache(maxsize=32)
def _read(path: Path, size: int, stamp: int) -> GgufHeader:
    with path.open("rb") as file:
        stream = _Stream(path, file)
        if stream.take(4) != MAGIC:
            raise ConvertError(_unfit(path, "it does not begin with the letters GGUF"))
        version = stream.number("<I")
        if version not in VERSIONS:
            raise ConvertError(_unfit(path, f"its version is {_version(version)}"))
        tensors, keys = stream.number("<Q"), stream.number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = stream.text()
            metadata[key] = stream.value(stream.number("<I"))
        entries = [stream.entry() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ConvertError(_unfit(path, f"its alignment is {alignment}"))
        start = -(-file.tell() // alignment) * alignment
    places = tuple(_places(path, entries, start))
    end = max((place.offset + place.nbytes for place in places), default=0)
    if end > size:
        raise ConvertError(_truncated(path, end, size))
    return GgufHeader(path, metadata, places)


def _version(number: int) -> str:
    swapped = int.from_bytes(number.to_bytes(4, "little"), "big")
    return f"{swapped} in big endian" if swapped in VERSIONS else str(number)


Entry = tuple[str, tuple[int, ...], int, int]
"""Name, shape as it is stored (columns first), number of the type, offset."""


def _places(path: Path, entries: list[Entry], start: int) -> Iterator[TensorPlace]:
    kinds, seen = _kinds(), set[str]()
    for name, stored, number, offset in entries:
        kind, shape = kinds.get(number), tuple(reversed(stored))
        if kind is None:
            raise ConvertError(_unknown_type(path, name, number))
        block, size = _types()[kind]
        if name in seen:
            raise ConvertError(_unfit(path, f"it has the tensor {name} twice"))
        if not shape or shape[-1] % block:
            raise ConvertError(_unfit(path, f"{name} has the shape {shape} in blocks of {block}"))
        seen.add(name)
        yield TensorPlace(name, shape, kind, start + offset, math.prod(shape) // block * size)


@lru_cache(maxsize=1)
def _kinds() -> Mapping[int, str]:
    from gguf.constants import GGMLQuantizationType

    return {int(item.value): str(item.name) for item in GGMLQuantizationType}


@lru_cache(maxsize=1)
def _types() -> Mapping[str, tuple[int, int]]:
    """Values and bytes of a block, by the type's name."""
    from gguf.constants import GGML_QUANT_SIZES

    return {str(kind.name): (int(a), int(b)) for kind, (a, b) in GGML_QUANT_SIZES.items()}


class _Stream:
    """Reads a head from front to back; what is missing at the end is a problem."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = path.stat().st_size

    def take(self, count: int) -> bytes:
        place = self._file.tell()
        if count > self._size - place:
            raise ConvertError(_truncated(self._path, place + count, self._size))
        return self._file.read(count)

    def number(self, form: str) -> Any:
        value = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        # A float32 as the shortest number that rounds to it: 1e-05 was meant, not 9.99999975e-06.
        return float(str(np.float32(value))) if form == "<f" else value

    def text(self) -> str:
        content = self.take(self.number("<Q"))
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise ConvertError(_unfit(self._path, "one of its texts is not UTF-8")) from None

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            raise ConvertError(_unfit(self._path, f"its metadata holds values of type {kind}"))
        return self._list(self.number("<I"), self.number("<Q"))

    def _list(self, kind: int, count: int) -> Any:
        if kind == _TEXT:
            found = TextList(count, self._file.tell())
            for _ in range(count):
                self.take(self.number("<Q"))
            return found
        if kind not in _NUMBERS:
            raise ConvertError(_unfit(self._path, f"its metadata holds lists of type {kind}"))
        letter = _NUMBERS[kind][1]
        content = self.take(count * struct.calcsize(f"<{letter}"))
        return struct.unpack(f"<{count}{letter}", content)

    def entry(self) -> Entry:
        name, dimensions = self.text(), self.number("<I")
        if dimensions > MOST_DIMENSIONS:
            raise ConvertError(_unfit(self._path, f"{name} has {dimensions} dimensions"))
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        return name, shape, self.number("<I"), self.number("<Q")


def _truncated(path: Path, expected: int, found: int) -> Problem:
    return Problem(
        f"{path} is cut short: {found:,} bytes.",
        f"at least {expected:,} bytes, as its head says",
        _AGAIN,
    )


def _unfit(path: Path, reason: str) -> Problem:
    return Problem(
        f"{path} is not a GGUF file that can be read: {reason}.",
        "a GGUF file of version 2 or 3 in little endian, as llama.cpp writes it",
        _AGAIN,
    )


def _unknown_type(path: Path, name: str, number: int) -> Problem:
    return Problem(
        f"{name} in {path} has ggml's type {number}, which the installed gguf does not know.",
        f"one of {', '.join(_types())}",
        "pip install --upgrade gguf, or take a file in another type",
    )

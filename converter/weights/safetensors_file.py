"""Reading and writing safetensors files tile by tile.

The safetensors library maps whole files into memory, and mapped pages count towards a process's
resident memory. Reading by position keeps the peak at one tile, so the format (8 bytes of header
length, a JSON header, then the tensors: https://github.com/huggingface/safetensors) is read here.
The tests compare every byte with the library's.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from converter.errors import ConvertError, Problem
from converter.weights.stand_in import stand_in
from converter.weights.weight import Weight, tensor_bytes

_NEWER = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "C64": "complex64",
}
"""Types that some releases of PyTorch lack; nothing computes in them here."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    **{name: getattr(torch, kind) for name, kind in _NEWER.items() if hasattr(torch, kind)},
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
STRIP_BYTES = 1 << 13
"""Reading this many bytes more costs less than one more call that reads."""
MAX_HEADER = 100_000_000  # the library's own limit


class OpenFile:
    """A file read by position; opened at the first read, so that planning holds no handles."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`. Raises ConvertError when the file ends too early."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            if count == 0:
                raise ConvertError(_truncated(self.path, offset + len(buffer), offset + done))
            done += count

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


class FileWeight(Weight):
    """A tensor stored in row-major order at a known place of a file."""

    def __init__(
        self, file: OpenFile, name: str, offset: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self.label = f"{name} in {file.path.name}"
        self._file, self._offset = file, offset

    def reshaped(self, shape: tuple[int, ...]) -> FileWeight:
        """The same values in another shape of as many."""
        found = FileWeight(self._file, "", self._offset, shape, self.dtype)
        found.label = self.label
        return found

    def rows(self, start: int, stop: int) -> torch.Tensor:
        shape = (stop - start, *self.shape[1:])
        out = torch.empty(shape, dtype=self.dtype)
        row = out[0].nbytes if stop > start else 0
        if out.numel():
            self._file.read(self._offset + start * row, tensor_bytes(out))
        return out

    def block(self, start: int, stop: int, low: int, high: int) -> torch.Tensor:
        width, item = self.shape[1], self.dtype.itemsize
        if (width - (high - low)) * item < STRIP_BYTES:
            return super().block(start, stop, low, high)
        out = torch.empty(stop - start, high - low, dtype=self.dtype)
        strip, content = (high - low) * item, tensor_bytes(out)
        for number in range(stop - start):
            offset = self._offset + ((start + number) * width + low) * item
            self._file.read(offset, content[number * strip : (number + 1) * strip])
        return out


def open_safetensors(path: Path) -> dict[str, FileWeight]:
    """Tensors of a safetensors file by name, from its header alone.

    Raises:
        ConvertError: the file is missing, truncated, or its header is not valid.
    """
    header, data_start = _read_header(path)
    size = path.stat().st_size
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if data_start + end > size:
        raise ConvertError(_truncated(path, data_start + end, size))
    file = OpenFile(path)
    return {name: _open_tensor(file, name, entry, data_start) for name, entry in header.items()}


def write_safetensors(path: Path, tensors: Mapping[str, Weight]) -> None:
    """Stream `tensors` into a safetensors file, one tile in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, weight in tensors.items():
        header[name] = {
            "dtype": NAMES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [offset, offset + weight.nbytes],
        }
        offset += weight.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for weight in tensors.values():
            for start, stop in weight.tiles():
                file.write(tensor_bytes(weight.rows(start, stop).contiguous()))


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    problem = stand_in(path)
    if problem is not None:
        raise ConvertError(problem)
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER + 1
            if length > MAX_HEADER:
                raise ConvertError(_not_safetensors(path, "its header length is impossible"))
            text = file.read(length)
    except OSError as error:
        found = f"{path} cannot be read: {error.strerror}."
        raise ConvertError(
            Problem(found, "a file that you may read", "check its permissions, or fetch it again")
        ) from None
    if len(text) < length:
        raise ConvertError(_truncated(path, 8 + length, 8 + len(text)))
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            _check_entry(path, name, entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConvertError(_not_safetensors(path, f"its header is not valid ({error})")) from None
    return header, 8 + length


def _check_entry(path: Path, name: str, entry: Any) -> None:
    start, end = entry["data_offsets"]
    if not all(_is_count(number) for number in (start, end, *entry["shape"])):
        raise ValueError(f"{name} has the shape {entry['shape']} and the offsets {start}, {end}")
    if entry["dtype"] not in DTYPES:
        raise ConvertError(unknown_dtype(f"{name} in {path}", entry["dtype"]))
    if end - start != math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize:
        raise ValueError(f"the offsets {start}, {end} of {name} do not fit shape {entry['shape']}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def unknown_dtype(tensor: str, dtype: Any) -> Problem:
    """The problem of a tensor in a type that is not read, such as 4-bit floats."""
    return Problem(
        f"{tensor} has the type {dtype}.",
        "float32, float16 or bfloat16",
        "convert from the unquantized checkpoint",
    )


def _open_tensor(file: OpenFile, name: str, entry: Any, data_start: int) -> FileWeight:
    offset = data_start + entry["data_offsets"][0]
    return FileWeight(file, name, offset, tuple(entry["shape"]), DTYPES[entry["dtype"]])


def _truncated(path: Path, expected: int, found: int) -> Problem:
    return Problem(
        f"{path} is cut short: {found:,} bytes.",
        f"at least {expected:,} bytes, as its header says",
        "fetch the file again",
    )


def _not_safetensors(path: Path, reason: str) -> Problem:
    return Problem(
        f"{path} is not a safetensors file: {reason}.", "a safetensors file", "fetch it again"
    )

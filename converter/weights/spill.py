"""Tensors too many for memory, kept in a file and read one at a time.

Plain reads and writes, not a memory map: mapped pages would count as the process's memory.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from converter.weights.weight import tensor_bytes, write_at


class Spill:
    """`count` tensors of one shape and dtype, in a file of `folder` that has no name."""

    def __init__(
        self,
        folder: Path,
        count: int,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.count, self.shape, self.dtype = count, shape, dtype
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._nbytes = dtype.itemsize * int(torch.Size(shape).numel())

    def __getitem__(self, index: int | slice) -> torch.Tensor:
        """One tensor, or several in a row stacked along their first dimension."""
        start, count = _range(index)
        shape = (count * self.shape[0], *self.shape[1:])
        tensor = torch.empty(shape, dtype=self.dtype)
        _fill(self._file.fileno(), tensor_bytes(tensor), start * self._nbytes)
        return tensor

    def __setitem__(self, index: int | slice, value: torch.Tensor) -> None:
        offset = _range(index)[0] * self._nbytes
        write_at(self._file.fileno(), value.detach().to(self.dtype), offset)

    def close(self) -> None:
        """Give the room on the disk back."""
        self._file.close()

    def save(self, path: Path) -> None:
        """Copy all tensors to the file `path`."""
        with path.open("wb") as file:
            for index in range(self.count):
                file.write(tensor_bytes(self[index]))

    def load(self, path: Path) -> None:
        """Take all tensors from a file that `save` wrote."""
        with path.open("rb") as file:
            for index in range(self.count):
                tensor = torch.empty(self.shape, dtype=self.dtype)
                _fill(file.fileno(), tensor_bytes(tensor), index * self._nbytes)
                self[index] = tensor


def _range(index: int | slice) -> tuple[int, int]:
    """First index and count."""
    if isinstance(index, slice):
        return index.start, index.stop - index.start
    return index, 1


def _fill(descriptor: int, buffer: memoryview, offset: int) -> None:
    while buffer:
        count = os.preadv(descriptor, [buffer], offset)
        if count == 0:
            raise OSError("a file of intermediate results ends early")
        buffer, offset = buffer[count:], offset + count

"""Reading PyTorch's zip checkpoints (`pytorch_model.bin`) tile by tile, without running their code.

`torch.load(weights_only=True)` decides what may be unpickled: tensors and plain containers, nothing
that a pickle could execute. It maps the file, and a mapped page that is read counts as resident
memory; so the mapping only tells where each tensor lies, and the values are read by position.
Format: a zip archive whose entries `…/data/N` hold the storages, uncompressed
(torch/csrc/jit/serialization, "PyTorch file format").
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from converter.errors import ConvertError, Problem, first_line
from converter.weights.safetensors_file import FileWeight, OpenFile
from converter.weights.stand_in import stand_in

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""A zip entry's own header; its last two fields are the lengths of name and extra field."""


def open_torch_file(path: Path) -> dict[str, FileWeight]:
    """Tensors of a zip checkpoint by name; no value is read.

    Raises:
        ConvertError: the file is missing, damaged, in the old format without a zip archive, holds
            anything besides tensors, or its pickle wants to run code (nothing of it is run then).
    """
    problem = stand_in(path)
    if problem is not None:
        raise ConvertError(problem)
    places = _storage_places(path)
    state = _load(path)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ConvertError(_unfit(path, f"it holds a {type(state).__name__}, not named tensors"))
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if len(tensors) < len(state):
        name = next(name for name in state if name not in tensors)
        raise ConvertError(_unfit(path, f"{name} is a {type(state[name]).__name__}, not a tensor"))
    base = _mapping_start(path, tensors, places)
    file = OpenFile(path)
    return {name: _weight(file, name, tensor, base) for name, tensor in tensors.items()}


def _storage_places(path: Path) -> list[tuple[int, int]]:
    """Offset and size in bytes of every storage in the file, in the file's order."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = [item for item in archive.infolist() if _is_storage(item.filename)]
            if any(item.compress_type != zipfile.ZIP_STORED for item in entries):
                raise ConvertError(_unfit(path, "its storages are compressed"))
            return sorted((_data_offset(file, item), item.file_size) for item in entries)
    except OSError as error:
        found = f"{path} cannot be read: {error.strerror}."
        raise ConvertError(
            Problem(found, "a file that you may read", "check its permissions, or fetch it again")
        ) from None
    except (zipfile.BadZipFile, struct.error) as error:
        raise ConvertError(_unfit(path, f"it is no complete zip archive ({error})")) from None


def _is_storage(name: str) -> bool:
    return re.fullmatch(r"[^/]*/data/\d+", name) is not None


def _data_offset(file: Any, entry: zipfile.ZipInfo) -> int:
    file.seek(entry.header_offset)
    *_, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    return int(entry.header_offset + LOCAL_HEADER.size + name_length + extra_length)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|Unsupported (?:class|global):?) ([\w.]+)", str(error))
        what = f" ({wanted[1]})" if wanted else ""
        raise ConvertError(
            Problem(
                f"{path} asks to run code while it is read{what}; nothing of it was run.",
                "a checkpoint of tensors only",
                "take a checkpoint with safetensors files, and do not trust this one",
            )
        ) from None
    except (RuntimeError, ValueError, EOFError, KeyError) as error:
        reason = f"PyTorch cannot read it ({first_line(error)})"
        raise ConvertError(_unfit(path, reason)) from None


def _mapping_start(
    path: Path, tensors: dict[str, torch.Tensor], places: list[tuple[int, int]]
) -> int:
    """Address at which the file is mapped: storage addresses minus it are the storages' offsets."""
    storages = {
        storage.data_ptr(): storage.nbytes()
        for tensor in tensors.values()
        if (storage := tensor.untyped_storage()).nbytes()
    }
    held = {offset: size for offset, size in places if size}
    base = min(storages, default=0) - min(held, default=0)
    if any(held.get(address - base) != size for address, size in storages.items()):
        raise ConvertError(_unfit(path, "its tensors do not lie where its archive says"))
    return base


def _weight(file: OpenFile, name: str, tensor: torch.Tensor, base: int) -> FileWeight:
    if not tensor.is_contiguous():
        raise ConvertError(_unfit(file.path, f"{name} is not stored row by row"))
    offset = tensor.data_ptr() - base if tensor.numel() else 0
    return FileWeight(file, name, offset, tuple(tensor.shape), tensor.dtype)


def _unfit(path: Path, reason: str) -> Problem:
    return Problem(
        f"{path} is not a checkpoint that can be read: {reason}.",
        "a file that torch.save wrote in its zip format, with named tensors only",
        "fetch it again, or save the checkpoint as safetensors",
    )

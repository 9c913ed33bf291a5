"""The reference model's next-token distributions on disk, shared by the jobs of a sweep.

Layout, little-endian: 8 bytes magic, 8 bytes length of the header, a JSON header, zeros up to a
multiple of 64, then one record per scored token: the reference's first-ranked token (int32), -ln p
of the token that came next (float32), and the logits as 16-bit codes, `low + step · code`
(two float32, uint16 [vocab]). llama.cpp's `--kl-divergence-base` file has codes of the same width.

Precision: a step is at most 64/65535 (a logit further below its row's maximum is clamped; its
probability is under 2e-28). Softmax is applied to the decoded logits, which makes them sum to
one again, so the rounding ε enters a divergence only as Σ p·ε·ln(p/q) and ε²/2, not as Σ p·ε.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import ConvertError, Problem

if TYPE_CHECKING:
    import torch

_MAGIC = b"CVTKLREF"
_VERSION = 1
_ALIGNMENT = 64
_LOGIT_RANGE = 64.0
_MAX_CODE = 65535


@dataclass(frozen=True)
class ReferenceHeader:
    """What a file holds: `chunks` times `positions` rows of `vocab_size` logits, made for `key`."""

    key: str
    chunks: int
    positions: int
    vocab_size: int
    version: int = _VERSION

    @property
    def record(self) -> np.dtype[Any]:
        """One scored token."""
        return np.dtype(
            [
                ("top", "<i4"),
                ("nll", "<f4"),
                ("low", "<f4"),
                ("step", "<f4"),
                ("codes", "<u2", (self.vocab_size,)),
            ]
        )

    def encoded(self) -> bytes:
        """Magic, length, JSON and padding: everything before the first record."""
        text = json.dumps(asdict(self), sort_keys=True).encode()
        start = _MAGIC + len(text).to_bytes(8, "little") + text
        return start + bytes(-len(start) % _ALIGNMENT)


@dataclass(frozen=True)
class ReferenceRows:
    """One chunk of the reference: logits float32 [T, vocab], top int64 [T], nll float32 [T]."""

    logits: torch.Tensor
    top: torch.Tensor
    nll: torch.Tensor


def reference_key(model_key: str, input_ids: NDArray[np.int64], first: int) -> str:
    """SHA-256 over the model's content key, the chunks [n, n_ctx] and the first scored place."""
    digest = hashlib.sha256(f"{_VERSION}\0{model_key}\0{input_ids.shape}\0{first}\0".encode())
    digest.update(np.ascontiguousarray(input_ids, dtype="<i8").tobytes())
    return digest.hexdigest()


class ReferenceWriter:
    """Appends chunks to a file that `write_reference` opened."""

    def __init__(self, stream: IO[bytes], header: ReferenceHeader) -> None:
        """Append to `stream`, which already holds the encoded `header`."""
        self._stream = stream
        self._header = header
        self.chunks = 0

    def add(self, logits: torch.Tensor, next_tokens: torch.Tensor) -> None:
        """Write one chunk: logits float [positions, vocab], next_tokens int64 [positions].

        Raises ValueError for another shape, `ConvertError` for NaN or infinity.
        """
        expected = (self._header.positions, self._header.vocab_size)
        if tuple(logits.shape) != expected:
            raise ValueError(f"logits are {tuple(logits.shape)}, the file holds {expected}")
        for row, token in zip(logits, next_tokens.tolist(), strict=True):
            self._stream.write(_encode(row.float(), token, self._header).tobytes())
        self.chunks += 1


@contextmanager
def write_reference(path: Path, header: ReferenceHeader) -> Iterator[ReferenceWriter]:
    """Open a writer; `path` appears, whole, when the block ends without an exception.

    Until then the data is in a temporary file beside it, which an exception removes. Raises
    ValueError when the block added another number of chunks than `header` says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp: its files are for one user only, and a team may share the cache.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as stream:
            stream.write(header.encoded())
            writer = ReferenceWriter(stream, header)
            yield writer
            if writer.chunks != header.chunks:
                raise ValueError(f"{writer.chunks} chunks were added of {header.chunks}")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class ReferenceFile:
    """A finished file, read chunk by chunk; mapped pages would count as the process's memory."""

    def __init__(self, path: Path, key: str) -> None:
        """Open and check `path`: magic, version, key and exact size.

        Raises `ConvertError` for a file that is damaged or belongs to another model or text.
        """
        self.header = _read_header(path)
        if self.header.key != key:
            raise _unusable(path, f"is for the key {self.header.key}", f"the key {key}")
        offset = len(self.header.encoded())
        rows = self.header.chunks * self.header.positions
        size = offset + rows * self.header.record.itemsize
        if path.stat().st_size != size:
            raise _unusable(path, f"has {path.stat().st_size} bytes", f"{size} bytes")
        self._offset = offset
        self._stream = path.open("rb")  # stays readable when the cache drops the entry

    def __len__(self) -> int:
        """The number of chunks."""
        return self.header.chunks

    def chunk(self, index: int) -> ReferenceRows:
        """Decode chunk `index`; raises IndexError past the end."""
        import torch

        if not 0 <= index < len(self):
            raise IndexError(f"chunk {index} of {len(self)}")
        count, record = self.header.positions, self.header.record
        self._stream.seek(self._offset + index * count * record.itemsize)
        rows = np.fromfile(self._stream, record, count)
        logits = rows["codes"].astype(np.float32)
        logits *= rows["step"][:, None]
        logits += rows["low"][:, None]
        return ReferenceRows(
            torch.from_numpy(logits),
            torch.from_numpy(rows["top"].astype(np.int64)),
            torch.from_numpy(rows["nll"].astype(np.float32)),
        )


def _encode(row: torch.Tensor, next_token: int, header: ReferenceHeader) -> NDArray[Any]:
    """One record from float32 [vocab]."""
    record = np.zeros((), header.record)
    high = float(row.max())
    low = float(np.float32(max(float(row.min()), high - _LOGIT_RANGE)))
    step = float(np.float32((high - low) / _MAX_CODE))
    if not np.isfinite(float(row.sum())):
        raise ConvertError(
            Problem(
                "The reference model's logits are not finite.",
                "finite numbers, as sound weights give",
                "fetch the checkpoint again; if it stays so, choose another source.revision",
            )
        )
    # A row of equal logits has step 0 and code 0 throughout.
    codes = ((row - low) / step).round_().clamp_(0, _MAX_CODE) if step else row * 0
    record["top"] = int(row.argmax())
    record["nll"] = -float(row.double().log_softmax(-1)[next_token])
    record["low"], record["step"] = low, step
    record["codes"] = codes.numpy().astype(np.uint16)
    return record


def _read_header(path: Path) -> ReferenceHeader:
    with path.open("rb") as stream:
        start = stream.read(16)
        length = int.from_bytes(start[8:], "little")
        if start[:8] != _MAGIC or length > 2**16:
            raise _unusable(path, "does not start as such a file", f"the magic {_MAGIC!r}")
        text = stream.read(length)
    try:
        header = ReferenceHeader(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise _unusable(path, f"has a damaged header ({error})", "a JSON header") from error
    if header.version != _VERSION:
        raise _unusable(path, f"has version {header.version}", f"version {_VERSION}")
    return header


def _unusable(path: Path, found: str, expected: str) -> ConvertError:
    return ConvertError(
        Problem(
            f"The stored reference {path} {found}.",
            expected,
            "delete the file; the next evaluation writes it again",
        )
    )

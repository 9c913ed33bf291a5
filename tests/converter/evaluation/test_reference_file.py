"""The stored reference: what is kept of each row, and files that are not to be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import ConvertError
from converter.evaluation.reference_file import (
    ReferenceFile,
    ReferenceHeader,
    reference_key,
    write_reference,
)


def stored(path: Path, reference: torch.Tensor, tokens: torch.Tensor, chunks: int) -> ReferenceFile:
    positions = len(reference) // chunks
    header = ReferenceHeader("key", chunks, positions, reference.shape[1])
    with write_reference(path, header) as writer:
        for rows, following in zip(
            reference.split(positions), tokens.split(positions), strict=True
        ):
            writer.add(rows, following)
    return ReferenceFile(path, "key")


def test_extreme_rows_survive_storing(tmp_path: Path) -> None:
    reference = torch.zeros(2, 50)
    reference[1, 0], reference[1, 1] = 500.0, -500.0
    file = stored(tmp_path / "base.kld", reference, torch.zeros(2, dtype=torch.int64), chunks=1)
    logits = file.chunk(0).logits
    assert torch.equal(logits[0], torch.zeros(50))
    torch.testing.assert_close(
        logits[1].double().softmax(-1), reference[1].double().softmax(-1), atol=1e-12, rtol=0
    )


def test_an_interrupted_reference_leaves_nothing(tmp_path: Path) -> None:
    header = ReferenceHeader("key", 2, 4, 10)

    def interrupted() -> None:
        with write_reference(tmp_path / "base.kld", header) as writer:
            writer.add(torch.ones(4, 10), torch.zeros(4, dtype=torch.int64))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ValueError, match="0 chunks"), write_reference(tmp_path / "b", header):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_reference_with_nan_is_refused(tmp_path: Path) -> None:
    rows = torch.ones(4, 10)
    rows[2, 5] = float("nan")
    with pytest.raises(ConvertError, match="not finite"):
        stored(tmp_path / "base.kld", rows, torch.zeros(4, dtype=torch.int64), chunks=1)


def test_damaged_or_foreign_reference_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.kld"
    stored(path, torch.ones(4, 10), torch.zeros(4, dtype=torch.int64), chunks=1)
    data = path.read_bytes()
    with pytest.raises(ConvertError, match="is for the key key"):
        ReferenceFile(path, "another")
    for broken, message in [
        (data[:-1], f"has {len(data) - 1} bytes"),
        (b"GGUF" + data[4:], "does not start as such a file"),
        (data.replace(b'"key"', b'"kay"', 1), "damaged header"),
        (data.replace(b'"version": 1', b'"version": 9'), "has version 9"),
        (data[:9], "damaged header|does not start"),
    ]:
        path.write_bytes(broken)
        with pytest.raises(ConvertError, match=message):
            ReferenceFile(path, "key")


def test_the_key_depends_on_model_tokens_and_first_position() -> None:
    ids = np.arange(12, dtype=np.int64).reshape(2, 6)
    keys = {
        reference_key("a", ids, 3),
        reference_key("b", ids, 3),
        reference_key("a", ids, 2),
        reference_key("a", ids.reshape(3, 4), 3),
        reference_key("a", ids + 1, 3),
    }
    assert len(keys) == 5
    assert reference_key("a", ids.copy(), 3) in keys


def test_the_next_tokens_surprise_is_kept_exactly(tmp_path: Path) -> None:
    rows, tokens = 6 * torch.randn(8, 40), torch.randint(40, (8,))
    file = stored(tmp_path / "base.kld", rows, tokens, chunks=2)
    assert len(file) == 2
    nll = torch.cat([file.chunk(index).nll for index in range(2)])
    expected = torch.nn.functional.cross_entropy(rows.double(), tokens, reduction="none")
    torch.testing.assert_close(nll.double(), expected, rtol=1e-6, atol=1e-6)
    top = torch.cat([file.chunk(index).top for index in range(2)])
    assert torch.equal(top, rows.argmax(-1)) and top.dtype == torch.int64


@given(st.integers(0, 2**31), st.floats(0.01, 60))
@settings(max_examples=25, deadline=None)
def test_a_logit_moves_by_half_a_step_at_most(seed: int, spread: float) -> None:
    import tempfile

    generator = torch.Generator().manual_seed(seed)
    rows = spread * torch.rand(2, 30, generator=generator) - 5
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "base.kld"
        found = stored(path, rows, torch.zeros(2, dtype=torch.int64), chunks=1).chunk(0).logits
    steps = (rows.amax(1) - rows.amin(1)) / 65535
    assert ((found - rows).abs() <= 0.51 * steps[:, None] + 4e-6).all()
    assert torch.equal(found.argmax(1), rows.argmax(1))


def test_chunks_are_read_in_any_order_and_not_past_the_end(tmp_path: Path) -> None:
    rows = torch.randn(12, 20)
    file = stored(tmp_path / "base.kld", rows, torch.zeros(12, dtype=torch.int64), chunks=3)
    for index in (2, 0, 1, 2):
        part = rows[4 * index : 4 * index + 4]
        torch.testing.assert_close(file.chunk(index).logits, part, atol=1e-4, rtol=0)
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"chunk {index} of 3"):
            file.chunk(index)


def test_an_open_file_is_read_after_the_cache_dropped_it(tmp_path: Path) -> None:
    file = stored(tmp_path / "b", torch.ones(4, 10), torch.zeros(4, dtype=torch.int64), chunks=1)
    (tmp_path / "b").unlink()
    assert torch.equal(file.chunk(0).logits, torch.ones(4, 10))


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    header = ReferenceHeader("key", 1, 4, 10)
    for shape in ((3, 10), (4, 11)):
        with (
            pytest.raises(ValueError, match="the file holds"),
            write_reference(tmp_path / "b", header) as writer,
        ):
            writer.add(torch.ones(shape), torch.zeros(shape[0], dtype=torch.int64))
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_aligned_and_as_large_as_it_says(tmp_path: Path) -> None:
    header = ReferenceHeader("key", 2, 3, 7)
    assert len(header.encoded()) % 64 == 0 and header.record.itemsize == 16 + 2 * 7
    rows = torch.randn(6, 7)
    stored(tmp_path / "b", rows, torch.zeros(6, dtype=torch.int64), chunks=2)
    size = (tmp_path / "b").stat().st_size
    assert size == len(header.encoded()) + 6 * header.record.itemsize

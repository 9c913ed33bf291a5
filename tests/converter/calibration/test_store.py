"""A finished layer in the cache comes back as it was, and its codes are read when asked for."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from converter.calibration.rounding import Rounded
from converter.calibration.store import FACTS, TENSORS, read_layer, write_layer
from converter.quantization.linear_error import LinearError
from converter.quantization.rtn import BlockFormat, quantize_rtn

FORMS = [BlockFormat(*form) for form in itertools.product((4, 8), (16, 32), (True, False))]
COLUMNS = 70


def rounded(form: BlockFormat) -> Rounded:
    values = torch.randn(6, COLUMNS, generator=torch.Generator().manual_seed(form.bits))
    return Rounded(quantize_rtn(values, form), form, "search", 0.25)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_codes_come_back(tmp_path: Path, form: BlockFormat) -> None:
    item = rounded(form)
    write_layer(tmp_path, {"layers.0.o_proj": item}, [], {})
    read = read_layer(tmp_path).rounding("layers.0.o_proj", COLUMNS)
    for start, stop in ((0, 6), (2, 3), (4, 6)):
        found = read(start, stop)
        assert torch.equal(found.codes, item.codes.codes[start:stop])
        assert torch.equal(found.scales, item.codes.scales[start:stop])
        zero = item.codes.zero_points
        assert (found.zero_points is None) == (zero is None) == form.symmetric
        assert zero is None or torch.equal(found.zero_points, zero[start:stop])  # type: ignore[arg-type]
        expected = item.codes.dequantize(form)[start:stop]
        assert torch.equal(found.dequantize(form), expected)


def test_facts_come_back(tmp_path: Path) -> None:
    items = {"layers.3.qkv_proj": rounded(FORMS[0]), "layers.3.down_proj": rounded(FORMS[-1])}
    errors = [LinearError(3, "q_proj", 0.5, 0.25), LinearError(None, "lm_head", 0.1, 0.05)]
    folds = {"attention_norm": torch.rand(8) + 0.5, "up": torch.rand(12) + 0.5}
    write_layer(tmp_path, items, errors, folds)
    found = read_layer(tmp_path)
    assert found.folder == tmp_path
    assert found.forms == {name: item.form for name, item in items.items()}
    assert found.methods == dict.fromkeys(items, "search")
    assert found.errors == tuple(errors)
    assert set(found.folds) == set(folds)
    assert all(torch.equal(found.folds[name], scales) for name, scales in folds.items())
    assert found.threads == torch.get_num_threads()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([TENSORS, FACTS])


def test_the_safetensors_library_reads_the_same_bytes(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    item = rounded(BlockFormat(4, 32, False))
    write_layer(tmp_path, {"x": item}, [], {"up": torch.ones(3)})
    found = load_file(tmp_path / TENSORS)
    assert set(found) == {"x.codes", "x.scales", "x.zero_points", "fold.up"}
    assert found["x.codes"].shape == (6, 3 * 16) and found["x.codes"].dtype == torch.uint8
    low, high = found["x.codes"] & 15, found["x.codes"] >> 4
    assert torch.equal(torch.stack([low, high], -1).view(6, 3, 32), item.codes.codes)

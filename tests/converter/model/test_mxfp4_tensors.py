"""gpt-oss as it is published, with experts in MXFP4, against transformers on the same values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, TOKENS, random_model, save, token_ids
from parity import read, relative, run, session_of
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from converter.errors import ConvertError
from converter.graph.template import build_graph
from converter.model.checkpoint import Checkpoint
from converter.model.mxfp4_tensors import is_mxfp4, without_mxfp4
from converter.weights.weight import TensorWeight, Weight

CONFIG = {"quantization_config": {"quant_method": "mxfp4"}}


def published(folder: Path) -> Any:
    """transformers' model, and in `folder` its checkpoint with experts in MXFP4."""
    model = random_model(FAMILIES["gpt_oss"])
    save(model, folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.dim() != 3:
            continue
        count, columns, rows = parameter.shape
        shape = (count, rows, columns // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(122, 126, shape, generator=generator, dtype=torch.uint8)
        parameter.data = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        del tensors[name]
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | CONFIG))
    return model


@pytest.mark.slow
def test_every_logit_is_transformers(tmp_path: Path) -> None:
    model = published(tmp_path / "checkpoint")
    with torch.no_grad():
        expected = model(token_ids(), use_cache=False).logits[0]
    decoder, recipe = read(tmp_path / "checkpoint", "gpt_oss")
    session = session_of(build_graph(decoder, recipe), tmp_path)
    assert relative(run(session, token_ids(), {}, TOKENS)[0], expected) < 1e-4


def test_values_that_are_rounded_in_another_order_are_felt(tmp_path: Path) -> None:
    """The test above sees the experts: with the other half of each byte first it fails."""
    model = published(tmp_path / "checkpoint")
    with torch.no_grad():
        right = model(token_ids(), use_cache=False).logits[0]
        for _, parameter in model.named_parameters():
            if parameter.dim() == 3:
                pairs = parameter.data.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)
                parameter.data = pairs
        wrong = model(token_ids(), use_cache=False).logits[0]
    assert relative(wrong, right) > 0.1


def checkpoint(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Checkpoint:
    weights: dict[str, Weight] = {name: TensorWeight(item) for name, item in tensors.items()}
    return Checkpoint(config, weights, {})


def pair(rows: int = 8) -> dict[str, torch.Tensor]:
    return {
        "a_blocks": torch.zeros(3, rows, 2, 16, dtype=torch.uint8),
        "a_scales": torch.zeros(3, rows, 2, dtype=torch.uint8),
    }


def test_a_pair_becomes_a_transposed_stack() -> None:
    found = without_mxfp4(checkpoint(pair(), CONFIG)).tensors
    assert {name: (item.shape, item.dtype) for name, item in found.items()} == {
        "a": ((3, 64, 8), torch.bfloat16)
    }


def test_without_the_words_of_config_json_nothing_changes() -> None:
    given = checkpoint(pair(), {"quantization_config": {"quant_method": "awq"}})
    assert without_mxfp4(given) is given
    assert not is_mxfp4({"quantization_config": None})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"a_scales": None}, "its scales are missing"),
        ({"a_scales": torch.zeros(3, 8, 1, dtype=torch.uint8)}, "of shape (3, 8, 1)"),
        ({"a_blocks": torch.zeros(3, 8, 2, 8, dtype=torch.uint8)}, "has shape (3, 8, 2, 8)"),
        ({"a_blocks": torch.zeros(3, 8, 2, 16)}, "has shape (3, 8, 2, 16)"),
    ],
)
def test_a_damaged_pair_is_refused(change: dict[str, Any], found: str) -> None:
    tensors = {name: item for name, item in (pair() | change).items() if item is not None}
    with pytest.raises(ConvertError) as caught:
        without_mxfp4(checkpoint(tensors, CONFIG))
    assert found in str(caught.value)

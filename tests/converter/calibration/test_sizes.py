"""The counts that memory and disk are estimated from, against counting by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from converter.calibration.layer import STAGES
from converter.calibration.sizes import calibration_sizes
from converter.calibration.tokens import calibration_tokens
from converter.model.decoder import Decoder


@pytest.mark.parametrize(("tokens", "length"), [(256, 32), (512, 16), (96, 32), (1000, 300)])
def test_tokens_are_those_that_are_drawn(
    decoder: Decoder, make_recipe: Callable[..., Any], tokens: int, length: int
) -> None:
    words = [f"calibration.tokens={tokens}", f"calibration.sequence_length={length}"]
    recipe = make_recipe("quant=gptq", *words, bias=True)
    sizes = calibration_sizes(recipe, decoder)
    drawn = calibration_tokens(decoder, recipe.calibration)
    assert (sizes.tokens, sizes.length) == (drawn.ids.numel(), length)
    assert sizes.held == drawn.held * length
    batches = drawn.batches(decoder.architecture.intermediate_size)
    assert sizes.batch == max(part.stop - part.start for part in batches) * length


def test_values_of_a_layer_are_those_of_its_tensors(
    decoder: Decoder, make_recipe: Callable[..., Any]
) -> None:
    sizes = calibration_sizes(make_recipe("quant=gptq", bias=True), decoder)
    layer = [w.read() for name, w in decoder.weights.items() if name.startswith("layers.0.")]
    assert sizes.layer == sum(tensor.numel() for tensor in layer)
    assert sizes.matrix == max(tensor.numel() for tensor in layer)
    for stage, parts in STAGES.items():
        for part in parts:
            assert sizes.inputs[stage] == decoder.weights[f"layers.0.{part}"].shape[1]


@pytest.mark.parametrize(("compute", "nbytes"), [("fp32", 4), ("bf16", 2)])
def test_bytes_of_the_products_follow_their_type(
    decoder: Decoder, make_recipe: Callable[..., Any], compute: str, nbytes: int
) -> None:
    recipe = make_recipe("quant=gptq", f"calibration.compute={compute}", bias=True)
    assert calibration_sizes(recipe, decoder).itemsize == nbytes
    assert torch.float32.itemsize == 4

"""Lazy weights as initializers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from converter.graph.tensors import IR_DTYPES, WeightTensor, add_initializer, model_weights
from converter.weights.weight import TensorWeight


@pytest.mark.parametrize("dtype", list(IR_DTYPES), ids=str)
def test_an_initializer_has_the_weights_bytes(dtype: torch.dtype) -> None:
    values = torch.arange(12).reshape(3, 4).to(dtype)
    tensor = WeightTensor("x", TensorWeight(values))
    assert (tensor.dtype, tuple(tensor.shape)) == (IR_DTYPES[dtype], (3, 4))
    assert tensor.tobytes() == values.view(torch.uint8).numpy().tobytes()


def test_two_values_in_a_byte_count_as_two() -> None:
    codes = torch.tensor([[0x10, 0x32]], dtype=torch.uint8)
    tensor = WeightTensor("codes", TensorWeight(codes), ir.DataType.INT4, (1, 4))
    assert tuple(tensor.shape) == (1, 4) and tensor.tobytes() == bytes([0x10, 0x32])
    assert np.array_equal(tensor.numpy().astype(np.int64), [[0, 1, 2, 3]])


def test_nothing_is_read_before_it_is_asked_for() -> None:
    class Counted(TensorWeight):
        reads = 0

        def rows(self, start: int, stop: int) -> torch.Tensor:
            Counted.reads += 1
            return super().rows(start, stop)

    tensor = WeightTensor("x", Counted(torch.ones(2, 3)))
    assert (tensor.nbytes, Counted.reads) == (24, 0)
    tensor.numpy()
    assert Counted.reads == 1


def test_a_models_weights_are_its_lazy_initializers(build: Callable[..., Any]) -> None:
    model = build(num_hidden_layers=1).model
    add_initializer(model.graph, ir.tensor(np.ones(3, np.float32), name="constant"))
    weights = model_weights(model)
    assert "constant" in model.graph.initializers and "constant" not in weights
    assert weights["model.norm.weight"].shape == (64,)
    assert {"cos_cache", "lm_head.MatMul.weight"} <= weights.keys()

"""Blocks of the graph by themselves: norms, activations, caps, each against torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch.nn import functional

from converter.graph.blocks import FeedForwardBlock
from converter.graph.builder import GraphBuilder
from converter.graph.form import graph_form
from converter.graph.norms import Norms, shifted
from converter.model.architecture import Norm
from converter.model.decoder import Decoder
from converter.recipe.schema import TargetConfig
from converter.weights.weight import TensorWeight

HIDDEN = 64
Make = Callable[[GraphBuilder, ir.Value], ir.Value]


@pytest.fixture
def decoder(build: Callable[..., Any]) -> Decoder:
    found: Decoder = build(until="layout")
    return found


def run(decoder: Decoder, make: Make, value: torch.Tensor, folder: Path, **target: Any) -> Any:
    """What a graph of one block makes of (batch, tokens, columns)."""
    builder = GraphBuilder(decoder, TargetConfig(**target))
    given = builder.input("x", ir.DataType.FLOAT, *value.shape)
    builder.output(make(builder, given), "y", "batch", "tokens", "columns")
    graph = ir.Graph(
        builder.inputs,
        builder.outputs,
        nodes=builder.tape.nodes,
        initializers=builder.tape.initializers,
        opset_imports={"": 21, "com.microsoft": 1},
        name="block",
    )
    path = folder / "block.onnx"
    ir.save(ir.Model(graph, ir_version=10), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": value.numpy()})[0])


def some(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("silu", functional.silu),
        ("gelu", functional.gelu),
        ("gelu_tanh", lambda x: functional.gelu(x, approximate="tanh")),
        ("relu", functional.relu),
        ("relu2", lambda x: functional.relu(x).square()),
    ],
)
def test_activations(decoder: Decoder, kind: str, expected: Any, tmp_path: Path) -> None:
    changed = replace(decoder, architecture=replace(decoder.architecture, activation=kind))

    def make(builder: GraphBuilder, value: ir.Value) -> ir.Value:
        form = graph_form(builder.arch, builder.target, 128)
        return FeedForwardBlock(builder, form)._act(value, "/block")

    value = some(1, 5, 40)
    assert torch.allclose(run(changed, make, value, tmp_path), expected(value), atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("gated", [True, False])
def test_feed_forward(decoder: Decoder, gated: bool, packed: bool, tmp_path: Path) -> None:
    weights = dict(decoder.weights)
    if not gated:
        del weights["layers.0.gate_proj"]
    changed = replace(decoder, weights=weights)

    def make(builder: GraphBuilder, value: ir.Value) -> ir.Value:
        form = graph_form(builder.arch, builder.target, 128)
        return FeedForwardBlock(builder, form).product(0, value)

    value = some(1, 3, HIDDEN)
    gate, up, down = (
        decoder.weights[f"layers.0.{part}_proj"].read() for part in ("gate", "up", "down")
    )
    middle = functional.silu(value @ gate.T) * (value @ up.T)
    if not gated:
        middle = functional.silu(value @ up.T)
    found = run(changed, make, value, tmp_path, packed_gate_up=packed)
    assert torch.allclose(found, middle @ down.T, atol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kind", "offset"), [("rms", 0.0), ("rms", 1.0), ("layer", 0.0)])
def test_norms(
    decoder: Decoder,
    kind: Any,
    offset: float,
    bias: bool,
    skips: bool,
    fused: bool,
    tmp_path: Path,
) -> None:
    if bias and kind == "rms":
        return
    weight, shift = some(HIDDEN), some(HIDDEN) if bias else None
    weights = {**decoder.weights, "norm": TensorWeight(weight)}
    if shift is not None:
        weights["norm_bias"] = TensorWeight(shift)
    arch = replace(decoder.architecture, norm=Norm(kind, 1e-5, offset))
    changed = replace(decoder, architecture=arch, weights=weights)

    def make(builder: GraphBuilder, value: ir.Value) -> ir.Value:
        skip = builder.op("Mul", [value, builder.number("constants.2", 2.0)], "/skip")
        normed, total = Norms(builder).of_sum("norm", "/norm", value, skip if skips else None)
        return builder.op("Add", [normed, total], "/both")

    value = some(2, 3, HIDDEN)
    total = 3 * value if skips else value
    expected = (
        functional.rms_norm(total, (HIDDEN,), weight + offset, 1e-5)
        if kind == "rms"
        else functional.layer_norm(total, (HIDDEN,), weight, shift, 1e-5)
    )
    found = run(changed, make, value, tmp_path, fused_norm=fused)
    assert torch.allclose(found, expected + total, atol=2e-4)


def test_a_norm_of_each_head(decoder: Decoder, tmp_path: Path) -> None:
    weight = some(decoder.architecture.head_dim)
    weights = {**decoder.weights, "layers.0.q_norm": TensorWeight(weight)}
    heads = decoder.architecture.num_attention_heads

    def make(builder: GraphBuilder, value: ir.Value) -> ir.Value:
        return Norms(builder).of_heads("layers.0.q_norm", "/q_norm", value, heads)

    value = some(1, 4, HIDDEN)
    parted = value.reshape(1, 4, heads, -1)
    eps = decoder.architecture.norm.eps
    expected = functional.rms_norm(parted, parted.shape[-1:], weight, eps).reshape(1, 4, -1)
    found = run(replace(decoder, weights=weights), make, value, tmp_path)
    assert torch.allclose(found, expected, atol=1e-5)


def test_scales_and_caps(decoder: Decoder, tmp_path: Path) -> None:
    def make(builder: GraphBuilder, value: ir.Value) -> ir.Value:
        assert builder.scaled(value, 1.0, "/none") is value
        assert builder.capped(value, 0.0, "/none") is value
        return builder.capped(builder.scaled(value, 0.25, "/scale"), 1.5, "/cap")

    value = some(1, 2, 8)
    expected = 1.5 * torch.tanh(value * 0.25 / 1.5)
    assert torch.allclose(run(decoder, make, value, tmp_path), expected, atol=1e-6)


def test_an_offset_is_added_as_rows_are_read() -> None:
    weight = TensorWeight(torch.arange(4, dtype=torch.bfloat16), "w")
    assert shifted(weight, 0.0) is weight
    found = shifted(weight, 1.0)
    assert found.dtype == torch.float32 and found.label == "w"
    assert found.rows(1, 3).tolist() == [2.0, 3.0]


def test_constants_are_made_once(decoder: Decoder) -> None:
    builder = GraphBuilder(decoder, TargetConfig())
    one = builder.constant("constants.one", [1])
    assert builder.constant("constants.one", [1]) is one
    number = builder.number("constants.half", 0.5)
    assert builder.number("constants.half", 0.5) is number
    assert np.asarray(number.const_value) == np.float32(0.5)

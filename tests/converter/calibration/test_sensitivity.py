from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from converter.calibration.fisher import read_fisher, write_fisher
from converter.calibration.inputs import Inputs, restored
from converter.calibration.rounding import Scheme
from converter.calibration.sensitivity import (
    Stage,
    activation_noise,
    measure_losses,
    read_losses,
)
from converter.calibration.tokens import calibration_tokens
from converter.cli.compose import compose_recipe
from converter.engine.execution import check
from converter.engine.registry import make_passes
from converter.graph.formats import candidate_formats
from converter.graph.matrices import graph_matrices
from converter.model.reference import Reference
from converter.quantization.rtn import BlockFormat
from converter.storage.cache import Cache
from converter.weights.weight import TensorWeight

onnxruntime = pytest.importorskip("onnxruntime")


def rounded_by_onnxruntime(x: torch.Tensor, block_size: int) -> torch.Tensor:
    """Activations as the kernel of accuracy level 4 sees them: times the identity in 8 bits."""
    from onnx import TensorProto, helper, numpy_helper

    size = x.shape[1]
    codes = np.full((size, size), 128, np.uint8)
    np.fill_diagonal(codes, 255)
    blocks = size // block_size
    scales = np.full((size, blocks), 1 / 127, np.float32)
    values = [
        numpy_helper.from_array(codes.reshape(size, blocks, block_size), "codes"),
        numpy_helper.from_array(scales, "scales"),
    ]
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales"],
        ["y"],
        domain="com.microsoft",
        K=size,
        N=size,
        bits=8,
        block_size=block_size,
        accuracy_level=4,
    )
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["t", size]) for n in ("x", "y")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "identity", ends[:1], ends[1:], values)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_activation_noise_is_that_of_onnxruntimes_kernel(block_size: int) -> None:
    x = torch.randn(40, 256, generator=torch.Generator().manual_seed(1)) ** 3
    expected = (rounded_by_onnxruntime(x, block_size) - x).square().mean(0)
    found = activation_noise(x, block_size)
    assert torch.allclose(found, expected, rtol=0.02, atol=float(expected.mean()) * 1e-3)


def test_larger_blocks_are_noisier_and_padding_adds_nothing() -> None:
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(2))
    small, large = (activation_noise(x, size).mean() for size in (32, 128))
    assert 0 < small < large
    padded = torch.nn.functional.pad(x, (0, 32))
    assert torch.equal(activation_noise(x, 128), activation_noise(padded, 128)[:96])


def test_noise_is_weighted_and_averaged_over_the_tokens_it_was_measured_on() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weights = torch.randn(2, 5, 64, generator=generator), torch.rand(2, 5, generator=generator)
    stage = Stage(Inputs(64))
    stage.add(x[:1], weights[:1], [32])
    stage.add(x[1:], weights[1:], [])
    stage.add(x[1:], weights[1:], [32])
    whole = x.flatten(0, 1) * weights.flatten()[:, None].sqrt()
    assert torch.allclose(stage.noise[32], activation_noise(whole, 32), rtol=1e-5)


@pytest.mark.slow
def test_a_formats_loss_is_the_divergence_of_rounding_that_matrix_alone(tmp_path: Path) -> None:
    words = ["recipe=demo", "quant=rtn", "quant.bits_per_weight=5", "calibration.tokens=1024"]
    recipe = compose_recipe(words)
    decoder = check(recipe, make_passes(["load", "layout"]), None)
    assert decoder is not None
    tokens = calibration_tokens(decoder, recipe.calibration)
    reference = Reference(decoder)
    write_fisher(tmp_path, reference, tokens.ids, 0, lambda *_: None)
    scheme, fisher, cache = (
        Scheme(recipe.quant, torch.float32),
        read_fisher(tmp_path),
        Cache(tmp_path),
    )
    names = ("layers.1.o_proj", "layers.3.gate_proj")
    matrices = [item for item in graph_matrices(recipe, decoder) if item.name in names]
    measure_losses(tmp_path, reference, matrices, scheme, tokens, fisher, cache, lambda *_: None)
    losses, expected = read_losses(tmp_path), log_softmax(reference, tokens.ids)
    for matrix, form in zip(
        matrices, (BlockFormat(4, 32, True), BlockFormat(8, 64, True)), strict=True
    ):
        weight = decoder.weights[matrix.name].read().float()
        rounded = TensorWeight(restored(scheme.plain(weight, form), form, matrix.columns))
        other = Reference(decoder, {**decoder.weights, matrix.name: rounded})
        logs = log_softmax(other, tokens.ids)
        divergence = (expected.exp() * (expected - logs)).sum(-1).mean()
        loss = losses[matrix.name][candidate_formats(matrix, recipe.quant).index(form)]
        assert loss == pytest.approx(float(divergence), rel=0.2)


def log_softmax(reference: Reference, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = [reference.logits(reference.hidden_states(row[None])[0]) for row in ids]
    return torch.stack(logits).double().log_softmax(-1)

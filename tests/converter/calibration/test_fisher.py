"""Squared gradients, layer by layer, against autograd through transformers' whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracle import llama_of

from converter.calibration.fisher import read_fisher, write_fisher
from converter.calibration.layer import STAGES
from converter.errors import ConvertError
from converter.model.decoder import Decoder
from converter.model.reference import Reference
from converter.weights.weight import TensorWeight

IDS = torch.arange(3, 35).view(2, 16)


def nothing(done: int, total: int, detail: str) -> None:
    pass


def test_gradients_are_those_of_the_whole_model(decoder: Decoder, tmp_path: Path) -> None:
    """The layer-by-layer backward pass against autograd through transformers' whole model."""
    reference = Reference(decoder)
    ids = torch.arange(3, 35).view(2, 16)
    write_fisher(tmp_path, reference, ids, 7, nothing)
    fisher = read_fisher(tmp_path)
    model, outputs = llama_of(decoder.checkpoint), dict[str, torch.Tensor]()
    module = model.model.layers[0].mlp.down_proj
    module.register_forward_hook(lambda _m, _i, out: outputs.__setitem__("down", out))
    generator, squares = torch.Generator().manual_seed(7), []
    for row in ids:
        logits = model(row[None]).logits[0]
        labels = torch.multinomial(logits.softmax(-1).detach(), 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        squares.append(torch.autograd.grad(loss, outputs["down"])[0][0].square())
    whole = torch.stack(squares)
    tokens = whole.sum(-1) / whole.sum(-1).mean()
    assert torch.allclose(fisher.tokens["layers.0.down"], tokens, rtol=2e-3)
    rows = whole.sum((0, 1)) / ids.numel()
    assert torch.allclose(fisher.rows["layers.0.down_proj"], rows, rtol=2e-3)


def test_every_linear_and_stage_has_its_weights(
    decoder: Decoder, reference: Reference, tmp_path: Path
) -> None:
    write_fisher(tmp_path, reference, IDS, 0, nothing)
    fisher, layers = read_fisher(tmp_path), range(decoder.architecture.num_hidden_layers)
    stages = {f"layers.{layer}.{stage}" for layer in layers for stage in [*STAGES][:4]}
    assert set(fisher.tokens) == stages | {"lm_head"}
    for weights in fisher.tokens.values():
        assert weights.shape == IDS.shape and weights.min() >= 0
        assert weights.mean() == pytest.approx(1, rel=1e-5)
    for name, rows in fisher.rows.items():
        assert rows.shape == (decoder.weights[name].shape[0],) and rows.min() >= 0
    assert len(fisher.rows) == 7 * len(layers) + 1
    assert [path.name for path in tmp_path.iterdir()] == ["fisher.safetensors"]


def test_the_head_has_the_variance_of_its_labels(
    decoder: Decoder, reference: Reference, tmp_path: Path
) -> None:
    """In expectation over labels a logit's squared gradient is p(1 - p): no draw is needed."""
    write_fisher(tmp_path, reference, IDS, 0, nothing)
    chances = llama_of(decoder.checkpoint)(IDS).logits.softmax(-1).double()
    expected = (chances * (1 - chances)).mean((0, 1))
    assert torch.allclose(read_fisher(tmp_path).rows["lm_head"].double(), expected, rtol=1e-3)
    tokens = 1 - chances.square().sum(-1)
    found = read_fisher(tmp_path).tokens["lm_head"].double()
    assert torch.allclose(found, tokens / tokens.mean(), rtol=1e-3)


def test_the_seed_decides_the_labels(reference: Reference, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_fisher(folder, reference, IDS, seed, nothing)
        found.append(read_fisher(folder).rows["layers.0.q_proj"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", ["norm", "lm_head", "layers.1.v_proj"])
def test_nan_is_found_before_it_spreads(decoder: Decoder, tmp_path: Path, name: str) -> None:
    broken = decoder.weights[name].read().clone()
    broken.view(-1)[3] = float("nan")
    weights = {**decoder.weights, name: TensorWeight(broken, f"the tensor {name}")}
    reference = Reference(decoder, weights)
    with pytest.raises(ConvertError, match=f"the tensor {name} has NaN"):
        write_fisher(tmp_path, reference, IDS, 0, nothing)


def test_progress_counts_both_passes(reference: Reference, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    write_fisher(tmp_path, reference, IDS, 0, lambda *told: seen.append(told))
    assert [done for done, _, _ in seen] == [0, 1, 3, 4] and {total for _, total, _ in seen} == {4}
    assert "gradients, layer 1/2" in seen[-1][2]

"""One decoder layer in stages, against transformers' own layer and autograd."""

from __future__ import annotations

import pytest
import torch

from converter.calibration.layer import STAGES, LayerStages, check_finite, check_weights
from converter.errors import ConvertError
from converter.model.decoder import Decoder, Place
from converter.model.reference import Reference
from converter.weights.weight import TensorWeight


def hidden_of(decoder: Decoder) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 20, decoder.architecture.hidden_size, generator=generator)


def test_stages_compute_what_transformers_layer_does(
    decoder: Decoder, reference: Reference
) -> None:
    hidden = hidden_of(decoder)
    with reference.layer(0) as module:
        expected = reference.run_layer(module, hidden)
        stages = LayerStages(reference, module, 0)
        with torch.no_grad():
            states, found = stages.run(hidden)
    assert torch.allclose(found, expected, atol=1e-5)
    arch = decoder.architecture
    assert list(states) == stages.stages == ["attention", "output", "feed_forward", "down"]
    assert states["output"].shape[-1] == arch.num_attention_heads * arch.head_dim
    assert states["down"].shape[-1] == arch.intermediate_size


def test_a_matrix_that_was_put_in_is_the_one_that_runs(
    decoder: Decoder, reference: Reference
) -> None:
    """Each linear in turn: doubled in the stages and in the weights of another reference."""
    hidden = hidden_of(decoder)
    inside = [part for parts in STAGES.values() for part in parts]
    for part in (part for part in inside if f"layers.1.{part}" in decoder.weights):
        name = f"layers.1.{part}"
        doubled = TensorWeight(decoder.weights[name].read() * 2)
        other = Reference(decoder, {**decoder.weights, name: doubled})
        with other.layer(1) as module:
            expected = other.run_layer(module, hidden)
        with reference.layer(1) as module, torch.no_grad():
            stages = LayerStages(reference, module, 1)
            plain = stages.run(hidden)[1]
            stages.set(part, doubled.read())
            found = stages.run(hidden)[1]
        assert torch.allclose(found, expected, atol=1e-5), part
        assert not torch.allclose(found, plain, atol=1e-5), part


def test_norms_and_biases_of_folded_weights_are_taken(
    decoder: Decoder, reference: Reference
) -> None:
    folded = dict(decoder.weights)
    for part in ("attn_norm", "ffn_norm", "q_proj_bias", "o_proj_bias"):
        folded[f"layers.0.{part}"] = TensorWeight(decoder.weights[f"layers.0.{part}"].read() * 3)
    other, hidden = Reference(decoder, folded), hidden_of(decoder)
    with other.layer(0) as module:
        expected = other.run_layer(module, hidden)
    with reference.layer(0) as module, torch.no_grad():
        stages = LayerStages(reference, module, 0)
        stages.take(folded)
        found = stages.run(hidden)[1]
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_gradient_of_the_down_projection_needs_no_product(
    decoder: Decoder, reference: Reference
) -> None:
    """Nothing reads the layer's result, so its last product is left out: same gradients."""
    hidden, gradient = hidden_of(decoder), torch.randn(1, 20, decoder.architecture.hidden_size)
    found = []
    for unread in (True, False):
        with reference.layer(0) as module:
            stages = LayerStages(reference, module, 0)
            if not unread:
                stages._places["ffn_post_norm"] = Place("none.weight")
            found.append(stages.gradients(hidden, gradient))
    (below, parts), (again, others) = found
    assert torch.allclose(below, again, atol=1e-6)
    assert parts.keys() == others.keys()
    assert all(torch.allclose(parts[name], others[name], atol=1e-6) for name in parts)
    assert torch.equal(parts["down_proj"], gradient)


def test_no_parameter_asks_for_a_gradient(reference: Reference) -> None:
    with reference.layer(0) as module:
        LayerStages(reference, module, 0)
        assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("part", ["q_proj", "q_proj_bias", "down_proj", "attn_norm"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(decoder: Decoder, part: str, bad: float) -> None:
    name = f"layers.0.{part}"
    broken = decoder.weights[name].read().clone()
    broken.view(-1)[-1] = bad
    weights = {**decoder.weights, name: TensorWeight(broken, f"the tensor {part}")}
    other = Reference(decoder, weights)
    with other.layer(0) as module, pytest.raises(ConvertError, match=f"the tensor {part} has NaN"):
        check_weights(module, other, 0)


def test_activations_that_are_not_finite_name_their_place() -> None:
    check_finite(torch.ones(3), "layer 4")
    with pytest.raises(ConvertError, match=r"activations of layer 4 have NaN.*(?s:.)*compute=fp32"):
        check_finite(torch.tensor([1.0, float("inf")]), "layer 4")

"""Folds move scales between neighbours; what they compute together stays."""

from __future__ import annotations

import pytest
import torch
from oracle import llama_of

from converter.calibration.folds import (
    HEAD_FOLD,
    apply_folds,
    fold_prefix,
    folds_of,
    input_groups,
    input_scales,
)
from converter.model.decoder import Decoder
from converter.model.reference import Reference


def random_scales(decoder: Decoder, name: str) -> dict[str, torch.Tensor]:
    arch, generator = decoder.architecture, torch.Generator().manual_seed(0)
    channels = {"value": arch.num_key_value_heads * arch.head_dim, "up": arch.intermediate_size}
    return {
        fold.name: torch.empty(channels.get(fold.name, arch.hidden_size)).uniform_(
            0.2, 5, generator=generator
        )
        for fold in folds_of(name, decoder)
    }


def test_folds_leave_the_logits_equal(decoder: Decoder) -> None:
    arch, ids, weights = decoder.architecture, torch.arange(3, 43)[None], dict(decoder.weights)
    for name in (*(f"layers.{layer}" for layer in range(arch.num_hidden_layers)), "lm_head"):
        weights = apply_folds(weights, name, random_scales(decoder, name), decoder)
    folded = Reference(decoder, weights)
    found = folded.logits(folded.hidden_states(ids))
    expected = llama_of(decoder.checkpoint)(ids).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    for name in ("layers.0.o_proj", "norm", "lm_head"):
        assert not torch.equal(weights[name].read(), decoder.weights[name].read())


@pytest.mark.parametrize("name", ["attention_norm", "value", "ffn_norm", "up"])
def test_one_fold_touches_its_producer_and_its_consumers_alone(decoder: Decoder, name: str) -> None:
    (fold,) = (fold for fold in folds_of("layers.1", decoder) if fold.name == name)
    scales = {fold.name: random_scales(decoder, "layers.1")[fold.name]}
    found = apply_folds(decoder.weights, "layers.1", scales, decoder)
    changed = {
        name for name in found if not torch.equal(found[name].read(), decoder.weights[name].read())
    }
    touched = {f"layers.1.{part}" for part in (fold.producer, *fold.consumers)}
    bias = f"layers.1.{fold.producer}_bias"
    assert changed == touched | ({bias} if bias in decoder.weights else set())


def test_scales_of_the_value_fold_reach_the_query_heads_of_their_kv_head(
    decoder: Decoder,
) -> None:
    arch = decoder.architecture
    folds = folds_of("layers.0", decoder)
    fold = next(fold for fold in folds if fold.name == "value")
    scales = torch.arange(1.0, 1 + arch.num_key_value_heads * arch.head_dim)
    found = input_scales(fold, scales, arch)
    group = arch.num_attention_heads // arch.num_key_value_heads
    for head in range(arch.num_attention_heads):
        shared = scales.view(-1, arch.head_dim)[head // group]
        assert torch.equal(found.view(-1, arch.head_dim)[head], shared)
    for other in folds:
        assert (input_groups(other, arch) is None) == (other.name != "value")


def test_without_scales_nothing_changes(decoder: Decoder) -> None:
    found = apply_folds(decoder.weights, "layers.0", {}, decoder)
    assert all(found[name] is weight for name, weight in decoder.weights.items())


def test_names_of_a_layer_and_of_the_head(decoder: Decoder) -> None:
    assert (fold_prefix("layers.3"), fold_prefix("lm_head")) == ("layers.3.", "")
    names = ["attention_norm", "value", "ffn_norm", "up"]
    assert [fold.name for fold in folds_of("layers.1", decoder)] == names
    assert folds_of("lm_head", decoder) == (HEAD_FOLD,)

"""The decoder run layer by layer, against transformers' whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import llama_of

from converter.model import transformers_model
from converter.model.decoder import Decoder
from converter.model.reference import Reference, llama_config
from converter.model.rope import Rope

IDS = torch.tensor([[5, 9, 9, 140, 3, 77, 21]])


def decoder_of(build: Callable[..., Any], **config: Any) -> Decoder:
    found: Decoder = build(until="layout", **config)
    return found


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"bias": True},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"rope_theta": 1e6, "rms_norm_eps": 1e-3},
        {"max_position_embeddings": 4, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
    ids=str,
)
def test_logits_are_those_of_the_whole_model(
    build: Callable[..., Any], request: pytest.FixtureRequest, config: dict[str, Any]
) -> None:
    if config.get("bias"):
        request.getfixturevalue("synthetic_biases")
    decoder = decoder_of(build, **config)
    found = Reference(decoder)
    logits = found.logits(found.hidden_states(IDS))
    with torch.no_grad():
        expected = llama_of(decoder.checkpoint)(IDS).logits
    assert torch.allclose(logits, expected, atol=1e-4)


def test_hidden_states_after_some_layers(build: Callable[..., Any]) -> None:
    decoder = decoder_of(build, num_hidden_layers=3)
    found = Reference(decoder)
    with torch.no_grad():
        states = llama_of(decoder.checkpoint)(IDS, output_hidden_states=True).hidden_states
    for layers in range(3):
        assert torch.allclose(found.hidden_states(IDS, layers), states[layers], atol=1e-5)
    normed = found.head_input(found.hidden_states(IDS))
    assert torch.allclose(normed, states[3], atol=1e-5)  # transformers' last one is normed


def test_embedding_reads_the_rows_in_use(build: Callable[..., Any]) -> None:
    decoder = decoder_of(build)
    found = Reference(decoder).embed(IDS)
    assert torch.equal(found, decoder.weights["embed_tokens"].read()[IDS])


def test_rows_of_the_head_may_be_taken_in_parts(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_of(build)
    found = Reference(decoder)
    hidden = found.hidden_states(IDS)
    whole = found.logits(hidden)
    monkeypatch.setattr(transformers_model, "HEAD_ROWS", 7)
    assert torch.allclose(found.logits(hidden), whole, atol=1e-6)


def test_a_layer_has_no_weights_outside_of_its_context(build: Callable[..., Any]) -> None:
    decoder = decoder_of(build)
    with Reference(decoder).layer(1) as module:
        assert not any(parameter.is_meta for parameter in module.parameters())
    assert all(parameter.is_meta for parameter in module.parameters())


def test_half_precision_is_near(build: Callable[..., Any]) -> None:
    decoder = decoder_of(build)
    half = Reference(decoder, dtype=torch.bfloat16)
    logits = half.logits(half.hidden_states(IDS))
    assert logits.dtype == torch.float32
    with torch.no_grad():
        expected = llama_of(decoder.checkpoint)(IDS).logits
    error = (logits - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.05  # bfloat16 was used, and used right


def test_a_fixed_length_fixes_the_base(build: Callable[..., Any]) -> None:
    scaling = {"type": "dynamic", "factor": 2.0}
    arch = decoder_of(build, max_position_embeddings=16, rope_scaling=scaling).architecture
    follows, fixed = llama_config(arch), llama_config(arch, cache_length=64)
    assert follows.rope_parameters["rope_type"] == "dynamic"
    assert fixed.rope_parameters["rope_type"] == "default"
    base = Rope(arch.rope.theta, "dynamic", 2.0).base(arch.head_dim, 64, 16)
    assert fixed.rope_parameters["rope_theta"] == base > arch.rope.theta

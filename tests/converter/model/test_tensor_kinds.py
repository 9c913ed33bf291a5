"""The closed list of canonical tensors, against the shapes of transformers' modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from descriptions import architecture, described
from transformers import AutoConfig, AutoModelForCausalLM

from converter.model.decoder import published_shapes
from converter.model.tensor_kinds import (
    LAYER_TENSORS,
    MODEL_TENSORS,
    NORMS,
    canonical_shape,
    is_bias,
    leaf,
)

CONFIG: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 192,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


@pytest.mark.parametrize("name", ["qwen3", "phi3", "olmo2", "llama"])
def test_shapes_are_those_of_transformers_class(name: str) -> None:
    settings = CONFIG | {"attention_bias": True} if name == "llama" else dict(CONFIG)
    config = AutoConfig.for_model(name, **settings, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    arch = architecture(config.to_dict(), name)
    shapes = published_shapes(described(name).layout, arch)
    real = {n: tuple(p.shape) for n, p in model.named_parameters() if not n.endswith(".bias")}
    assert shapes == real
    for number in range(2):
        bias = canonical_shape(f"layers.{number}.q_proj_bias", arch)
        assert bias == canonical_shape("q_proj", arch)[:1]


def test_names_and_groups() -> None:
    assert leaf("layers.3.q_proj") == "q_proj" and leaf("norm") == "norm"
    assert is_bias("layers.3.q_proj_bias") and not is_bias("layers.3.q_proj")
    assert {*LAYER_TENSORS, *MODEL_TENSORS} >= NORMS
    assert all(name.endswith("norm") for name in NORMS)
    assert not {*LAYER_TENSORS} & {*MODEL_TENSORS}

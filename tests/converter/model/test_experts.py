"""How many experts, and which layers have them, against transformers' own classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from descriptions import described
from families import EVEN, FINE_EXPERTS, SIZES
from transformers import AutoConfig, AutoModelForCausalLM

from converter.errors import ConvertError
from converter.model.architecture import read_architecture
from converter.model.experts import Experts

QWEN3 = SIZES | FINE_EXPERTS | {"num_hidden_layers": 7, "num_local_experts": 6}


def experts_of(config: dict[str, Any], name: str, **changes: Any) -> Experts:
    recipe = described(name)
    graph = replace(recipe.graph, experts=replace(recipe.graph.experts, **changes))
    found = read_architecture(config, replace(recipe, graph=graph)).experts
    assert found is not None
    return found


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"decoder_sparse_step": 2},
        {"decoder_sparse_step": 3, "mlp_only_layers": [2]},
        {"mlp_only_layers": [0, 6]},
    ],
    ids=str,
)
def test_layers_with_experts_are_transformers(said: dict[str, Any]) -> None:
    config = AutoConfig.for_model("qwen3_moe", **QWEN3 | said)
    model = AutoModelForCausalLM.from_config(config)
    expected = tuple(hasattr(layer.mlp, "experts") for layer in model.model.layers)
    assert experts_of({"model_type": "qwen3_moe", **QWEN3, **said}, "qwen3_moe").layers == expected


def test_the_first_layers_can_be_without() -> None:
    found = experts_of({"model_type": "qwen3_moe", **QWEN3}, "qwen3_moe", first_dense=2)
    assert found.layers == (False,) * 2 + (True,) * 5


def test_numbers_come_from_config_json() -> None:
    config = EVEN | FINE_EXPERTS | {"shared_expert_intermediate_size": 40, "norm_topk_prob": True}
    found = experts_of({"model_type": "qwen2_moe", **config}, "qwen2_moe")
    assert found == Experts(6, 3, 48, (True,) * 3, True, 40)
    assert found.said == "6 experts, 3 for each token, and one for all"


def test_gpt_oss_states_how_it_gates() -> None:
    config = {"model_type": "gpt_oss", **SIZES, "sliding_window": 8, "num_local_experts": 4}
    found = experts_of(config | {"swiglu_limit": 5.0}, "gpt_oss")
    assert (found.alpha, found.beta, found.limit) == (1.702, 1.0, 5.0)


def test_a_description_without_a_router_has_no_experts() -> None:
    recipe, config = described("llama"), {"model_type": "llama", **SIZES}
    assert read_architecture(config, recipe).experts is None


MIXTRAL = {"model_type": "mixtral", **SIZES, "num_local_experts": 4}


@pytest.mark.parametrize(
    ("config", "changes", "found"),
    [
        (MIXTRAL | {"num_experts_per_tok": 5}, {}, "graph.experts.per_token is 5"),
        (MIXTRAL | {"num_local_experts": 0}, {}, "graph.experts.count is 0"),
        (MIXTRAL | {"num_local_experts": 10**9}, {}, "num_local_experts"),
        (MIXTRAL | {"hidden_act": "gelu"}, {}, "graph.feed_forward.activation is 'gelu'"),
        (MIXTRAL, {"normalize": 1}, "graph.experts.normalize is 1"),
        (MIXTRAL, {"dense_layers": "all"}, "graph.experts.dense_layers is 'all'"),
        (MIXTRAL, {"step": 0}, "graph.experts.step is 0"),
        (MIXTRAL, {"limit": "high"}, "graph.experts.limit is 'high'"),
    ],
)
def test_what_cannot_be_is_refused(
    config: dict[str, Any], changes: dict[str, Any], found: str
) -> None:
    with pytest.raises(ConvertError) as caught:
        experts_of(config, "mixtral", **changes)
    assert found in str(caught.value)

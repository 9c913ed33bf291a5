"""Which description a config.json is for, and what is said where none or two are."""

from __future__ import annotations

from typing import Any

import pytest

from converter.cli.compose import compose_recipe
from converter.errors import ConvertError
from converter.recipe import architectures
from converter.recipe.architectures import (
    AUTO,
    Described,
    architecture_of,
    descriptions,
    unknown_architecture,
)
from converter.recipe.tree import built_in_files, trial
from converter.recipe.trust import ARCHITECTURE

OWN = b"""# @package _global_
defaults:
  - llama
  - _self_
layout:
  architectures: [NewForCausalLM]
  model_types: [new_type]
  reference: llama
"""


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "qwen3"),
        ({"model_type": "qwen3"}, "qwen3"),
        ({"model_type": "mistral"}, "mistral"),
        ({"model_type": "internlm", "architectures": ["InternLMForCausalLM"]}, "internlm2"),
        ({"model_type": "internlm3", "architectures": ["LlamaForCausalLM"]}, "internlm3"),
        ({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}, "gemma3"),
        ({"architectures": ["PhiForCausalLM"]}, "phi"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, None),
        ({}, None),
        ({"model_type": None, "architectures": None}, None),
        ({"model_type": ["qwen3"], "architectures": "Qwen3ForCausalLM"}, None),
    ],
    ids=str,
)
def test_what_a_config_is_found_by(config: dict[str, Any], name: str | None) -> None:
    assert architecture_of(config) == name


def test_every_file_names_a_class_and_a_type_of_its_own() -> None:
    found = descriptions()
    assert {item.name for item in found} == {*built_in_files(ARCHITECTURE)} - {AUTO}
    classes = [name for item in found for name in item.classes]
    assert len(classes) == len(set(classes))
    assert all(item.classes and item.model_types for item in found)
    assert all(name.endswith(("ForCausalLM", "ForConditionalGeneration")) for name in classes)


def test_two_descriptions_for_a_type_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    both = (
        Described("one", frozenset(), frozenset({"odd"})),
        Described("two", frozenset(), frozenset({"odd"})),
    )
    monkeypatch.setattr(architectures, "descriptions", lambda: both)
    with pytest.raises(ConvertError, match="one and two are both for model_type 'odd'"):
        architecture_of({"model_type": "odd"})


def test_a_team_s_description_is_found_like_the_others() -> None:
    with trial("team", {"architecture/new.yaml": OWN}):
        assert architecture_of({"model_type": "new_type"}) == "team/new"
        recipe = compose_recipe(["recipe=auto", "architecture=team/new"])
    assert recipe.layout.model_types == ["new_type"]
    assert recipe.layout.layer_tensors["q_proj"] == "self_attn.q_proj"


def test_an_unknown_type_is_named_with_what_is_near() -> None:
    problem = unknown_architecture({"model_type": "qwen33", "architectures": ["X"]}, "./mine")
    assert "'qwen33'" in problem.found and "./mine" in problem.found
    assert "qwen3" in problem.expected and "own_model.md" in problem.remedy


def test_the_former_name_of_the_slot_chooses_too() -> None:
    former = compose_recipe(["recipe=internlm2_7b_cpu_int4", "layout=llama"])
    assert former.layout.model_types[0] == "llama"
    assert former == compose_recipe(["recipe=internlm2_7b_cpu_int4", "architecture=llama"])

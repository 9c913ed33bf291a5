"""Every built-in recipe composes, and says its own command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from converter.cli.compose import compose_recipe, group_choices, recipes_folder
from converter.engine.engine import order_problems
from converter.engine.registry import make_passes
from converter.model.architecture import read_architecture

NAMES = group_choices("recipe")


@pytest.mark.parametrize("name", NAMES)
def test_recipe_composes(name: str) -> None:
    recipe = compose_recipe([f"recipe={name}"])
    assert recipe.name == name
    assert list(order_problems(make_passes(recipe.passes))) == []
    text = (recipes_folder() / "recipe" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"# convert recipe={name}" in text.splitlines()[:3]


def test_every_export_of_the_family_is_there() -> None:
    sizes, kinds = ("1_8b", "7b", "20b"), ("", "_chat")
    exports = ("cpu_fp32", "cpu_int4", "cuda_fp16", "cuda_int4")
    for size, kind, export in itertools.product(sizes, kinds, exports):
        recipe = compose_recipe([f"recipe=internlm2_{size}{kind}_{export}"])
        provider, precision = export.split("_")
        assert recipe.target.execution_provider == provider
        assert recipe.target.float_type == ("fp32" if provider == "cpu" else "fp16")
        assert (recipe.quant.round == "none") == (precision != "int4")
        assert recipe.model.chat == bool(kind)
        assert recipe.verify.enabled


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("internlm2_7b", "internlm2-7b"),
        ("internlm2_20b", "internlm2-20b"),
        ("internlm2_1_8b_chat", "internlm2-chat-1_8b"),
        ("internlm2_20b_chat", "internlm2-chat-20b"),
    ],
)
def test_sizes_are_those_of_the_published_config(
    shared_data: Path, model: str, published: str
) -> None:
    path = shared_data / "hf_configs" / f"{published}.config.json"
    recipe = compose_recipe([f"recipe={model}_cpu_int4"])
    assert read_architecture(recipe.model.config) == read_architecture(json.loads(path.read_text()))

"""Every built-in recipe composes: those with a file, and each model with each export."""

from __future__ import annotations

from typing import Any

import pytest
from descriptions import architecture
from omegaconf import OmegaConf
from published import published_config

from converter.cli.compose import compose_recipe, compose_values
from converter.engine.execution import order_problems
from converter.engine.registry import make_passes
from converter.recipe.architectures import architecture_of
from converter.recipe.schema import Recipe
from converter.recipe.tree import (
    EXPORT,
    RECIPE,
    Tree,
    built_in,
    built_in_files,
    built_in_models,
    merge,
    products,
    recipes_folder,
)
from converter.recipe.trust import ARCHITECTURE
from converter.recipe.validation import default_values, parse_recipe
from converter.sources.config import source_config

MODELS, EXPORTS = built_in_models(), built_in_files(EXPORT)


def from_tree(model: str, export: str) -> Recipe:
    """A recipe as the tree alone gives it: a tenth of the time that Hydra takes."""
    name, tree = f"{model}_{export}", Tree()
    found = source_config(merge(default_values(), tree.recipe({RECIPE: name}).merged()))
    assert found is not None
    architecture = architecture_of(found.config)
    assert architecture is not None
    picked = {RECIPE: name, ARCHITECTURE: architecture}
    values = merge(default_values(), tree.recipe(picked).merged())
    resolved: Any = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    return parse_recipe({**resolved, "name": name})


@pytest.mark.parametrize("name", built_in_files(RECIPE))
def test_a_recipe_with_a_file_composes_and_says_its_command(name: str) -> None:
    recipe = compose_recipe([f"recipe={name}"])
    assert recipe.name == name
    assert list(order_problems(make_passes(recipe.passes))) == []
    text = (recipes_folder() / "recipe" / f"{name}.yaml").read_text(encoding="utf-8")
    assert any(line.startswith(f"# convert recipe={name}") for line in text.splitlines()[:3])


@pytest.mark.slow
@pytest.mark.parametrize("export", EXPORTS)
def test_every_model_composes_with_every_export(export: str) -> None:
    provider, precision, *scheme = export.split("_")
    for model in MODELS:
        recipe = from_tree(model, export)
        assert recipe.model.name == model
        assert recipe.source.kind == ("demo" if model == "demo" else "checkpoint")
        assert recipe.target.execution_provider.lower() == provider
        if precision.startswith("int"):
            assert recipe.quant.round != "none" and recipe.quant.bits == int(precision[3:])
            assert recipe.quant.calibrated == bool(scheme)
        else:
            assert recipe.quant.round == "none" and recipe.target.float_type == precision
        embeds = provider in ("cpu", "cuda", "webgpu")
        assert (recipe.quant.embedding.bits == 16) == (precision == "int4" and not embeds)
        assert recipe.verify.enabled


@pytest.mark.parametrize(("number", "export"), list(enumerate(EXPORTS)))
def test_hydra_composes_what_the_tree_gives(number: int, export: str) -> None:
    model = MODELS[number]
    recipe = compose_recipe([f"recipe={model}_{export}"])
    assert recipe == from_tree(model, export)
    assert recipe.name == f"{model}_{export}"


def test_no_name_has_two_readings_and_no_file_hides_a_product() -> None:
    composed = products(MODELS, EXPORTS)
    assert len(set(composed)) == len(composed) == len(MODELS) * len(EXPORTS)
    assert not {*composed} & {*built_in_files(RECIPE)}
    assert len(built_in_files(RECIPE)) <= 15
    assert built_in(RECIPE) == sorted([*composed, *built_in_files(RECIPE)])
    tree = Tree()
    for name in composed:
        pair = tree.pair(name)  # raises where a name can be read in two ways
        assert pair is not None and f"{pair.model}_{pair.export}" == name


def test_model_and_export_are_the_recipe_of_both() -> None:
    apart = compose_values(["export=cuda_int4", "quant.bits=8", "model=internlm2_7b"])
    assert apart == compose_values(["recipe=internlm2_7b_cuda_int4", "quant.bits=8"])


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("internlm2_7b", "internlm2-7b"),
        ("internlm2_20b", "internlm2-20b"),
        ("internlm2_1_8b_chat", "internlm2-chat-1_8b"),
        ("internlm2_20b_chat", "internlm2-chat-20b"),
    ],
)
def test_sizes_are_those_of_the_published_config(model: str, published: str) -> None:
    recipe = compose_recipe([f"recipe={model}_cpu_int4"])
    assert architecture(recipe.model.config) == architecture(published_config(published))

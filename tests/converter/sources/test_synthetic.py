from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.cli.compose import compose_recipe
from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.recipe.schema import Recipe
from converter.sources import synthetic
from converter.sources.local import open_local
from converter.sources.synthetic import open_synthetic, random_weight


def test_values_do_not_depend_on_how_they_are_read() -> None:
    weight = random_weight(3, "matrix", (3000, 700), torch.float32)
    whole = weight.read()
    parts = [weight.rows(a, min(a + 137, 3000)) for a in range(0, 3000, 137)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(weight.rows(2990, 3000), whole[2990:])


def test_seed_and_name_change_the_values() -> None:
    values = [
        random_weight(seed, name, (8, 8), torch.float32).read()
        for seed, name in ((0, "a"), (1, "a"), (0, "b"))
    ]
    assert not torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_matrices_are_normal_and_norms_lie_around_one() -> None:
    matrix = random_weight(0, "m", (500, 400), torch.float32).read()
    assert abs(float(matrix.std()) * 20 - 1) < 0.01
    assert abs(float(random_weight(0, "n", (5000,), torch.float32).read().mean()) - 1) < 0.01


def test_published_names_of_internlm2(make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe()
    names = open_synthetic(recipe).tensors
    assert names["model.layers.1.attention.wqkv.weight"].shape == (128, 64)
    assert {"model.tok_embeddings.weight", "model.norm.weight", "output.weight"} <= names.keys()
    assert len(names) == 3 + 2 * 7


def test_written_checkpoint_equals_the_lazy_one(
    tiny_checkpoint: Callable[..., Path], make_recipe: Callable[..., Any]
) -> None:
    recipe = make_recipe("source.dtype=bfloat16")
    lazy = open_synthetic(recipe).tensors
    written = open_local(tiny_checkpoint(dtype="bfloat16")).tensors
    assert written.keys() == lazy.keys()
    assert all(torch.equal(written[name].read(), lazy[name].read()) for name in lazy)


def test_a_model_without_sizes_is_refused() -> None:
    with pytest.raises(ConvertError, match="model=internlm2_1_8b"):
        open_synthetic(Recipe())


def test_a_stack_of_experts_is_made_an_expert_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "BLOCK_VALUES", 1000)
    weight = random_weight(0, "stack", (6, 40, 20), torch.float32)
    whole = weight.read()
    assert torch.equal(weight.rows(2, 3), whole[2:3])
    assert not torch.equal(whole[2], whole[3])
    assert abs(float(whole.std()) * 20**0.5 - 1) < 0.05
    made: list[tuple[int, ...]] = []
    empty = torch.empty

    def counted(*size: int) -> torch.Tensor:
        made.append(size)
        return empty(*size)

    monkeypatch.setattr(torch, "empty", counted)
    weight.rows(4, 5)
    assert made == [(1, 40, 20)]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mixtral_8x7b", "granite3_1b_a400m", "gpt_oss_20b"])
def test_a_synthetic_checkpoint_of_experts_converts(model: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 16}
    sizes |= {"num_hidden_layers": 2, "vocab_size": 160, "num_key_value_heads": 2}
    words = [f"model.config.{key}={value}" for key, value in sizes.items()]
    words += ["model.config.num_local_experts=8", "model.config.pad_token_id=0"]
    words += ["model.config.eos_token_id=2", "quant.embedding.block_size=32"]
    words += ["source=synthetic", f"output={tmp_path / 'out'}"]
    recipe = compose_recipe([f"recipe={model}_cpu_int4", *words])
    folder = run_recipe(recipe, make_passes(recipe.passes))
    assert (folder / "model.onnx").is_file()

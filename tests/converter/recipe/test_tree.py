"""The recipe tree: composed names, layers with their origins, and what Hydra makes of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from converter.errors import ConvertError
from converter.recipe import tree
from converter.recipe.tree import EXPORT, MODEL, OWN, RECIPE, Layer, Pair, Piece, Tree
from converter.recipe.validation import default_values


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of a repository `acme` in use."""
    files = {
        "model/ours.yaml": b"defaults: [internlm2_7b]\nname: ours\nrepo: us/ours\n",
        "export/cpu_wide.yaml": b"defaults: [cpu_int4]\nquant: {bits: 8}\n",
    }
    monkeypatch.setattr(tree, "_trial", {"acme": files})
    return files


@pytest.fixture
def folder(tmp_path: Path, team: dict[str, bytes]) -> Path:
    """The same files in a folder of the user's own."""
    for path, content in team.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    (tmp_path / RECIPE).mkdir()
    return tmp_path


def test_the_last_layer_has_the_last_word_and_is_the_origin() -> None:
    below = Layer("below", {"quant": {"bits": 4, "block_size": 32}, "passes": ["load"]})
    piece = Piece([below, Layer("above", {"quant": {"bits": 8}})])
    assert piece.merged() == {"quant": {"bits": 8, "block_size": 32}, "passes": ["load"]}
    assert piece.origins() == {
        "quant.bits": "above",
        "quant.block_size": "below",
        "passes": "below",
    }


@pytest.mark.parametrize("name", tree.built_in_files(RECIPE))
def test_hydra_reads_the_built_in_files_as_the_tree_does(name: str) -> None:
    """They are ordinary files of Hydra's: its own composition of them gives the same."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="schema", node=default_values())
    with initialize_config_dir(str(tree.recipes_folder()), version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("convert", [f"recipe={name}"]))
    assert composed == tree.merge(default_values(), Tree().recipe({RECIPE: name}).merged())


def test_model_and_export_give_what_their_joined_name_gives() -> None:
    apart = Tree().recipe({MODEL: "internlm2_7b", EXPORT: "cuda_int4"})
    joined = Tree().recipe({RECIPE: "internlm2_7b_cuda_int4"})
    assert apart.merged() == joined.merged() and apart.origins() == joined.origins()


def test_an_export_beside_a_recipe_comes_on_top_of_it() -> None:
    values = Tree().recipe({RECIPE: "demo_olive_qdq", EXPORT: "cuda_bf16"}).merged()
    assert values["target"]["float_type"] == "bf16" and values["quant"]["round"] == "none"
    assert values["source"]["kind"] == "demo" and values["olive"]["passes"]


@pytest.mark.parametrize(
    ("picked", "name"),
    [
        ({RECIPE: "demo"}, "demo"),
        ({RECIPE: "internlm2_7b_cuda_int4", MODEL: "internlm2_20b"}, "internlm2_7b_cuda_int4"),
        ({MODEL: "internlm2_7b", EXPORT: "cuda_int4"}, "internlm2_7b_cuda_int4"),
        ({RECIPE: "internlm2_7b_cuda_int4", EXPORT: "cpu_fp32"}, "internlm2_7b_cpu_fp32"),
        ({RECIPE: "demo", EXPORT: "cpu_fp32"}, "demo_cpu_fp32"),
        ({RECIPE: "acme/ours_cuda_int4"}, "acme_ours_cuda_int4"),
        ({MODEL: "acme/ours", EXPORT: "cuda_int4"}, "acme_ours_cuda_int4"),
        ({MODEL: "internlm2_7b", EXPORT: "acme/cpu_wide"}, "acme_internlm2_7b_cpu_wide"),
    ],
    ids=str,
)
def test_the_name_of_a_recipe(picked: dict[str, str], name: str, team: dict[str, bytes]) -> None:
    assert Tree().recipe_name(picked) == name


def test_a_file_wins_over_a_composed_name(team: dict[str, bytes]) -> None:
    assert Tree().pair("acme/ours_cpu_wide") == Pair("acme/ours", "acme/cpu_wide")
    team["recipe/ours_cpu_wide.yaml"] = b"defaults: [demo]\nthreads: 1\n"
    assert Tree().pair("acme/ours_cpu_wide") is None
    assert Tree().recipe({RECIPE: "acme/ours_cpu_wide"}).merged()["threads"] == 1


def test_two_readings_of_a_name_are_an_error(team: dict[str, bytes]) -> None:
    team["model/ours_cpu.yaml"] = team["model/ours.yaml"]
    team["export/wide.yaml"] = team["export/cpu_wide.yaml"]
    with pytest.raises(ConvertError, match="can be read as model=acme/ours export=acme/cpu_wide"):
        Tree().recipe({RECIPE: "acme/ours_cpu_wide"})


def test_a_folder_of_the_users_own_composes_like_a_repository(folder: Path) -> None:
    made = tree.local_file(str(folder / "recipe" / "ours_cuda_int4.yaml"))  # no such file
    assert made is not None and not made.exists()
    here = Tree(made)
    values = here.recipe({RECIPE: OWN}).merged()
    assert values["model"]["repo"] == "us/ours" and values["quant"]["round"] == "rtn"
    assert here.recipe_name({RECIPE: OWN}) == "ours_cuda_int4"
    # Nothing of the folder is in this one.
    with pytest.raises(ConvertError, match="does not exist"):
        tree.local_file(str(folder / "recipe" / "internlm2_7b_cuda_int4.yaml"))


def test_a_file_builds_on_names_that_its_folder_composes(folder: Path) -> None:
    path = folder / "recipe" / "mine.yaml"
    path.write_text("defaults: [internlm2_7b_cpu_wide]\nthreads: 1\n")
    piece = Tree(path).recipe({RECIPE: OWN})
    assert piece.merged()["quant"]["bits"] == 8
    assert piece.origins()["quant.bits"] == "export/cpu_wide.yaml"
    assert piece.origins()["threads"] == str(path)

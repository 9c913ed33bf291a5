"""The verbs around a recipe: list, show, diff, check, new, explain, reproduce."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from converter.cli import show
from converter.cli.compose import compose_recipe, compose_values
from converter.cli.list import parameters
from converter.cli.main import main
from converter.cli.verbs import VERBS, spelled
from converter.recipe import tree
from converter.recipe.tree import built_in, built_in_files, built_in_models

LIGHT = ("torch", "hydra", "onnx_ir", "transformers", "numpy", "pydantic", "omegaconf")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main(words)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "next:" in error
    return error


@pytest.mark.parametrize(
    "words",
    [["list"], ["completion", "--", "recipe="], ["completion", "--", "quant.r"], []],
)
def test_what_must_feel_instant_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        f"import sys; from converter.cli.main import main; main({words!r});"
        f"print([m for m in {LIGHT!r} if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_a_module_of_its_name_that_gives_help(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(f"converter.cli.{verb.replace('-', '_')}")
    assert str(module.__doc__).startswith(f"`convert {verb}")
    assert f"`convert {verb}" in said(capsys, verb, "--help")
    assert len(VERBS[verb]) <= 25


@pytest.mark.parametrize("name", ["convert", "convert-genai"])
def test_messages_and_help_use_the_name_of_the_call(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{name}"])
    error = refused(capsys, "list", "nothing-like-this")
    assert error.startswith(f"{name}: 1 problem\n") and f"next:     {name} list\n" in error
    assert f"\n  {name} recipe=NAME" in said(capsys, "--help")
    text = said(capsys, "bench", "--help")
    assert text.startswith(f"usage: {name} bench") and f"`{name} bench FOLDER…`" in text
    for shell, line in (
        ("bash", f"_convert {name}\n"),
        ("zsh", f"#compdef {name}\n"),
        ("fish", f"complete -c {name} -n"),
    ):
        assert line in said(capsys, "completion", shell)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run `convert check` or convert -m …", "run `convert-genai check` or convert-genai -m …"),
        ("convert recipe=demo", "convert-genai recipe=demo"),
        ("convert model=a export=b", "convert-genai model=a export=b"),
        ("convert the model first", "convert the model first"),
        ("/tmp/convert list", "/tmp/convert list"),
        ("pip install convert-genai[cpu]", "pip install convert-genai[cpu]"),
    ],
)
def test_only_commands_are_spelled_anew(
    text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spelled(text) == text
    monkeypatch.setattr(sys, "argv", ["convert-genai"])
    assert spelled(text) == expected


def test_list_has_models_exports_files_and_filters_by_all_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = said(capsys, "list")
    names = {line.split()[0] for line in text.splitlines() if line}
    assert names >= {*built_in_models(), *built_in_files("export")}
    assert all(name in text for name in built_in_files("recipe"))
    every = said(capsys, "list", "_").splitlines()[1:]
    assert [line.split()[0] for line in every] == [n for n in built_in("recipe") if "_" in n]
    lines = said(capsys, "list", "7B", "chat", "cuda").splitlines()[1:]
    assert lines and all("7b" in line and "chat" in line and "cuda" in line for line in lines)
    assert "convert list" in refused(capsys, "list", "nothing-like-this")
    assert "quantize" in said(capsys, "list", "passes")
    assert "rtn" in said(capsys, "list", "quant").split()
    assert said(capsys, "list", "architectures") == said(capsys, "list", "architecture")


@pytest.mark.parametrize(("name", "size"), [("1_8b", "1.9 B"), ("7b", "7.7 B"), ("20b", "19.9 B")])
def test_sizes_are_those_of_the_published_models(name: str, size: str) -> None:
    config = compose_values([f"recipe=internlm2_{name}_cpu_int4"])["model"]["config"]
    assert parameters(config) == size


def test_show_tells_each_values_file(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "show", "internlm2_7b_chat_cuda_int4", "quant.bits=8").splitlines()
    found = {line.split(":")[0]: line.split("# ")[-1] for line in lines}
    assert found["quant.bits"] == "command line"
    assert found["quant.block_size"] == "recipes/quant/rtn.yaml"
    assert found["model.config.hidden_size"] == "recipes/model/internlm2_7b.yaml"
    assert found["model.config.vocab_size"] == "recipes/model/internlm2.yaml"
    assert found["passes"] == "recipes/convert.yaml"
    assert found["overwrite"] == "default"


@pytest.mark.slow
def test_origins_agree_with_what_hydra_composes() -> None:
    """A value that a file is said to give is the one in that file."""
    from converter.recipe.tree import built_in_values

    for name in built_in("recipe")[::30]:
        values, origins = show.composed([f"recipe={name}"])
        flat = dict(tree.leaves(values))
        for path, origin in origins.items():
            whole = any(f"/{folder}/" in origin for folder in (tree.RECIPE, tree.EXPORT))
            if path not in flat or not origin.startswith("recipes/") or whole:
                continue
            slot = origin.split("/")[1]
            own = dict(tree.leaves(built_in_values(origin.removeprefix("recipes/"))))
            key = path if slot.endswith(".yaml") else path.removeprefix(f"{slot}.")
            if "${" not in str(own[key]):
                assert flat[path] == own[key], (name, path)


def test_diff_names_what_differs_only(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "diff", "internlm2_7b_cpu_int4", "internlm2_7b_cpu_fp32")
    keys = {line.split()[0] for line in text.splitlines()}
    assert "quant.round" in keys and "target.execution_provider" not in keys
    assert "the same" in said(capsys, "diff", "demo", "demo")


def test_new_recipe_composes_to_the_one_it_builds_on(capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "new", "mine", "--from", "internlm2_7b_chat_cuda_int4")
    mine = compose_values(["recipe=./mine.yaml"])
    other = compose_values(["recipe=internlm2_7b_chat_cuda_int4"])
    assert mine.pop("name") == "mine" and other.pop("name") and mine == other
    with open("mine.yaml", "a") as file:
        file.write("quant:\n  block_size: 128\n")
    assert compose_values(["recipe=./mine.yaml"])["quant"]["block_size"] == 128
    assert "exists already" in refused(capsys, "new", "mine", "--from", "demo")
    assert "demo" in refused(capsys, "new", "other", "--from", "dmeo")
    assert "has the name" in refused(capsys, "new", "../x", "--from", "demo")
    assert "such as a_b" in refused(capsys, "new", "a b", "--from", "demo")
    error = refused(capsys, "new", "other", "--from", "./none.yaml")
    assert "not a built-in recipe" in error and "--from demo" in error and "repo add" not in error


def test_new_recipe_where_nothing_can_be_written_is_one_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "mine.yaml cannot be written" in refused(capsys, "new", "mine", "--from", "demo")
    monkeypatch.chdir(tmp_path)


def test_users_own_file_may_name_places_but_no_code(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text("defaults: [demo]\noutput: /tmp/somewhere\n")
    assert compose_values(["recipe=./own.yaml"])["output"] == "/tmp/somewhere"
    Path("own.yaml").write_text("name: !!python/object/apply:os.system [id]\n")
    assert "the tag" in refused(capsys, "recipe=./own.yaml")
    Path("own.yaml").write_text("hydra:\n  run: {dir: x}\n")
    assert "hydra" in refused(capsys, "check", "./own.yaml")
    assert "does not exist" in refused(capsys, "recipe=./none.yaml")


def test_check_reports_every_problem_with_its_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "1 recipe checked" in said(capsys, "check", "demo")
    Path("recipe").mkdir()
    Path("recipe/a.yaml").write_text("defaults: [demo]\nquant: {blocksize: 1}\n")
    Path("recipe/b.yaml").write_text("defaults: [demo]\npasses: [load, graph]\n")
    error = refused(capsys, "check", ".")
    assert "a.yaml" in error and "quant.block_size" in error
    assert "b.yaml" in error and "graph follows load" in error


def test_check_takes_a_recipes_name_before_a_folders(capsys: pytest.CaptureFixture[str]) -> None:
    Path("demo").mkdir()  # the output of `convert recipe=demo`
    assert "1 recipe checked" in said(capsys, "check", "demo", "quant.bits=8")
    assert "no recipe/NAME.yaml" in refused(capsys, "check", "./demo")
    Path("mine/recipe").mkdir(parents=True)
    Path("mine/recipe/a.yaml").write_text("defaults: [demo]\n")
    assert "1 recipe checked" in said(capsys, "check", "mine")
    assert "1 recipe checked" in said(capsys, "check", "mine/")
    monkeyed = {"recipe/a.yaml": b"defaults: [demo]\n"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "_trial", {"mine": monkeyed})
        Path("mine/a").mkdir()
        assert "1 recipe checked" in said(capsys, "check", "mine/a")
        assert "no recipe/NAME.yaml" in refused(capsys, "check", "./mine/a")


def test_check_names_a_file_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text("defaults: [demo]\nquant: {bits: 5}\n")
    assert refused(capsys, "check", "./bad.yaml").count("bad.yaml") == 1


@pytest.mark.parametrize("option", ["--config-dir=/tmp", "--config-path", "-cd", "--info"])
def test_hydras_own_options_are_closed(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not an option" in refused(capsys, option, "recipe=demo")
    assert main(["recipe=demo", option]) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from converter.engine.execution import run_recipe
    from converter.engine.registry import make_passes

    words = ["recipe=demo", "verify=none", "evaluate=standard", "evaluate.max_chunks=2"]
    words += ["evaluate.max_kld=9", f"output={tmp_path / 'made'}"]
    recipe = compose_recipe(words)
    return run_recipe(recipe, make_passes(recipe.passes))


@pytest.mark.slow
def test_explain_and_reproduce(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    text = said(capsys, "explain", str(folder))
    for part in ("kind demo", "model.safetensors", "model.onnx.data", "torch", "quantize"):
        assert part in text
    assert "The same" in said(capsys, "reproduce", str(folder))
    names = {path.name for path in folder.parent.iterdir()} - {".config"}  # matplotlib's
    assert names == {"made"}  # no scratch left

    lock = json.loads((folder / "convert.lock.json").read_text())
    lock["files"]["model.onnx.data"]["blake3"] = "0" * 64
    lock["versions"]["torch"] = "0.1"
    (folder / "convert.lock.json").write_text(json.dumps(lock))
    assert main(["reproduce", str(folder)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("version torch: 0.1") and "model.onnx.data" in out[1]
    assert "would change the recipe" in refused(capsys, "reproduce", str(folder), "quant.bits=8")
    assert "not a folder that `convert` wrote" in refused(
        capsys, "explain", str(folder / "nothing")
    )


@pytest.mark.slow
def test_reproduce_says_first_that_it_cannot_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    error = refused(capsys, "reproduce", str(folder), "quant.bits=8")
    assert "2 problems" in error
    assert f"{folder.parent} is not writable" in error


def test_olive_config_says_first_what_it_cannot_write(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "olive-config", "recipe=demo", "quant=rnt", "--to", "none/x.yaml")
    assert "2 problems" in error
    assert "there is no folder" in error


def test_cache_verbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from converter.storage.cache import Cache

    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path / "cache"))

    def make(folder: Path) -> None:
        (folder / "a").write_text("b")

    Cache(tmp_path / "cache").get_or_make({"pass": "x"}, make)
    assert "1 entries" in said(capsys, "cache", "list")
    assert "0 of 1" in said(capsys, "cache", "clear")  # used a moment ago

"""`convert eval` on folders of the demo model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from converter.cli.compose import compose_recipe
from converter.cli.main import main
from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.evaluation import reference_logits
from converter.evaluation.statistics import UNFAMILIAR
from converter.sources.config import demo_folder

SHORT = ("evaluate.n_ctx=128", "evaluate.max_chunks=4", "verify=none")


def convert(output: Path, *words: str) -> Path:
    recipe = compose_recipe(["recipe=demo", f"output={output}", *SHORT, *words])
    return run_recipe(recipe, make_passes(recipe.passes))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`int4`, evaluated while it was made, and `fp32`, not evaluated yet."""
    parent = tmp_path_factory.mktemp("folders")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVERT_CACHE", str(parent / "cache"))
        convert(parent / "int4", "evaluate=standard")
        convert(parent / "fp32", "quant=none", "target.accuracy_level=0")
        yield parent


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The references computed in the test."""
    found: list[Path] = []
    compute = reference_logits.compute_reference

    def counted(path: Path, *rest: Any) -> None:
        found.append(path)
        compute(path, *rest)

    monkeypatch.setattr(reference_logits, "compute_reference", counted)
    return found


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report" / "evaluate.json").read_text())
    return content


@pytest.mark.slow
def test_one_folder_gets_the_figures_that_its_recipe_measured(
    folders: Path, made: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    measured = report(folders / "int4")
    shutil.rmtree(folders / "int4" / "report")
    assert main(["eval", str(folders / "int4")]) == 0
    again = report(folders / "int4")
    same = measured.keys() - {"seconds"}
    assert {key: again[key] for key in same} == {key: measured[key] for key in same}
    assert made == []  # the reference of the conversion serves
    printed = capsys.readouterr().out
    assert f"{measured['mean_kld']:.5f}" in printed
    assert "Cor(ln PPL(Q), ln PPL(base))" in printed
    # The demo model knows stories only, and the built-in text is of other kinds.
    assert printed.count("Note: the float model's own perplexity is") == 1
    assert "not trained on such text" in printed
    assert {path.name for path in (folders / "int4" / "report").iterdir()} == {
        "evaluate.json",
        "kld.png",
    }


@pytest.mark.slow
def test_folders_of_one_source_are_compared_on_one_reference(
    folders: Path, made: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(folders / "int4"), str(folders / "fp32")]
    files = ["--json", str(tmp_path / "all.json"), "--picture", str(tmp_path / "all.svg")]
    assert main(["eval", *names, "--chunks", "2", *files]) == 0
    assert len(made) == 1
    int4, fp32 = json.loads((tmp_path / "all.json").read_text())
    assert [int4["folder"], fp32["folder"]] == names
    assert fp32["mean_kld"] < 1e-6 < int4["mean_kld"]
    assert int4["reference"] == fp32["reference"] and int4["chunks"] == 2
    assert int4["nbytes"] < fp32["nbytes"]
    assert "<svg" in (tmp_path / "all.svg").read_text()[:500]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["folder", "size"]
    assert lines[1].startswith(names[0]) and lines[2].startswith(names[1])


@pytest.mark.slow
def test_a_text_of_ones_own(
    folders: Path, made: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "story.txt"
    text.write_text("The boat went out at dawn, and the nets came back full of fish. " * 40)
    assert main(["eval", str(folders / "int4"), "--text", str(text), "--chunks", "0"]) == 0
    assert len(made) == 1
    assert report(folders / "int4")["text"] == str(text)
    assert ("Note: " in capsys.readouterr().out) == (
        report(folders / "int4")["perplexity_reference"] > UNFAMILIAR
    )


@pytest.mark.slow
def test_a_checkpoint_elsewhere_must_hold_the_same_weights(
    folders: Path, made: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(demo_folder(), copy)
    command = ["eval", str(folders / "int4"), "--source", str(copy)]
    assert main(command) == 0
    assert made == []  # content decides, not the place
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "made from other weights: model.safetensors" in error
    assert "--source FOLDER" in error


def test_everything_wrong_with_the_folders_is_said_at_once(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folders / "int4", broken)
    (broken / "recipe.yaml").write_text("name: [")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folders / "int4", elsewhere)
    recipe = (elsewhere / "recipe.yaml").read_text()
    (elsewhere / "recipe.yaml").write_text(recipe.replace("kind: demo", "kind: checkpoint"))
    missing = tmp_path / "missing"
    assert main(["eval", str(missing), str(broken), str(elsewhere)]) == 1
    error = capsys.readouterr().err
    assert "3 problems" in error
    assert f"{missing} is not a folder that `convert` wrote" in error
    assert f"{broken} is not a folder that `convert` wrote" in error
    assert f"convert eval {elsewhere} --source FOLDER" in error


@pytest.mark.parametrize("picture", ["x.jpg", "none/x.png"])
def test_results_that_cannot_be_written_are_said_before_the_work(
    picture: str, folders: Path, made: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(folders / "int4"), str(folders / "missing")]
    assert main(["eval", *words, "--json", "none/x.json", "--picture", picture]) == 1
    error = capsys.readouterr().err
    assert "3 problems" in error
    assert "none/x.json cannot be written" in error
    assert picture in error
    assert not made


def test_a_folder_that_takes_no_report_is_said_before_the_work(
    folders: Path,
    made: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert main(["eval", str(folders / "fp32")]) == 1
    error = capsys.readouterr().err
    assert str(folders / "fp32" / "report") in error
    assert "evaluate the copy" in error
    assert not made


def test_a_recipe_in_the_folder_is_only_data(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(folders / "int4", hostile)
    target = tmp_path / "created"
    (hostile / "recipe.yaml").write_text(f"!!python/object/apply:os.mkdir ['{target}']\n")
    assert main(["eval", str(hostile)]) == 1
    assert "recipe.yaml" in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", "absent.txt"], "no text at absent.txt"),
        (["--chunks", "1", "--text", "{short}"], "The text has"),
    ],
)
def test_a_text_that_cannot_be_used(
    words: list[str],
    said: str,
    folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time.")
    words = [word.format(short=short) for word in words]
    assert main(["eval", str(folders / "fp32"), *words]) == 1
    assert said in capsys.readouterr().err


def test_a_number_of_chunks_is_a_number(folders: Path) -> None:
    assert main(["eval", str(folders / "fp32"), "--chunks", "-3"]) == 2

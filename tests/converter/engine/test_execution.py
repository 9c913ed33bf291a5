from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from converter.engine.contract import Done, Pass, Run
from converter.engine.execution import run_recipe
from converter.errors import ConvertError, Problem
from converter.graph.graph import Graph
from converter.graph.tensors import add_initializer
from converter.recipe.schema import Recipe
from converter.storage.staging import LOCK, open_folder, open_staging


class Start(Pass[None, int]):
    name = "start"

    def run(self, artifact: None, run: Run) -> Done[int]:
        (run.staging.folder / "file").write_text("content")
        return Done(1, {"answer": 42}, "one")


class Middle(Pass[int, int]):
    name = "middle"
    found: Iterable[Problem] = ()
    error: Exception | None = None

    def requires(self, recipe: Recipe, decoder: Any) -> Iterable[Problem]:
        return self.found

    def run(self, artifact: int, run: Run) -> Done[int]:
        if self.error:
            raise self.error
        return Done(artifact + 1)

    def ensures(self, given: int, run: Run) -> Iterable[Problem]:
        return [Problem("too large")] if given > 2 else []


def recipe(tmp_path: Path, **values: Any) -> Recipe:
    return Recipe(output=str(tmp_path / "out"), **values)


def test_publishes_only_when_every_pass_is_done(tmp_path: Path) -> None:
    output = run_recipe(recipe(tmp_path), [Start(), Middle()])
    assert (output / "file").read_text() == "content"
    assert list(tmp_path.iterdir()) == [output]


def test_order_is_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="middle follows the start, which gives NoneType"):
        run_recipe(recipe(tmp_path), [Middle(), Start()])
    assert list(tmp_path.iterdir()) == []


def test_requirements_of_all_passes_come_in_one_error(tmp_path: Path) -> None:
    first, second = Middle(), Middle()
    first.found, second.found = [Problem("one")], [Problem("two"), Problem("three")]
    (tmp_path / "out").mkdir()
    with pytest.raises(ConvertError) as caught:
        run_recipe(recipe(tmp_path), [Start(), first, second])
    assert [str(problem)[:5] for problem in caught.value.problems] == [
        "The o",
        "one",
        "two",
        "three",
    ]


@pytest.mark.parametrize("error", [ConvertError(Problem("broken")), ValueError("broken")])
def test_a_failing_pass_leaves_nothing_and_names_itself(tmp_path: Path, error: Exception) -> None:
    middle = Middle()
    middle.error = error
    with pytest.raises(type(error)) as caught:
        run_recipe(recipe(tmp_path), [Start(), middle])
    notes = getattr(caught.value, "__notes__", [])
    assert "middle" in str(caught.value) + str(notes)
    assert list(tmp_path.iterdir()) == []


def test_ensures_stops_a_bad_result(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="middle: too large"):
        run_recipe(recipe(tmp_path), [Start(), Middle(), Middle()])
    assert list(tmp_path.iterdir()) == []


def graph_of(*names: str) -> Graph:
    """A graph of one node, between values of these names."""
    start, end = (ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in names)
    node = ir.node("Identity", [start], outputs=[end], name="node")
    model = ir.Model(ir.Graph([start], [end], nodes=[node]), ir_version=10)
    return Graph(SimpleNamespace(), model, 1, {})  # type: ignore[arg-type]


class MakeGraph(Pass[None, Graph]):
    name = "make"

    def run(self, artifact: None, run: Run) -> Done[Graph]:
        return Done(graph_of("x", "y"))


class Rewrite(Pass[Graph, Graph]):
    """Does to the graph what `change` says, and gives it back."""

    name = "rewrite"
    change: Callable[[ir.Graph], None] = staticmethod(lambda graph: None)

    def run(self, artifact: Graph, run: Run) -> Done[Graph]:
        self.change(artifact.model.graph)
        return Done(artifact)


class RewriteAsSaid(Rewrite):
    changes_input = True


def _rename(graph: ir.Graph) -> None:
    graph.outputs[0].name = "z"


def _retype(graph: ir.Graph) -> None:
    graph.inputs[0].dtype = ir.DataType.FLOAT16


def _add_initializer(graph: ir.Graph) -> None:
    add_initializer(graph, ir.tensor(np.ones(1), name="new"))


def _turn_attribute(graph: ir.Graph) -> None:
    graph[0].attributes.add(ir.AttrInt64("axis", 1))


def _append(graph: ir.Graph) -> None:
    graph.append(ir.node("Neg", [graph.outputs[0]], name="more"))


@pytest.mark.parametrize("change", [_rename, _retype, _add_initializer, _turn_attribute, _append])
def test_a_pass_that_changes_its_graph_must_say_so(
    tmp_path: Path, change: Callable[[ir.Graph], None]
) -> None:
    silent, open_about_it = Rewrite(), RewriteAsSaid()
    silent.change = open_about_it.change = change
    with pytest.raises(ConvertError, match="rewrite changed the graph that it was given"):
        run_recipe(recipe(tmp_path), [MakeGraph(), silent])
    assert list(tmp_path.iterdir()) == []
    assert run_recipe(recipe(tmp_path), [MakeGraph(), open_about_it]).is_dir()


def test_a_pass_that_leaves_its_graph_alone_need_not_say_so(tmp_path: Path) -> None:
    assert run_recipe(recipe(tmp_path), [MakeGraph(), Rewrite()]).is_dir()


def test_an_existing_output_is_kept_unless_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    (tmp_path / "out" / LOCK).write_text("{}")
    with pytest.raises(ConvertError, match="overwrite=true"):
        run_recipe(recipe(tmp_path), [Start()])
    failing = Middle()
    failing.error = ValueError()
    with pytest.raises(ValueError):
        run_recipe(recipe(tmp_path, overwrite=True), [Start(), failing])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"old", LOCK}
    run_recipe(recipe(tmp_path, overwrite=True), [Start()])
    assert not (tmp_path / "out" / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_is_said_plainly(tmp_path: Path, code: int) -> None:
    middle = Middle()
    middle.error = OSError(code, os.strerror(code))
    with pytest.raises(ConvertError, match=f"Cannot write .*{os.strerror(code)}.*are free"):
        run_recipe(recipe(tmp_path), [Start(), middle])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def dead_process() -> int:
    return int(
        subprocess.run(
            [sys.executable, "-c", "import os; print(os.getpid())"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


def test_the_next_run_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    left = tmp_path / f".out.tmp-{dead_process()}"
    left.mkdir()
    (left / "half").write_text("half")
    other = tmp_path / ".other.tmp-1"
    other.mkdir()
    with open_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.tmp-1", "out"]


def test_an_output_moved_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / f".out.old-{dead_process()}"
    aside.mkdir()
    (aside / "file").write_text("precious")
    with pytest.raises(KeyboardInterrupt), open_staging(tmp_path / "out"):
        raise KeyboardInterrupt
    assert (tmp_path / "out" / "file").read_text() == "precious"


def test_another_living_run_is_left_alone(tmp_path: Path) -> None:
    living = tmp_path / f".out.tmp-{os.getppid()}"
    living.mkdir()
    with open_folder(tmp_path / "out"):
        pass
    assert living.is_dir()

"""Sweeps through Hydra's launchers: rows for failures, restarts, SIGKILL, no leftovers."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command import CONVERT, TINY

from converter.cli import sweep
from converter.errors import ConvertError
from converter.machine.disk import Room
from converter.recipe.schema import Recipe
from converter.recipe.tree import Layer, Piece
from converter.storage.cache import Cache
from converter.sweeps import sweep as table
from passes.package import MakePackage


def run(words: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*CONVERT, "-m", *TINY, *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def summary(folder: Path) -> list[dict[str, str]]:
    """The table without what a clock measured."""
    with (folder / "summary.csv").open() as file:
        return [
            {k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(file)
        ]


def plan_of(*words: str) -> table.SweepPlan:
    return sweep.plan_sweep([*TINY, *words])


@pytest.mark.slow
def test_failing_job_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    words = ["verify=standard", "verify.max_error.int8_activations=1,1e-12,2", "output=out"]
    result = run(words, tmp_path)
    assert result.returncode == 1
    rows = summary(tmp_path / "out")
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert "Rounding activations to int8 changes" in rows[1]["error"]
    assert "2 of 3 jobs done" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_finished_sweep_is_shown_again_without_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rooms: list[Path] = []
    room = MakePackage.disk

    def noted(item: MakePackage, recipe: Recipe, decoder: Any) -> list[Room]:
        rooms.extend(found.folder for found in room(item, recipe, decoder))
        return list(room(item, recipe, decoder))

    monkeypatch.setattr(MakePackage, "disk", noted)
    words = [word for word in TINY if word != "source=synthetic"]
    assert subprocess.run([*CONVERT, "synth", "checkpoint", *TINY]).returncode == 0
    words += ["source.path=checkpoint", "quant.block_size=16,32", "output=out"]
    assert sweep.main(words) == 0
    assert set(rooms) == {tmp_path / "out"}
    shutil.rmtree("checkpoint")
    assert sweep.main(words) == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["quant.block_size=32,48"], "power of two"),
        (["quant=rtn,rnt"], "Unknown quant 'rnt'"),
        (["quant.blocksize=32,64"], "quant.block_size"),
        (["quant.block_size=16,32", "output="], "output= is empty"),
        (["quant.block_size=32"], "No word holds several values"),
        (["sweep=quant_gird"], "quant_grid"),
        (["quant.bits=4,8", "hydra/launcher=slurm"], "submitit_slurm"),
        (["quant.bits=4,8", "hydra.sweep.dir=/tmp/x"], "hydra.sweep.dir"),
        (["quant.bits=4,8", "quant.block_size=range(16,2000)"], "at most 1000"),
        (["quant.bits=4,8", "quant.bits=8,4"], "swept twice"),
        (["quant=glob(rtn*)"], "is a pattern"),
        (["quant.block_size=32,128,16"], "96 columns"),  # the checkpoint's headers say so
        (["quant.block_size=16,32", "passes=[load,layuot]"], "layuot"),
        (["evaluate=standard", "evaluate.text=builtin,/nowhere.txt"], "no text at /nowhere.txt"),
    ],
)
def test_rejected_sweep_leaves_nothing(
    tmp_path: Path, words: list[str], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConvertError, match=part):
        sweep.main([*TINY, *words])
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_no_place_for_a_sweep_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConvertError, match="cannot be used"):
        sweep.main([*TINY, "quant.block_size=32,16", f"output={tmp_path / 'file'}"])
    with pytest.raises(ConvertError, match="holds other files, such as file"):
        sweep.main([*TINY, "quant.block_size=32,16", f"output={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["quant.bits=4,8", "quant.block_size=16,32", "quant.bits=8"], "quant.block_size"),
        (["quant.bits=8", "quant.bits=4,8"], "quant.bits"),
        (["quant.bits=4,8", "quant.bits=8", "quant.bits=8,4"], "quant.bits"),
    ],
)
def test_the_command_line_has_the_last_word(words: list[str], settings: str) -> None:
    jobs = sweep.plan_sweep([*TINY, *words]).jobs
    assert [job.settings.keys() for job in jobs] == [{settings}] * 2
    assert {job.values["quant"]["bits"] for job in jobs} <= {4, 8}


def test_list_that_a_sweep_sets_is_one_value() -> None:
    class Stub:
        def piece(self, *_: str) -> Piece:
            values = {
                "set": {"benchmark.prompt_lengths": [16, 128]},
                "grid": {"quant.bits": [4, 8]},
            }
            return Piece([Layer("", values)])

        def qualified(self, folder: str, name: str, home: str) -> str:
            return name

    words = sweep.sweep_words("x", Stub())  # type: ignore[arg-type]
    assert words == ["benchmark.prompt_lengths=[16, 128]", "quant.bits=4,8"]


@pytest.mark.slow
def test_models_and_exports_can_be_swept_over() -> None:
    words = ["model=internlm2_1_8b,internlm2_7b", "export=cpu_int4,cuda_fp16", "source=synthetic"]
    jobs = sweep.plan_sweep(words).jobs
    assert [job.values["name"] for job in jobs] == [
        "internlm2_1_8b_cpu_int4",
        "internlm2_1_8b_cuda_fp16",
        "internlm2_7b_cpu_int4",
        "internlm2_7b_cuda_fp16",
    ]
    named = sweep.plan_sweep(["recipe=internlm2_1_8b_cpu_int4,internlm2_1_8b_cuda_fp16"]).jobs
    assert [job.values["name"] for job in named] == [job.values["name"] for job in jobs[:2]]
    beside = sweep.plan_sweep(["sweep=block_size", "export=cpu_int4_best"]).jobs
    assert {job.values["name"] for job in beside} == {"demo_cpu_int4_best"}
    instead = sweep.plan_sweep(["sweep=block_size", "model=internlm2_7b", "export=cpu_int4"]).jobs
    assert {job.values["name"] for job in instead} == {"internlm2_7b_cpu_int4"}


def test_every_combination_is_composed_before_the_first_job() -> None:
    plan = plan_of("quant.block_size=16,32", "quant.symmetric=true,false")
    assert [tuple(job.settings.values()) for job in plan.jobs] == [
        ("16", "true"),
        ("16", "false"),
        ("32", "true"),
        ("32", "false"),
    ]
    assert plan.jobs[3].values["quant"]["symmetric"] is False
    assert len({job.label for job in plan.jobs}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quant_grid", "block_size"])
def test_built_in_sweeps_compose_and_words_win_over_them(name: str) -> None:
    jobs = sweep.plan_sweep([f"sweep={name}"]).jobs
    assert len(jobs) > 4 and all(job.values["evaluate"]["enabled"] for job in jobs)
    fewer = sweep.plan_sweep([f"sweep={name}", "quant.block_size=64"]).jobs
    assert 1 < len(fewer) < len(jobs)
    assert {job.values["quant"]["block_size"] for job in fewer} == {64}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "module"),
    [
        ("joblib", "hydra_plugins.hydra_joblib_launcher"),
        ("submitit_local", "hydra_plugins.hydra_submitit_launcher"),
    ],
)
def test_other_launchers_give_the_same_table(tmp_path: Path, launcher: str, module: str) -> None:
    if find_spec("hydra_plugins") is None or find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    words = ["quant.block_size=32,16"]
    more = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else ["hydra.launcher.timeout_min=4"]
    assert run([*words, "output=one"], tmp_path).returncode == 0
    result = run([*words, f"hydra/launcher={launcher}", *more, "output=two"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert summary(tmp_path / "one") == summary(tmp_path / "two")


@pytest.mark.slow
def test_sweep_without_output_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    words = ["quant.block_size=32,16"]
    first = Path(run(words, tmp_path).stdout.strip())
    job = table.read_plan(first).jobs[1]
    os.rename(first / job.label, tmp_path / "gone")
    second = run(words, tmp_path)
    assert Path(second.stdout.strip()) == first and "1 of 2 jobs to do" in second.stderr
    third = Path(run(words, tmp_path).stdout.strip())  # all done: a new sweep
    assert third != first and summary(third) == summary(first)


@pytest.mark.slow
def test_folder_of_another_sweep_is_refused(tmp_path: Path) -> None:
    assert run(["quant.block_size=32,16", "output=out"], tmp_path).returncode == 0
    result = run(["quant.bits=8,4", "output=out"], tmp_path)
    assert result.returncode == 1 and "holds a sweep of other jobs" in result.stderr


@pytest.mark.slow
def test_killed_at_ten_random_moments_and_restarted(tmp_path: Path) -> None:
    """SIGKILL at any time: the restart ends with the same table, and nothing half is left."""
    words = ["quant.block_size=32,16", "quant.symmetric=true,false"]
    expected_run = run([*words, "output=expected"], tmp_path)
    assert expected_run.returncode == 0, expected_run.stderr
    source, done_before = random.Random(6), set[str]()
    command = [*CONVERT, "-m", *TINY, *words, "output=killed"]
    for _ in range(10):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        line = process.stderr.readline()  # the jobs are about to start
        time.sleep(source.uniform(0.0, 2.5) if "to do" in line else 0.0)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done = {path.parent.name for path in (tmp_path / "killed").glob("*/convert.lock.json")}
        assert done >= done_before  # what is published stays
        done_before = done
    assert run([*words, "output=killed"], tmp_path).returncode == 0
    assert summary(tmp_path / "killed") == summary(tmp_path / "expected")
    names = {path.name for path in (tmp_path / "killed").iterdir()}
    assert names == {path.name for path in (tmp_path / "expected").iterdir()}
    for job in table.read_plan(tmp_path / "expected").jobs:
        one, two = (tmp_path / name / job.label for name in ("killed", "expected"))
        assert (one / "model.onnx.data").read_bytes() == (two / "model.onnx.data").read_bytes()


@pytest.mark.slow
def test_jobs_share_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics and reference are made once, whatever the number of jobs."""
    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [
        "recipe=demo",
        "quant=gptq",
        "quant.symmetric=true,false",
        "verify=none",
        "evaluate=standard",
        "evaluate.max_chunks=1",
        "evaluate.n_ctx=64",
        "calibration.tokens=512",
        "calibration.sequence_length=64",
    ]
    command = [*CONVERT, "-m", *words, "output=out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    made = Cache(tmp_path / "cache").entries()
    reference = [entry for entry in made if entry.key["pass"] == "evaluate"]
    assert len(reference) == 1
    rows = summary(tmp_path / "out")
    assert all(float(row["evaluate.mean_kld"]) > 0 for row in rows)

"""`convert pick`: the best job within limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from measured_sweep import write_sweep

from converter.cli import pick
from converter.errors import ConvertError
from converter.sweeps import sweep
from converter.sweeps.sweep import Job, SweepPlan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sweep(tmp_path)


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["--max-size", "250B", "--by", "kld"], 200),
        (["--by", "decode"], 200),
        (["--max-kld=0.15", "--by", "size"], 300),
        (["--min-decode", "22", "--by", "size_bytes"], 100),
        (["--max-size", "0.00022MB", "--by", "mean_kld"], 200),
        (["--max-kld=30%", "--by", "size"], 200),
        (["--min-block_size", "100"], 250),
        (["--max-block_size=16"], 300),
    ],
)
def test_pick_takes_the_best_within_limits(
    folder: Path, words: list[str], size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pick.run_words([str(folder), *words]) == 0
    chosen = Path(capsys.readouterr().out.splitlines()[-1])
    row = next(row for row in sweep.read_rows(folder) if row["job"] == chosen.name)
    assert row["size_bytes"] == size


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--max-kld", "0.01"], "best: 0.1"),
        (["--by", "beauty"], "beauty"),
        (["--max-size", "big"], "no number"),
        (["--max-size"], "a value each"),
        (["--largest", "3"], "--largest"),
        (["--max-kld", "."], "no number"),
        (["--max-kld", "1GB"], "is a size"),
        (["--max-size", "90"], "size_bytes <= 90 bytes"),
        (["--max-", "1"], "a value each"),
        (["--by", "quant"], "holds no numbers, but rtn"),
        (["other"], "one sweep"),
    ],
)
def test_pick_says_why_it_cannot(folder: Path, words: list[str], part: str) -> None:
    with pytest.raises(ConvertError, match=part):
        pick.run_words([str(folder), *words])


def test_pick_takes_a_folder_with_an_equals_sign_behind_the_options(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = folder.rename(folder.parent / "kind=a")
    assert pick.run_words(["--by", "size", str(named)]) == 0
    assert "decode_tokens_per_second  25" in capsys.readouterr().out


def test_pick_by_speed_takes_the_median(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for job, median, low in zip(
        sweep.read_plan(folder).jobs, (5, 9, 7, 6), (4, 1, 6, 5), strict=False
    ):
        lock = folder / job.label / "convert.lock.json"
        values = json.loads(lock.read_text())
        speed = {"low": low, "median": median, "high": 10}
        values["facts"]["benchmark"]["decode_tokens_per_second"] = speed
        lock.write_text(json.dumps(values))
    assert (sweep.speed_column(sweep.read_rows(folder)) or "").endswith(".median")
    assert pick.run_words([str(folder), "--by", "decode"]) == 0
    assert "second.median  9" in capsys.readouterr().out


def test_pick_of_a_sweep_without_a_finished_job_says_what_failed(tmp_path: Path) -> None:
    job = Job(0, "00", {"quant.bits": "4"}, {})
    sweep.write_plan(tmp_path, SweepPlan([], [job]))
    sweep.write_failure(tmp_path, job, "out of memory")
    with pytest.raises(ConvertError, match="00: out of memory"):
        pick.run_words([str(tmp_path)])


def test_pick_of_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="holds no sweep"):
        pick.run_words([str(tmp_path)])

"""A sweep's table, front and choice, against counts made by hand."""

from __future__ import annotations

import csv
import itertools
import json
import random
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from converter.cli import pick
from converter.errors import ConvertError
from converter.sweeps import picture, summary, sweep
from converter.sweeps.sweep import Job, SweepPlan

FIGURES = [(300, 0.10, 20.0), (200, 0.20, 30.0), (100, 0.40, 25.0), (250, 0.30, 10.0)]
"""Bytes, KL divergence, tokens per second; the last job is worse than the second in all three."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jobs = []
    for number, (size, kld, speed) in enumerate(FIGURES):
        settings = {"quant": "rtn", "quant.block_size": str(16 << number)}
        jobs.append(Job(number, sweep.job_label(number, settings), settings, {}))
        facts = {"evaluate": {"mean_kld": kld}, "benchmark": {"decode_tokens_per_second": speed}}
        publish(tmp_path / jobs[-1].label, size, facts)
    failed = Job(4, "04-failed", {"quant": "<b>|x"}, {})
    sweep.write_plan(
        tmp_path, SweepPlan(["recipe=demo"], [*jobs, failed, Job(5, "05-left", {}, {})])
    )
    sweep.write_failure(tmp_path, failed, "out of <memory> | and luck")
    return tmp_path


def publish(folder: Path, size: int, facts: dict[str, Any]) -> None:
    folder.mkdir()
    lock = {
        "files": {
            "a": {"size": size - 50},
            "b": {"size": 50},
            "recipe.yaml": {"size": 7 + size % 7},
        },
        "facts": facts,
        "seconds": {"load": 1.0, "package": 2.5},
    }
    (folder / "convert.lock.json").write_text(json.dumps(lock))


def test_rows_hold_all_that_was_measured_and_why_a_job_failed(folder: Path) -> None:
    rows = sweep.read_rows(folder)
    assert [row["status"] for row in rows] == ["done"] * 4 + ["failed", "missing"]
    assert rows[0]["size_bytes"] == 300 and rows[0]["seconds"] == 3.5
    assert rows[1]["evaluate.mean_kld"] == 0.2 and rows[2]["quant.block_size"] == "64"
    assert rows[4]["error"] == "out of <memory> | and luck"
    assert sweep.columns(rows)[-1] == "error"


def test_a_new_fact_becomes_a_column_by_itself(folder: Path) -> None:
    lock = folder / sweep.read_plan(folder).jobs[0].label / "convert.lock.json"
    values = json.loads(lock.read_text())
    values["facts"]["invented"] = {"deep": {"figure": 7}}
    lock.write_text(json.dumps(values))
    summary.write_summary(folder)
    table = list(csv.DictReader((folder / "summary.csv").open()))
    assert [row["invented.deep.figure"] for row in table][:2] == ["7", ""]


def test_front_is_what_nothing_beats(folder: Path) -> None:
    rows = sweep.read_rows(folder)
    size = sweep.pareto_front(rows, "size_bytes", "evaluate.mean_kld")
    assert [row["size_bytes"] for row in size] == [100, 200, 300]
    speed = sweep.pareto_front(rows, "benchmark.decode_tokens_per_second", "evaluate.mean_kld")
    assert [row["size_bytes"] for row in speed] == [300, 200]


def test_front_of_random_points_by_definition() -> None:
    source = random.Random(0)
    rows = [{"job": n, "x": source.randrange(9), "y": source.randrange(9)} for n in range(60)]
    front = {row["job"] for row in sweep.pareto_front(rows, "x", "y")}
    beaten = {
        b["job"]
        for a, b in itertools.permutations(rows, 2)
        if a["x"] <= b["x"] and a["y"] <= b["y"] and (a["x"], a["y"]) != (b["x"], b["y"])
    }
    assert front == {row["job"] for row in rows} - beaten


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


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name == "href"]


def test_picture_marks_the_front_and_links_every_point(folder: Path) -> None:
    summary.write_summary(folder)
    root = ET.fromstring((folder / "summary.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f".//{space}circle")
    assert len(circles) == 8  # four jobs, two panels
    assert sum("best" in (circle.get("class") or "") for circle in circles) == 3 + 2
    page = Links()
    page.feed((folder / "summary.html").read_text())
    for job in sweep.read_plan(folder).jobs[:4]:
        assert f"{job.label}/" in page.found and f"{job.label}/recipe.yaml" in page.found
    assert "b" not in page.tags  # settings and errors are text


def test_pictures_of_nothing_and_of_one_job(tmp_path: Path) -> None:
    sweep.write_plan(tmp_path, SweepPlan([], [Job(0, "00", {}, {})]))
    summary.write_summary(tmp_path)
    assert "No job has measured" in (tmp_path / "summary.svg").read_text()
    publish(tmp_path / "00", 100, {"evaluate": {"mean_kld": 0.0}})
    summary.write_summary(tmp_path)
    assert len(ET.parse(tmp_path / "summary.svg").findall(".//{*}circle")) == 1


def test_page_says_what_was_asked_and_why_a_job_has_no_figures(folder: Path) -> None:
    summary.write_summary(folder)
    text = (folder / "summary.html").read_text()
    assert "4 of 6 jobs done, 1 failed, 1 not run yet" in text and "convert -m recipe=demo" in text
    assert "failed: out of &lt;memory&gt; | and luck" in text and "not run yet</td>" in text
    assert "mean KL divergence, nats per token" in text and "size, MB" in text
    best = re.findall(r'class="number best" data-value="([^"]+)"', text)
    assert sorted(best) == ["0.1", "100", "30.0"]
    assert not re.findall(r"(?:src|href)=.?(?:https?:|//)", text)  # nothing from elsewhere


def test_pick_as_the_page_writes_it_finds_a_job(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary.write_summary(folder)
    command = re.search(r"convert pick (\S+) ([^<]+)</code>", (folder / "summary.html").read_text())
    assert command is not None and command[1] == folder.name
    assert pick.run_words([str(folder), *command[2].split()]) == 0


def test_short_tables_have_what_was_swept_and_no_error_bars(folder: Path) -> None:
    plan = sweep.read_plan(folder)
    jobs = [replace(job, settings={"benchmark.rounds": "3"}) for job in plan.jobs]
    sweep.write_plan(folder, replace(plan, jobs=jobs))
    lock = folder / jobs[0].label / "convert.lock.json"
    values = json.loads(lock.read_text())
    speed = {"median": 5.0, "low": 4.0, "high": 6.0}
    values["facts"]["benchmark"] = {"decode_tokens_per_second": speed, "bandwidth": 1e9}
    lock.write_text(json.dumps(values))
    summary.write_summary(folder)
    head = (folder / "summary.md").read_text().splitlines()[4]
    assert "benchmark.rounds" in head and "second.median" in head
    assert "second.low" not in head and "bandwidth" not in head


def test_labels_of_near_points_do_not_cover_each_other() -> None:
    source = random.Random(0)
    places = [(200 + 40 * source.random(), 200 + 40 * source.random()) for _ in range(8)]
    labels = [ET.fromstring(text) for text in picture._labels(places, ["00"] * 8)]
    boxes = [
        picture._box(float(item.attrib["x"]), float(item.attrib["y"]), anchor, "00")
        for item in labels
        for anchor in [item.attrib["text-anchor"]]
    ]
    assert not any(picture._overlap(a, b) for a, b in itertools.combinations(boxes, 2))


def test_infinite_figures_are_neither_drawn_nor_picked(folder: Path) -> None:
    lock = folder / sweep.read_plan(folder).jobs[0].label / "convert.lock.json"
    lock.write_text(lock.read_text().replace("0.1", "Infinity"))
    summary.write_summary(folder)
    assert len(ET.parse(folder / "summary.svg").findall(".//{*}circle")) == 6
    chosen = sweep.pick(sweep.read_rows(folder), [], "evaluate.mean_kld")
    assert chosen["evaluate.mean_kld"] == 0.2


def test_labels_are_folder_names() -> None:
    label = sweep.job_label(3, {"quant": "acme/wide", "verify.prompt": "../a b\n" + "x" * 99})
    assert label.startswith("03-quant-acme_wide-prompt-..") or "/" not in label
    assert "/" not in label and "\n" not in label and len(label) <= 80

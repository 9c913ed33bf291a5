"""The tables of a sweep."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

from measured_sweep import FIGURES

from converter.sweeps import summary, sweep


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


def test_the_csv_holds_everything_and_the_rows_come_back(folder: Path) -> None:
    rows = summary.write_summary(folder)
    found = list(csv.DictReader((folder / "summary.csv").open(newline="")))
    assert [row["job"] for row in found] == [row["job"] for row in rows]
    for row, (size, kld, speed) in zip(found, FIGURES, strict=False):
        assert int(row["size_bytes"]) == size and float(row["evaluate.mean_kld"]) == kld
        assert float(row["benchmark.decode_tokens_per_second"]) == speed
    assert found[4]["error"] == "out of <memory> | and luck" and found[4]["size_bytes"] == ""


def test_the_markdown_table_is_not_broken_by_what_is_in_it(folder: Path) -> None:
    summary.write_summary(folder)
    lines = (folder / "summary.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert len(table) == 2 + 6 and len(columns) == 1
    assert table[2].startswith("| [00-") and table[6].startswith("| 04-failed")


def test_marks_name_the_fronts_of_size_and_of_speed(folder: Path) -> None:
    summary.write_summary(folder)
    lines = (folder / "summary.md").read_text().splitlines()
    marks = [line.rsplit("|", 2)[1].strip() for line in lines if line.startswith("| ")][1:]
    # The first is best in quality, the third smallest; the fourth is worse than the second.
    assert marks[0] and marks[1] and marks[2] and not marks[3] and not marks[4]


def test_files_are_replaced_whole_and_nothing_else_is_left(folder: Path) -> None:
    summary.write_summary(folder)
    before = sorted(path.name for path in folder.iterdir())
    summary.write_summary(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert {f"summary.{kind}" for kind in ("csv", "md", "svg", "html")} <= {*before}

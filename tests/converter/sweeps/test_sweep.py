"""A sweep's table, front and choice, against counts made by hand."""

from __future__ import annotations

import csv
import itertools
import json
import random
from pathlib import Path

from converter.sweeps import summary, sweep


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


def test_labels_are_folder_names() -> None:
    label = sweep.job_label(3, {"quant": "acme/wide", "verify.prompt": "../a b\n" + "x" * 99})
    assert label.startswith("03-quant-acme_wide-prompt-..") or "/" not in label
    assert "/" not in label and "\n" not in label and len(label) <= 80

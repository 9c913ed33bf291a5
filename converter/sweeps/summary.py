"""A sweep as files to look at: summary.csv, .md, .svg and .html."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from converter.sweeps.page import page
from converter.sweeps.picture import draw
from converter.sweeps.sweep import (
    DONE,
    QUALITY,
    SIZE,
    SUMMARY,
    Row,
    SweepPlan,
    columns,
    formatted,
    front_marks,
    job_row,
    read_plan,
    shown_columns,
    speed_column,
    write_text,
)


def write_summary(folder: Path) -> list[Row]:
    """Write summary.csv, .md, .svg and .html from what the folder holds now; each in one step."""
    plan = read_plan(folder)
    rows = [job_row(folder, job) for job in plan.jobs]
    panels = [(SIZE, QUALITY)]
    speed = speed_column(rows)
    if speed:
        panels.append((speed, QUALITY))
    picture = draw(rows, panels)
    write_text(folder / f"{SUMMARY}.csv", table_csv(rows))
    write_text(folder / f"{SUMMARY}.svg", picture)
    write_text(folder / f"{SUMMARY}.md", table_markdown(folder.name, plan, rows, panels))
    marks = front_marks(rows, panels)
    write_text(folder / f"{SUMMARY}.html", page(folder.name, plan, rows, picture, marks))
    return rows


def table_csv(rows: Sequence[Row]) -> str:
    """Everything that is known, one line per job."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table_markdown(
    title: str, plan: SweepPlan, rows: Sequence[Row], panels: Sequence[tuple[str, str]]
) -> str:
    """The short table; its last column says which fronts, of size and of speed, a job is on."""
    names = shown_columns(rows, {key for job in plan.jobs for key in job.settings})
    marks = front_marks(rows, panels)
    lines = [
        f"# {title}",
        "",
        f"![size and speed against quality]({SUMMARY}.svg)",
        "",
        "| " + " | ".join([*names, "front"]) + " |",
        "|" + "---|" * (len(names) + 1),
    ]
    for row in rows:
        cells = [_cell(name, row) for name in names]
        lines.append("| " + " | ".join([*cells, marks.get(row["job"], "")]) + " |")
    lines += ["", "Front: no other job is better in quality and in size (or speed) at once.", ""]
    return "\n".join(lines)


def _cell(name: str, row: Row) -> str:
    text = formatted(name, row.get(name)).replace("|", "\\|").replace("\n", " ")
    return f"[{text}]({text}/)" if name == "job" and row["status"] == DONE else text

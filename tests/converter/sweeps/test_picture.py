"""The picture of a sweep: points, the front, labels that can be read."""

from __future__ import annotations

import itertools
import random
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from measured_sweep import publish

from converter.sweeps import picture, summary, sweep
from converter.sweeps.sweep import QUALITY, SIZE, Job, SweepPlan


def test_picture_marks_the_front_and_links_every_point(folder: Path) -> None:
    summary.write_summary(folder)
    root = ET.fromstring((folder / "summary.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f".//{space}circle")
    assert len(circles) == 8  # four jobs, two panels
    assert sum("best" in (circle.get("class") or "") for circle in circles) == 3 + 2
    links = {link.get("href") for link in root.findall(f".//{space}a")}
    assert links == {f"{job.label}/recipe.yaml" for job in sweep.read_plan(folder).jobs[:4]}


def test_pictures_of_nothing_and_of_one_job(tmp_path: Path) -> None:
    sweep.write_plan(tmp_path, SweepPlan([], [Job(0, "00", {}, {})]))
    summary.write_summary(tmp_path)
    assert "No job has measured" in (tmp_path / "summary.svg").read_text()
    publish(tmp_path / "00", 100, {"evaluate": {"mean_kld": 0.0}})
    summary.write_summary(tmp_path)
    assert len(ET.parse(tmp_path / "summary.svg").findall(".//{*}circle")) == 1


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


def rows_of(points: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    return [
        {"job": f"{number:02}-x", "status": "done", SIZE: x, QUALITY: y}
        for number, (x, y) in enumerate(points)
    ]


def centres(svg: str) -> dict[str, tuple[float, float]]:
    """Where each job's circle is, by its number."""
    found = {}
    for link in ET.fromstring(svg).findall(".//{*}a"):
        (circle,) = link.findall("{*}circle")
        number = (link.get("href") or "").partition("-")[0]
        found[number] = (float(circle.attrib["cx"]), float(circle.attrib["cy"]))
    return found


def test_smaller_is_left_and_better_is_lower() -> None:
    found = centres(picture.draw(rows_of([(100e6, 0.1), (200e6, 0.3)]), [(SIZE, QUALITY)]))
    assert found["00"][0] < found["01"][0]
    assert found["00"][1] > found["01"][1]  # SVG counts downwards


@given(
    st.lists(
        st.tuples(st.integers(1, 10**10), st.floats(0, 10)), min_size=1, max_size=20, unique=True
    )
)
@settings(max_examples=40, deadline=None)
def test_points_are_inside_of_the_axes_and_in_order(points: list[tuple[int, float]]) -> None:
    found = centres(picture.draw(rows_of(points), [(SIZE, QUALITY)]))
    assert len(found) == len(points)
    left, right = picture.LEFT - 0.1, picture.WIDTH - picture.RIGHT + 0.1
    top, bottom = picture.TOP - 0.1, picture.HEIGHT - picture.BOTTOM + 0.1
    for number, (size, loss) in enumerate(points):
        x, y = found[f"{number:02}"]
        assert left <= x <= right and top <= y <= bottom
        for other, (bigger, worse) in enumerate(points):
            if bigger > size:
                assert found[f"{other:02}"][0] >= x
            if worse > loss:
                assert found[f"{other:02}"][1] <= y


@given(st.floats(0, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    axis = picture._Axis([low, low + width], 0, 100)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 10
    assert all(axis.low - 1e-6 * axis.high <= tick <= axis.high * (1 + 1e-9) for tick in ticks)


def test_many_points_carry_numbers_on_the_front_alone() -> None:
    crowd = [(100.0 + number, 1.0 + number) for number in range(picture.MANY)]
    svg = picture.draw(rows_of([(50.0, 0.5), *crowd]), [(SIZE, QUALITY)])
    links = ET.fromstring(svg).findall(".//{*}a")
    labels = [item.text for link in links for item in link.findall("{*}text")]
    assert labels == ["00"]


def test_labels_of_jobs_are_text_and_not_markup() -> None:
    rows = rows_of([(1.0, 1.0)])
    rows[0]["job"] = '00-<script>"&'
    svg = picture.draw(rows, [(SIZE, QUALITY)])
    assert "<script>" not in svg
    assert "<script>" in (ET.fromstring(svg).findtext(".//{*}title") or "")

"""The HTML page of a sweep."""

from __future__ import annotations

import html
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
from measured_sweep import FIGURES, publish, write_sweep

from converter.cli import pick
from converter.sweeps import page as page_module
from converter.sweeps import summary, sweep
from converter.sweeps.sweep import Job, SweepPlan


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name == "href"]


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


def read(folder: Path) -> Links:
    summary.write_summary(folder)
    page = Links()
    page.feed((folder / "summary.html").read_text())
    return page


def test_every_finished_job_is_linked_and_its_words_are_text(folder: Path) -> None:
    page = read(folder)
    for job in sweep.read_plan(folder).jobs[:4]:
        assert f"{job.label}/" in page.found and f"{job.label}/recipe.yaml" in page.found
    assert "b" not in page.tags  # settings and errors are text


def test_every_row_has_as_many_cells_as_the_head(folder: Path) -> None:
    summary.write_summary(folder)
    text = (folder / "summary.html").read_text()
    heads = text.count("<th ")
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    for row in body.split("</tr>")[:-1]:
        spans = [int(span) - 1 for span in re.findall(r'colspan="(\d+)"', row)]
        assert row.count("<td ") + sum(spans) == heads


def test_numbers_sort_by_their_value_and_share_their_decimals(folder: Path) -> None:
    summary.write_summary(folder)
    text = (folder / "summary.html").read_text()
    for figure, (_, kld, _) in zip(range(4), FIGURES, strict=True):
        found = re.search(rf'data-value="{kld}">([\d.]+)</td>', text)
        assert found is not None, figure
        assert float(found[1]) == pytest.approx(kld, rel=1e-3)
        assert len(found[1].partition(".")[2]) == 4  # four digits of the smallest, 0.1


@pytest.mark.parametrize(
    ("values", "decimals"),
    [([], 0), ([3.0, 1200.0], 0), ([0.5], 4), ([12.5, 1.25], 3), ([1e-12], 9), ([1234.5], 0)],
)
def test_decimals_of_a_column(values: list[float], decimals: int) -> None:
    assert page_module._decimals(values) == decimals


def test_without_quality_the_example_picks_by_size(tmp_path: Path) -> None:
    sweep.write_plan(tmp_path, SweepPlan(["recipe=demo"], [Job(0, "00", {}, {})]))
    publish(tmp_path / "00", 100, {})
    summary.write_summary(tmp_path)
    text = (tmp_path / "summary.html").read_text()
    assert "--by size" in text and "1 of 1 jobs done. Made by" in text


def test_the_name_of_the_folder_is_quoted_for_a_shell_and_for_html(tmp_path: Path) -> None:
    folder = tmp_path / "it's <mine> & yours"
    folder.mkdir()
    write_sweep(folder)
    page = read(folder)
    assert "mine" not in page.tags
    command = re.search(r"convert pick (.*?) --", (folder / "summary.html").read_text())
    assert command is not None
    assert shlex.split(html.unescape(command[1])) == [folder.name]

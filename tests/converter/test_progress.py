"""What a run tells: lines in a log, a bar on a terminal, and sizes that people read."""

from __future__ import annotations

import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.progress import Bar, Lines, Silent, format_bytes, show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1536, "1.54 kB"),
        (123_456_789, "123.46 MB"),
        (7_700_000_000, "7.70 GB"),
        (12_300_000_000_000, "12300.00 GB"),
    ],
)
def test_sizes_are_in_the_units_of_disks(count: int, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 10**13))
def test_a_size_says_its_bytes_within_a_hundredth(count: int) -> None:
    number, unit = format_bytes(count).split()
    factor = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert float(number) * factor == pytest.approx(count, abs=0.006 * factor)


def test_lines_say_each_pass_with_its_seconds_and_summary() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.message("hello")
    lines.start("quantize")
    lines.finish("quantize", 12.345, "26 matrices")
    lines.finish("load", 0.1, "")
    found = stream.getvalue().splitlines()
    assert found[0] == "hello" and all(line == line.rstrip() for line in found)
    assert [line.split() for line in found[-2:]] == [
        ["quantize", "12.3", "s", "26", "matrices"],
        ["load", "0.1", "s"],
    ]


def test_lines_do_not_flood_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    lines = Lines(stream)
    lines.start("quantize")
    for done in range(60):  # a minute, a step each second
        lines.advance(done, 60, f"layer {done}")
        now[0] += 1.0
    found = [line for line in stream.getvalue().splitlines() if "layer" in line]
    assert 5 <= len(found) <= 6
    assert all("quantize" in line and "%" in line for line in found)


def test_lines_survive_work_of_which_nothing_is_known() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.interval = 0.0
    lines.start("load")
    lines.advance(0, 0)
    assert "0 %" in stream.getvalue()


def test_a_terminal_gets_a_bar_and_a_log_gets_lines() -> None:
    with show_progress(io.StringIO()) as progress:
        assert isinstance(progress, Lines)
    terminal = Terminal()
    with show_progress(terminal) as progress:
        assert isinstance(progress, Bar)
        progress.start("package")
        progress.advance(1, 2, "lm_head")
        progress.finish("package", 1.0, "[not] markup: 5 MB")
        progress.message("a [red]word")
    assert "[not] markup: 5 MB" in terminal.getvalue() and "a [red]word" in terminal.getvalue()


def test_silence_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent = Silent()
    silent.start("load")
    silent.advance(1, 2, "x")
    silent.message("x")
    silent.finish("load", 1.0, "x")
    assert capsys.readouterr() == ("", "")

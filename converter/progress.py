"""What a run tells while it works: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

Advance = Callable[[int, int, str], None]
"""Told how much is done, of how much, and the layer or matrix in work: `Progress.advance`."""


class Progress(Protocol):
    """Where passes report to."""

    def message(self, text: str) -> None:
        """Say one line."""

    def start(self, name: str) -> None:
        """A pass begins."""

    def advance(self, done: int, total: int, detail: str = "") -> None:
        """The running pass has done `done` of `total`; `detail` names the layer or matrix."""

    def finish(self, name: str, seconds: float, summary: str) -> None:
        """A pass is done."""


class Silent:
    """Reports nothing; for library use and tests."""

    def message(self, text: str) -> None:
        pass

    def start(self, name: str) -> None:
        pass

    def advance(self, done: int, total: int, detail: str = "") -> None:
        pass

    def finish(self, name: str, seconds: float, summary: str) -> None:
        pass


class Lines:
    """Plain lines, and at most one progress line every ten seconds."""

    interval = 10.0

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last, self._name = stream, time.monotonic(), ""

    def message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def start(self, name: str) -> None:
        self._name, self._last = name, time.monotonic()

    def advance(self, done: int, total: int, detail: str = "") -> None:
        now = time.monotonic()
        if now - self._last >= self.interval:
            self._last = now
            self.message(f"  {self._name}: {_share(done, total)} {detail}".rstrip())

    def finish(self, name: str, seconds: float, summary: str) -> None:
        self.message(f"{name:<10}{seconds:8.1f} s  {summary}".rstrip())


class Bar:
    """One rich progress bar for the running pass, finished passes above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(file=stream)
        self._bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            transient=True,
        )
        self._task: Any = None

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def message(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def start(self, name: str) -> None:
        self._task = self._bar.add_task(name, total=None, detail="")

    def advance(self, done: int, total: int, detail: str = "") -> None:
        self._bar.update(self._task, completed=done, total=total, detail=detail)

    def finish(self, name: str, seconds: float, summary: str) -> None:
        self._bar.remove_task(self._task)
        self.message(f"{name:<10}{seconds:8.1f} s  {summary}".rstrip())


@contextmanager
def show_progress(stream: TextIO = sys.stderr) -> Iterator[Progress]:
    """A bar when `stream` is a terminal, lines otherwise."""
    if stream.isatty():
        with Bar(stream) as bar:
            yield bar
    else:
        yield Lines(stream)


def format_bytes(count: float) -> str:
    """Decimal units, as disks are sold: 1 kB = 1000 bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _share(done: int, total: int) -> str:
    return f"{100 * done / total:.0f} %" if total else "0 %"

"""Finds the runtime settings with which a folder answers soonest on this machine.

Threads, spinning and chunk size are tried one after the other, each with the best of those before
it. Candidates of one setting take turns, so that a machine that grows slower meanwhile treats them
alike, and a candidate replaces the default only when it is faster by more than the noise.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from converter.machine.cores import physical_cores
from converter.progress import Advance
from converter.speed.benchmarking import CONFIG, run_once

THREADS = "session_options.intra_op_num_threads"
SPINNING = "session_options.session.intra_op.allow_spinning"
CHUNK_SIZE = "search.chunk_size"
PROMPT_LENGTHS = (16, 512)
NEW_TOKENS = 32
ANSWER_TOKENS = 128
"""A trial's score is the seconds of an answer of this length to the longest prompt."""
ANSWER = f"{ANSWER_TOKENS} tokens after a prompt of {PROMPT_LENGTHS[-1]}"
ROUNDS = 2
MARGIN = 0.02
"""A setting that gains less than this share is noise, and the default stays."""

Settings = Mapping[str, Any]
"""Setting (one of the names above) to its value; None leaves the key out."""


@dataclass(frozen=True)
class Trial:
    """One combination and the median seconds of its answer."""

    settings: Settings
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """The best settings, and everything that was tried."""

    best: Trial
    start: Trial
    """The settings that the folder came with."""
    trials: Sequence[Trial]

    def facts(self) -> dict[str, Any]:
        """For the report: plain containers."""
        trials = [{**trial.settings, "seconds": trial.seconds} for trial in self.trials]
        return {
            "settings": dict(self.best.settings),
            "seconds": self.best.seconds,
            "seconds_before": self.start.seconds,
            "answer": ANSWER,
            "trials": trials,
        }


def candidates(logical: int, physical: int) -> dict[str, list[Any]]:
    """Values to try for each setting, the usual one first."""
    threads = dict.fromkeys([physical, logical, max(1, physical // 2)])
    return {THREADS: [*threads], SPINNING: [None, "0"], CHUNK_SIZE: [None, 128, 256]}


def tune(
    folder: Path,
    choices: Mapping[str, Sequence[Any]] | None = None,
    prompt_lengths: Sequence[int] = PROMPT_LENGTHS,
    new_tokens: int = NEW_TOKENS,
    rounds: int = ROUNDS,
    advance: Advance = lambda done, total, detail: None,
) -> Tuned:
    """Try settings on `folder` (for the CPU provider); it stays as it is.

    Raises:
        ConvertError: the folder does not load or run.
    """
    if choices is None:
        choices = candidates(os.cpu_count() or 1, physical_cores())
    current: Settings = read_settings(folder, list(choices))
    trials: list[Trial] = []
    start: Trial | None = None
    for number, (name, values) in enumerate(choices.items()):
        advance(number, len(choices), name.rpartition(".")[2])
        tried = [current, *({**current, name: value} for value in values)]
        unique = list({json.dumps(item): item for item in tried}.values())
        copies = [partial(changed_copy, folder, item) for item in unique]
        seconds = race(copies, prompt_lengths, new_tokens, rounds)
        found = [Trial(*pair) for pair in zip(unique, seconds, strict=True)]
        trials += found
        start = start or found[0]
        current = fastest(found).settings
    last = next(trial for trial in reversed(trials) if trial.settings == current)
    assert start is not None
    return Tuned(last, start, trials)


def fastest(trials: Sequence[Trial]) -> Trial:
    """The trial of least seconds; the first one, unless another gains more than the noise."""
    best = min(trials, key=lambda trial: trial.seconds)
    return best if best.seconds < (1 - MARGIN) * trials[0].seconds else trials[0]


def race(
    folders: Sequence[Callable[[], AbstractContextManager[Path]]],
    prompt_lengths: Sequence[int] = PROMPT_LENGTHS,
    new_tokens: int = NEW_TOKENS,
    rounds: int = ROUNDS,
) -> list[float]:
    """Median seconds of an answer from each folder; they take turns, back and forth.

    Raises:
        ConvertError: a folder does not load or run.
    """
    seconds: list[list[float]] = [[] for _ in folders]
    for number in range(rounds):
        order = list(enumerate(folders))
        for place, opened in order if number % 2 == 0 else reversed(order):
            with opened() as folder:
                found = run_once(folder, prompt_lengths, new_tokens)
            first = found["first_token"][str(prompt_lengths[-1])]
            seconds[place].append(first + ANSWER_TOKENS * statistics.median(found["token"]))
    return [statistics.median(values) for values in seconds]


@contextmanager
def changed_copy(folder: Path, settings: Settings) -> Iterator[Path]:
    """A folder of links to `folder` whose genai_config.json has other settings.

    It lies inside of `folder`, a staging folder, so that it goes with it when the run is killed.
    """
    with TemporaryDirectory(dir=folder, prefix=".tune-") as name:
        for path in folder.iterdir():
            if path.is_file() and path.name != CONFIG:
                os.symlink(path.resolve(), Path(name) / path.name)
        write_settings(folder, settings, Path(name))
        yield Path(name)


def read_settings(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """The folder's own values of these settings; None where it has none."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return {name: section.get(key) for name, (section, key) in _places(config, names)}


def write_settings(folder: Path, settings: Settings, target: Path | None = None) -> None:
    """Put `settings` into the folder's genai_config.json, or into a copy of it in `target`."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name, (section, key) in _places(config, list(settings)):
        section.pop(key, None)
        if settings[name] is not None:
            section[key] = settings[name]
    text = json.dumps(config, indent=4) + "\n"
    ((target or folder) / CONFIG).write_text(text, encoding="utf-8")


def _places(
    config: dict[str, Any], names: Sequence[str]
) -> Iterator[tuple[str, tuple[dict[str, Any], str]]]:
    sections = {
        "session_options": config["model"]["decoder"]["session_options"],
        "search": config["search"],
    }
    for name in names:
        section, _, key = name.partition(".")
        yield name, (sections[section], key)

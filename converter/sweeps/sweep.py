"""A sweep's folder: its plan, its table, its pictures, and the choice of the best job.

SWEEP/sweep.json holds the plan: every job's settings and composed recipe. SWEEP/JOB/ is a job's
finished folder; failures/JOB.json says why there is none. The table is read from these files alone,
so any process that finishes a job can write it, and whatever a job measures becomes a column.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from converter.errors import ConvertError, Problem, raise_if
from converter.storage.staging import LOCK, RECIPE_FILE, replacing

PLAN = "sweep.json"
SUMMARY = "summary"
FAILURES = "failures"
QUALITY = "evaluate.mean_kld"
SIZE = "size_bytes"
"""Not a part of the size: `gptq` is one letter longer than `rtn`, and no model is larger for it."""
DONE, FAILED, MISSING = "done", "failed", "missing"
HIGHER_IS_BETTER = re.compile(r"per_second|agreement|same_top|tok_s")
_SPEED = re.compile(r"decode.*per_second|decode_tok_s|decode")
_HIDDEN = re.compile(
    r"^quantize\.|_error$|kld_p|kld_max|ln_ppl|\.tokens$|\.chunks$|\.text$|^evaluate\.seconds$"
    r"|\.low$|\.high$|_reference$|^verify\.compared$|load_seconds|^benchmark\.(bandwidth|threads|"
    r"rounds|new_tokens|folder_bytes|bytes_per_token)"
)
"""Columns that the CSV has and the shorter tables leave out."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One combination: its number, folder name, swept settings and composed recipe."""

    number: int
    label: str
    settings: Mapping[str, str]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class SweepPlan:
    """All jobs of a sweep and the words that ask for them."""

    words: Sequence[str]
    jobs: Sequence[Job]

    @property
    def digest(self) -> str:
        """SHA-256 over the jobs: two command lines with the same jobs are the same sweep."""
        text = json.dumps([asdict(job) for job in self.jobs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def job_label(number: int, settings: Mapping[str, str]) -> str:
    """A folder name that says which job it is: `03-quant-awq-block_size-64`."""
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in settings.items()]
    text = re.sub(r"[^A-Za-z0-9_.+-]+", "_", "-".join(parts)).strip("._")
    return f"{number:02d}-{text}"[:80].rstrip("-.") if text else f"{number:02d}"


def write_plan(folder: Path, plan: SweepPlan) -> None:
    """Write SWEEP/sweep.json, in one step."""
    values = {**asdict(plan), "digest": plan.digest}
    write_text(folder / PLAN, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_plan(folder: Path) -> SweepPlan:
    """The plan of a sweep's folder.

    Raises:
        ConvertError: the folder holds no sweep.
    """
    try:
        values = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return SweepPlan(values["words"], [Job(**job) for job in values["jobs"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConvertError(
            Problem(
                f"{folder} holds no sweep: {PLAN} cannot be read ({error!r}).",
                "the folder that `convert -m` printed",
                "give that folder, or run convert -m recipe=NAME key=a,b",
            )
        ) from error


def is_done(folder: Path, job: Job) -> bool:
    """Whether the job's folder was published."""
    return (folder / job.label / LOCK).is_file()


def write_failure(folder: Path, job: Job, error: str) -> None:
    """Note why a job has no folder."""
    (folder / FAILURES).mkdir(exist_ok=True)
    write_text(folder / FAILURES / f"{job.label}.json", json.dumps({"error": error}) + "\n")


def clear_failure(folder: Path, job: Job) -> None:
    """Forget an earlier failure of the job."""
    (folder / FAILURES / f"{job.label}.json").unlink(missing_ok=True)


def read_rows(folder: Path) -> list[Row]:
    """One row per job: job, status, settings, size, all facts, seconds and the error."""
    return [job_row(folder, job) for job in read_plan(folder).jobs]


def columns(rows: Iterable[Row]) -> list[str]:
    """All columns that occur, those about the error last."""
    names = dict.fromkeys(name for row in rows for name in row)
    last = [name for name in names if name == "error"]
    return [name for name in names if name not in last] + last


def speed_column(rows: Iterable[Row]) -> str | None:
    """The column that tells how fast a model generates, if any job measured it."""
    rows = list(rows)
    names = [name for name in shown_columns(rows) if _SPEED.search(name)]
    return min(names, key=lambda name: "per_second" not in name) if names else None


def pareto_front(rows: Iterable[Row], x: str, y: str) -> list[Row]:
    """The rows that no other beats in one of the two columns without losing in the other."""
    points = [row for row in rows if is_number(row.get(x)) and is_number(row.get(y))]
    front = [row for row in points if not any(_beats(other, row, x, y) for other in points)]
    return sorted(front, key=lambda row: row[x])


def find_column(name: str, known: Sequence[str]) -> str:
    """The column that `name` means: in full, by its last part, or by a word in it.

    Raises:
        ConvertError: no column fits.
    """
    name = {"size": SIZE, "kld": QUALITY}.get(name, name)
    for fits in (_equal, _tail, _contains):
        found = [column for column in known if fits(column, name)]
        if found:
            return min(found, key=lambda column: (_HIDDEN.search(column) is not None, len(column)))
    raise ConvertError(
        Problem(
            f"No job of the sweep measured {name!r}.",
            f"one of {', '.join(known)}",
            "sweep with evaluate=standard or benchmark=standard, or name another column",
        )
    )


def pick(rows: Sequence[Row], limits: Sequence[tuple[str, str, float]], by: str) -> Row:
    """The best done job in column `by` among those within `limits` (column, <= or >=, value).

    Raises:
        ConvertError: no job is within the limits; says how near each limit was met.
    """
    done = [row for row in rows if row["status"] == DONE]
    raise_if(_text_problems(done, [by, *(name for name, _, _ in limits)]))
    within = [row for row in done if is_number(number_at(row, by)) and _fits(row, limits)]
    if not within:
        raise ConvertError(_none_within(done, limits, by))
    sign = -1 if HIGHER_IS_BETTER.search(by) else 1
    return min(within, key=lambda row: sign * (number_at(row, by) or 0.0))


def number_at(row: Row, name: str) -> float | None:
    """The number in a cell; a setting's is text, as it was typed."""
    value = row.get(name)
    try:
        found = float(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return float(found) if is_number(found) else None


def shown_columns(rows: Sequence[Row], settings: Collection[str] = ()) -> list[str]:
    """The columns of the shorter tables: what was swept and what matters, without error bars."""
    return [name for name in columns(rows) if name in settings or not _HIDDEN.search(name)]


def front_marks(rows: Sequence[Row], panels: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Job to the names of the fronts that it is on."""
    marks: dict[str, str] = {}
    for x, y in panels:
        name = "size" if x == SIZE else "speed"
        for row in pareto_front(rows, x, y):
            marks[row["job"]] = ", ".join(filter(None, [marks.get(row["job"]), name]))
    return marks


def formatted(name: str, value: Any) -> str:
    """A value as texts show it; bytes in MB."""
    if value is None:
        return ""
    if name.endswith("_bytes") and is_number(value):
        return f"{value / 1e6:.2f} MB" if abs(value) >= 1e4 else f"{value:.0f} bytes"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def job_row(folder: Path, job: Job) -> Row:
    """What is known of a job now: its settings, and the facts of its lock file."""
    row: Row = {"job": job.label, "status": MISSING, **job.settings}
    lock = _read_json(folder / job.label / LOCK)
    if lock:
        row["status"] = DONE
        row[SIZE] = sum(
            entry["size"] for name, entry in lock.get("files", {}).items() if name != RECIPE_FILE
        )
        row |= dict(flat(lock.get("facts", {})))
        row["seconds"] = round(sum(lock.get("seconds", {}).values()), 3)
        return row
    failure = _read_json(folder / FAILURES / f"{job.label}.json")
    if failure:
        row |= {"status": FAILED, "error": failure.get("error", "")}
    return row


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested facts as dotted names with their numbers and texts; lists are left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, (str, int, float, bool)):
            yield f"{prefix}{key}", value


def _beats(other: Row, row: Row, x: str, y: str) -> bool:
    """Whether `other` is at least as good in both and better in one."""
    pairs = [(_cost(other, name), _cost(row, name)) for name in (x, y)]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _cost(row: Row, name: str) -> float:
    value: Any = row.get(name)
    if not is_number(value):
        return float("inf")
    return -float(value) if HIGHER_IS_BETTER.search(name) else float(value)


def _fits(row: Row, limits: Iterable[tuple[str, str, float]]) -> bool:
    checks: dict[str, Callable[[float, float], bool]] = {
        "<=": lambda value, limit: value <= limit,
        ">=": lambda value, limit: value >= limit,
    }
    found = ((number_at(row, name), sign, limit) for name, sign, limit in limits)
    return all(value is not None and checks[sign](value, limit) for value, sign, limit in found)


def _text_problems(done: Sequence[Row], names: Iterable[str]) -> Iterator[Problem]:
    """Columns that hold words, such as `quant`: they have neither a best nor a limit."""
    for name in names:
        texts = [str(row[name]) for row in done if row.get(name) is not None]
        if texts and all(number_at(row, name) is None for row in done):
            yield Problem(
                f"{name} holds no numbers, but {', '.join(dict.fromkeys(texts))}.",
                "a column of numbers",
                f"choose another column of {SUMMARY}.csv",
            )


def _none_within(done: Sequence[Row], limits: Sequence[tuple[str, str, float]], by: str) -> Problem:
    met = []
    for name, sign, limit in limits:
        values = [value for row in done if (value := number_at(row, name)) is not None]
        best = (min if sign == "<=" else max)(values, default=None)
        met.append(
            f"{name} {sign} {formatted(name, limit)} (best: {formatted(name, best) or 'none'})"
        )
    return Problem(
        f"None of the {len(done)} finished jobs fits.",
        "; ".join(met) or f"a job that measured {by}",
        "loosen a limit, or add jobs to the sweep",
    )


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a cell can be compared and drawn: no text, no truth value, finite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _equal(column: str, name: str) -> bool:
    return column == name


def _tail(column: str, name: str) -> bool:
    return column.rpartition(".")[2] == name


def _contains(column: str, name: str) -> bool:
    return name.replace("-", "_") in column


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def write_text(path: Path, text: str) -> None:
    """Write a file of the sweep in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

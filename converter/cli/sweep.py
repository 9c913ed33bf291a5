"""`convert -m`: a sweep through Hydra's launchers.

Every combination is composed and checked here, before the first job starts, and written to the
sweep's folder. What Hydra's multirun then sweeps over is the job's number alone: a worker reads its
recipe from the folder. So a launcher moves one number, a restart skips what is done, and nothing
that was not checked reaches a worker.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.cli import compose
from converter.errors import ConvertError, Problem, first_line, raise_if
from converter.recipe.tree import EXPORT, MODEL, RECIPE, SWEEP, Tree
from converter.recipe.validation import parse_recipe
from converter.storage.user_path import user_path
from converter.sweeps import summary, sweep
from converter.sweeps.sweep import Job, SweepPlan

if TYPE_CHECKING:
    from converter.model.decoder import Decoder

LAUNCHERS = {
    "basic": ("hydra", ""),
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}
"""Launcher to the module that brings it, and the extra that installs the module."""
LAUNCHER, LAUNCHER_KEYS = "hydra/launcher", "hydra.launcher."
HEADER_SLOTS = ("passes", "model", "source", "layout", "graph")
"""What decides the headers that a job reads."""
CONFIG = "convert_sweep"
MAX_JOBS = 1000
INTERRUPTED = 130


def main(words: Sequence[str]) -> int:
    """Run the sweep that the words after `-m` describe; 0 only if every job is done."""
    ours, launch = _split(words)
    folder, ours = _output(ours)
    plan = plan_sweep(ours)
    folder = folder or _unfinished(plan) or _new_folder(plan)
    todo = [job for job in plan.jobs if not sweep.is_done(folder, job)]
    check_jobs(todo, folder, here=f"{LAUNCHER}=submitit_slurm" not in launch)
    with _held(folder):
        _start(folder, plan)
        missing = [job for job in plan.jobs if not sweep.is_done(folder, job)]
        count = f"{len(missing)} of {len(plan.jobs)} jobs to do"
        print(f"{folder}: {count}", file=sys.stderr, flush=True)
        try:
            if missing:
                launch_jobs(folder, missing, launch)
        except KeyboardInterrupt:
            print(f"convert: interrupted; go on with output='{folder}'", file=sys.stderr)
            return INTERRUPTED
        finally:
            rows = summary.write_summary(folder)
    return _report(folder, rows)


def plan_sweep(words: Sequence[str]) -> SweepPlan:
    """All combinations of the words' values, each composed and checked against the schema.

    Raises:
        ConvertError: lists the problems of all combinations, each once.
    """
    words = _with_sweep_file(words)
    prepared = compose.prepare(words, sweep=True)
    items = _last_words([compose.parse_word(word) for word in prepared.words])
    swept = [item for item in items if item.is_sweep_override()]
    raise_if(_count_problems(swept))
    fixed = [item.input_line for item in items if not item.is_sweep_override()]
    keys = [item.key_or_group for item in swept]
    jobs: list[Job] = []
    problems: list[Problem] = []
    for number, values in enumerate(itertools.product(*map(_texts, swept))):
        settings = dict(zip(keys, values, strict=True))
        own = [
            f"{item.input_line.partition('=')[0]}={v}"
            for item, v in zip(swept, values, strict=True)
        ]
        try:
            composed = compose.compose_prepared([*fixed, *own], prepared)
            parse_recipe(composed)
            jobs.append(Job(number, sweep.job_label(number, settings), settings, composed))
        except ConvertError as error:
            problems += error.problems
    raise_if(problems)
    return SweepPlan(list(words), jobs)


def check_jobs(jobs: Sequence[Job], folder: Path, here: bool) -> None:
    """Find what would stop a job of the sweep in `folder` before the first one starts.

    Headers are read, once for jobs of one source. Not `here`, where jobs run on other machines with
    runtimes and folders of their own, the order of the passes is all that can be told.

    Raises:
        ConvertError: lists the problems of all jobs, each once.
    """
    from converter.engine.execution import order_problems, pass_problems, read_headers
    from converter.engine.registry import make_passes

    problems: list[Problem] = []
    headers: dict[str, tuple[Decoder | None, list[Problem]]] = {}
    for job in jobs:
        recipe = parse_recipe(job_values(job, folder))
        try:
            passes = [item for item in make_passes(recipe.passes) if item.enabled(recipe)]
        except ConvertError as error:
            problems += error.problems
            continue
        found = list(order_problems(passes))
        problems += found
        if found or not here:
            continue
        key = json.dumps([job.values.get(slot) for slot in HEADER_SLOTS], sort_keys=True)
        if key not in headers:
            headers[key] = read_headers(recipe, passes)
            problems += headers[key][1]
        problems += pass_problems(recipe, passes, headers[key][0])
    raise_if(problems)


def launch_jobs(folder: Path, jobs: Sequence[Job], words: Sequence[str]) -> None:
    """Run the jobs through Hydra's multirun; a job that fails does not stop the others."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    place = {"dir": str(folder / ".launcher"), "subdir": "."}
    node = {"folder": str(folder), "number": 0, "hydra": {"sweep": place}}
    ConfigStore.instance().store(name=CONFIG, node=node)
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    numbers = f"number={','.join(str(job.number) for job in jobs)}"
    GlobalHydra.instance().clear()
    try:
        hydra = Hydra.create_main_hydra2("convert", create_config_search_path(None))
        hydra.multirun(CONFIG, run_job, [*quiet, *words, numbers])
    except HydraException as error:
        raise ConvertError(_launcher_problem(error)) from error
    except (RuntimeError, OSError) as error:
        # A worker died (memory, a lost node): the table says which jobs are missing.
        print(f"convert: a worker was lost: {error}", file=sys.stderr)
    finally:
        GlobalHydra.instance().clear()


def job_values(job: Job, folder: Path) -> dict[str, Any]:
    """The job's recipe, with its place in the sweep's folder."""
    return {**job.values, "output": str(folder / job.label), "overwrite": True}


def run_job(config: Any) -> str:
    """Run one job in whatever process the launcher chose; failures become rows."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from converter.engine.execution import run_recipe
    from converter.engine.registry import make_passes
    from converter.progress import Lines

    folder = Path(config.folder)
    job = sweep.read_plan(folder).jobs[config.number]
    if sweep.is_done(folder, job):
        return sweep.DONE
    values = job_values(job, folder)
    print(f"{job.label}", file=sys.stderr, flush=True)
    try:
        recipe = parse_recipe(values)
        run_recipe(recipe, make_passes(recipe.passes), Lines(sys.stderr))
        sweep.clear_failure(folder, job)
        state = sweep.DONE
    except ConvertError as error:
        sweep.write_failure(folder, job, "; ".join(item.headline for item in error.problems))
        state = sweep.FAILED
    except Exception as error:  # whatever a pass or runtime raises is this job's row
        sweep.write_failure(folder, job, f"{type(error).__name__}: {error}")
        state = sweep.FAILED
    summary.write_summary(folder)
    return state


def sweep_words(name: str, tree: Tree) -> list[str]:
    """The words that a file of the folder sweep/ stands for.

    Raises:
        ConvertError: it does not exist or has other keys than recipe, set and grid.
    """
    values = tree.piece(SWEEP, name).merged()
    home = name.rpartition("/")[0]
    unknown = set(values) - {"recipe", "set", "grid"}
    fixed, grid = values.get("set", {}), values.get("grid", {})
    if unknown or not isinstance(fixed, Mapping) or not isinstance(grid, Mapping) or not grid:
        raise ConvertError(
            Problem(
                f"The sweep {name!r} has the keys {', '.join(sorted(values))}.",
                "recipe: NAME, set: {key: value}, grid: {key: [value, …]}",
                f"correct the keys of the file of sweep={name}",
            )
        )
    words = []
    if "recipe" in values:
        words.append(f"recipe={tree.qualified('recipe', str(values['recipe']), home)}")
    # A list that is set is one value; in the grid it is the values to go through.
    listed = {key: [value] for key, value in fixed.items()}
    listed |= {k: value if isinstance(value, list) else [value] for k, value in grid.items()}
    for key, values_of in listed.items():
        texts = (tree.qualified(key, _text(item), home) for item in values_of)
        words.append(f"{key}={','.join(texts)}")
    return words


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if value in (True, False) else str(value)


def _with_sweep_file(words: Sequence[str]) -> list[str]:
    """The words with sweep=NAME replaced by what it stands for; later words win."""
    named = [word.partition("=")[2] for word in words if word.startswith(f"{SWEEP}=")]
    others = [word for word in words if not word.startswith(f"{SWEEP}=")]
    keys = {word.partition("=")[0].lstrip("+") for word in others}
    keys |= {RECIPE} if {MODEL, EXPORT} <= keys else set()
    found = [word for name in named for word in sweep_words(name, Tree())]
    return [word for word in found if word.partition("=")[0] not in keys] + others


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our words, and those for Hydra's launcher."""
    launch = [word for word in words if word.startswith((f"{LAUNCHER}=", LAUNCHER_KEYS))]
    names = [word.partition("=")[2] for word in launch if word.startswith(f"{LAUNCHER}=")]
    raise_if(problem for name in names for problem in _launcher_problems(name))
    return [word for word in words if word not in launch], launch


def _output(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    named = [word.partition("=")[2].strip("\"'") for word in words if word.startswith("output=")]
    others = [word for word in words if not word.startswith("output=")]
    if named and not named[-1]:
        raise ConvertError(Problem("output= is empty.", "a folder", "write output=FOLDER"))
    return (user_path(named[-1]) if named else None), others


def _new_folder(plan: SweepPlan) -> Path:
    """A folder that no other sweep takes, also one that starts in the same second."""
    name = f"{plan.jobs[0].values['name']}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return Path("sweeps", name).resolve()


def _unfinished(plan: SweepPlan) -> Path | None:
    """The latest sweep of the same jobs that was interrupted, so that it goes on."""
    for path in sorted(Path("sweeps").glob(f"*/{sweep.PLAN}"), reverse=True):
        folder = path.parent.resolve()
        try:
            same = sweep.read_plan(folder).digest == plan.digest
        except ConvertError:
            continue
        if same and not all(sweep.is_done(folder, job) for job in plan.jobs):
            return folder
    return None


def _start(folder: Path, plan: SweepPlan) -> None:
    if (folder / sweep.PLAN).is_file():
        if sweep.read_plan(folder).digest != plan.digest:
            raise ConvertError(
                Problem(
                    f"{folder} holds a sweep of other jobs.",
                    "a new folder, or the same command as before to go on",
                    "choose another output=FOLDER",
                )
            )
        return
    sweep.write_plan(folder, plan)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep a second command out of the folder; a killed one lets go of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        raise_if(_foreign_problems(folder))
        held = (folder / ".held").open("a")
    except OSError as error:
        found = f"{folder} cannot be used: {error.strerror or error}."
        raise ConvertError(
            Problem(found, "a folder that can be written", "choose another output=FOLDER")
        ) from error
    with held as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConvertError(
                Problem(f"A sweep runs in {folder}.", "one at a time", "wait, or set output=FOLDER")
            ) from None
        except OSError:
            pass  # a file system without locks: jobs are published by renames all the same
        yield


def _foreign_problems(folder: Path) -> Iterator[Problem]:
    """Other files where a sweep would begin; a killed one leaves names with a dot at most."""
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others and sweep.PLAN not in others:
        yield Problem(
            f"{folder} holds other files, such as {min(others)}.",
            "a new or empty folder, or that of the same sweep to go on",
            "choose another output=FOLDER",
        )


def _report(folder: Path, rows: Sequence[sweep.Row]) -> int:
    for row in rows:
        if row["status"] != sweep.DONE:
            print(f"- {row['job']}: {row['status']} {row.get('error', '')}", file=sys.stderr)
    done = sum(row["status"] == sweep.DONE for row in rows)
    print(f"{done} of {len(rows)} jobs done; see {folder / 'summary.html'}", file=sys.stderr)
    print(folder)
    return 0 if done == len(rows) else 1


def _last_words(items: Sequence[Any]) -> list[Any]:
    """The last word about each key, whether it is one value or several.

    Raises:
        ConvertError: a key is swept twice; both words may be meant.
    """
    found: dict[str, Any] = {}
    problems = []
    for item in items:
        key = item.key_or_group
        if item.is_sweep_override() and key in found and found[key].is_sweep_override():
            remedy = f"write {key}=a,b,c once"
            problems.append(Problem(f"{key} is swept twice.", "one word for a key", remedy))
        found[key] = item
    raise_if(problems)
    return list(found.values())


def _texts(item: Any) -> list[str]:
    return [{"True": "true", "False": "false"}.get(x, x) for x in item.sweep_string_iterator()]


def _count_problems(swept: Sequence[Any]) -> Iterator[Problem]:
    if not swept:
        yield Problem(
            "No word holds several values.",
            "a sweep over at least one key",
            "convert -m recipe=NAME quant.block_size=32,64, or sweep=NAME",
        )
    count = 1
    for item in swept:
        count *= len(_texts(item))
    if count > MAX_JOBS:
        yield Problem(f"The sweep has {count} jobs.", f"at most {MAX_JOBS}", "sweep fewer values")


def _launcher_problems(name: str) -> Iterator[Problem]:
    if name not in LAUNCHERS:
        known = ", ".join(LAUNCHERS)
        yield Problem(f"Unknown launcher {name!r}.", f"one of {known}", f"write {LAUNCHER}=joblib")
    elif not _is_installed(LAUNCHERS[name][0]):
        extra = LAUNCHERS[name][1]
        remedy = f"pip install 'convert-genai[{extra}]'"
        yield Problem(f"The launcher {name} is not installed.", f"the extra {extra}", remedy)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # no plugin at all is installed
        return False


def _launcher_problem(error: Exception) -> Problem:
    return Problem(
        f"The launcher cannot start: {first_line(error)}.",
        f"settings that it has, as {LAUNCHER_KEYS}NAME=VALUE",
        "correct them; the same command then goes on in the same folder",
    )

"""Starts Olive in a process of its own, shows what it prints, and reads its answer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Timer
from typing import Any

from converter.errors import ConvertError, Problem
from converter.graph.names import MODEL_FILE
from converter.olive.config import PlannedPass
from converter.providers import PROVIDERS

OLDEST = (0, 13)
"""The first version of olive-ai that has all passes of the presets."""
WORKER = "converter.olive.worker"
LINES_IN_ERROR = 12
TIMESTAMP = re.compile(r"^\[\d{4}-\d\d-\d\d [\d:,]+\] ")
CHECK_SECONDS = 300.0


def olive_version() -> str | None:
    """The installed version of olive-ai; None when there is none."""
    if find_spec("olive") is None:
        return None
    try:
        return metadata.version("olive-ai")
    except metadata.PackageNotFoundError:
        return None


def installation_problem() -> Problem | None:
    """Why Olive cannot be started: not installed, or too old."""
    version, wanted = olive_version(), ".".join(map(str, OLDEST))
    remedy = "pip install 'convert-genai[olive]', or add olive=none"
    if version is None:
        return Problem("Olive is not installed, and the recipe uses it.", "olive-ai", remedy)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        return Problem(f"olive-ai {version} is installed.", f"olive-ai {wanted} or newer", remedy)
    return None


def check_passes(passes: Sequence[PlannedPass], provider: str) -> list[Problem]:
    """What Olive's own schemas find wrong with the passes' settings.

    Raises:
        ConvertError: Olive cannot be imported.
    """
    with TemporaryDirectory(prefix="convert-olive-") as folder:
        job = {"kind": "check", **_job(passes, provider)}
        answer = ask(job, Path(folder), CHECK_SECONDS)
    found = answer["problems"]
    return [Problem(**{**problem, "key": tuple(problem["key"])}) for problem in found]


def run_passes(
    passes: Sequence[PlannedPass],
    provider: str,
    folder: Path,
    scratch: Path,
    timeout: float,
    say: Callable[[str], None],
) -> Path:
    """Run the passes on the model in `folder`.

    Returns:
        The resulting ONNX file, below `scratch` unless no pass wrote anything.

    Raises:
        ConvertError: a pass failed, Olive died or took longer than `timeout` seconds.
    """
    work = scratch / "work"
    work.mkdir()
    job = {"kind": "run", "model": str(folder), "file": MODEL_FILE, "work": str(work)}
    return Path(ask(job | _job(passes, provider), scratch, timeout, say)["model"])


def measure(
    folder: Path,
    metrics: Mapping[str, str],
    tokens: Sequence[Sequence[int]],
    scratch: Path,
    timeout: float,
    say: Callable[[str], None],
) -> dict[str, float]:
    """What Olive's own evaluator measures of the models in `folder`, on the CPU.

    Args:
        folder: holds the models and their data file.
        metrics: size_on_disk (bytes), latency (ms for 32 tokens) or perplexity (of the rows of
            `tokens`; needs every token's logits), each with the name of the model to measure.
        tokens: rows of token ids, equally long.
        scratch: an empty folder.
        timeout: seconds.
        say: takes each line that Olive prints.

    Raises:
        ConvertError: Olive failed.
    """
    rows = [list(row) for row in tokens]
    job = {"kind": "measure", "model": str(folder), "metrics": dict(metrics), "tokens": rows}
    found: dict[str, float] = ask(job, scratch, timeout, say)["metrics"]
    return found


def ask(
    job: Mapping[str, Any],
    scratch: Path,
    timeout: float,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Have the worker do `job`; everything that it writes lands below `scratch`."""
    path = scratch / f"{job['kind']}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    tail: deque[str] = deque(maxlen=LINES_IN_ERROR)
    code, expired = _run(path, timeout, say, tail)
    answer_path = Path(f"{path}.answer")
    if expired or not answer_path.is_file():
        raise ConvertError(_died(code, timeout if expired else None, tail))
    answer: dict[str, Any] = json.loads(answer_path.read_text(encoding="utf-8"))
    if "failed" in answer:
        raise ConvertError(_failed(answer["failed"], tail))
    return answer


def _run(
    job: Path, timeout: float, say: Callable[[str], None], tail: deque[str]
) -> tuple[int, bool]:
    """Exit code, and whether the time ran out."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", WORKER, str(job)],
        cwd=job.parent,
        env=environment(job.parent),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    expired = Event()

    def stop() -> None:
        expired.set()
        process.kill()

    timer, said = Timer(timeout, stop), ""
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            text = TIMESTAMP.sub("", line.rstrip())
            tail.append(text)
            if text != said:  # Olive repeats some remarks for every matrix
                say(text)
            said = text
        return process.wait(), expired.is_set()
    finally:
        timer.cancel()
        process.kill()
        process.wait()


def environment(scratch: Path) -> dict[str, str]:
    """Variables of the worker: no telemetry, no network, and caches below `scratch`.

    Olive sends a heartbeat on import, and waits ten seconds for it at the end, unless CI is set.
    """
    return os.environ | {
        "CI": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "OLIVE_DISABLE_TELEMETRY": "1",
        "OLIVE_TELEMETRY_CACHE_DIR": str(scratch / "telemetry"),
        **{
            f"XDG_{kind}_HOME": str(scratch / kind.lower())
            for kind in ("CACHE", "CONFIG", "DATA", "STATE")
        },
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(scratch),
        "PYTHONUNBUFFERED": "1",
    }


def _job(passes: Sequence[PlannedPass], provider: str) -> dict[str, Any]:
    listed = [{"label": item.label, "type": item.type, "config": item.config} for item in passes]
    row = PROVIDERS[provider]
    return {"passes": listed, "accelerator": (row.device, row.onnxruntime_name)}


def _failed(reason: str, tail: Sequence[str]) -> Problem:
    missing = "ModuleNotFoundError" in reason and "No module named" in reason
    return Problem(
        f"Olive failed: {reason.rstrip('.')}.",
        "a run to the end; its last lines were:\n" + "\n".join(f"    {line}" for line in tail),
        "pip install 'convert-genai[olive]' (a module is missing), or add olive=none"
        if missing
        else "correct the settings of that pass, or add olive=none",
    )


def _died(code: int, timeout: float | None, tail: Sequence[str]) -> Problem:
    after = "\n".join(f"    {line}" for line in tail) or "    (nothing)"
    if timeout is not None:
        return Problem(
            f"Olive was stopped after {timeout:g} s.",
            f"an end within olive.timeout; its last lines were:\n{after}",
            "set olive.timeout to more seconds",
        )
    killed = " (killed: most likely too little memory)" if code == -9 else ""
    return Problem(
        f"Olive ended with code {code}{killed} without an answer.",
        f"a run to the end; its last lines were:\n{after}",
        "give it more memory, or add olive=none: Olive loads the whole model",
    )

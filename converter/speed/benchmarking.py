"""Measures how fast finished folders run: load, first token, decoding, memory, share of bandwidth.

Every measurement is a process of its own (benchmark_worker.py). Several folders take turns, in
another order each round, so that a machine that grows slower or faster meanwhile treats them alike.
Reported are medians over the rounds with the smallest and the largest value.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import ConvertError, Problem, raise_if
from converter.graph.names import is_cache
from converter.machine.cores import physical_cores
from converter.progress import Advance

if TYPE_CHECKING:
    import onnx_ir as ir

WORKER = "converter.speed.benchmark_worker"
EXPERTS = ("MoE", "QMoE")
"""Operators that read some of their matrices' parts."""
TABLES = ("Gather", "GatherBlockQuantized")
"""Operators that read single rows of their weight."""
CONFIG = "genai_config.json"


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of repeated measurements."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def per_unit(self, unit: float) -> Spread:
        """The values in another unit."""
        return Spread(self.median / unit, self.low / unit, self.high / unit)

    def per(self, amount: float) -> Spread:
        """Seconds as a rate: `amount` per second."""
        return Spread(amount / self.median, amount / self.high, amount / self.low)


@dataclass(frozen=True)
class Measured:
    """What a folder does on this machine."""

    folder: str
    folder_bytes: int
    load_seconds: Spread
    first_token_seconds: Mapping[int, Spread]
    """Prompt length in tokens to seconds until the first new token."""
    decode_tokens_per_second: Spread
    """After a prompt of the shortest length."""
    peak_bytes: int | None
    """Largest resident memory of the whole process, over all rounds."""
    bytes_per_token: int
    """Weights and keys and values that one decoded token reads."""
    bandwidth_share: float
    """bytes_per_token · decode rate, relative to the bandwidth of the same process's memory; the
    median over the rounds."""

    def prefill_tokens_per_second(self, length: int) -> Spread:
        return self.first_token_seconds[length].per(length)


@dataclass(frozen=True)
class Report:
    """Measurements of several folders in one run."""

    threads: int
    """Threads with which the memory bandwidth was measured: physical cores."""
    bandwidth: Spread
    """Bytes per second read from memory, over all processes."""
    rounds: int
    new_tokens: int
    folders: Sequence[Measured]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def bench(
    folders: Sequence[Path],
    prompt_lengths: Sequence[int],
    new_tokens: int,
    rounds: int,
    advance: Advance = lambda done, total, detail: None,
) -> Report:
    """Measure `folders` in turn, `rounds` times.

    Args:
        folders: each with genai_config.json, for a provider that this machine has.
        prompt_lengths: tokens; decoding is measured after the shortest.
        new_tokens: tokens decoded, at least 2.
        rounds: processes started for each folder.
        advance: told processes done, processes in all, and the folder at work.

    Raises:
        ConvertError: a folder does not load or run.
    """
    raise_if(folder_problems(folders))
    lengths = sorted(prompt_lengths)
    results: dict[Path, list[dict[str, Any]]] = {folder: [] for folder in folders}
    for number in range(rounds):
        shift = number % len(folders)
        for place, folder in enumerate([*folders[shift:], *folders[:shift]]):
            advance(number * len(folders) + place, rounds * len(folders), folder.name)
            results[folder].append(run_once(folder, lengths, new_tokens))
    measured = [summarise(folder, results[folder], lengths, new_tokens) for folder in folders]
    return Report(physical_cores(), bandwidth(results.values()), rounds, new_tokens, measured)


def run_once(folder: Path, prompt_lengths: Sequence[int], new_tokens: int) -> dict[str, Any]:
    """One process: seconds as `converter.speed.benchmark_worker.measure` gives them."""
    asked = {
        "folder": str(folder),
        "prompt_lengths": list(prompt_lengths),
        "new_tokens": new_tokens,
        "threads": physical_cores(),
    }
    found: dict[str, Any] = _worker(asked, folder)
    return found


def bandwidth(rounds: Iterable[Sequence[Mapping[str, Any]]]) -> Spread:
    """Bytes per second read from memory, over the processes of all folders."""
    return Spread.of([item["bandwidth"] for folder in rounds for item in folder])


def summarise(
    folder: Path,
    rounds: Sequence[Mapping[str, Any]],
    lengths: Sequence[int],
    new_tokens: int,
) -> Measured:
    """Medians and spread of a folder's rounds."""
    token = Spread.of([statistics.median(item["token"]) for item in rounds])
    nbytes = bytes_per_token(folder, lengths[0] + new_tokens // 2)
    peaks = [item["peak"] for item in rounds if item["peak"] is not None]
    return Measured(
        folder=folder.name,
        folder_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        load_seconds=Spread.of([item["load"] for item in rounds]),
        first_token_seconds={
            length: Spread.of([item["first_token"][str(length)] for item in rounds])
            for length in lengths
        },
        decode_tokens_per_second=token.per(1),
        peak_bytes=max(peaks, default=None),
        bytes_per_token=nbytes,
        bandwidth_share=statistics.median(
            nbytes / statistics.median(item["token"]) / item["bandwidth"] for item in rounds
        ),
    )


def bytes_per_token(folder: Path, context: int) -> int:
    """Bytes that decoding one token after `context` others reads; see `graph_bytes_per_token`."""
    import onnx_ir as ir

    decoder = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model"]["decoder"]
    graph = ir.load(folder / decoder["filename"]).graph
    return graph_bytes_per_token(graph, context, decoder["head_size"])


def graph_bytes_per_token(graph: ir.Graph, context: int, head_size: int) -> int:
    """Every matrix whole, of experts those that a token has, and keys and values of the context.

    Rows of an embedding and of the cos/sin caches are left out: one of each is read.
    """
    total = context * cache_bytes_per_token(graph, head_size)
    for value in graph.initializers.values():
        used = _widened(value)
        readers = {node.op_type for node, _ in used.uses()} - set(TABLES)
        if value.const_value is not None and readers - {"GroupQueryAttention", "RotaryEmbedding"}:
            assert used.dtype is not None
            nbytes = value.const_value.size * used.dtype.bitwidth // 8
            total += round(nbytes * _share_of_experts(value, used))
    return total


def _share_of_experts(value: ir.Value, used: ir.Value) -> float:
    """Which share of a stack of experts a token reads; 1 for any other matrix."""
    for node, _ in used.uses():
        if node.op_type in EXPERTS and value.shape is not None:
            count = value.shape[0]
            assert isinstance(count, int)
            return node.attributes["k"].as_int() / count
    return 1.0


def _widened(value: ir.Value) -> ir.Value:
    """What the runtime keeps of an initializer: a cast of one is computed when it is loaded."""
    nodes = [node for node, _ in value.uses()]
    return nodes[0].outputs[0] if [node.op_type for node in nodes] == ["Cast"] else value


def cache_bytes_per_token(graph: ir.Graph, head_size: int) -> int:
    """Bytes of the keys and values that each token adds to the cache."""
    total = 0
    for value in graph.inputs:
        if is_cache(value.name) and value.shape is not None:
            heads = value.shape[1]
            assert isinstance(heads, int) and value.dtype is not None
            total += heads * head_size * value.dtype.bitwidth // 8
    return total


def table(report: Report) -> str:
    """Markdown: a row for each folder, median with smallest and largest value."""
    lengths = list(report.folders[0].first_token_seconds)
    head = [
        "folder",
        "size (GB)",
        "load (s)",
        *(f"first token, {length} (s)" for length in lengths),
        f"prefill, {lengths[-1]} (tok/s)",
        "decode (tok/s)",
        "peak memory (GB)",
        "read per token (GB)",
        "share of bandwidth",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for item in report.folders:
        peak = "not told" if item.peak_bytes is None else f"{item.peak_bytes / 1e9:.2f}"
        cells = [
            item.folder,
            f"{item.folder_bytes / 1e9:.3f}",
            shown(item.load_seconds, 2),
            *(shown(item.first_token_seconds[length], 3) for length in lengths),
            shown(item.prefill_tokens_per_second(lengths[-1]), 1),
            shown(item.decode_tokens_per_second, 1),
            peak,
            f"{item.bytes_per_token / 1e9:.3f}",
            f"{100 * item.bandwidth_share:.0f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    lines.append(
        f"Memory bandwidth: {shown(report.bandwidth.per_unit(1e9), 1)} GB/s with {report.threads} "
        f"threads. Medians of {report.rounds} processes, with the smallest and largest value."
    )
    return "\n".join(lines)


def shown(spread: Spread, digits: int) -> str:
    """`median (low–high)`."""
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}–{spread.high:.{digits}f})"


def draw(report: Report, path: Path) -> None:
    """A picture of the folders side by side, PNG or SVG by the path's suffix."""
    from converter.evaluation.charts import compare_folders

    compare_folders(path, [item.folder for item in report.folders], list(_panels(report)))


def _panels(report: Report) -> Any:
    from converter.evaluation.charts import Panel

    items = report.folders
    longest = max(items[0].first_token_seconds)
    decode = [item.decode_tokens_per_second for item in items]
    prefill = [item.prefill_tokens_per_second(longest) for item in items]
    for title, rates in (
        ("decode (tokens/s)", decode),
        (f"prefill of {longest} (tokens/s)", prefill),
    ):
        errors = [(rate.high - rate.low) / 2 for rate in rates]
        yield Panel(title, [rate.median for rate in rates], errors, digits=1)
    peaks = [None if item.peak_bytes is None else item.peak_bytes / 1e9 for item in items]
    yield Panel("peak memory (GB)", peaks, digits=2)
    yield Panel("load (s)", [item.load_seconds.median for item in items], digits=2)


def folder_problems(folders: Iterable[Path]) -> list[Problem]:
    """Those of `folders` that nothing can be measured of."""
    return [
        Problem(
            f"{folder} has no {CONFIG}.",
            "a folder that convert (or onnxruntime-genai's builder) wrote",
            "convert bench FOLDER [FOLDER …], with the folders to measure",
        )
        for folder in folders
        if not (folder / CONFIG).is_file()
    ]


def _worker(asked: Mapping[str, Any], folder: Path) -> Any:
    # One BLAS thread each: the worker's own threads share the bandwidth measurement.
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", WORKER, json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConvertError(
            Problem(
                f"Measuring {folder.name} failed: {lines[-1].rstrip('.')}.",
                "a folder whose execution provider this machine has, and memory for it",
                "choose another target, such as target=cpu, and convert again",
            )
        )
    return json.loads(done.stdout.strip().splitlines()[-1])

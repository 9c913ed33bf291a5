"""`convert eval FOLDER…`: how far finished folders are from the float model.

Mean KL divergence, its percentiles, agreement and perplexity, as llama.cpp's perplexity tool
defines them. Each folder gets report/evaluate.json and report/kld.png; several folders made from
the same weights share one reference and are compared in a table and a picture.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.engine.execution import check
from converter.engine.registry import make_passes
from converter.errors import ConvertError, Problem, raise_if, together_with
from converter.evaluation.charts import Panel, compare_folders
from converter.evaluation.folder_evaluation import (
    REPORT,
    REPORT_FILE,
    Evaluation,
    evaluate_folder,
    folder_chunks,
    write_json,
    write_report,
)
from converter.evaluation.reference_logits import stored_reference
from converter.model.checkpoint import Checkpoint
from converter.model.decoder import Decoder
from converter.output.published import read_lock, read_recipe
from converter.output.writable import PICTURES, file_problems
from converter.progress import Progress, format_bytes, show_progress
from converter.recipe.schema import EvaluateConfig, Recipe
from converter.recipe.validation import parse_recipe
from converter.storage.cache import Cache, cache_folder
from converter.storage.staging import LOCK, replacing
from converter.storage.user_path import user_path

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True)
class Opened:
    """A finished folder with the recipe that made it and the float model that it came from."""

    label: str
    """The folder as the user named it."""
    folder: Path
    recipe: Recipe
    decoder: Decoder


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    cache = Cache(cache_folder())
    with together_with(_result_problems(parsed)):
        opened = open_folders(parsed.folders, parsed.source, cache)
    config = _settings(opened[0].recipe.evaluate, parsed)
    with show_progress() as progress:
        found = {item.label: evaluate(item, config, cache, progress) for item in opened}
    sizes = {item.label: _size(item.folder) for item in opened}
    print(comparison_table(found, sizes))
    print("".join(notes(found)), end="")
    if len(found) == 1:
        print()
        print(next(iter(found.values())).statistics.table())
    else:
        with replacing(parsed.picture.resolve()) as path:
            draw_comparison(path, found, sizes)
        print(f"\n{parsed.picture}")
    if parsed.json is not None:
        rows = [
            {"folder": label, "nbytes": sizes[label], **item.to_json()}
            for label, item in found.items()
        ]
        write_json(parsed.json.resolve(), rows)
    return 0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a converted model")
    parser.add_argument("--text", help="builtin, a text file, a .jsonl file, or a folder of those")
    parser.add_argument("--chunks", type=_count, metavar="N", help="chunks of text; 0 takes all")
    parser.add_argument("--source", metavar="PATH", help="folder of the float checkpoint")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        default=Path("evaluation.png"),
        help="where several folders are compared (.png or .svg; default %(default)s)",
    )


def _result_problems(parsed: argparse.Namespace) -> Iterator[Problem]:
    """Files that the evaluation would end with, and that cannot be written."""
    if parsed.json is not None:
        yield from file_problems(parsed.json)
    if len(set(parsed.folders)) > 1:
        yield from file_problems(parsed.picture, PICTURES)


def _report_problems(label: str, folder: Path) -> Iterator[Problem]:
    report = folder / REPORT
    place = report / REPORT_FILE if report.exists() else report
    for problem in file_problems(place):
        remedy = f"copy {label} to a place that you may write to, and evaluate the copy"
        yield replace(problem, remedy=remedy)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of chunks")
    return int(text)


def _settings(config: EvaluateConfig, parsed: argparse.Namespace) -> EvaluateConfig:
    """The first folder's recipe decides what the command line leaves open."""
    changes: dict[str, Any] = {}
    if parsed.text is not None:
        changes["text"] = parsed.text
    if parsed.chunks is not None:
        changes["max_chunks"] = parsed.chunks or None
    return dataclasses.replace(config, **changes)


def open_folders(folders: Iterable[str], source: str | None, cache: Cache) -> list[Opened]:
    """Open every folder and the float weights that it was made from, from headers and hashes.

    Raises:
        ConvertError: lists what is wrong with each folder and each source.
    """
    opened: list[Opened] = []
    problems: list[Problem] = []
    for label in dict.fromkeys(folders):
        try:
            opened.append(_open(label, source, cache))
        except ConvertError as error:
            problems += error.problems
    raise_if(problems)
    return opened


def _open(label: str, source: str | None, cache: Cache) -> Opened:
    folder = user_path(label)
    lock, recipe = read_lock(folder), parse_recipe(read_recipe(folder))
    if source is not None:
        path = str(user_path(source))
        recipe.source = dataclasses.replace(recipe.source, kind="checkpoint", path=path)
    try:
        passes = [item for item in make_passes(recipe.passes) if item.headers_only]
        decoder = check(recipe, passes, None)
    except ConvertError as error:
        raise ConvertError(_without_source(label, item) for item in error.problems) from error
    assert decoder is not None  # every recipe's header passes end in a decoder, or check raises
    raise_if(
        [
            *_report_problems(label, folder),
            *_source_problems(label, lock, decoder.checkpoint, cache),
        ]
    )
    return Opened(label, folder, recipe, decoder)


def evaluate(
    opened: Opened, config: EvaluateConfig, cache: Cache, progress: Progress
) -> Evaluation:
    """Evaluate one folder and write its report; see `converter.evaluation.folder_evaluation`."""
    progress.start(opened.label)
    chunks = folder_chunks(opened.folder, config)
    reference = stored_reference(opened.decoder, chunks, cache, progress.advance)
    evaluation = evaluate_folder(opened.folder, config.text, chunks, reference, progress.advance)
    write_report(opened.folder, opened.folder.name, evaluation)
    progress.finish(opened.label, evaluation.seconds, f"{evaluation.statistics.kld} nats")
    return evaluation


def comparison_table(found: Mapping[str, Evaluation], sizes: Mapping[str, int]) -> str:
    """One line per folder: KL divergences in nats per token, agreement in percent."""
    rows = [_TITLES, *(_row(label, found[label], sizes[label]) for label in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


_TITLES = (
    *("folder", "size", "mean KL divergence", "median", "99 %", "maximum"),
    *("same top token", "perplexity", "float", "ln ratio"),
)


def _row(label: str, evaluation: Evaluation, nbytes: int) -> tuple[str, ...]:
    item = evaluation.statistics
    return (
        label,
        format_bytes(nbytes),
        f"{item.kld.value:.5f} ± {item.kld.error:.5f}",
        *(f"{item.kld_percentiles[name]:.4f}" for name in ("median", "99%", "max")),
        f"{100 * item.same_top.value:.2f} ± {100 * item.same_top.error:.2f} %",
        f"{item.ppl.value:.4f}",
        f"{item.ppl_reference.value:.4f}",
        f"{item.ln_ppl_ratio.value:+.5f} ± {item.ln_ppl_ratio.error:.5f}",
    )


def notes(found: Mapping[str, Evaluation]) -> Iterator[str]:
    """What must be said of the figures, each with a line's end; a note for several folders once."""
    said = {item.statistics.note for item in found.values()}
    yield from (f"Note: {note}; --text FILE takes another one.\n" for note in said if note)


def draw_comparison(path: Path, found: Mapping[str, Evaluation], sizes: Mapping[str, int]) -> None:
    """Draw size, divergence and agreement of the folders side by side."""
    statistics = [item.statistics for item in found.values()]
    panels = [
        Panel("folder (MB)", [sizes[label] / 1e6 for label in found], digits=1),
        Panel(
            "mean KL divergence (nats)",
            [item.kld.value for item in statistics],
            [item.kld.error for item in statistics],
            digits=4,
        ),
        Panel(
            "same top token (%)",
            [100 * item.same_top.value for item in statistics],
            [100 * item.same_top.error for item in statistics],
            digits=1,
        ),
    ]
    compare_folders(path, list(found), panels)


def _without_source(label: str, problem: Problem) -> Problem:
    """The problem of opening the float weights that the folder `label` was made from."""
    remedy = f"convert eval {label} --source FOLDER, with the checkpoint that it was made from"
    return replace(problem, remedy=remedy).at(f"The float weights of {label}")


def _source_problems(
    label: str, lock: Mapping[str, Any], checkpoint: Checkpoint, cache: Cache
) -> Iterator[Problem]:
    """Files of the source whose content is not what the lock file says."""
    recorded = lock.get("source", {}).get("files", {})
    expected = {name: entry["blake3"] for name, entry in recorded.items() if _decides(name)}
    paths = {path.name: path for path in checkpoint.files if _decides(path.name)}
    for name in sorted(expected.keys() | paths.keys()):
        place = paths.get(name)
        if place is None or name not in expected or cache.file_hash(place) != expected[name]:
            found = "is missing" if place is None else f"({place}) is another one"
            yield Problem(
                f"{label} was made from other weights: {name} {found}.",
                f"the checkpoint whose hashes are in {label}/{LOCK}",
                "add --source FOLDER with that checkpoint",
            )


def _decides(name: str) -> bool:
    """Whether a source file decides what the float model computes."""
    return name == "config.json" or Path(name).suffix in WEIGHT_SUFFIXES


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())

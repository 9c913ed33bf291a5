"""A checkpoint in a local folder: safetensors or .bin files, one or shards with an index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from converter.errors import ConvertError, Problem, raise_if
from converter.model.checkpoint import Checkpoint, read_json
from converter.weights.safetensors_file import open_safetensors
from converter.weights.torch_file import open_torch_file
from converter.weights.weight import Weight


@dataclass(frozen=True)
class WeightForm:
    """A way to store weights, by the names that transformers gives the files."""

    single: str
    index: str
    open: Callable[[Path], Mapping[str, Weight]]


SAFETENSORS = WeightForm("model.safetensors", "model.safetensors.index.json", open_safetensors)
TORCH = WeightForm("pytorch_model.bin", "pytorch_model.bin.index.json", open_torch_file)
FORMS = (SAFETENSORS, TORCH)
"""In order of preference."""


def open_local(folder: Path, origin: dict[str, Any] | None = None) -> Checkpoint:
    """Open a checkpoint folder from its headers.

    Raises:
        ConvertError: lists every missing or damaged file and every tensor that the index names
            and its shard lacks.
    """
    if not folder.is_dir():
        raise ConvertError(
            Problem(
                f"{folder} is not a folder.",
                "a checkpoint folder with config.json and safetensors files",
                "set source.path=FOLDER, with the folder's path",
            )
        )
    config = read_json(folder / "config.json")
    form = weight_form(path.name for path in folder.iterdir())
    if form is None:
        raise ConvertError(_no_weights(folder))
    shards, tensors = _open_shards(folder, form)
    return Checkpoint(
        config=config,
        tensors=tensors,
        origin=origin or {"kind": "local", "folder": folder.name},
        folder=folder,
        files=(*small_files(folder), *shards),
    )


def weight_form(names: Iterable[str]) -> WeightForm | None:
    """The preferred form of weights among a checkpoint's file names; None when it has none."""
    held = set(names)
    return next((form for form in FORMS if form.index in held or form.single in held), None)


def small_files(folder: Path) -> list[Path]:
    """A checkpoint folder's configs and tokenizer files; weights and their index left out."""
    indexes = {form.index for form in FORMS}
    configs = [path for path in sorted(folder.glob("*.json")) if path.name not in indexes]
    tokenizer = folder / "tokenizer.model"
    return [*configs, tokenizer] if tokenizer.is_file() else configs


def read_index(path: Path) -> dict[str, str]:
    """Tensor name to shard, from a checkpoint's index file.

    Raises:
        ConvertError: the file is no index, or names a shard outside of its own folder.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConvertError(Problem(f"{path} has no weight_map.", "a shard index", "fetch it again"))
    raise_if(_unsafe_names(path, weight_map.values()))
    return weight_map


def _open_shards(folder: Path, form: WeightForm) -> tuple[list[Path], dict[str, Weight]]:
    index = folder / form.index
    if not index.is_file():
        path = folder / form.single
        return [path], dict(form.open(path))
    weight_map = read_index(index)
    tensors: dict[str, Weight] = {}
    problems: list[Problem] = []
    shards = [folder / name for name in sorted(set(weight_map.values()))]
    for shard in shards:
        wanted = [name for name, file in weight_map.items() if file == shard.name]
        if not shard.is_file():
            problems.append(_missing_shard(shard, form, len(wanted)))
            continue
        try:
            found = form.open(shard)
        except ConvertError as error:
            problems += error.problems
            continue
        problems += [_not_in_shard(name, shard, form) for name in wanted if name not in found]
        tensors |= found
    raise_if(problems)
    return shards, tensors


def _unsafe_names(index: Path, names: Iterable[Any]) -> Iterable[Problem]:
    for name in sorted(set(map(str, names))):
        if PurePosixPath(name).name != name or name in ("", ".", "..") or "\\" in name:
            yield Problem(
                f"{index} names the shard {name!r}.",
                "a plain file name inside the checkpoint folder",
                "fetch the checkpoint from its publisher; do not trust this one",
            )


def _no_weights(folder: Path) -> Problem:
    names = [name for form in FORMS for name in (form.single, form.index)]
    return Problem(
        f"{folder} has none of {', '.join(names)}.",
        "weights, one file or shards with their index",
        "check source.path, or fetch the weights",
    )


def _missing_shard(shard: Path, form: WeightForm, count: int) -> Problem:
    return Problem(
        f"{shard} is missing; {form.index} keeps {count} tensors in it.",
        "every shard that the index names",
        "fetch the file again",
    )


def _not_in_shard(name: str, shard: Path, form: WeightForm) -> Problem:
    return Problem(
        f"{shard} lacks the tensor {name}.",
        f"every tensor that {form.index} places there",
        "fetch the shard and the index again",
    )

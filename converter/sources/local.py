"""A checkpoint in a local folder: safetensors, one file or shards with an index."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from converter.checkpoint import Checkpoint, read_json
from converter.errors import ConvertError, Problem, raise_if
from converter.safetensors_file import open_safetensors
from converter.weight import Weight

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


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
                "source.path=FOLDER with the folder's path",
            )
        )
    config = read_json(folder / "config.json")
    shards, tensors = _open_shards(folder)
    others = [path for path in sorted(folder.glob("*.json")) if path.name != INDEX]
    tokenizer = [path for path in [folder / "tokenizer.model"] if path.is_file()]
    return Checkpoint(
        config=config,
        tensors=tensors,
        origin=origin or {"kind": "local", "folder": folder.name},
        folder=folder,
        files=(*others, *tokenizer, *shards),
    )


def _open_shards(folder: Path) -> tuple[list[Path], dict[str, Weight]]:
    if (folder / INDEX).is_file():
        return _open_indexed(folder)
    path = folder / SINGLE
    if not path.is_file():
        raise ConvertError(
            Problem(
                f"{folder} has neither {SINGLE} nor {INDEX}.",
                "weights as safetensors, one file or shards with their index",
                "check source.path, or fetch the weights",
            )
        )
    return [path], dict(open_safetensors(path))


def _open_indexed(folder: Path) -> tuple[list[Path], dict[str, Weight]]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ConvertError(
            Problem(f"{folder / INDEX} has no weight_map.", "a shard index", "fetch it again")
        )
    raise_if(_unsafe_names(folder, weight_map.values()))
    tensors: dict[str, Weight] = {}
    problems: list[Problem] = []
    shards = [folder / name for name in sorted(set(weight_map.values()))]
    for shard in shards:
        wanted = [name for name, file in weight_map.items() if file == shard.name]
        if not shard.is_file():
            problems.append(_missing_shard(shard, len(wanted)))
            continue
        try:
            found = open_safetensors(shard)
        except ConvertError as error:
            problems += error.problems
            continue
        problems += [_not_in_shard(name, shard) for name in wanted if name not in found]
        tensors |= found
    raise_if(problems)
    return shards, tensors


def _unsafe_names(folder: Path, names: Iterable[Any]) -> Iterable[Problem]:
    for name in sorted(set(map(str, names))):
        if PurePosixPath(name).name != name or name in ("", ".", "..") or "\\" in name:
            yield Problem(
                f"{folder / INDEX} names the shard {name!r}.",
                "a plain file name inside the checkpoint folder",
                "do not trust this checkpoint; fetch it from its publisher",
            )


def _missing_shard(shard: Path, count: int) -> Problem:
    return Problem(
        f"{shard} is missing; {INDEX} keeps {count} tensors in it.",
        "every shard that the index names",
        "fetch the file again",
    )


def _not_in_shard(name: str, shard: Path) -> Problem:
    return Problem(
        f"{shard} lacks the tensor {name}.",
        f"every tensor that {INDEX} places there",
        "fetch the shard and the index again",
    )

"""A checkpoint in a local folder: safetensors or .bin files, one or shards with an index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from converter.errors import ConvertError, Problem, gathered, raise_if
from converter.model.checkpoint import Checkpoint, read_json
from converter.model.json_schema import JsonFile, shown, value_problems
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
TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
"""Chat templates, by the names that transformers gives the files."""
LONGEST_NAME = 255
"""Bytes of a file's name that file systems take."""
FORMS = (SAFETENSORS, TORCH)
"""In order of preference."""
WEIGHTS = "weights, one file or shards with their index, as transformers saves them"
_WHOLE = "give the folder of the whole model"
OTHER_KINDS = (
    (
        "adapter_*",
        "holds an adapter (LoRA or another of PEFT's), not a model",
        "merge it into its base model with PEFT's merge_and_unload(), save_pretrained(FOLDER), "
        "and give source.path=FOLDER",
    ),
    ("genai_config.json", "is a converted folder, not a checkpoint", _WHOLE),
    ("*.onnx", "holds an ONNX graph, not a checkpoint", _WHOLE),
    (
        "model-*-of-*.safetensors",
        "holds shards without their index",
        f"fetch {SAFETENSORS.index}; a single shard may be renamed to {SAFETENSORS.single}",
    ),
    (
        "pytorch_model-*-of-*.bin",
        "holds shards without their index",
        f"fetch {TORCH.index}; a single shard may be renamed to {TORCH.single}",
    ),
    ("consolidated*", "holds the publisher's own format", "take the repository for transformers"),
    ("tf_model*", "holds TensorFlow's weights", "save the model from PyTorch"),
    ("flax_model*", "holds Flax's weights", "save the model from PyTorch"),
    ("model_index.json", "holds a pipeline of diffusers", _WHOLE),
)
"""File names, what a folder with them is, and what to do; the first that fits counts."""


class IndexFile(JsonFile):
    """A shard index, as far as it is read."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)] = Field(
        description="a shard's file name for each tensor"
    )


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
                "a checkpoint folder with config.json and safetensors files, or a GGUF file",
                "set source.path=FOLDER, with the folder's path",
            )
        )
    names = sorted(path.name for path in folder.iterdir())
    form = weight_form(names)
    if form is None and (other := other_kind(names)):
        raise ConvertError(Problem(f"{folder} {other[0]}.", WEIGHTS, other[1]))
    config = read_json(folder / "config.json")
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


def other_kind(names: Iterable[str]) -> tuple[str, str] | None:
    """What a folder without transformers' weights is, by its file names, and what to do."""
    held = list(names)
    for pattern, found, remedy in OTHER_KINDS:
        example = next((name for name in held if fnmatch(name, pattern)), None)
        if example is not None:
            return f"{found}: it has {example}", remedy
    return None


def small_files(folder: Path) -> list[Path]:
    """A checkpoint folder's configs and tokenizer files; weights and their index left out."""
    indexes = {form.index for form in FORMS}
    configs = [path for path in sorted(folder.glob("*.json")) if path.name not in indexes]
    named = [path for name in (*TEMPLATES, "tokenizer.model") for path in sorted(folder.glob(name))]
    return [path for path in (*configs, *named) if path.is_file()]


def read_index(path: Path) -> dict[str, str]:
    """Tensor name to shard, from a checkpoint's index file.

    Raises:
        ConvertError: the file is no index, or names a shard outside of its own folder.
    """
    content = read_json(path)
    raise_if(value_problems(IndexFile, content, str(path)))
    weight_map: dict[str, str] = content["weight_map"]
    raise_if(gathered(_unsafe_names(path, weight_map.values())))
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
        if not shard.is_file() and not shard.is_symlink():
            problems.append(_missing_shard(shard, form, len(wanted)))
            continue
        try:
            found = form.open(shard)
        except ConvertError as error:
            problems += error.problems
            continue
        absent = [name for name in wanted if name not in found]
        problems += [_not_in_shard(absent, shard, form)] if absent else []
        tensors |= found
    raise_if(gathered(problems))
    return shards, tensors


def _unsafe_names(index: Path, names: Iterable[Any]) -> Iterable[Problem]:
    for name in sorted(set(map(str, names))):
        if not _is_file_name(name):
            yield Problem(
                f"{index} names the shard {shown(name)}.",
                "a plain file name inside the checkpoint folder",
                "fetch the checkpoint from its publisher; do not trust this one",
            )


def _is_file_name(name: str) -> bool:
    """Whether a file of a folder can have the name, on whatever system it was written."""
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        return False
    plain = PurePosixPath(name).name == name and name not in ("", ".", "..")
    return plain and length <= LONGEST_NAME and not set(name) & set("\\\0")


def _no_weights(folder: Path) -> Problem:
    names = [name for form in FORMS for name in (form.single, form.index)]
    return Problem(
        f"{folder} has none of {', '.join(names)}.",
        WEIGHTS,
        "check source.path, or fetch the weights",
    )


def _missing_shard(shard: Path, form: WeightForm, count: int) -> Problem:
    return Problem(
        f"{shard} is missing; {form.index} keeps {count} tensors in it.",
        "every shard that the index names",
        "fetch the file again",
    )


def _not_in_shard(names: Sequence[str], shard: Path, form: WeightForm) -> Problem:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Problem(
        f"{shard} lacks the tensor {names[0]}{more}.",
        f"every tensor that {form.index} places there",
        "fetch the shard and the index again",
    )

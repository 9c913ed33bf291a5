"""Why a checkpoint's tensors do not fit a layout: the cause first, then one problem for each kind.

A checkpoint of 24 layers that is quantized, wrapped or of another family differs in hundreds of
names for one reason. So a reason that explains them is looked for first, and what remains is
counted over the layers; the whole is never more than a screen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from converter.errors import Problem
from converter.model.json_schema import shown
from converter.prequantized.source import READERS
from converter.weights.alike import alike, kinds
from converter.weights.weight import Weight

SCREEN = 8
"""Problems that fit on a screen, at three lines each."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
"""Keys by which config.json says that its weights are quantized (the last one is MLX's)."""
QUANTIZED_NAME = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|biases|SCB|weight_format|codebooks|codes"
    r"|weight_(packed|shape|scale|scale_2|scale_inv|zero_point)|weight_?scale\w*|input_scale"
    r"|weight\.(absmax|quant_map|quant_state\..*|nested_\w+))$"
)
"""Tensors that AWQ, GPTQ, bitsandbytes, compressed-tensors, FP8, AQLM and MLX keep."""
WRAPPERS = {
    "base_model.model.": "merge PEFT's adapter with merge_and_unload() and save_pretrained(FOLDER)",
    "_orig_mod.": "save _orig_mod, the module that torch.compile wraps",
    "module.": "save the module that DataParallel wraps",
    "_fsdp_wrapped_module.": "gather FSDP's full state and save it",
    "language_model.": "save the language model of the multimodal one alone",
}
"""Prefixes of names, and what to do about what puts them there."""


@dataclass(frozen=True)
class Expected:
    """A tensor that a layout names."""

    canonical: str
    shape: tuple[int, ...]
    required: bool


@dataclass(frozen=True)
class LayoutForm:
    """What `misfit_problems` has to know of a recipe's layout.

    `tensors` are the expected ones by their names in the checkpoint; `layer_prefix` starts a
    layer's names, with `{layer}` for its number; `outside` are canonical names to those outside
    of the layers, as the recipe spells them.
    """

    tensors: Mapping[str, Expected]
    layer_prefix: str
    outside: Mapping[str, str]
    num_hidden_layers: int


def misfit_problems(
    config: Mapping[str, Any],
    tensors: Mapping[str, Weight],
    layout: LayoutForm,
    ignored: Callable[[str], bool],
) -> Iterator[Problem]:
    """What keeps the `tensors` of a checkpoint from being those of `layout`; at most a screen."""
    problems = list(_all_problems(config, tensors, layout, ignored))
    if len(problems) <= SCREEN:
        yield from problems
        return
    yield from problems[: SCREEN - 1]
    rest = problems[SCREEN - 1 :]
    yield Problem(
        f"Tensors of {len(rest)} more kinds do not fit either.",
        "a checkpoint that the layout was made for",
        "check the layout, and that config.json and the weights belong together",
    )


def _all_problems(
    config: Mapping[str, Any],
    tensors: Mapping[str, Weight],
    layout: LayoutForm,
    ignored: Callable[[str], bool],
) -> Iterator[Problem]:
    used = {name: weight for name, weight in tensors.items() if not ignored(name)}
    missing = [n for n, item in layout.tensors.items() if item.required and n not in tensors]
    left = [name for name in used if name not in layout.tensors]
    quantized = _quantized(config, used, layout, bool(missing or left))
    if quantized:
        yield quantized
        return
    wrapped = _wrapped(used, missing, layout)
    if wrapped:
        problem, renamed = wrapped
        yield problem
        yield from _all_problems({}, renamed, layout, ignored)
        return
    depth = _depth(used, layout)
    if depth not in (None, layout.num_hidden_layers):
        yield _other_depth(depth or 0, layout)
        missing = [name for name in missing if (_layer(name, layout) or 0) < (depth or 0)]
        left = [n for n in left if (_layer(n, layout) or 0) < layout.num_hidden_layers]
    yield from _missing_problems(missing, layout)
    yield from _form_problems(used, layout)
    yield from _left_problems(left, used, layout)


def _quantized(
    config: Mapping[str, Any], tensors: Mapping[str, Weight], layout: LayoutForm, misfits: bool
) -> Problem | None:
    """The problem of a checkpoint whose weights are codes; a config that is left over is none."""
    known = [name for name in tensors if name in layout.tensors]
    coded = [name for name in known if tensors[name].dtype not in (*FLOATS, torch.float64)]
    extra = [name for name in tensors if name not in layout.tensors and QUANTIZED_NAME.search(name)]
    key = next((key for key in QUANTIZATION_KEYS if config.get(key)), None)
    if not (coded or extra or (key and misfits)):
        return None
    signs = []
    if key:
        signs.append(f"config.json has {key} with {_method(config[key])}")
    if coded:
        signs.append(f"{_counted(coded)} has dtype {_dtype(tensors[coded[0]])}")
    if extra:
        signs.append(f"it holds {_counted(extra)}")
    return Problem(
        f"The checkpoint is already quantized: {'; '.join(signs)}.",
        "weights in float32, float16 or bfloat16, or a quant_method of "
        f"{', '.join(READERS)} in config.json",
        "convert from the unquantized checkpoint; the recipe's quant quantizes it",
    )


def _method(section: Any) -> str:
    if not isinstance(section, Mapping):
        return shown(section)
    stated = [f"{key}={shown(section[key])}" for key in ("quant_method", "bits") if key in section]
    return " ".join(stated) or "no quant_method"


def _counted(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def _dtype(weight: Weight) -> str:
    return str(weight.dtype).removeprefix("torch.")


def _wrapped(
    tensors: Mapping[str, Weight], missing: Sequence[str], layout: LayoutForm
) -> tuple[Problem, dict[str, Weight]] | None:
    """The problem of names that have a prefix too many or too few, and the tensors without it.

    A prefix counts when it puts at least half of the missing names in their places.
    """
    if not missing:
        return None
    prefixes = {
        name.removesuffix(wanted)
        for wanted in missing[:64]
        for name in tensors
        if name.endswith(wanted) and name != wanted
    }
    for prefix in sorted(prefixes):
        if 2 * sum(prefix + name in tensors for name in missing) >= len(missing):
            cut = {name.removeprefix(prefix): weight for name, weight in tensors.items()}
            return _prefixed(prefix, tensors, layout), cut
    dropped = missing[0].partition(".")[0] + "."
    if 2 * sum(name.removeprefix(dropped) in tensors for name in missing) >= len(missing):
        known = {name.removeprefix(dropped): name for name in layout.tensors}
        whole = {known.get(name, name): weight for name, weight in tensors.items()}
        return _unprefixed(dropped, tensors, layout), whole
    return None


def _prefixed(prefix: str, tensors: Mapping[str, Weight], layout: LayoutForm) -> Problem:
    names = [name for name in tensors if name.startswith(prefix)]
    known = next((text for start, text in WRAPPERS.items() if prefix.startswith(start)), "")
    words = _layout_words(layout, lambda name: prefix + name)
    return Problem(
        f"The names of {len(names)} tensors start with {prefix!r}, such as {names[0]}.",
        f"names without the prefix of a wrapper, such as {names[0].removeprefix(prefix)}",
        f"{known}, or add {words}" if known else f"add {words}",
    )


def _unprefixed(dropped: str, tensors: Mapping[str, Weight], layout: LayoutForm) -> Problem:
    example = next(name for name in tensors if dropped + name in layout.tensors)
    words = _layout_words(layout, lambda name: name.removeprefix(dropped))
    return Problem(
        f"The names of the tensors lack {dropped!r} at their start, such as {example}.",
        f"names such as {dropped}{example}, as the whole model with its head has them",
        f"save the whole model for text generation, or add {words}",
    )


def _layout_words(layout: LayoutForm, rename: Callable[[str], str]) -> str:
    """Words of the command line that make the layout read other names."""
    words = [f"\"layout.layer_prefix='{rename(layout.layer_prefix)}'\""]
    words += [
        f"layout.tensors.{key}={rename(name)}"
        for key, name in layout.outside.items()
        if rename(name) != name
    ]
    return " ".join(words)


def _layer(name: str, layout: LayoutForm) -> int | None:
    """The number of the layer that a tensor's name speaks of."""
    start, mark, _ = layout.layer_prefix.partition("{layer}")
    match = re.match(re.escape(start) + r"(\d{1,9})\.", name) if mark else None
    return int(match[1]) if match else None


def _depth(tensors: Mapping[str, Weight], layout: LayoutForm) -> int | None:
    """Layers in the checkpoint; None where there are none, or gaps between them."""
    found = {layer for name in tensors if (layer := _layer(name, layout)) is not None}
    return len(found) if found and max(found) + 1 == len(found) else None


def _other_depth(depth: int, layout: LayoutForm) -> Problem:
    return Problem(
        f"config.json has num_hidden_layers={layout.num_hidden_layers}, and the weights are those "
        f"of {depth} layers.",
        "the number of layers that the weights have",
        f"set num_hidden_layers to {depth} in config.json, or fetch the shards that are missing",
    )


def _missing_problems(missing: Sequence[str], layout: LayoutForm) -> Iterator[Problem]:
    for names in kinds(missing):
        item = layout.tensors[names[0]]
        yield Problem(
            f"The checkpoint lacks the tensor {names[0]}{alike(names)}.",
            f"{item.canonical} of shape {item.shape}",
            "check that the layout fits the checkpoint, and that no shard is missing",
        )


def _form_problems(tensors: Mapping[str, Weight], layout: LayoutForm) -> Iterator[Problem]:
    shapes = {name: item.shape for name, item in layout.tensors.items() if name in tensors}
    for names in kinds([name for name, shape in shapes.items() if tensors[name].shape != shape]):
        yield Problem(
            f"The tensor {names[0]} has shape {tensors[names[0]].shape}{alike(names)}.",
            f"{shapes[names[0]]}, as config.json's sizes and heads make it",
            "check num_attention_heads, num_key_value_heads and the other sizes in config.json",
        )
    for names in kinds([name for name in shapes if tensors[name].dtype not in FLOATS]):
        yield Problem(
            f"The tensor {names[0]} has dtype {_dtype(tensors[names[0]])}{alike(names)}.",
            "float32, float16 or bfloat16",
            "save the checkpoint in one of these types",
        )


def _left_problems(
    left: Sequence[str], tensors: Mapping[str, Weight], layout: LayoutForm
) -> Iterator[Problem]:
    for names in kinds(left):
        yield Problem(
            f"The checkpoint's tensor {names[0]} {tensors[names[0]].shape}{alike(names)} has no "
            "place in the layout.",
            "every tensor used, or listed as ignored",
            f"check config.json (num_hidden_layers is {layout.num_hidden_layers}) and the layout; "
            f"a tensor without effect can be named in layout.ignored",
        )

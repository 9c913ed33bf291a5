"""The schema of a recipe: plain dataclasses, one per slot, and the check that fills them.

A recipe is data. Hydra composes it from `recipes/`; `parse_recipe` turns the composed mapping into
a `Recipe` and reports every unknown key, wrong type and impossible value at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from converter.errors import Problem, raise_if

FloatType = Literal["fp32", "fp16", "bf16"]
ExecutionProvider = Literal["cpu", "cuda", "dml", "webgpu", "NvTensorRtRtx"]
LEFT_IN_FLOAT = 16
"""`bits: 16` leaves a matrix in the graph's float type."""


@dataclass
class ModelConfig:
    """Which model the recipe is for."""

    name: str = ""
    repo: str | None = None
    """Repository on the hub, such as internlm/internlm2-7b."""
    chat: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    """The published config.json, for synthetic weights and for planning without a download."""


@dataclass
class SourceConfig:
    """Where the checkpoint comes from."""

    kind: Literal["checkpoint", "demo", "synthetic"] = "checkpoint"
    path: str | None = None
    """Local checkpoint folder; when set, nothing is downloaded."""
    repo: str | None = None
    revision: str | None = None
    """Branch, tag or 40-digit commit of `repo`."""
    seed: int = 0
    """Seed of synthetic weights."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of synthetic weights."""


@dataclass
class LayoutConfig:
    """How the checkpoint names its tensors and orders their rows."""

    model_types: list[str] = field(default_factory=list)
    """`model_type` values of config.json that this layout reads."""
    tensors: dict[str, str] = field(default_factory=dict)
    """Canonical name to checkpoint name, outside of the layers."""
    layer_prefix: str = "model.layers.{layer}."
    """What every name in `layer_tensors` starts with; `{layer}` is the layer's number."""
    layer_tensors: dict[str, str] = field(default_factory=dict)
    """Canonical name to checkpoint name, inside a layer."""
    ignored: list[str] = field(default_factory=list)
    """Glob patterns of checkpoint tensors that carry nothing the graph needs."""
    row_order: dict[str, str] = field(default_factory=dict)
    """Canonical projection to its row order (see converter/row_order.py)."""


@dataclass
class GraphConfig:
    """What the graph template builds."""

    template: Literal["decoder"] = "decoder"
    context_length: int | None = None
    """Positions in the cos/sin caches; null means max_position_embeddings."""


@dataclass
class MatrixQuantConfig:
    """Departures from the main quantization for one matrix; null means the same."""

    bits: Literal[4, 8, 16] | None = None
    block_size: int | None = None
    symmetric: bool | None = None


@dataclass
class QuantConfig:
    """Block-wise weight quantization."""

    round: Literal["none", "rtn"] = "none"
    """How a weight becomes a code; `none` keeps the float type."""
    bits: Literal[4, 8] = 4
    block_size: int = 32
    symmetric: bool = True
    accuracy_level: Literal[0, 1, 2, 3, 4] | None = None
    """MatMulNBits accuracy_level; null takes the target's."""
    lm_head: MatrixQuantConfig = field(default_factory=MatrixQuantConfig)
    embedding: MatrixQuantConfig = field(default_factory=MatrixQuantConfig)


@dataclass
class TargetConfig:
    """What the execution provider wants."""

    execution_provider: ExecutionProvider = "cpu"
    float_type: FloatType = "fp32"
    packed_qkv: bool = True
    """One matrix for Q, K and V in front of GroupQueryAttention."""
    rotary_in_attention: bool = True
    """GroupQueryAttention rotates Q and K itself (do_rotary=1)."""
    position_ids: bool = False
    """The graph takes position_ids as an input."""
    accuracy_level: Literal[0, 1, 2, 3, 4] = 0
    provider_options: dict[str, str] = field(default_factory=dict)
    session_options: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    """Entries of genai_config.json's `search` section."""


@dataclass
class VerifyConfig:
    """The check of the finished folder against the reference."""

    enabled: bool = True
    prompt: str = "Once upon a time"
    sequence_length: int = 32
    """Tokens of the compared sequence."""
    new_tokens: int = 8
    """Tokens that the runtime must generate."""
    max_error: float | None = None
    """Largest allowed relative error of the logits; null takes the default of the precision."""
    max_parameters: float = 3e9
    """Larger models are compared on their first layers only."""
    first_layers: int = 2


@dataclass
class Recipe:
    """A conversion, completely described."""

    name: str = "custom"
    output: str | None = None
    """Output folder; null means ./NAME."""
    overwrite: bool = False
    passes: list[str] = field(default_factory=list)
    """Names of the passes in the order in which they run."""
    threads: int | None = None
    """Worker threads; null means all cores. The result does not depend on it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """Check a composed mapping against the schema and build the `Recipe`.

    Raises:
        ConvertError: lists every unknown key (with the nearest valid one), wrong type and
            impossible value.
    """
    problems, wrong = [*unknown_keys(values)], [*_wrong_values(values)]
    if wrong:
        raise_if(problems + wrong)
    recipe: Recipe = _adapter().validate_python(_without_unknown(values, Recipe))
    raise_if([*problems, *impossible_values(recipe)])
    return recipe


def default_values() -> dict[str, Any]:
    """Every key of the schema with its default, as nested plain containers."""
    return dataclasses.asdict(Recipe())


def unknown_keys(values: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem for each key of `values` that the schema does not have."""
    for path in _unknown_paths(values, Recipe, ""):
        yield unknown_key_problem(path)


def unknown_key_problem(path: str) -> Problem:
    """The problem of the unknown dotted key `path`, with the nearest keys that exist."""
    nearest = nearest_names(path, schema_paths())
    return Problem(
        f"Unknown key {path!r}.",
        f"one of the recipe's keys{'; the nearest: ' + ', '.join(nearest) if nearest else ''}",
        f"write {nearest[0]}=…" if nearest else "run `convert --help` for the slots and keys",
    )


def nearest_names(name: str, known: typing.Iterable[str], count: int = 3) -> list[str]:
    """The names of `known` that are most like `name`, best first; empty when none is."""
    known = list(known)
    tails: dict[str, str] = {}
    for path in known:
        tails.setdefault(path.rsplit(".", 1)[-1], path)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.6)
    by_tail = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.6)
    return list(dict.fromkeys([*close, *(tails[tail] for tail in by_tail)]))[:count]


def schema_paths(schema: type = Recipe, prefix: str = "") -> list[str]:
    """Dotted names of all keys of a schema dataclass, inner ones included."""
    paths = []
    for name, inner in _fields(schema).items():
        paths.append(prefix + name)
        if dataclasses.is_dataclass(inner):
            paths += schema_paths(typing.cast(type, inner), f"{prefix}{name}.")
    return paths


def is_known_path(path: str) -> bool:
    """Whether the dotted `path` is a key of the schema, or lies inside a free-form mapping."""
    schema: Any = Recipe
    for part in path.split("."):
        if not dataclasses.is_dataclass(schema):
            return typing.get_origin(schema) is dict
        if part not in _fields(typing.cast(type, schema)):
            return False
        schema = _fields(typing.cast(type, schema))[part]
    return True


def impossible_values(recipe: Recipe) -> Iterator[Problem]:
    """Values that are well typed but that nothing can be made of, alone or together."""
    yield from _block_size_problems(recipe.quant)
    target = recipe.target
    if target.packed_qkv and not target.rotary_in_attention:
        yield Problem(
            "target.packed_qkv=true with target.rotary_in_attention=false.",
            "separate Q and K when RotaryEmbedding stands outside of attention",
            "set target.packed_qkv=false",
        )
    if not target.rotary_in_attention and not target.position_ids:
        yield Problem(
            "target.rotary_in_attention=false with target.position_ids=false.",
            "position_ids as an input when RotaryEmbedding stands outside of attention",
            "set target.position_ids=true",
        )
    if target.execution_provider == "cpu" and target.float_type == "bf16":
        yield Problem(
            "target.float_type=bf16 for the cpu execution provider.",
            "fp32 or fp16; onnxruntime has no bf16 attention kernel for the CPU",
            "set target.float_type=fp32",
        )
    if recipe.graph.context_length is not None and recipe.graph.context_length < 1:
        yield Problem(
            f"graph.context_length={recipe.graph.context_length}.",
            "a positive number of tokens, or null for max_position_embeddings",
            "set graph.context_length=4096",
        )
    if recipe.threads is not None and recipe.threads < 1:
        yield Problem(f"threads={recipe.threads}.", "at least 1, or null for all cores", "threads=2")


def _block_size_problems(quant: QuantConfig) -> Iterator[Problem]:
    for key, size in (
        ("quant.block_size", quant.block_size),
        ("quant.lm_head.block_size", quant.lm_head.block_size),
        ("quant.embedding.block_size", quant.embedding.block_size),
    ):
        if size is not None and (size < 16 or size > 256 or size & (size - 1)):
            below = max(16, min(256, 1 << max(size, 1).bit_length() - 1))
            yield Problem(
                f"{key}={size}.",
                "a power of two from 16 to 256 (MatMulNBits)",
                f"set {key}={below}",
            )


def _wrong_values(values: Mapping[str, Any]) -> Iterator[Problem]:
    from pydantic import ValidationError

    try:
        _adapter().validate_python(_without_unknown(values, Recipe))
    except ValidationError as error:
        seen = set()
        for detail in error.errors():
            path = ".".join(str(part) for part in detail["loc"])
            while path and not is_known_path(path):  # a union's branch is not part of the key
                path = path.rpartition(".")[0]
            if path in seen:
                continue
            seen.add(path)
            yield Problem(
                f"{path}={_shown(detail['input'])}.",
                _expected(path, detail["msg"]),
                f"correct {path}; `null` stands for nothing, text with commas or brackets needs "
                f"quotes inside quotes: \"{path}='…'\"",
            )


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _expected(path: str, message: str) -> str:
    kind: Any = Recipe
    for part in path.split("."):
        kind = _fields(kind).get(part, str) if dataclasses.is_dataclass(kind) else str
    options = [kind, *typing.get_args(kind)]
    for option in options:
        if typing.get_origin(option) is Literal:
            return "one of " + ", ".join(str(value) for value in typing.get_args(option))
    return message[:1].lower() + message[1:].replace("Input", "input")


def _unknown_paths(values: Mapping[str, Any], schema: type, prefix: str) -> Iterator[str]:
    known = _fields(schema)
    for key, value in values.items():
        if key not in known:
            yield f"{prefix}{key}"
        elif dataclasses.is_dataclass(known[key]) and isinstance(value, Mapping):
            yield from _unknown_paths(value, typing.cast(type, known[key]), f"{prefix}{key}.")


def _without_unknown(values: Mapping[str, Any], schema: type) -> dict[str, Any]:
    known, kept = _fields(schema), {}
    for key, value in values.items():
        if key in known:
            inner = known[key]
            nested = dataclasses.is_dataclass(inner) and isinstance(value, Mapping)
            kept[key] = _without_unknown(value, typing.cast(type, inner)) if nested else value
    return kept


def _fields(schema: type) -> dict[str, Any]:
    """Field names and types; `X | None` counts as X where X is a dataclass."""
    hints = typing.get_type_hints(schema)
    found = {}
    for item in dataclasses.fields(schema):
        kind = hints[item.name]
        if isinstance(kind, types.UnionType):
            inner = [arg for arg in typing.get_args(kind) if dataclasses.is_dataclass(arg)]
            kind = inner[0] if inner else kind
        found[item.name] = kind
    return found


def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Recipe)

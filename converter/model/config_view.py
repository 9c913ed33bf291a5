"""config.json as transformers' class for it reads it, and the keys that a description leaves out.

A class fills in defaults, and turns what older files say into today's keys: `rope_theta` into
`rope_parameters`, `use_sliding_window` into `layer_types`. So a description reads one form only.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, first_line
from converter.model.config_file import CONFIG_FILE
from converter.model.json_schema import shown
from converter.recipe.schema import LayoutConfig
from converter.storage.cache import Cache, cache_folder

CONSUMED = {
    "rope_scaling": "rope_parameters",
    "rope_theta": "rope_parameters",
    "rope_type": "rope_parameters",
    "rope_local_base_freq": "rope_parameters",
    "rotary_pct": "rope_parameters",
    "rotary_emb_base": "rope_parameters",
    "partial_rotary_factor": "rope_parameters",
    "original_max_position_embeddings": "rope_parameters",
    "sliding_window_pattern": "layer_types",
    "_sliding_window_pattern": "layer_types",
    "max_window_layers": "layer_types",
    "use_sliding_window": "layer_types",
    "layer_switch": "layer_types",
    "no_rope_layer_interval": "no_rope_layers",
}
"""Keys that transformers' classes turn into others."""
WITHOUT_EFFECT = frozenset(
    {
        *("_attn_implementation_autoset", "_name_or_path", "architectures", "attn_implementation"),
        *("attention_dropout", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype"),
        *("embd_pdrop", "eos_token_id", "hidden_dropout", "id2label", "initializer_range"),
        *("is_decoder", "is_encoder_decoder", "is_causal", "label2id", "model_type"),
        *("output_attentions", "output_hidden_states", "pad_token_id", "pretraining_tp"),
        *("problem_type", "quantization_config", "resid_pdrop", "residual_dropout", "return_dict"),
        *("sep_token_id", "torch_dtype", "transformers_version", "use_cache", "name_or_path"),
        *("vocab_size", "tie_word_embeddings", "classifier_dropout", "embedding_dropout"),
    }
)
"""Keys that change no logits: training, names, ids, types, and what is read elsewhere."""
BIASES = frozenset(
    {"attention_bias", "attention_out_bias", "bias", "mlp_bias", "qkv_bias", "use_bias"}
    | {"use_qkv_bias", "lm_head_bias"}
)
"""Keys that say which biases there are, which the checkpoint's tensors show."""


PASS = "config"
"""What `convert cache list` calls an entry."""
CODE_VERSION = 1
"""Counted up when the same config.json and version of transformers give another view."""
_FILE = "view.json"
LAYER_TYPES = "layer_types"
TEXT_SECTION = "text_config"
"""Where a multimodal model's config.json describes its language model."""
PARTIAL = "partial_rotary_factor"
SHOWN = 6
"""Unread keys that a problem names."""


@dataclass(frozen=True)
class ConfigView:
    """config.json as transformers' class for its model_type completes it."""

    values: Mapping[str, Any]
    own: frozenset[str] | None
    """Keys that the class has; None for a type whose description names a stand-in."""


def view_config(config: Mapping[str, Any], layout: LayoutConfig) -> ConfigView:
    """Complete a config.json; that of a type with a stand-in, which has no class, is left as it is.

    Raises:
        ConvertError: transformers does not know the type, or refuses the values.
    """
    return ConfigView(config, None) if layout.reference != "config" else _completed(config)


def _completed(config: Mapping[str, Any]) -> ConfigView:
    """The view of a config.json, from the cache where transformers was asked before.

    Importing transformers takes as long as converting a small model.
    """
    text = json.dumps(config, sort_keys=True)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    key = {"pass": PASS, "config": digest, "transformers": version("transformers")}

    def make(folder: Path) -> None:
        values, own = _asked(config)
        said = json.dumps({"values": values, "own": own})
        (folder / _FILE).write_text(said, encoding="utf-8")

    try:
        folder = Cache(cache_folder()).get_or_make(key | {"code": CODE_VERSION}, make)
        said = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        return ConfigView(said["values"], frozenset(said["own"]))
    except (ConvertError, TypeError, OSError):  # no room for a cache, or what JSON does not hold
        values, own = _asked(config)
        return ConfigView(values, frozenset(own))


def _asked(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values of transformers' class for a config.json, and the keys that the class has."""
    found = transformers_config(config)
    return found.to_dict(), sorted(type(found)().to_dict())


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What config.json says of the language model: of a multimodal model what is in its section
    text_config, and the defaults of transformers' class, which such files leave out.

    Raises:
        ConvertError: transformers does not know the type, or refuses the values.
    """
    section = config.get(TEXT_SECTION)
    if not isinstance(section, Mapping):
        return config
    return {**_completed(config).values, **section}


def transformers_config(config: Mapping[str, Any]) -> Any:
    """The config object of transformers' class for a config.json; of a multimodal model the part
    for its language model.

    Raises:
        ConvertError: transformers does not know the type, or refuses the values.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ConvertError(
            Problem(
                f"{CONFIG_FILE} has model_type {shown(kind)}, which transformers does not know.",
                "a model_type of the installed transformers, whose class is the reference",
                "set layout.reference=llama if the model computes what Llama computes",
            )
        )
    try:
        with _quiet():
            return CONFIG_MAPPING[kind].from_dict(_plain(config)).get_text_config()
    except Exception as error:  # any of the checks in transformers' classes
        raise ConvertError(
            Problem(
                f"{CONFIG_FILE} is refused by transformers: {_reason(error)}.",
                f"values that its class for {kind} takes",
                f"correct {CONFIG_FILE}",
            )
        ) from error


def _reason(error: Exception) -> str:
    """What a class says; its validators name themselves in the lines before."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return first_line(Exception(lines[-1].rstrip("."))) if lines else type(error).__name__


def _plain(value: Any) -> Any:
    """A value as transformers reads it: it writes infinity as {"__float__": "Infinity"}."""
    if isinstance(value, Mapping):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def unread_problems(
    config: Mapping[str, Any], view: ConfigView, layout: LayoutConfig, read: Iterable[str]
) -> Iterator[Problem]:
    """The problem of keys that may have an effect and that nothing reads.

    A default of the class counts like a stated value. A key that the class does not have has no
    effect: the class ignores it as well.
    """
    paths = set(read)
    known = {path.partition(".")[0] for path in paths} | WITHOUT_EFFECT | BIASES
    if view.own is not None:
        config = {**view.values, **language_config(config)}
        if not _has_windows(view.values):
            known.add(LAYER_TYPES)
        known |= {key for key, to in CONSUMED.items() if to in known}
    left = [
        key
        for key, value in config.items()
        if not (key in known or value is None or (view.own is not None and key not in view.own))
        and not _is_listed(key, value, layout.without_effect)
    ]
    partial = _partial(config)
    if partial not in (None, 1) and not any(path.endswith(PARTIAL) for path in paths):
        left = [*(key for key in left if key != PARTIAL), PARTIAL]
    if not left:
        return
    found = ", ".join(f"{key}={shown(config.get(key, partial))}" for key in left[:SHOWN])
    more = f" and {len(left) - SHOWN} more keys" if len(left) > SHOWN else ""
    yield Problem(
        f"{CONFIG_FILE} has {found}{more}, which the description does not read.",
        "keys that the description reads, or that it lists in layout.without_effect",
        f"choose the architecture of this model (`convert list architecture`), or set "
        f"layout.without_effect=[{','.join(left[:SHOWN])}] if you know that they change nothing",
        key=("layout.without_effect",),
    )


def _partial(config: Mapping[str, Any]) -> Any:
    """The share of rotated columns that config.json states, at its top or in a rope section."""
    sections = (config.get(key) for key in ("rope_parameters", "rope_scaling"))
    inner = (section.get(PARTIAL) for section in sections if isinstance(section, Mapping))
    return next((value for value in (config.get(PARTIAL), *inner) if value is not None), None)


def _has_windows(config: Mapping[str, Any]) -> bool:
    """Whether any layer has something else than full attention."""
    kinds = config.get(LAYER_TYPES)
    return kinds is not None and any(kind != "full_attention" for kind in kinds)


def _is_listed(key: str, value: Any, entries: Iterable[str]) -> bool:
    """Whether one of the entries, `key` or `key=value` with a glob for the key, fits."""
    parts = (entry.partition("=") for entry in entries)
    return any(
        fnmatch.fnmatchcase(key, pattern) and (not mark or json.dumps(value) == stated)
        for pattern, mark, stated in parts
    )

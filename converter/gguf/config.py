"""config.json of a GGUF file, in the form that transformers' class reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, raise_if
from converter.gguf.architectures import EPSILONS, KNOWN, SCALED_BY_WIDTH, Known
from converter.gguf.metadata import Metadata
from converter.gguf.rope import LOCAL_THETA, rope_scaling, rope_theta
from converter.model.json_schema import shown
from converter.recipe.validation import nearest_names
from converter.weights.weight import Weight

STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Ids at which generation ends: of the text, of a turn, of a message."""
WINDOW, FULL = "sliding_attention", "full_attention"
EXPERT_LENGTH = "expert_feed_forward_length"
"""A file of a model with experts in all layers may state no other length."""
GEMMA2_WINDOW = 4096
"""llama.cpp's window of a Gemma 2 whose file states none."""


def known_architecture(path: Path, metadata: Mapping[str, Any]) -> tuple[str, Known]:
    """The file's architecture.

    Raises:
        ConvertError: it has none, or one that no description is for.
    """
    name, kind = metadata.get("general.architecture"), metadata.get("general.type", "model")
    if kind != "model":
        raise ConvertError(
            Problem(
                f"{path} has general.type={shown(kind)}.",
                "a whole model",
                "give the file of the model itself",
            )
        )
    if isinstance(name, str) and name in KNOWN:
        return name, KNOWN[name]
    near = nearest_names(str(name), list(KNOWN))
    more = f"; the nearest: {', '.join(near)}" if near else ""
    raise ConvertError(
        Problem(
            f"{path} has general.architecture={shown(name)}, which is not read from GGUF.",
            f"one of {', '.join(KNOWN)}{more}",
            "take the checkpoint that the file was made from, and give its folder",
        )
    )


def model_config(
    path: Path, values: Mapping[str, Any], tensors: Mapping[str, Weight]
) -> dict[str, Any]:
    """config.json for a file's metadata and tensors (by GGUF's names).

    Raises:
        ConvertError: an architecture that is not known, a size that is missing, or a key that may
            have an effect and that nothing reads.
    """
    name, known = known_architecture(path, values)
    metadata = Metadata(path, values, name)
    known = _as_stated(known, metadata)
    sizes = _sizes(metadata, tensors)
    head_dim = sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
    columns = int(metadata.number("rope.dimension_count", head_dim) or head_dim)
    config: dict[str, Any] = {
        "architectures": [known.class_name],
        "model_type": known.model_type,
        **sizes,
        **_epsilon(known, metadata),
        "tie_word_embeddings": "output.weight" not in tensors,
        **known.fixed,
        **_stated(known, metadata),
        **{key: f"blk.0.{leaf}.bias" in tensors for key, leaf in known.biases.items()},
        **_token_ids(values),
        **_windows(known, metadata, sizes["num_hidden_layers"]),
        **_rope(known, metadata, tensors, columns),
        **_score_scale(name, metadata, sizes, head_dim),
    }
    if columns != head_dim:
        config["partial_rotary_factor"] = _share(columns, head_dim)
    _refuse_other_heads(metadata, head_dim)
    raise_if(metadata.unread_problems())
    return config


def _epsilon(known: Known, metadata: Metadata) -> dict[str, float]:
    where, key = known.eps
    value = {name: metadata.number(name) for name in EPSILONS}[where]
    if value is None:
        raise metadata.refused(where, None, "the norms' epsilon")
    return {key: value} if key else {}


def _stated(known: Known, metadata: Metadata) -> dict[str, float]:
    """What the file states of `known.keys`; the class has llama.cpp's defaults for the rest."""
    read = {key: metadata.number(where) for where, key in known.keys.items()}
    return {key: value for key, value in read.items() if value is not None}


def _as_stated(known: Known, metadata: Metadata) -> Known:
    """The architecture of a file that states experts or a window, where that is another one."""
    if known.mixture is not None and metadata.get("expert_count"):
        return known.mixture
    if known.windowed is None or not metadata.get("attention.sliding_window"):
        return known
    model_type, class_name = known.windowed
    two = model_type == "olmo3"
    return replace(known, model_type=model_type, class_name=class_name, two_ropes=two)


def _sizes(metadata: Metadata, tensors: Mapping[str, Weight]) -> dict[str, int]:
    heads = metadata.size("attention.head_count")
    found = {
        "hidden_size": metadata.size("embedding_length"),
        "intermediate_size": metadata.size("feed_forward_length", metadata.get(EXPERT_LENGTH)),
        "num_hidden_layers": metadata.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.size("attention.head_count_kv", heads),
        "max_position_embeddings": metadata.size("context_length"),
    }
    if "token_embd.weight" in tensors:
        found["vocab_size"] = tensors["token_embd.weight"].shape[0]
    if metadata.get("attention.key_length") is not None:
        found["head_dim"] = metadata.size("attention.key_length")
    return found


def _refuse_other_heads(metadata: Metadata, head_dim: int) -> None:
    """Heads of the values that are wider or narrower than those of the keys."""
    value = metadata.get("attention.value_length", head_dim)
    if value != head_dim:
        raise metadata.refused("attention.value_length", value, f"{head_dim}, as of the keys")


def _token_ids(values: Mapping[str, Any]) -> dict[str, Any]:
    def token(name: str) -> Any:
        return values.get(f"tokenizer.ggml.{name}")

    stops = list(dict.fromkeys(found for name in STOPS if (found := token(name)) is not None))
    return {
        "bos_token_id": token("bos_token_id"),
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        "pad_token_id": token("padding_token_id"),
    }


def _windows(known: Known, metadata: Metadata, layers: int) -> dict[str, Any]:
    """The window and which layers have it."""
    if known.window_period is None:
        return {}
    default = GEMMA2_WINDOW if metadata.architecture == "gemma2" else 0
    window = metadata.number("attention.sliding_window", default)
    period = metadata.get("attention.sliding_window_pattern", known.window_period)
    if known.window_period == 1:
        return {"sliding_window": window} if window else {}
    if isinstance(period, tuple) and len(period) == layers:
        sliding = [bool(item) for item in period]
    elif isinstance(period, int) and period > 0:
        sliding = [(layer + 1) % period != 0 for layer in range(layers)]
    else:
        expected = f"a number, or {layers} truth values"
        raise metadata.refused("attention.sliding_window_pattern", period, expected)
    kinds = [WINDOW if item and window else FULL for item in sliding]
    if known.windowed and not window:
        return {}
    return {"sliding_window": window or None, "layer_types": kinds}


def _rope(
    known: Known, metadata: Metadata, tensors: Mapping[str, Weight], columns: int
) -> dict[str, Any]:
    theta, scaling = rope_theta(metadata), rope_scaling(metadata, tensors, columns)
    original = metadata.get("rope.scaling.original_context_length")
    if known.two_ropes:
        own = theta if known.model_type == "olmo3" else LOCAL_THETA
        local = metadata.number("rope.freq_base_swa", own)
        return {
            "rope_parameters": {
                WINDOW: {"rope_type": "default", "rope_theta": local},
                FULL: {"rope_type": "default", **(scaling or {}), "rope_theta": theta},
            }
        }
    found: dict[str, Any] = {"rope_theta": theta, "rope_scaling": scaling}
    if original is not None and known.model_type == "phi3":
        found["original_max_position_embeddings"] = original
    return found


def _score_scale(
    name: str, metadata: Metadata, sizes: Mapping[str, int], head_dim: int
) -> dict[str, Any]:
    """Gemma's divisor of scores, which llama.cpp knows by the number of layers."""
    if name not in SCALED_BY_WIDTH:
        return {}
    by_width = sizes["num_hidden_layers"] == SCALED_BY_WIDTH[name]
    width = sizes["hidden_size"] // sizes["num_attention_heads"]
    return {"query_pre_attn_scalar": width if by_width else head_dim}


def _share(columns: int, head_dim: int) -> float:
    """The share of a head that is rotated, so that `int(head_dim * share)` is `columns`."""
    share = columns / head_dim
    return share if int(head_dim * share) == columns else math.nextafter(share, 1)

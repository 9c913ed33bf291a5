"""genai_config.json, the file by which onnxruntime-genai knows a model.

Source: onnxruntime-genai `src/config.cpp`; its parser refuses keys that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.machine.cores import physical_cores
from converter.model.architecture import Architecture
from converter.output.model_writer import MODEL_FILE
from converter.recipe.schema import TargetConfig
from converter.recipe.target_rules import GRAPH_CAPTURE

MODEL_TYPE = "llama"
SEARCH = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": True,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "past_present_share_buffer": True,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
SAMPLING = ("do_sample", "repetition_penalty", "temperature", "top_k", "top_p")
"""Keys that a checkpoint's generation_config.json may set."""


@dataclass(frozen=True)
class TokenIds:
    """The ids by which generation begins, ends and pads."""

    bos: int
    eos: tuple[int, ...]
    pad: int


def genai_config(
    arch: Architecture,
    context_length: int,
    target: TargetConfig,
    tokens: TokenIds,
    generation: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of genai_config.json.

    Args:
        arch: sizes of the decoder.
        context_length: tokens of prompt and answer together.
        target: provider, session and search options.
        tokens: special token ids.
        generation: the checkpoint's generation_config.json.
    """
    chosen = {key: generation[key] for key in SAMPLING if generation.get(key) is not None}
    search = SEARCH | chosen | {"max_length": context_length}
    if target.chunk_size is not None:
        search["chunk_size"] = target.chunk_size
    search |= target.search
    return {
        "model": {
            "bos_token_id": tokens.bos,
            "context_length": context_length,
            "decoder": _decoder(arch, target),
            "eos_token_id": list(tokens.eos),
            "pad_token_id": tokens.pad,
            "type": MODEL_TYPE,
            "vocab_size": arch.vocab_size,
        },
        "search": dict(sorted(search.items())),
    }


def _decoder(arch: Architecture, target: TargetConfig) -> dict[str, Any]:
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask"}
    if target.position_ids:
        inputs["position_ids"] = "position_ids"
    inputs |= {
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    return {
        "session_options": session_options(target),
        "filename": MODEL_FILE,
        "head_size": arch.head_dim,
        "hidden_size": arch.hidden_size,
        "inputs": inputs,
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": arch.num_attention_heads,
        "num_hidden_layers": arch.num_hidden_layers,
        "num_key_value_heads": arch.num_key_value_heads,
    }


def session_options(target: TargetConfig) -> dict[str, Any]:
    """The `session_options` section; keys that it does not name go to onnxruntime as they are."""
    options: dict[str, Any] = {"log_id": "onnxruntime-genai"}
    threads = physical_cores() if target.threads is None else target.threads
    if threads:
        options["intra_op_num_threads"] = threads
    return options | target.session_options | {"provider_options": provider_options(target)}


def provider_options(target: TargetConfig) -> list[dict[str, dict[str, str]]]:
    """The execution provider with its options; empty for the CPU, the runtime's default."""
    provider = target.execution_provider
    if provider == "cpu":
        return []
    capture = {GRAPH_CAPTURE[provider]: str(int(target.graph_capture))}
    return [{provider: capture | target.provider_options}]

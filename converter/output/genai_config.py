"""genai_config.json, the file by which onnxruntime-genai knows a model.

Source: onnxruntime-genai `src/config.cpp`; its parser refuses keys that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from converter.errors import Problem
from converter.graph.names import (
    ATTENTION_MASK,
    CACHED,
    INPUT_IDS,
    LOGITS,
    MODEL_FILE,
    POSITION_IDS,
    past,
    present,
)
from converter.machine.cores import physical_cores
from converter.model.architecture import Architecture
from converter.providers import PROVIDERS
from converter.recipe.runtime_options import search_problems, size_problems
from converter.recipe.schema import TargetConfig

CONFIG_FILE = "genai_config.json"
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

    bos: int | None
    """None for a model without one."""
    eos: tuple[int, ...]
    pad: int


def generation_problems(
    generation: Mapping[str, Any], target: TargetConfig, vocab_size: int
) -> Iterator[Problem]:
    """Sampling options of a generation_config.json that the runtime does not take.

    Those that the recipe's target sets itself are not read.
    """
    file = "generation_config.json"
    chosen = {key: generation[key] for key in SAMPLING if generation.get(key) is not None}
    chosen = {key: value for key, value in chosen.items() if key not in target.search}
    remedy = f"correct {file}, or set target.search.{{}} to what the runtime takes"
    yield from search_problems(chosen, f"{file} has {{}}", remedy)
    remedy = "set target.search.{}={}"
    yield from size_problems(chosen, f"{file} has {{}}", remedy, vocab_size, vocab_size)


def search_size_problems(
    target: TargetConfig, context_length: int, vocab_size: int
) -> Iterator[Problem]:
    """Search options of a target that are too large for the model."""
    label = "target.search.{}"
    yield from size_problems(target.search, label, f"set {label}={{}}", context_length, vocab_size)


def genai_config(
    arch: Architecture,
    context_length: int,
    target: TargetConfig,
    tokens: TokenIds,
    generation: Mapping[str, Any],
    takes_positions: bool = False,
) -> dict[str, Any]:
    """The content of genai_config.json.

    Args:
        arch: sizes of the decoder.
        context_length: tokens of prompt and answer together.
        target: provider, session and search options.
        tokens: special token ids.
        generation: the checkpoint's generation_config.json.
        takes_positions: whether the graph has the input position_ids.
    """
    chosen = {key: generation[key] for key in SAMPLING if generation.get(key) is not None}
    search = SEARCH | chosen | {"max_length": context_length}
    if target.chunk_size is not None:
        search["chunk_size"] = target.chunk_size
    search |= target.search
    begin = {} if tokens.bos is None else {"bos_token_id": tokens.bos}
    return {
        "model": {
            **begin,
            "context_length": context_length,
            "decoder": _decoder(arch, target, takes_positions),
            "eos_token_id": list(tokens.eos),
            "pad_token_id": tokens.pad,
            "type": MODEL_TYPE,
            "vocab_size": arch.vocab_size,
        },
        "search": dict(sorted(search.items())),
    }


def _decoder(arch: Architecture, target: TargetConfig, takes_positions: bool) -> dict[str, Any]:
    inputs = {"input_ids": INPUT_IDS, "attention_mask": ATTENTION_MASK}
    if takes_positions:
        inputs["position_ids"] = POSITION_IDS
    inputs |= {f"past_{kind}_names": past("%d", kind) for kind in CACHED}
    return {
        "session_options": session_options(target),
        "filename": MODEL_FILE,
        "head_size": arch.head_dim,
        "hidden_size": arch.hidden_size,
        "inputs": inputs,
        "outputs": {
            "logits": LOGITS,
            **{f"present_{kind}_names": present("%d", kind) for kind in CACHED},
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
    provider = PROVIDERS[target.execution_provider]
    if provider.device == "cpu":
        return []
    option = provider.graph_capture
    capture = {option: str(int(target.graph_capture))} if option else {}
    return [{provider.name: capture | target.provider_options}]

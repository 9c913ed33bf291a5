"""Every family, as transformers saves it: found by itself, and each logit transformers' own.

The expected logits come from transformers' model with its own weights; nothing of ours has a part
in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from descriptions import described
from families import FAMILIES, PREFILL, TOKENS, expected_logits, random_model, save, token_ids

from converter.graph.graph import Graph
from converter.graph.template import build_graph
from converter.model.architecture import read_architecture
from converter.model.decoder import Decoder, build_decoder
from converter.model.reference import Reference
from converter.recipe.architectures import architecture_of
from converter.recipe.schema import Recipe
from converter.sources.local import open_local

TOLERANCE = 1e-4


@dataclass
class Saved:
    """A family's checkpoint and what transformers makes of it."""

    decoder: Decoder
    recipe: Recipe
    whole: torch.Tensor
    steps: torch.Tensor


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative error of a position."""
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def read(folder: Path, name: str) -> tuple[Decoder, Recipe]:
    """The decoder of a folder, with the architecture `name`."""
    checkpoint, recipe = open_local(folder), described(name)
    arch = read_architecture(checkpoint.config, recipe)
    return build_decoder(checkpoint, recipe.layout, arch), recipe


def session_of(graph: Graph, folder: Path) -> onnxruntime.InferenceSession:
    path = folder / "graph.onnx"
    ir.save(graph.model, path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(
    session: onnxruntime.InferenceSession, ids: torch.Tensor, cache: dict[str, Any], total: int
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits (tokens, vocabulary) of the new `ids`, and the cache behind them."""
    inputs = {item.name: item for item in session.get_inputs()}
    feeds = {name: cache.get(name) for name in inputs if name.startswith("past")}
    for name, value in feeds.items():
        if value is None:
            _, heads, _, columns = inputs[name].shape
            feeds[name] = np.zeros((1, heads, 0, columns), np.float32)
    feeds |= {"input_ids": ids.numpy(), "attention_mask": np.ones((1, total), np.int64)}
    if "position_ids" in inputs:
        feeds["position_ids"] = np.arange(total - ids.shape[1], total)[None]
    names = [item.name for item in session.get_outputs()]
    found = dict(zip(names, session.run(None, feeds), strict=True))
    logits = torch.from_numpy(found.pop("logits"))[0]
    return logits, {name.replace("present", "past_key_values"): v for name, v in found.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_transformers(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = random_model(family)
    whole, steps = expected_logits(model)
    folder = save(model, tmp_path / "checkpoint")
    assert architecture_of(open_local(folder).config) == family.architecture
    decoder, recipe = read(folder, family.architecture)
    assert not decoder.ignored
    recipe.graph.last_token_logits = False
    session, ids = session_of(build_graph(decoder, recipe), tmp_path), token_ids()
    assert relative(run(session, ids, {}, TOKENS)[0], whole) < TOLERANCE
    found, cache = run(session, ids[:, :PREFILL], {}, PREFILL)
    rows = [found[-1]]
    for place in range(PREFILL, TOKENS):
        found, cache = run(session, ids[:, place : place + 1], cache, place + 1)
        rows.append(found[-1])
    assert relative(torch.stack(rows), steps) < TOLERANCE
    # The reference runs layer by layer, and sees the same weights through the inverse row orders.
    reference = Reference(decoder)
    assert relative(reference.logits(reference.hidden_states(ids))[0], whole) < 1e-6


PARENTS = {
    "qwen3": "qwen2",
    "granite": "llama",
    "glm": "llama",
    "helium": "llama",
    "gemma2": "gemma",
    "gemma3": "gemma2",
    "cohere2": "cohere",
    "smollm3": "llama",
    "olmo2": "llama",
    "stablelm": "llama",
    "nemotron": "llama",
    "phi3_longrope": "llama",
    "mistral_window": "llama",
    "qwen2_window": "llama",
    "hunyuan": "llama",
    "exaone4": "olmo2",
    "jais2": "arcee",
    "gpt_neox": "phi",
    "hyperclovax": "granite",
    "vaultgemma": "gemma",
    "ernie4_5": "llama",
    "llama_gelu": "mistral",
}
"""Families and descriptions that fit them almost."""
FINDS_NOTHING = {"llama_gelu"}
"""Where the other description is as right as its own: Mistral without a window is Llama."""


@pytest.mark.parametrize("name", PARENTS)
def test_a_wrong_description_is_refused_or_felt(name: str, tmp_path: Path) -> None:
    """Forced by hand, with every check of names switched off: the reference does not follow."""
    from dataclasses import replace

    from converter.errors import ConvertError

    model = random_model(FAMILIES[name])
    folder = save(model, tmp_path / "checkpoint")
    right, wrong = described(FAMILIES[name].architecture), described(PARENTS[name])
    named = "q_norm" in wrong.layout.layer_tensors
    unseen = [] if named else ["*q_norm*", "*k_norm*", "*post_norm*"]
    layout = replace(
        wrong.layout, model_types=right.layout.model_types, without_effect=["*"], ignored=unseen
    )
    recipe = replace(wrong, layout=layout)
    checkpoint, ids = open_local(folder), token_ids()
    try:
        decoder = build_decoder(checkpoint, layout, read_architecture(checkpoint.config, recipe))
        reference = Reference(decoder)
    except ConvertError:
        return
    recipe.graph.last_token_logits = False
    found = run(session_of(build_graph(decoder, recipe), tmp_path), ids, {}, TOKENS)[0]
    error = relative(found, reference.logits(reference.hidden_states(ids))[0])
    assert (error < TOLERANCE) == (name in FINDS_NOTHING), error

"""A family's graph against transformers' own model: the largest error of its logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
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


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative error of a position."""
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def all_logits(recipe: Recipe) -> Recipe:
    """The recipe with logits of every position."""
    return replace(recipe, graph=replace(recipe.graph, last_token_logits=False))


def read(folder: Path, name: str) -> tuple[Decoder, Recipe]:
    """The decoder of a folder, with the architecture `name`."""
    checkpoint, recipe = open_local(folder), all_logits(described(name))
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
            dtype = np.int8 if "int8" in inputs[name].type else np.float32
            feeds[name] = np.zeros((1, heads, 0, columns), dtype)
    feeds |= {"input_ids": ids.numpy(), "attention_mask": np.ones((1, total), np.int64)}
    if "position_ids" in inputs:
        feeds["position_ids"] = np.arange(total - ids.shape[1], total)[None]
    names = [item.name for item in session.get_outputs()]
    found = dict(zip(names, session.run(None, feeds), strict=True))
    logits = torch.from_numpy(found.pop("logits"))[0]
    return logits, {name.replace("present", "past_key_values"): v for name, v in found.items()}


def logit_error(name: str, folder: Path) -> float:
    """Largest relative error of a family's logits: all at once, and from the cache."""
    family = FAMILIES[name]
    model = random_model(family)
    whole, steps = expected_logits(model)
    save(model, folder / "checkpoint")
    assert architecture_of(open_local(folder / "checkpoint").config) == family.architecture
    decoder, recipe = read(folder / "checkpoint", family.architecture)
    towers = (
        "vision_tower.",
        "vision_model.",
        "connector.",
        "image_newline",
        "multi_modal_projector.",
    )
    assert all(any(tower in item for tower in towers) for item in decoder.ignored)
    session, ids = session_of(build_graph(decoder, recipe), folder), token_ids()
    found, cache = run(session, ids[:, :PREFILL], {}, PREFILL)
    rows = [found[-1]]
    for place in range(PREFILL, TOKENS):
        found, cache = run(session, ids[:, place : place + 1], cache, place + 1)
        rows.append(found[-1])
    # The reference runs layer by layer, and sees the same weights through the inverse row orders.
    reference = Reference(decoder)
    states = reference.hidden_states(ids)
    assert relative(reference.logits(states)[0], whole) < 1e-6
    return max(
        relative(run(session, ids, {}, TOKENS)[0], whole), relative(torch.stack(rows), steps)
    )

"""Calibrated models of many structures: the graph against transformers on the rounded weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, random_model, save, token_ids
from parity import read, relative, run, session_of

from converter.calibration.calibrate import calibrate
from converter.graph.int8_cache import quantize_caches
from converter.graph.quantized_operators import quantized_graph
from converter.graph.template import build_graph
from converter.model.cache_ranges import cache_ranges
from converter.model.reference import Reference
from converter.storage.cache import Cache

pytestmark = pytest.mark.slow
IDS = token_ids()
WORDS = ["calibration.tokens=256", "calibration.sequence_length=32", "quant.accuracy_level=1"]
WORDS += ["quant.embedding.block_size=16", "quant.pad_last_block=true", "export=cpu_int4"]
SCHEMES = {
    "awq": ["quant=awq"],
    "best": ["quant=best"],
    "mixed": ["quant=best", "quant.bits_per_weight=5.5", "quant.smooth=awq"],
    "shared": ["quant=best", "calibration=shared", "quant.smooth=awq"],
}
STRUCTURES = [
    "phi3",
    "gemma2",
    "gemma3",
    "qwen3",
    "olmo",
    "olmo2",
    "cohere",
    "stablelm",
    "glm",
    "nemotron",
    "phi2",
    "exaone4",
    "hunyuan",
    "gpt_neox",
    "granite",
    "granite4",
    "starcoder2",
    "smollm3",
    "jais2",
    "llama_mlp_bias",
    "qwen2_moe_window",
    "gpt_oss",
    "granite_moe_shared",
    "mixtral",
]
"""Each has another set of norms, folds, fused tensors or places."""


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_calibrated_graph_is_transformers_on_its_weights(
    name: str, make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """One scheme a family, in turn."""
    of_experts = "moe" in name or name in ("gpt_oss", "mixtral")
    schemes = [*SCHEMES][:2] if of_experts else [*SCHEMES]
    scheme = schemes[STRUCTURES.index(name) % len(schemes)]
    save(random_model(FAMILIES[name]), tmp_path / "checkpoint")
    decoder, described = read(tmp_path / "checkpoint", FAMILIES[name].architecture)
    decoder = replace(decoder, checkpoint=replace(decoder.checkpoint, folder=None))
    words = [*WORDS, *SCHEMES[scheme], "quant.experts.block_size=16"]
    recipe = make_recipe(*words)
    recipe = replace(recipe, layout=described.layout, graph=described.graph)
    found = calibrate(recipe, decoder, Cache(tmp_path / "cache"), lambda *_: None)
    graph = quantized_graph(build_graph(decoder, recipe), recipe, found)
    kinds = [node.op_type for node in graph.model.graph]
    assert kinds.count("MatMulNBits") + 2 * kinds.count("QMoE") == len(found.forms)
    assert (kinds.count("QMoE") > 0) == of_experts == bool(found.experts)
    reference = Reference(decoder, graph.shipped)
    expected = reference.logits(reference.hidden_states(IDS))[0]
    cached = quantized_graph(build_graph(decoder, recipe), recipe, found)
    session = session_of(graph, tmp_path)
    logits, _ = run(session, IDS, {}, IDS.shape[1])
    assert relative(logits, expected) < 1e-4, scheme
    float_logits = Reference(decoder).logits(Reference(decoder).hidden_states(IDS))[0]
    assert relative(logits, float_logits) > 1e-3, scheme
    ranges = cache_ranges(reference, IDS, lambda *_: None)
    quantize_caches(cached.model, ranges)
    session = session_of(cached, tmp_path)
    rounded, _ = run(session, IDS, {}, IDS.shape[1])
    limit = 0.4 if of_experts else 0.15  # a router may choose another expert
    assert 0 < relative(rounded, expected) < limit


def test_rounding_is_better_calibrated(make_recipe: Callable[..., Any], tmp_path: Path) -> None:
    """On the tokens of the calibration the logits of a Gemma are nearer than rounded to nearest."""
    save(random_model(FAMILIES["gemma3"]), tmp_path / "checkpoint")
    decoder, described = read(tmp_path / "checkpoint", "gemma3")
    decoder = replace(decoder, checkpoint=replace(decoder.checkpoint, folder=None))
    reference = Reference(decoder)
    expected = reference.logits(reference.hidden_states(IDS)).log_softmax(-1)
    errors = []
    for scheme in ("rtn", "best"):
        recipe = make_recipe(*WORDS, f"quant={scheme}", "calibration.tokens=1024")
        recipe = replace(recipe, layout=described.layout, graph=described.graph)
        found = None
        if scheme == "best":
            found = calibrate(recipe, decoder, Cache(tmp_path / "cache"), lambda *_: None)
        graph = quantized_graph(build_graph(decoder, recipe), recipe, found)
        own = Reference(decoder, graph.shipped)
        got = own.logits(own.hidden_states(IDS)).log_softmax(-1)
        errors.append(float((expected.exp() * (expected - got)).sum(-1).mean()))
    assert errors[1] < 0.7 * errors[0]

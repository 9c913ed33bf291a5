"""Decoders and graphs of the families with experts, as transformers saves them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

from families import FAMILIES, random_model, save

from converter.cli.compose import compose_recipe
from converter.graph.graph import Graph
from converter.graph.quantized_operators import quantized_graph
from converter.graph.template import build_graph
from converter.model.architecture import read_architecture
from converter.model.decoder import Decoder, build_decoder
from converter.recipe.schema import Recipe
from converter.sources.local import open_local

SMALL_BLOCKS = ["quant.block_size=16", "quant.embedding.block_size=16"]


@lru_cache(maxsize=32)
def saved(name: str) -> Path:
    """The checkpoint of a family."""
    folder = Path(mkdtemp(prefix="experts-"))
    return save(random_model(FAMILIES[name]), folder)


@lru_cache(maxsize=64)
def recipe_of(name: str, *words: str) -> Recipe:
    """A recipe of a family's architecture with the words; logits of every position."""
    named = [f"architecture={FAMILIES[name].architecture}", "model=internlm2_7b"]
    recipe = compose_recipe([*named, "export=cpu_fp32", *words])
    return replace(recipe, graph=replace(recipe.graph, last_token_logits=False))


def decoder_of(name: str, *words: str) -> Decoder:
    """The decoder of a family."""
    checkpoint, recipe = open_local(saved(name)), recipe_of(name, *words)
    return build_decoder(checkpoint, recipe.layout, read_architecture(checkpoint.config, recipe))


def graph_of(name: str, *words: str) -> Graph:
    """The graph of a family, quantized as the words ask."""
    recipe = recipe_of(name, *words)
    graph = build_graph(decoder_of(name, *words), recipe)
    return quantized_graph(graph, recipe) if recipe.quant.round != "none" else graph

"""The matrices of the graph, by name: which weights each stacks, and their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from converter.graph.form import GraphForm, recipe_form
from converter.model.decoder import Decoder
from converter.model.tensor_kinds import EMBEDDING, EXPERTS_DOWN, EXPERTS_GATE_UP, HEAD, leaf
from converter.quantization.rtn import BlockFormat
from converter.recipe.schema import LEFT_IN_FLOAT, MatrixQuantConfig, QuantConfig, Recipe
from converter.weights.weight import Weight, concatenate_rows

PACKED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "shared_gate_up_proj": ("shared_gate_proj", "shared_up_proj"),
}
"""Matrices of the graph that stack the rows of several weights, and which."""


LEFT_ALONE = frozenset({"router", "shared_expert_gate"})
"""Matrices of a few rows, which decide on all that experts compute: they stay in float."""
OWN_SETTINGS: dict[str, Callable[[QuantConfig], MatrixQuantConfig]] = {
    HEAD: lambda quant: quant.lm_head,
    EMBEDDING: lambda quant: quant.embedding,
    EXPERTS_GATE_UP: lambda quant: quant.experts,
    EXPERTS_DOWN: lambda quant: quant.experts,
}
"""Matrices for which a recipe may state formats of their own."""


@dataclass(frozen=True)
class Matrix:
    """A matrix of the graph, (rows, columns): the canonical weights `parts`, rows stacked."""

    name: str
    parts: tuple[str, ...]
    rows: int
    columns: int
    embeds: bool = False
    """Whether it is a tied lm_head whose embedding is quantized: in a format without padding both
    have the same codes, which lie in the folder once."""


def graph_matrices(recipe: Recipe, decoder: Decoder) -> list[Matrix]:
    """The linears of the graph that the recipe's target gets, layer by layer, lm_head last."""
    arch, form = decoder.architecture, recipe_form(decoder.architecture, recipe)
    qkv = ("qkv_proj",) if form.packs_qkv else PACKED["qkv_proj"]
    found = []
    for layer in range(arch.num_hidden_layers):
        for kind in (*qkv, "o_proj", *_feed_forward(layer, decoder, form)):
            name = f"layers.{layer}.{kind}"
            found.append(_matrix(name, matrix_parts(name), decoder))
    weights = decoder.weights
    tied = weights[HEAD] is weights[EMBEDDING]
    embeds = tied and matrix_format(EMBEDDING, recipe.quant) is not None
    return [*found, _matrix(HEAD, (HEAD,), decoder, embeds)]


def _feed_forward(layer: int, decoder: Decoder, form: GraphForm) -> Iterator[str]:
    """A layer's matrices behind attention: of its block, or of its experts and the shared one."""
    here, kind = f"layers.{layer}.", ""
    experts = decoder.architecture.experts
    if experts is not None and experts.layers[layer]:
        yield from (EXPERTS_GATE_UP, EXPERTS_DOWN)
        kind = "shared_"
    if f"{here}{kind}down_proj" not in decoder.weights:
        return
    gated = f"{here}{kind}gate_proj" in decoder.weights
    packed = f"{kind}gate_up_proj"
    if not gated:
        yield f"{kind}up_proj"
    elif form.packs_gate_up:
        yield packed
    else:
        yield from PACKED[packed]
    yield f"{kind}down_proj"


def _matrix(name: str, parts: tuple[str, ...], decoder: Decoder, embeds: bool = False) -> Matrix:
    shapes = [decoder.weights[part].shape for part in parts]
    return Matrix(name, parts, sum(shape[0] for shape in shapes), shapes[0][1], embeds)


def matrix_parts(matrix: str) -> tuple[str, ...]:
    """Canonical names of the weights whose rows a matrix of the graph stacks."""
    prefix, _, kind = matrix.rpartition(".")
    return tuple(f"{prefix}.{part}" for part in PACKED[kind]) if kind in PACKED else (matrix,)


def matrix_weight(matrix: str, decoder: Decoder) -> Weight:
    """The float weight of a matrix (rows, columns): that of its parts, rows stacked."""
    return concatenate_rows([decoder.weights[part] for part in matrix_parts(matrix)])


def split_rows(matrix: str, stacked: Weight, decoder: Decoder) -> dict[str, Weight]:
    """Canonical weights of a matrix; a packed qkv_proj is three, gate_up_proj two of them."""
    names = matrix_parts(matrix)
    if len(names) == 1:
        return {matrix: stacked}
    parts, offset = {}, 0
    for name in names:
        count = decoder.weights[name].shape[0]
        parts[name] = stacked.permute_rows(torch.arange(offset, offset + count))
        offset += count
    return parts


def matrix_format(matrix: str, quant: QuantConfig) -> BlockFormat | None:
    """Format of the matrix with this canonical name; None when it stays in float."""
    kind = leaf(matrix)
    if kind in LEFT_ALONE:
        return None
    own = OWN_SETTINGS[kind](quant) if kind in OWN_SETTINGS else None
    bits = (own.bits if own else None) or quant.bits
    if bits == LEFT_IN_FLOAT:
        return None
    symmetric = quant.symmetric if own is None or own.symmetric is None else own.symmetric
    return BlockFormat(bits, (own.block_size if own else None) or quant.block_size, symmetric)

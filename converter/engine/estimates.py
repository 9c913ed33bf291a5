"""How much memory and disk the steps of a conversion take, from shapes alone.

The memory of plain conversions comes within 25 % of what is measured
(docs/measurements/performance.md). That of calibration and evaluation is an upper bound, often a
quarter above what is measured: it adds up what need not live at the same time. The disk is what a
step needs at least, because a run without it is refused. `benchmarks/plan_accuracy.py` compares the
estimates with conversions.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from converter.graph.formats import candidate_formats
from converter.graph.matrices import graph_matrices, matrix_format
from converter.graph.names import layer_prefix
from converter.model.decoder import Decoder
from converter.model.tensor_kinds import EXPERTS_DOWN, EXPERTS_GATE_UP, leaf
from converter.quantization.coded_weight import CodedWeight
from converter.quantization.mixed import matrix_bytes
from converter.quantization.quantized_matrix import QuantizedMatrix
from converter.recipe.schema import EvaluateConfig, Recipe
from converter.storage.cache import Cache, Entry
from converter.weights.weight import GroupPart, Weight

FLOAT = 4
"""Bytes of a float32."""
CODES_BYTES = 30
"""Bytes per value of a tile while it is quantized: source, float32 copies, codes, packed codes."""
KEPT_BYTES = 5
"""The same while codes of the source are put in another order: words, and codes out of them."""
FINITE_BYTES = 3
"""Bytes per value of the masks that the check for NaN makes, besides one copy of the tile."""
THREAD_BYTES = 15_000_000
"""A worker's own share: tiles of the source, the allocator's reserve."""
RUNTIME_BYTES = 400_000_000
"""onnxruntime and transformers with their libraries, buffers and logits."""
SESSION_COPIES = 1.05
"""Bytes in memory per byte of weights in a session: kernels keep them in a form of their own."""
DEQUANTIZE_BYTES = 16
"""Bytes per value of a whole matrix while the reference reads it: four float32 copies."""
LIBRARIES_BYTES = 150_000_000
"""transformers' Llama, the tokenizer, the text, and what the allocator keeps."""
FACTOR_BYTES = 16
"""Bytes per value of GPTQ's factor as it is made in float64, besides H itself."""
TILE_BYTES = 24
"""Bytes per value of the rows that a core rounds at a time; GPTQ with its refinement takes most."""
CODED_BYTES = 1.3
"""Bytes per value of finished codes, unpacked until the layer ends."""
STACKED = (EXPERTS_GATE_UP, EXPERTS_DOWN)
"""Matrices of all experts of a layer."""
INSTALL_BYTES = 8
"""Bytes per value of a matrix as its codes become the float32 weights of the rounded layer."""


def writing_memory(weights: Iterable[Weight], threads: int | None) -> int:
    """Bytes that writing these weights takes; every thread works on a tile of its own."""
    tile = max((_tile_memory(weight) for weight in weights), default=0)
    return (threads or os.cpu_count() or 1) * (tile + THREAD_BYTES)


def _tile_memory(weight: Weight) -> int:
    if isinstance(weight, GroupPart) and isinstance(weight.group, QuantizedMatrix):
        start, stop = next(weight.group.tiles())
        each = KEPT_BYTES if weight.group.keeps else CODES_BYTES
        return (stop - start) * weight.group.source.shape[1] * each
    start, stop = next(iter(weight.tiles()), (0, 0))
    values = (stop - start) * math.prod(weight.shape[1:])
    copies = weight.dtype.itemsize + FINITE_BYTES if weight.dtype.is_floating_point else 0
    return values * (weight.dtype.itemsize + copies)


def session_memory(nbytes: int) -> int:
    """Bytes that the runtime takes for a model whose weights have `nbytes`."""
    return RUNTIME_BYTES + round(SESSION_COPIES * nbytes)


def expert_bytes(weights: Mapping[str, Weight]) -> int:
    """Bytes of quantized experts, which a session holds twice: mapped, and as kernels want them.

    Args:
        weights: a graph's initializers by name.
    """
    names = {kind.replace("_", ".", 1) for kind in (EXPERTS_GATE_UP, EXPERTS_DOWN)}
    return sum(
        weight.nbytes
        for name, weight in weights.items()
        if isinstance(weight, GroupPart) and any(f".moe.{kind}." in name for kind in names)
    )


def reference_memory(decoder: Decoder) -> int:
    """Bytes that the reference takes: a layer in float32, and its largest matrix being read.

    Of experts it holds one at a time.
    """
    layer = max((_read_values(decoder, n) for n in _distinct_layers(decoder)), key=sum)
    return sum(layer) * FLOAT + max(layer) * DEQUANTIZE_BYTES


def _distinct_layers(decoder: Decoder) -> list[int]:
    """A layer of each kind: without experts, and with them."""
    experts = decoder.architecture.experts
    if experts is None:
        return [0]
    return [experts.layers.index(kind) for kind in (False, True) if kind in experts.layers]


def _read_values(decoder: Decoder, layer: int) -> list[int]:
    """Values of what is held of a layer's tensors while it is computed."""
    experts, prefix = decoder.architecture.experts, layer_prefix(layer)
    count = 1 if experts is None else experts.count
    return [
        item.numel // (count if name.removeprefix(prefix) in (EXPERTS_GATE_UP, EXPERTS_DOWN) else 1)
        for name, item in decoder.weights.items()
        if name.startswith(prefix)
    ]


def evaluation_memory(config: EvaluateConfig, decoder: Decoder, nbytes: int) -> int:
    """Bytes that an evaluation takes at most; `nbytes` are the folder's weights.

    The float model, and when it is gone the runtime; beside each the logits of a chunk, float32
    (n_ctx, vocab_size), and the scored halves and tiles that are compared: five times as much.
    """
    logits = config.n_ctx * decoder.architecture.vocab_size * FLOAT
    reference = LIBRARIES_BYTES + reference_memory(decoder)
    return max(reference, session_memory(nbytes)) + 5 * logits


def calibration_memory(recipe: Recipe, decoder: Decoder) -> int:
    """Bytes that calibrated quantization takes at most: in its worst layer, or for lm_head."""
    arch, shapes, weighted = decoder.architecture, _shapes(recipe, decoder), _weighted(recipe)
    square = FACTOR_BYTES if recipe.quant.round == "gptq" else FLOAT
    wide, narrow = (9, 30) if weighted else (6, 12)  # float32 tensors of a batch
    batch = shapes.batch * (wide * arch.intermediate_size + narrow * arch.hidden_size) * FLOAT
    tiles = shapes.tiles * TILE_BYTES + shapes.matrix * INSTALL_BYTES
    alive = 3 if recipe.quant.mixed else 1  # layers whose H live together
    layer = shapes.layer * (shapes.itemsize + CODED_BYTES)
    layer += alive * sum(columns**2 for columns in shapes.columns) * FLOAT
    layer += max(batch, tiles, max(shapes.columns) ** 2 * square)
    if recipe.calibration.inputs == "float":
        layer += 2 * shapes.held * sum(shapes.columns) * FLOAT
    head = arch.vocab_size * arch.hidden_size * FLOAT + arch.hidden_size**2 * (square + FLOAT)
    head += max(tiles, 5 * shapes.logits * FLOAT if weighted else 0)
    return LIBRARIES_BYTES + round(max(layer, head))


def calibration_disk(recipe: Recipe, decoder: Decoder, cache: Cache) -> int:
    """Bytes that the disk of the cache has to have free before the run, at least.

    The gradients are gone when the walk begins; statistics and finished layers stay. What an
    earlier run of the same checkpoint has left of those is there already.
    """
    arch, shapes = decoder.architecture, _shapes(recipe, decoder)
    hidden = shapes.tokens * arch.hidden_size * FLOAT
    entries = [item for item in cache.entries_of(decoder.checkpoint) if _serves(item, recipe)]
    kept, made = _codes_disk(recipe, decoder), _made(entries)
    if recipe.calibration.inputs == "float":
        statistics = _statistics_disk(decoder, shapes)
        kept += statistics
        most = max(kept, statistics + hidden)
    else:  # states twice, for a killed run to go on from; in a layer what attention gives, float32,
        # and the inputs of one stage
        inner = shapes.tokens * max(shapes.columns[1], shapes.columns[3]) * shapes.itemsize
        most = kept + 3 * hidden + inner
    walk = most - made if kept > made else 0
    fresh = all(item.key.get("entry") != "fisher" for item in entries)
    states = (arch.num_hidden_layers + 1) * hidden * shapes.itemsize // FLOAT
    return max(0, walk, states + hidden if fresh and _weighted(recipe) else 0)


@dataclass(frozen=True)
class _Shapes:
    """What a calibration's memory and disk are counted in.

    Attributes:
        tokens: all of them; `held` judge, and `batch` run together.
        columns: what the four stages of a layer read (`converter.calibration.layer`).
        layer: values of one layer; `matrix` those of its largest matrix.
        logits: those of the tokens whose gradients are taken together.
        tiles: values of all rows that are rounded at the same time.
        itemsize: bytes of a value in the matrix products.
    """

    tokens: int
    held: int
    batch: int
    logits: int
    columns: tuple[int, int, int, int]
    layer: int
    matrix: int
    tiles: int
    itemsize: int


def _shapes(recipe: Recipe, decoder: Decoder) -> _Shapes:
    # numba, which only recipes that calibrate have to wait for
    from converter.calibration.calibrate import compute_dtype
    from converter.calibration.fisher import LOGITS
    from converter.calibration.rounding import TILE_ROWS, TILE_VALUES
    from converter.calibration.tokens import BATCH_VALUES, held_back

    arch, config = decoder.architecture, recipe.calibration
    length, layer = config.sequence_length, _first_layer(decoder)
    count = max(1, config.tokens // length)
    together = max(1, BATCH_VALUES // (length * arch.intermediate_size))
    mixture = arch.num_attention_heads * arch.head_dim
    inner = arch.intermediate_size
    if arch.experts is not None and all(arch.experts.layers):
        inner = max(1, arch.experts.shared_intermediate_size)
    columns = (arch.hidden_size, mixture, arch.hidden_size, inner)
    rows = max(TILE_VALUES, TILE_ROWS * max(columns))
    return _Shapes(
        tokens=count * length,
        held=held_back(count) * length,
        batch=min(count, together) * length,
        logits=max(arch.vocab_size, min(LOGITS, length * arch.vocab_size)),
        columns=columns,
        layer=sum(layer),
        matrix=max(layer),
        tiles=min((recipe.threads or os.cpu_count() or 1) * rows, max(layer)),
        itemsize=compute_dtype(config, decoder).itemsize,
    )


def _first_layer(decoder: Decoder) -> list[int]:
    """Values of the weights of a layer, of which all have the same; of experts those of one, since
    the reference reads one at a time."""
    experts = decoder.architecture.experts
    return [
        item.numel // (experts.count if experts and leaf(name) in STACKED else 1)
        for name, item in decoder.weights.items()
        if name.startswith("layers.0.")
    ]


def _weighted(recipe: Recipe) -> bool:
    """Whether tokens count by their gradients, which are taken first then."""
    return recipe.quant.token_weights != "none" or recipe.quant.mixed


def _serves(entry: Entry, recipe: Recipe) -> bool:
    """Whether a run of the recipe may find this entry of its checkpoint; a lower bound needs no
    more, so tokens and layout are not compared."""
    quant, own = entry.key.get("quant"), asdict(recipe.quant.without_budget())
    return entry.key.get("pass") == "quantize" and quant in (None, own)


def _made(entries: Iterable[Entry]) -> int:
    """Bytes of the statistics, and of the layers of one budget: the formats that has most."""
    by_formats: dict[str, int] = {}
    for entry in entries:
        formats = json.dumps(entry.key.get("forms"), sort_keys=True)
        by_formats[formats] = by_formats.get(formats, 0) + entry.nbytes
    return by_formats.pop("null", 0) + max(by_formats.values(), default=0)


def _codes_disk(recipe: Recipe, decoder: Decoder) -> int:
    """The finished matrices: packed codes, float32 scales, zero points of a byte each; under a
    budget each in the smallest of its formats."""
    total = 0
    for matrix in graph_matrices(recipe, decoder):
        if leaf(matrix.name) in STACKED:  # their codes are made when they are written
            continue
        own = matrix_format(matrix.name, recipe.quant)
        options = candidate_formats(matrix, recipe.quant) if recipe.quant.mixed else [own]
        sizes = [matrix_bytes(matrix.rows, matrix.columns, form, FLOAT) for form in options if form]
        total += min(sizes, default=0)
    return total


def _statistics_disk(decoder: Decoder, shapes: _Shapes) -> int:
    """What `calibration.inputs=float` keeps of every layer and of lm_head: each stage's H, float32
    (columns, columns), and the held-back inputs, float32 (held tokens, columns)."""
    arch = decoder.architecture
    columns = [*shapes.columns * arch.num_hidden_layers, arch.hidden_size]
    return sum(count * (count + shapes.held) for count in columns) * FLOAT


def smallest_size(recipe: Recipe, decoder: Decoder) -> int:
    """A lower bound of the result's bytes, from shapes alone."""
    weights, quant = decoder.weights.values(), recipe.quant
    if quant.round == "none":
        bits = {"fp32": 32, "fp16": 16, "bf16": 16}[recipe.target.float_type]
        return sum(weight.numel for weight in weights) * bits // 8
    return sum(weight.numel * min(quant.bits, _held_bits(weight)) for weight in weights) // 8


def _held_bits(weight: Weight) -> int:
    """Bits of a value's code in the source, which the recipe may keep; 32 for floats."""
    return weight.form.bits if isinstance(weight, CodedWeight) else 32

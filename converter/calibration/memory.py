"""The memory that a calibration takes at its peak, from shapes.

Each function counts what is alive at the worst moment of one step; see there for the order in
which it comes and goes. `benchmarks/plan_accuracy.py --calibrated` compares the sum with measured
conversions. The counts are of bytes unless they are said to be of values.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from converter.calibration.layer import STAGES
from converter.calibration.rounding import TILE_ROWS, TILE_VALUES
from converter.calibration.sizes import Sizes, calibration_sizes
from converter.graph.matrices import Matrix, graph_matrices, matrix_format
from converter.model.decoder import HEAD, Decoder
from converter.recipe.schema import Recipe

FLOAT = 4
"""Bytes of a float32."""
LIBRARIES_BYTES = 150_000_000
"""transformers' Llama, the tokenizer, the text, and small temporaries that the allocator keeps."""
FACTOR_BYTES = 20
"""Bytes per value of H while it is factored: H itself, and a float64 copy and its factor. H that
float32 resolves takes 12, but whether it does is not to be known from shapes."""
ROUNDED_BYTES = 1.3
"""Bytes per value of finished codes, unpacked until the layer ends: a byte, and per block of 16 or
more a float32 scale and a zero point."""
PACKED_BYTES = 2.5
"""Bytes per value while codes are packed, besides the codes."""
TILE_BYTES = {"rtn": 12, "search": 12, "gptq": 24}
"""Bytes per value of a tile of rows in work. search: the source's rows and their float32 copy, the
masks of the check for NaN, codes. gptq with its refinement: rows, codes before and after, and
transposed float32 copies of integers, scales by input, difference, and its product with H."""
INSTALL_BYTES = 8
"""Bytes per value of a matrix as its codes become the float32 weights that the layer goes on with:
two copies, besides the weights they replace."""
FINITE_BYTES = 3
"""Bytes per value of a matrix of the masks that tell whether it is finite, besides one copy."""


def calibration_memory(recipe: Recipe, decoder: Decoder) -> int:
    """Bytes at the peak of calibrated quantization, on top of the process before it."""
    return LIBRARIES_BYTES + round(max(calibration_steps(recipe, decoder).values()))


def calibration_steps(recipe: Recipe, decoder: Decoder) -> dict[str, float]:
    """Bytes at the peak of each step that the recipe's scheme takes, libraries left out."""
    quant, sizes = recipe.quant, calibration_sizes(recipe, decoder)
    steps: dict[str, float] = {}
    if quant.token_weights != "none" or quant.mixed:
        steps["gradients, lm_head"] = head_gradient_memory(sizes, decoder)
        steps["gradients, layer"] = layer_gradient_memory(sizes)
    if quant.mixed:
        steps["losses"] = losses_memory(sizes, recipe)
    tiles = tiles_memory(recipe, decoder)
    if recipe.calibration.inputs == "float":
        steps["statistics"] = statistics_memory(sizes)
        steps["layer"] = shared_layer_memory(sizes, recipe, tiles)
    else:
        if quant.smooth == "awq":
            # From the second layer on, the allocator has kept what tiles took in the first one.
            steps["scales"] = scales_memory(sizes) + tiles
        steps["layer"] = layer_memory(sizes, recipe, tiles)
    if matrix_format(HEAD, quant) is not None:
        steps["lm_head"] = head_memory(sizes, recipe) + tiles
    return steps


def weights_memory(sizes: Sizes) -> int:
    """A layer's weights in the products' type."""
    return sizes.layer * sizes.itemsize


def reading_memory(sizes: Sizes) -> int:
    """A layer with its largest matrix being checked for NaN, the most that reading it takes."""
    return weights_memory(sizes) + sizes.matrix * (sizes.itemsize + FINITE_BYTES)


def activations_memory(sizes: Sizes) -> int:
    """A batch in a layer's forward pass, float32 (batch, columns): gate, its activation, up, their
    product, and that weighted by tokens and read from the spill; and about a dozen tensors of
    hidden_size: the residual stream, norms, queries, keys, values, their rotation and mixture."""
    arch = sizes.arch
    return sizes.batch * (6 * arch.intermediate_size + 12 * arch.hidden_size) * FLOAT


def hessians_memory(sizes: Sizes) -> int:
    """H of all four stages of a layer, float32 (columns, columns) each."""
    return sum(columns**2 for columns in sizes.inputs.values()) * FLOAT


def head_gradient_memory(sizes: Sizes, decoder: Decoder) -> int:
    """lm_head in the products' type, and five float32 (length, vocab_size): the logits, the chances
    and two temporaries of p(1-p), and the difference that the sequence before has left."""
    head = decoder.weights[HEAD].numel * sizes.itemsize
    return head + 5 * sizes.length * sizes.arch.vocab_size * FLOAT


def layer_gradient_memory(sizes: Sizes) -> int:
    """A layer's weights, as they are read or with autograd's graph.

    The graph of a batch and the gradients and squares at its end take about nine tensors of
    intermediate_size and thirty of hidden_size, float32.
    """
    arch = sizes.arch
    graph = sizes.batch * (9 * arch.intermediate_size + 30 * arch.hidden_size) * FLOAT
    return max(reading_memory(sizes), weights_memory(sizes) + graph)


def losses_memory(sizes: Sizes, recipe: Recipe) -> int:
    """A layer with its H and one H more as that is gathered, beside the H of the layer before, with
    GPTQ its factors too; or, when the layer is gone, the last of its own factors being made."""
    largest = max(sizes.inputs.values()) ** 2
    gathered = hessians_memory(sizes) + largest * FLOAT
    if not _by_gptq(recipe):
        before = hessians_memory(sizes) if sizes.arch.num_hidden_layers > 1 else 0
        return weights_memory(sizes) + gathered + before + activations_memory(sizes)
    factored = 2 * hessians_memory(sizes) + largest * (FACTOR_BYTES - 2 * FLOAT)
    before = 2 * hessians_memory(sizes) if sizes.arch.num_hidden_layers > 1 else 0
    gathering = weights_memory(sizes) + gathered + before + activations_memory(sizes)
    return max(factored, gathering)


def scales_memory(sizes: Sizes) -> int:
    """AWQ's search: the float layer, H of all stages, and one H that is made in vain for every
    batch, beside the batch."""
    largest = max(sizes.inputs.values()) ** 2 * FLOAT
    return weights_memory(sizes) + hessians_memory(sizes) + largest + activations_memory(sizes)


def layer_memory(sizes: Sizes, recipe: Recipe, tiles: int) -> float:
    """A layer's weights and finished codes, and one stage's H with the worst of: a batch being
    gathered, and the matrices being rounded, the last of them installed."""
    columns = max(sizes.inputs.values())
    rounding = _rounding_memory(columns, recipe, tiles + sizes.matrix * INSTALL_BYTES)
    worst = columns**2 * FLOAT + max(activations_memory(sizes), rounding)
    return weights_memory(sizes) + sizes.layer * ROUNDED_BYTES + worst


def _rounding_memory(columns: int, recipe: Recipe, tiles: int) -> int:
    """What rounding takes besides H: `tiles`, with GPTQ beside its factor; or the factor being
    made, before any tile is in work."""
    if not _by_gptq(recipe):
        return tiles
    return max(columns**2 * (FACTOR_BYTES - FLOAT), columns**2 * FLOAT + tiles)


def statistics_memory(sizes: Sizes) -> int:
    """The float model's statistics of one layer: its weights, H of all stages, the held-back inputs
    float32 (held, columns) and their copy for the file, and a batch."""
    held = 2 * sizes.held * sum(sizes.inputs.values()) * FLOAT
    return weights_memory(sizes) + hessians_memory(sizes) + held + activations_memory(sizes)


def shared_layer_memory(sizes: Sizes, recipe: Recipe, tiles: int) -> float:
    """Rounding one layer on stored statistics: H and held-back inputs of the stages not yet done,
    the rounding of the one in work or its two products with AWQ's scales, and finished codes."""
    columns = [sizes.inputs[stage] for stage in STAGES]
    held = sizes.held * sum(columns) * FLOAT
    worst = max(
        sum(later**2 for later in columns[number:]) * FLOAT + _rounding_memory(count, recipe, tiles)
        for number, count in enumerate(columns)
    )
    if recipe.quant.smooth == "awq":
        worst = max(worst, hessians_memory(sizes) + 2 * max(columns) ** 2 * FLOAT)
    return held + worst + sizes.layer * ROUNDED_BYTES


def head_memory(sizes: Sizes, recipe: Recipe) -> float:
    """lm_head's codes, as tiles and as one, or as one that is packed; and its H with the factor, or
    with AWQ's scales while they are applied."""
    values = sizes.arch.vocab_size * sizes.arch.hidden_size
    square = FACTOR_BYTES if _by_gptq(recipe) else FLOAT
    if recipe.quant.smooth == "awq":
        square = max(square, 3 * FLOAT)
    own = sizes.arch.hidden_size**2 * square
    return own + values * (ROUNDED_BYTES + max(ROUNDED_BYTES, PACKED_BYTES))


def tiles_memory(recipe: Recipe, decoder: Decoder) -> int:
    """The tiles of rows in work at the same time, one on each core."""
    threads = recipe.threads or torch.get_num_threads()
    method = "gptq" if _by_gptq(recipe) else recipe.quant.round
    return max(
        (
            min(threads, count) * values * TILE_BYTES[method]
            for count, values in _tiles(recipe, decoder)
        ),
        default=0,
    )


def _tiles(recipe: Recipe, decoder: Decoder) -> Iterator[tuple[int, int]]:
    """For each rounded matrix of the graph how many tiles it has, and the values of one."""
    for matrix in _rounded(recipe, decoder):
        rows = max(TILE_ROWS, TILE_VALUES // matrix.columns)
        yield -(-matrix.rows // rows), min(rows, matrix.rows) * matrix.columns


def _rounded(recipe: Recipe, decoder: Decoder) -> list[Matrix]:
    return [m for m in graph_matrices(recipe, decoder) if matrix_format(m.name, recipe.quant)]


def _by_gptq(recipe: Recipe) -> bool:
    """Whether any matrix may need GPTQ's factor; those of eight bits are searched only."""
    quant = recipe.quant
    return quant.round == "gptq" and (quant.mixed or quant.bits == 4)

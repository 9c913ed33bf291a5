"""Which format each matrix of the graph gets: the recipe's, or one that fits into a budget."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from converter.errors import ConvertError, Problem
from converter.graph.matrices import Matrix, graph_matrices, matrix_format
from converter.graph.source_codes import kept_codes
from converter.model.architecture import Architecture
from converter.model.decoder import Decoder
from converter.model.tensor_kinds import EMBEDDING, EXPERTS_DOWN, EXPERTS_GATE_UP, HEAD
from converter.quantization.mixed import Candidate, choose_formats, matrix_bytes
from converter.quantization.rtn import BlockFormat
from converter.recipe.schema import QuantConfig, Recipe, parse_size
from converter.weights.placement import LARGE_BYTES, PAGE_ALIGNMENT

FLOAT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
CANDIDATES = (
    BlockFormat(4, 128, True),
    BlockFormat(4, 64, True),
    BlockFormat(4, 64, False),
    BlockFormat(4, 32, True),
    BlockFormat(4, 32, False),
    BlockFormat(8, 128, True),
    BlockFormat(8, 64, True),
    BlockFormat(8, 32, True),
)
"""What mixed precision chooses from; asymmetric ones only where the recipe allows zero points.

No blocks of 16: the kernels of x86 read them at half the speed, and those of Arm not at all."""


def quantized_bytes(recipe: Recipe, decoder: Decoder) -> int:
    """Bytes of all weights as the recipe stores them, from shapes alone.

    The folder is larger by the rotary caches, the alignment of tensors and the graph.
    """
    width = FLOAT_BYTES[recipe.scale_type]
    formats = {
        matrix: [form]
        for matrix in graph_matrices(recipe, decoder)
        if (form := _own_format(matrix.name, recipe, decoder))
    }
    matrices = sum(matrix_bytes(m.rows, m.columns, form, width) for m, [form] in formats.items())
    return matrices + _fixed_bytes(recipe, decoder, formats)


def _own_format(matrix: str, recipe: Recipe, decoder: Decoder) -> BlockFormat | None:
    """The format of a matrix: the source's where its codes are kept, or the recipe's."""
    kept = kept_codes(matrix, recipe, decoder)
    return kept.form if kept else matrix_format(matrix, recipe.quant)


def tied_format(
    quant: QuantConfig, decoder: Decoder, head: BlockFormat | None
) -> BlockFormat | None:
    """The one format of a head that is tied to the embedding; None when each has its own.

    The embedding then takes the head's, and their codes lie in the folder once.
    """
    weights = decoder.weights
    same = weights[HEAD] is weights[EMBEDDING]
    if not same or head is None or matrix_format(EMBEDDING, quant) is None:
        return None
    return head if decoder.architecture.hidden_size % head.block_size == 0 else None


def candidate_formats(matrix: Matrix, quant: QuantConfig) -> list[BlockFormat]:
    """The formats that mixed precision may give a matrix; one where the recipe states its own."""
    own = matrix_format(matrix.name, quant)
    if own is None:
        return []
    stated = matrix.name == HEAD and (quant.lm_head.bits or quant.lm_head.block_size)
    padded = quant.pad_last_block and (stated or not matrix.embeds)
    return [
        form
        for form in ((own,) if stated else CANDIDATES)
        if (form.symmetric or not quant.symmetric or stated)
        and (matrix.columns % form.block_size == 0 or padded)
    ]


@dataclass(frozen=True)
class Budget:
    """Bytes that the matrices may take together, and the smallest and largest they can be.

    `fixed` are the bytes of everything else that counts: norms, biases, an embedding of its own,
    and what aligns large tensors in the data file.
    """

    matrices: int
    least: int
    most: int
    fixed: int


def size_budget(recipe: Recipe, decoder: Decoder) -> Budget:
    """The budget that quant.target_size or quant.bits_per_weight leaves for the matrices."""
    quant, width = recipe.quant, FLOAT_BYTES[recipe.scale_type]
    matrices = [m for m in graph_matrices(recipe, decoder) if candidate_formats(m, quant)]
    sizes = [_candidate_sizes(matrix, recipe) for matrix in matrices]
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    if quant.bits_per_weight is not None:
        count = sum(matrix.rows * matrix.columns for matrix in matrices)
        return Budget(int(quant.bits_per_weight * count / 8), least, most, 0)
    fixed = _fixed_bytes(recipe, decoder, {m: candidate_formats(m, quant) for m in matrices})
    fixed += sum(max(_alignment(m, form, width) for form in CANDIDATES) for m in matrices)
    return Budget((parse_size(quant.target_size or "") or 0) - fixed, least, most, fixed)


def budget_problems(recipe: Recipe, decoder: Decoder) -> Iterator[Problem]:
    """A matrix that no format fits, or a size that no choice of formats can reach."""
    quant, budget = recipe.quant, size_budget(recipe, decoder)
    for matrix in graph_matrices(recipe, decoder):
        if matrix_format(matrix.name, quant) and not candidate_formats(matrix, quant):
            yield Problem(
                f"{matrix.name} has {matrix.columns} columns, which no block size divides.",
                "columns that a block of 16 to 128 divides, for mixed precision",
                "set quant.pad_last_block=true",
            )
    if budget.matrices >= budget.least:
        return
    if quant.bits_per_weight is not None:
        matrices = [m for m in graph_matrices(recipe, decoder) if candidate_formats(m, quant)]
        count = sum(matrix.rows * matrix.columns for matrix in matrices)
        low, high = (8 * size / count for size in (budget.least, budget.most))
        yield Problem(
            f"quant.bits_per_weight={quant.bits_per_weight} cannot be reached.",
            f"{low:.3f} to {high:.3f} bits, scales and zero points included",
            f"set quant.bits_per_weight={low + 0.005:.2f} or more",
        )
    else:
        low, high = ((size + budget.fixed) / 1e6 for size in (budget.least, budget.most))
        yield Problem(
            f"quant.target_size={quant.target_size} cannot be reached.",
            f"{low:.2f} to {high:.2f} MB for this model and target",
            f"set quant.target_size={low + 0.005:.2f}MB or more",
        )


def choose_mixed(
    recipe: Recipe, decoder: Decoder, losses: Mapping[str, Sequence[float]]
) -> dict[str, BlockFormat]:
    """The formats of least total loss within the budget; `losses` per matrix and candidate."""
    quant, budget = recipe.quant, size_budget(recipe, decoder)
    if budget.matrices < budget.least:
        raise ConvertError(budget_problems(recipe, decoder))
    matrices = [m for m in graph_matrices(recipe, decoder) if candidate_formats(m, quant)]
    options = [
        [
            Candidate(size, loss)
            for size, loss in zip(_candidate_sizes(m, recipe), losses[m.name], strict=True)
        ]
        for m in matrices
    ]
    picks = choose_formats(options, budget.matrices)
    return {
        m.name: candidate_formats(m, quant)[pick] for m, pick in zip(matrices, picks, strict=True)
    }


def _candidate_sizes(matrix: Matrix, recipe: Recipe) -> list[int]:
    scale = FLOAT_BYTES[recipe.scale_type]
    return [
        matrix_bytes(matrix.rows, matrix.columns, form, scale)
        for form in candidate_formats(matrix, recipe.quant)
    ]


def _alignment(matrix: Matrix, form: BlockFormat, scale_bytes: int) -> int:
    """At most so many bytes of the data file align a matrix's tensors for mapping."""
    blocks = form.blocks(matrix.columns)
    parts = (form.row_bytes(matrix.columns), scale_bytes * blocks)
    return sum(PAGE_ALIGNMENT for row in parts if row * matrix.rows >= LARGE_BYTES)


def _fixed_bytes(
    recipe: Recipe, decoder: Decoder, formats: Mapping[Matrix, Sequence[BlockFormat]]
) -> int:
    """Bytes of what is no matrix of `formats`; those are the formats that each may have."""
    quant, width, total = recipe.quant, FLOAT_BYTES[recipe.target.float_type], 0
    chosen = {part for matrix in formats for part in matrix.parts}
    heads = [form for matrix, forms in formats.items() if matrix.name == HEAD for form in forms]
    shared = any(tied_format(quant, decoder, form) for form in heads)
    tied = decoder.weights[HEAD] is decoder.weights[EMBEDDING]
    embedding = matrix_format(EMBEDDING, quant)
    for name, weight in decoder.weights.items():
        reads_table = name == HEAD and tied and embedding is None
        if name in chosen or reads_table or (name == EMBEDDING and shared):
            continue
        if name == EMBEDDING and embedding is not None:
            rows, columns = weight.shape
            total += matrix_bytes(rows, columns, embedding, FLOAT_BYTES[recipe.scale_type])
        else:
            total += weight.numel * width
    return total


SECTIONS = {
    HEAD: "quant.lm_head",
    EMBEDDING: "quant.embedding",
    EXPERTS_GATE_UP: "quant.experts",
    EXPERTS_DOWN: "quant.experts",
}
"""Matrices to the section of a recipe with their own format."""


def indivisible(
    quant: QuantConfig,
    arch: Architecture,
    check_layers: bool = True,
    kept: Collection[str] = (),
) -> Iterator[Problem]:
    """Matrices whose columns the recipe's block size does not divide.

    `kept` are those of which all have the source's own blocks; `q_proj` stands for all that read
    hidden states.
    """
    columns = {
        "q_proj": arch.hidden_size,
        "o_proj": arch.num_attention_heads * arch.head_dim,
        **_feed_forward_columns(arch),
        HEAD: arch.hidden_size,
        EMBEDDING: arch.hidden_size,
    }
    for matrix, count in columns.items():
        form = matrix_format(matrix, quant)
        padded = quant.pad_last_block and matrix not in (EMBEDDING, EXPERTS_GATE_UP, EXPERTS_DOWN)
        chosen = not check_layers and matrix != EMBEDDING
        chosen = chosen and any(count % other.block_size == 0 for other in CANDIDATES)
        if matrix in kept or form is None or count % form.block_size == 0 or padded or chosen:
            continue
        key = SECTIONS.get(matrix, "quant")
        fitting = [size for size in (256, 128, 64, 32, 16) if count % size == 0]
        yield Problem(
            f"{matrix} has {count} columns, which blocks of {form.block_size} do not divide.",
            f"a block size that divides {count}: "
            f"{', '.join(map(str, fitting)) or 'none is large enough for MatMulNBits'}",
            f"set {key}.block_size={fitting[0]}"
            if fitting and (check_layers or key != "quant")
            else f"set {key}.bits=16"
            if key != "quant"
            else "set quant.pad_last_block=true",
        )


def _feed_forward_columns(arch: Architecture) -> dict[str, int]:
    """Columns of the matrices behind attention that read something else than hidden states."""
    experts = arch.experts
    found = {} if experts and all(experts.layers) else {"down_proj": arch.intermediate_size}
    if experts is not None and any(experts.layers):
        found |= {EXPERTS_GATE_UP: arch.hidden_size, EXPERTS_DOWN: experts.intermediate_size}
        if experts.shared_intermediate_size:
            found["shared_down_proj"] = experts.shared_intermediate_size
    return found

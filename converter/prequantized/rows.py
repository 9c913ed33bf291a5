"""Rows and columns of stored tensors by an index, and integers out of packed words."""

from __future__ import annotations

import torch

from converter.weights.weight import TILE_VALUES, Weight

WORD = 32
"""Bits of a packed word."""


def read_rows(weight: Weight, rows: torch.Tensor) -> torch.Tensor:
    """Rows of a stored tensor by an int64 index (n,): shape (n, …)."""
    return weight.permute_rows(rows).rows(0, len(rows))


def read_scalar(weight: Weight) -> torch.Tensor:
    """The value of a stored tensor that has only one, of shape ()."""
    return weight.rows(0, 1).reshape(())


def read_columns(weight: Weight, columns: torch.Tensor) -> torch.Tensor:
    """Columns of a stored tensor (r, c) by an int64 index (n,), as rows: shape (n, r)."""
    low, high = int(columns.min()), int(columns.max()) + 1
    out = torch.empty(len(columns), weight.shape[0], dtype=weight.dtype)
    whole = high - low == len(columns) and bool((torch.diff(columns) == 1).all())
    step = max(1, TILE_VALUES // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        stop = min(start + step, weight.shape[0])
        strip = weight.block(start, stop, low, high)
        out[:, start:stop] = strip.T if whole else strip[:, columns - low].T
    return out


def words_as_codes(words: torch.Tensor) -> torch.Tensor:
    """int32 (n, w) as bytes (n, 4·w): packed codes, the earlier one in the lower bits."""
    return words.contiguous().view(torch.uint8)


def pick_codes(words: torch.Tensor, shifts: torch.Tensor, bits: int) -> torch.Tensor:
    """The `bits` bits of int32 words from each of `shifts` on, broadcast together, as uint8."""
    return ((words >> shifts) & ((1 << bits) - 1)).to(torch.uint8)


def columns_in_words(
    weight: Weight, columns: torch.Tensor, bits: int, places: torch.Tensor
) -> torch.Tensor:
    """Columns of integers that are packed along the columns of int32 words (r, c).

    Args:
        weight: the words.
        columns: int64 (n,), which integers.
        bits: of an integer.
        places: int32 (32 / bits,), the place in a word of each of its integers.

    Returns:
        uint8 (n, r).
    """
    count = WORD // bits
    held, position = torch.unique(columns // count, return_inverse=True)
    words = read_columns(weight, held)
    shifts = (places[columns % count] * bits).to(torch.int32).unsqueeze(1)
    out = torch.empty(len(columns), weight.shape[0], dtype=torch.uint8)
    step = max(1, TILE_VALUES // weight.shape[0])  # words take four bytes a value
    for start in range(0, len(columns), step):
        chosen = slice(start, start + step)
        out[chosen] = pick_codes(words[position[chosen]], shifts[chosen], bits)
    return out

"""Matrices in MXFP4: four-bit floats, 32 of which share a power of two.

Source: OCP Microscaling Formats (MX) Specification 1.0. A code is E2M1: a sign, then one of eight
values. Two codes lie in a byte, the earlier one in the lower bits, 16 bytes make a block. A scale
is E8M0: the byte s means 2^(s − 127), and 255 is NaN.
"""

from __future__ import annotations

import torch

from converter.weights.weight import Weight

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three bits of a code stand for; the highest bit is the sign."""
BLOCK, BLOCK_BYTES = 32, 16
BIAS, NOT_A_NUMBER = 127, 255
_VALUES = torch.tensor([*MAGNITUDES, *(-value for value in MAGNITUDES)])


class Mxfp4Weight(Weight):
    """A matrix (rows, columns) in bfloat16, which holds every value of MXFP4's normal range.

    Args:
        blocks: uint8 (rows, columns / 32, 16).
        scales: uint8 (rows, columns / 32).
    """

    def __init__(self, blocks: Weight, scales: Weight) -> None:
        rows, count, _ = blocks.shape
        self.shape, self.dtype, self.label = (rows, count * BLOCK), torch.bfloat16, blocks.label
        self._blocks, self._scales = blocks, scales

    def rows(self, start: int, stop: int) -> torch.Tensor:
        codes, scales = self._blocks.rows(start, stop), self._scales.rows(start, stop)
        pairs = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(2)
        powers = torch.exp2(scales.float() - BIAS)
        powers[scales == NOT_A_NUMBER] = torch.nan
        return (_VALUES[pairs.int()] * powers[..., None]).flatten(1).to(self.dtype)

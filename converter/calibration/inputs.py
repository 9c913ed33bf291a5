"""What calibration keeps of a linear's inputs: H = XᵀX, and the inputs of the held-back tokens."""

from __future__ import annotations

import torch

from converter.quantization.gptq import GptqFactor, gptq_factor
from converter.quantization.refine import damp
from converter.quantization.rtn import BlockFormat, Codes

_PARTS = 8  # column blocks; the blocks below the diagonal of H are mirrored, not computed
_NARROW = 1024  # too few columns for blocks to pay


class Inputs:
    """Statistics of the inputs (tokens, columns) that one or several linears share.

    `add` takes tokens to calibrate on, `hold` tokens to judge on. Both take a weight per token,
    float32 with as many values, by which its squared error counts; None weighs all alike.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._sum = torch.zeros(columns, columns)
        self._held: list[torch.Tensor] = []
        self._mirrored = False
        self._factor: GptqFactor | None = None
        self._damped: torch.Tensor | None = None
        self._diagonal: torch.Tensor | None = None

    @classmethod
    def of(cls, hessian: torch.Tensor, held: torch.Tensor | None) -> Inputs:
        """Statistics gathered before: XᵀX (columns, columns) and the held-back inputs, weighted."""
        inputs = cls(0)
        inputs.columns, inputs._sum, inputs._mirrored = hessian.shape[0], hessian, True
        inputs._held = [] if held is None else [held]
        return inputs

    @property
    def held(self) -> torch.Tensor | None:
        """The held-back inputs, float32 (tokens, columns), weighted; None when there are none."""
        return torch.cat(self._held) if self._held else None

    def divide(self, scales: torch.Tensor) -> None:
        """Make these the statistics of the inputs divided by `scales`, float32 (columns,)."""
        inverse = 1 / scales
        self._sum, self._mirrored = self.hessian * inverse[:, None] * inverse, True
        self._held = [held * inverse for held in self._held]
        self._factor = self._damped = self._diagonal = None

    def add(self, inputs: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        x = weighted(inputs, weights)
        step = self.columns if self.columns < _NARROW else -(-self.columns // _PARTS)
        for start in range(0, self.columns, step):
            stop = min(start + step, self.columns)
            self._sum[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])
        self._mirrored, self._factor = False, None

    def hold(self, inputs: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        self._held.append(weighted(inputs, weights))

    @property
    def hessian(self) -> torch.Tensor:
        """XᵀX, float32 (columns, columns)."""
        if not self._mirrored:
            step = self.columns if self.columns < _NARROW else -(-self.columns // _PARTS)
            for start in range(0, self.columns, step):
                stop = min(start + step, self.columns)
                self._sum[stop:, start:stop] = self._sum[start:stop, stop:].T
            self._mirrored = True
        return self._sum

    @property
    def diagonal(self) -> torch.Tensor:
        """diag(XᵀX), float32 (columns,)."""
        return self._sum.diagonal() if self._diagonal is None else self._diagonal

    def damped(self) -> torch.Tensor:
        """H as `refine` reads it, shared by all tiles of all linears.

        It takes H's own place where tokens are held back: nothing else needs H after `factor`.
        """
        if self._damped is None:
            self._diagonal = self._sum.diagonal().clone()
            self._damped = damp(self.hessian if self._held else self.hessian.clone())
        return self._damped

    def factor(self) -> GptqFactor:
        """GPTQ's factor of H, computed once for all linears of these inputs."""
        if self._factor is None:
            self._factor = gptq_factor(self.hessian)
        return self._factor

    def relative_error(self, weight: torch.Tensor, rounded: torch.Tensor) -> float:
        """‖ΔW x‖² / ‖W x‖² over the held-back tokens (all when none were held), weighted."""
        lost, whole = self._squares(weight - rounded), self._squares(weight)
        return lost / whole if whole > 0 else 0.0

    def _squares(self, matrix: torch.Tensor) -> float:
        if not self._held:
            return float(((matrix @ self.hessian) * matrix).sum(dtype=torch.float64))
        return sum(float((x @ matrix.T).square().sum(dtype=torch.float64)) for x in self._held)


def weighted(inputs: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """float32 (tokens, columns), each row times the square root of its token's weight."""
    x = inputs.reshape(-1, inputs.shape[-1]).float()
    return x if weights is None else x * weights.reshape(-1, 1).sqrt()


def restored(codes: Codes, form: BlockFormat, columns: int) -> torch.Tensor:
    """The values of codes, float32 (rows, columns), without padding."""
    return codes.dequantize(form)[:, :columns]

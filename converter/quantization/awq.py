"""AWQ: scales per input channel, folded into what comes before, that protect salient weights.

AWQ (arXiv 2306.00978): a linear's input channel k may be divided by s_k where it is produced (a
norm's weight, or the rows of the linear before) and its weights multiplied by s_k: the float model
is unchanged, but the rounding error of a channel with large inputs shrinks. The paper takes
s = x̄^r, x̄ the channel's mean magnitude; with the weights' magnitude w̄ of the channel,
s = x̄^r / w̄^(1-r), as its authors' code does. The exponent r is chosen by the error of the
quantized linears' outputs, tr(ΔW H ΔWᵀ) with H = XᵀX, on a sample of their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from converter.quantization.gptq import hessian_error

Round = Callable[[Tensor, Tensor], Tensor]
"""(weight [N, K], diag(H) [K]) -> the rounded weight [N, K], in the format that will be shipped."""

_EXPONENTS = tuple(step / 10 for step in range(1, 11))
_LARGEST = 1e4  # of the scales' ratio to their middle, so that folded norms stay in float16


@dataclass(frozen=True)
class AwqScales:
    """The scales of one fold.

    Attributes:
        inputs: float32 [K], by which the columns of the consumers are multiplied.
        producer: float32 [K], or one value per channel of a group, by which the norm's weight or
            the producer's rows are divided.
        error: the objective, the mean over the consumers of their output error relative to that
            without scales; at most 1.
        exponent: r, and 0 for the identity.
    """

    inputs: Tensor
    producer: Tensor
    error: float
    exponent: float


def awq_search(
    weights: Sequence[Tensor],
    hessian: Tensor,
    rounds: Sequence[Round],
    *,
    groups: Tensor | None = None,
) -> AwqScales:
    """Find the scales of one fold; the identity is a candidate.

    Args:
        weights: of the linears that read the same inputs the rows to judge by, float32 [N_i, K].
        hessian: XᵀX of these inputs [K, K].
        rounds: for each linear what rounds it, given diag(H) as the scaled inputs have it.
        groups: int64 [K], the producer's channel that each input comes from, where several inputs
            share one (`kv_channel_groups`); every input its own by default.
    """
    groups = torch.arange(hessian.shape[0]) if groups is None else groups
    hessian = hessian.to(torch.float32)
    plain = _errors(weights, hessian, rounds, torch.ones(hessian.shape[0]))
    best, best_error, best_exponent = torch.ones(int(groups.max()) + 1), 1.0, 0.0
    inputs = _group_mean(hessian.diagonal(), groups).sqrt()
    magnitude = torch.stack([_magnitude(weight) for weight in weights]).mean(0)
    magnitude = _group_mean(magnitude, groups)
    for exponent in _EXPONENTS:
        for power in dict.fromkeys((0.0, 1 - exponent)):
            scales = _normalise(inputs**exponent / magnitude.clamp(min=1e-9) ** power, inputs > 0)
            errors = _errors(weights, hessian, rounds, scales[groups])
            error = _relative(errors, plain)
            if error < best_error:
                best, best_error, best_exponent = scales, error, exponent
    return AwqScales(best[groups], best, best_error, best_exponent)


def kv_channel_groups(num_attention_heads: int, num_key_value_heads: int, head_dim: int) -> Tensor:
    """The value channel behind each input of the output projection, int64 [heads * head_dim].

    Query heads are ordered by KV head, so input (head, d) comes from channel (head // g, d) of the
    value projection, g = num_attention_heads / num_key_value_heads.
    """
    channels = torch.arange(num_key_value_heads * head_dim).view(num_key_value_heads, 1, head_dim)
    queries = num_attention_heads // num_key_value_heads
    return channels.expand(-1, queries, -1).flatten()


def _errors(
    weights: Sequence[Tensor], hessian: Tensor, rounds: Sequence[Round], scales: Tensor
) -> list[float]:
    """tr(ΔW H ΔWᵀ) of each linear with its columns scaled, rounded and scaled back."""
    diagonal = hessian.diagonal() / scales.square()
    return [
        hessian_error(weight, round_weight(weight * scales, diagonal) / scales, hessian)
        for weight, round_weight in zip(weights, rounds, strict=True)
    ]


def _relative(errors: Sequence[float], plain: Sequence[float]) -> float:
    """Mean ratio of the errors; a linear without error counts as unchanged while it has none."""
    ratios = [
        error / base if base > 0 else (1.0 if error <= 0 else float("inf"))
        for error, base in zip(errors, plain, strict=True)
    ]
    return sum(ratios) / len(ratios)


def _magnitude(weight: Tensor) -> Tensor:
    """Mean over the rows of |w| relative to the row's mean, [K]."""
    size = weight.abs()
    return (size / size.mean(1, keepdim=True).clamp(min=1e-30)).mean(0)


def _group_mean(values: Tensor, groups: Tensor) -> Tensor:
    counts = torch.bincount(groups).to(values.dtype)
    return torch.zeros(counts.shape, dtype=values.dtype).index_add_(0, groups, values) / counts


def _normalise(scales: Tensor, alive: Tensor) -> Tensor:
    """Scale to sqrt(max * min) = 1 over the channels that are ever used; the others get 1."""
    if not bool(alive.any()):
        return torch.ones_like(scales)
    used = scales[alive]
    scales = scales / (used.max() * used.min()).sqrt()
    return torch.where(alive, scales.clamp(1 / _LARGEST, _LARGEST), 1.0)

"""How far a quantized model's next-token distributions are from the float model's.

The statistics are those that llama.cpp prints for `llama-perplexity --kl-divergence`
(tools/perplexity/perplexity.cpp, function `kl_divergence`), so that the figures of the two
can be put side by side. Two deliberate differences, both below a published digit:

- llama.cpp leaves out of the sum the tokens that the reference gives less than exp(-16);
  here the sum runs over the whole vocabulary, so that it is the divergence itself and never
  negative beyond rounding.
- llama.cpp sums in float32 with float64 totals; here everything is float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import ConvertError, Problem

if TYPE_CHECKING:
    import torch

UNFAMILIAR = 1000.0
"""Perplexity of a float model that cannot have been trained on such text: models of a billion
parameters reach 5 to 20 on prose, and even a small one stays below 100 on its own kind of text."""
Floats = NDArray[np.float64]

KLD_PERCENTILES = (100.0, 99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1, 0.0)
DELTA_P_PERCENTILES = (100.0, 99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1, 0.0)

# A tile is this many float64 values (16 MiB); about six of them are alive at once.
TILE_VALUES = 2**21


@dataclass(frozen=True)
class Estimate:
    """A mean over the scored tokens with its standard error (one sigma), in the same unit."""

    value: float
    error: float

    def __str__(self) -> str:
        """Value and error with six decimals, as llama.cpp prints them."""
        return f"{self.value:.6f} ± {self.error:.6f}"


@dataclass(frozen=True)
class TokenValues:
    """What is known of each scored token, in the order in which it was fed; all float64 [n].

    `kld` is KL(reference ‖ candidate) in nats, `nll` and `nll_reference` are -ln p of the token
    that really came next, `same_top` is 1.0 where both models rank the same token first.
    """

    kld: Floats
    nll: Floats
    nll_reference: Floats
    same_top: Floats

    @property
    def delta_p(self) -> Floats:
        """Candidate's minus reference's probability of the token that came next, float64 [n]."""
        return np.exp(-self.nll) - np.exp(-self.nll_reference)


@dataclass(frozen=True)
class KLStatistics:
    """The summary of an evaluation. Divergences in nats; `same_top` and Δp are fractions of 1."""

    tokens: int
    kld: Estimate
    kld_percentiles: Mapping[str, float]
    same_top: Estimate
    ppl: Estimate
    ppl_reference: Estimate
    ppl_correlation: float
    ln_ppl_ratio: Estimate
    ppl_ratio: Estimate
    ppl_difference: Estimate
    delta_p: Estimate
    delta_p_rms: Estimate
    delta_p_percentiles: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The same fields as plain numbers and dicts, for a report."""
        return asdict(self)

    @property
    def note(self) -> str | None:
        """What must be said of perplexities that mean nothing; None where they mean something."""
        if self.ppl_reference.value <= UNFAMILIAR:
            return None
        return (
            f"the float model's own perplexity is {self.ppl_reference.value:.0f}: it was not "
            "trained on such text, so only the divergences from it mean something here"
        )

    def table(self) -> str:
        """The statistics as aligned text, in llama.cpp's order and units (Δp in percent)."""
        rows = [*_perplexity_rows(self), *_kld_rows(self), *_delta_p_rows(self)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def summarize(values: TokenValues) -> KLStatistics:
    """Reduce the values of at least two tokens to their statistics.

    Raises `ConvertError` for fewer: no standard error can be stated then.
    """
    count = len(values.kld)
    if count < 2:
        raise ConvertError(
            Problem(
                f"{count} token(s) were scored.",
                "at least 2, and some thousands for a figure that means something",
                "give a longer text, or more chunks",
            )
        )
    nll, base = values.nll, values.nll_reference
    ratio = _mean(nll - base)
    ppl, ppl_reference = _exponential(_mean(nll)), _exponential(_mean(base))
    # The standard error of a weighted difference, taken token by token, is llama.cpp's
    # sqrt(var(a) + var(b) - 2 cov(a, b)), and cannot turn negative by cancellation.
    difference = _mean(ppl.value * nll - ppl_reference.value * base)
    return KLStatistics(
        tokens=count,
        kld=_mean(values.kld),
        kld_percentiles=_percentiles(values.kld, KLD_PERCENTILES),
        same_top=_mean(values.same_top),
        ppl=ppl,
        ppl_reference=ppl_reference,
        ppl_correlation=_correlation(nll, base),
        ln_ppl_ratio=ratio,
        ppl_ratio=_exponential(ratio),
        ppl_difference=Estimate(ppl.value - ppl_reference.value, difference.error),
        delta_p=_mean(values.delta_p),
        delta_p_rms=_root_mean_square(values.delta_p),
        delta_p_percentiles=_percentiles(values.delta_p, DELTA_P_PERCENTILES),
    )


class KLAccumulator:
    """Takes both models' logits chunk by chunk and keeps four numbers of each token."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._parts: list[Floats] = []
        self._count = 0

    def add(
        self,
        reference: torch.Tensor,
        candidate: torch.Tensor,
        next_tokens: torch.Tensor,
        *,
        reference_top: torch.Tensor | None = None,
        reference_nll: torch.Tensor | None = None,
    ) -> None:
        """Score T positions.

        `reference` and `candidate` are float [T, vocab], logits or log-probabilities (a constant
        added to a row changes nothing); `next_tokens` is int64 [T], the token that came next.
        `reference_top` (int64 [T]) and `reference_nll` (float [T]) replace what would be computed
        from `reference`, for one that was stored with less precision.
        Raises `ConvertError` for NaN or infinity in the logits, ValueError for unequal shapes.
        """
        self._check_shapes(reference, candidate, next_tokens)
        # One array a chunk, made before the tiles: small ones in between would each pin a tile's
        # temporaries in the allocator's heap (measured: 0.2 GB a chunk of 255 × 92544).
        found = np.empty((4, reference.shape[0]))
        for rows in _tiles(*reference.shape):
            part = _score(reference[rows], candidate[rows], next_tokens[rows])
            if reference_top is not None:
                part[3] = candidate[rows].argmax(-1) == reference_top[rows]
            if reference_nll is not None:
                part[2] = reference_nll[rows].double()
            found[:, rows] = self._checked(part.numpy())
            self._count += part.shape[1]
        self._parts.append(found)

    def values(self) -> TokenValues:
        """What was gathered so far."""
        joined = np.concatenate(self._parts, axis=1) if self._parts else np.zeros((4, 0))
        kld, nll, nll_reference, same_top = joined
        return TokenValues(kld, nll, nll_reference, same_top)

    def result(self) -> KLStatistics:
        """`summarize` of `values`."""
        return summarize(self.values())

    @staticmethod
    def _check_shapes(
        reference: torch.Tensor, candidate: torch.Tensor, next_tokens: torch.Tensor
    ) -> None:
        if reference.shape != candidate.shape or next_tokens.shape != reference.shape[:1]:
            raise ValueError(
                f"reference {tuple(reference.shape)}, candidate {tuple(candidate.shape)} and "
                f"next_tokens {tuple(next_tokens.shape)} do not belong together"
            )

    def _checked(self, part: Floats) -> Floats:
        # One NaN or infinity anywhere in a row of logits makes its divergence NaN or infinite.
        bad = np.flatnonzero(~np.isfinite(part).all(axis=0))
        if bad.size:
            raise ConvertError(
                Problem(
                    f"The logits of scored token {self._count + int(bad[0])} are not finite "
                    f"({bad.size} of {part.shape[1]} tokens in this tile).",
                    "finite logits from the reference and from the folder that is evaluated",
                    "set target.float_type=fp32; if it stays so, fetch the checkpoint again",
                )
            )
        return part


def _tiles(rows: int, vocab_size: int) -> Iterator[slice]:
    step = max(1, TILE_VALUES // vocab_size)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _score(
    reference: torch.Tensor, candidate: torch.Tensor, next_tokens: torch.Tensor
) -> torch.Tensor:
    """kld, nll, nll_reference and same_top of one tile, float64 [4, T]."""
    import torch

    base = reference.double().log_softmax(-1)
    log_q = candidate.double().log_softmax(-1)
    column = next_tokens.unsqueeze(-1)
    nll = -log_q.gather(-1, column).squeeze(-1)
    nll_base = -base.gather(-1, column).squeeze(-1)
    same_top = (reference.argmax(-1) == candidate.argmax(-1)).double()
    kld = (base.exp() * base.sub(log_q)).sum(-1)
    return torch.stack([kld, nll, nll_base, same_top])


def _mean(values: Floats) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def _exponential(logarithm: Estimate) -> Estimate:
    value = float(np.exp(logarithm.value))
    return Estimate(value, value * logarithm.error)


def _root_mean_square(values: Floats) -> Estimate:
    square = _mean(values**2)
    root = float(np.sqrt(square.value))
    return Estimate(root, 0.5 * square.error / root if root else 0.0)


def _correlation(first: Floats, second: Floats) -> float:
    """Pearson's r; 0 where one side is constant and it has no meaning."""
    first, second = first - first.mean(), second - second.mean()
    product = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / product if product else 0.0


def _percentiles(values: Floats, percentages: tuple[float, ...]) -> dict[str, float]:
    found = np.percentile(values, percentages)
    return {_percentile_name(p): float(v) for p, v in zip(percentages, found, strict=True)}


def _percentile_name(percentage: float) -> str:
    return {100.0: "max", 50.0: "median", 0.0: "min"}.get(percentage, f"{percentage:g}%")


def _perplexity_rows(statistics: KLStatistics) -> list[tuple[str, str]]:
    return [
        ("tokens scored", str(statistics.tokens)),
        ("PPL(Q)", str(statistics.ppl)),
        ("PPL(base)", str(statistics.ppl_reference)),
        ("Cor(ln PPL(Q), ln PPL(base))", f"{100 * statistics.ppl_correlation:.2f} %"),
        ("ln(PPL(Q)/PPL(base))", str(statistics.ln_ppl_ratio)),
        ("PPL(Q)/PPL(base)", str(statistics.ppl_ratio)),
        ("PPL(Q)-PPL(base)", str(statistics.ppl_difference)),
        ("", ""),
    ]


def _kld_rows(statistics: KLStatistics) -> list[tuple[str, str]]:
    percentiles = statistics.kld_percentiles.items()
    rows = [(f"KLD {name}", f"{value:.6f}") for name, value in percentiles]
    return [("KLD mean", str(statistics.kld)), *rows, ("", "")]


def _delta_p_rows(statistics: KLStatistics) -> list[tuple[str, str]]:
    percentiles = statistics.delta_p_percentiles.items()
    rows = [(f"Δp {name}", f"{100 * value:.3f} %") for name, value in percentiles]
    return [
        ("Δp mean", _percent(statistics.delta_p)),
        *rows,
        ("Δp RMS", _percent(statistics.delta_p_rms)),
        ("same top token", _percent(statistics.same_top)),
    ]


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.3f} ± {100 * estimate.error:.3f} %"

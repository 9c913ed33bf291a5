"""The statistics against llama.cpp's own output and a direct float64 computation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from converter.errors import ConvertError
from converter.evaluation import statistics as evaluation
from converter.evaluation.reference_file import (
    ReferenceFile,
    ReferenceHeader,
    write_reference,
)
from converter.evaluation.statistics import KLAccumulator, summarize

# What llama.cpp's `kl_divergence` (tools/perplexity/perplexity.cpp, compiled on its own, version
# of llama-cpp-python 0.3.36) printed for the logits of `waves`. Δp and percentages are divided
# by 100 here. It keeps the reference in 16 bits and leaves out p < exp(-16).
LLAMA_CPP = {
    "ppl": (36.270798, 2.025921),
    "ppl_reference": (33.844790, 1.270924),
    "ln_ppl_ratio": (0.069228, 0.036330),
    "ppl_ratio": (1.071680, 0.038934),
    "ppl_difference": (2.426008, 1.333791),
    "kld": (0.086813, 0.000681),
    "delta_p": (0.00180, 0.00128),
    "delta_p_rms": (0.01567, 0.00088),
    "same_top": (0.29333, 0.03730),
}
LLAMA_CPP_KLD = {
    "max": 0.107325,
    "99.9%": 0.106893,
    "99%": 0.104262,
    "95%": 0.102007,
    "90%": 0.098122,
    "median": 0.086434,
    "10%": 0.075118,
    "5%": 0.073417,
    "1%": 0.069534,
    "0.1%": 0.067556,
    "min": 0.067446,
}
LLAMA_CPP_DELTA_P = {
    "max": 4.842,
    "99.9%": 4.661,
    "99%": 3.491,
    "95%": 3.043,
    "90%": 2.532,
    "75%": 1.148,
    "median": 0.087,
    "25%": -0.889,
    "10%": -1.767,
    "5%": -2.190,
    "1%": -2.846,
    "0.1%": -3.083,
    "min": -3.103,
}


def waves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits that need no random generator: reference, candidate [150, 300], tokens [150]."""
    t, v = np.arange(150)[:, None], np.arange(300)[None]
    reference = 4 * np.sin(t * 1.7 + v * v * 0.013) + 3 * np.cos(v * 0.9 - t * 0.31)
    reference = reference.astype(np.float32)
    candidate = (reference + 0.6 * np.sin(v * 2.3 + t * t * 0.07)).astype(np.float32)
    ranks = 299 - (np.arange(150) * 7) % 23
    tokens = np.argsort(reference, axis=1)[np.arange(150), ranks]
    return torch.from_numpy(reference), torch.from_numpy(candidate), torch.from_numpy(tokens)


def noisy(
    rows: int = 90, vocab_size: int = 1000
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    reference = 5 * torch.randn(rows, vocab_size, generator=generator)
    candidate = reference + 0.4 * torch.randn(rows, vocab_size, generator=generator) + 11.0
    return reference, candidate, torch.randint(vocab_size, (rows,), generator=generator)


def scored(*arguments: torch.Tensor) -> KLAccumulator:
    accumulator = KLAccumulator()
    accumulator.add(*arguments)
    return accumulator


def test_statistics_are_those_that_llama_cpp_prints() -> None:
    result = scored(*waves()).result()
    for name, (value, error) in LLAMA_CPP.items():
        estimate = getattr(result, name)
        # Sixteen bits cost its PPL(base), of about 34, the sixth digit.
        tolerance = 2e-4 if name in ("ppl_reference", "ppl_difference") else 2e-5
        assert estimate.value == pytest.approx(value, abs=tolerance), name
        assert estimate.error == pytest.approx(error, abs=tolerance / 4), name
    assert result.ppl_correlation == pytest.approx(0.7652, abs=1e-4)
    assert result.kld_percentiles == pytest.approx(LLAMA_CPP_KLD, abs=6e-5)
    delta_p = {name: 100 * value for name, value in result.delta_p_percentiles.items()}
    assert delta_p == pytest.approx(LLAMA_CPP_DELTA_P, abs=2e-3)


def test_values_equal_torch_kl_div_and_cross_entropy() -> None:
    reference, candidate, tokens = noisy()
    values = scored(reference, candidate, tokens).values()
    base, log_q = reference.double().log_softmax(-1), candidate.double().log_softmax(-1)
    divergence = torch.nn.functional.kl_div(log_q, base, reduction="none", log_target=True)
    nll = torch.nn.functional.cross_entropy(candidate.double(), tokens, reduction="none")
    nll_reference = torch.nn.functional.cross_entropy(base, tokens, reduction="none")
    np.testing.assert_allclose(values.kld, divergence.sum(-1).numpy(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(values.nll, nll.numpy(), rtol=1e-12)
    np.testing.assert_allclose(values.nll_reference, nll_reference.numpy(), rtol=1e-12)
    same = (reference.argmax(-1) == candidate.argmax(-1)).numpy()
    np.testing.assert_array_equal(values.same_top, same)


def test_ratio_error_is_the_covariance_corrected_one() -> None:
    values = scored(*noisy()).values()
    covariance = np.cov(values.nll, values.nll_reference, ddof=1) / len(values.nll)
    expected = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    result = summarize(values)
    assert result.ln_ppl_ratio.error == pytest.approx(expected, rel=1e-9)
    assert result.ln_ppl_ratio.error < result.ppl.error / result.ppl.value


def test_tiles_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = noisy()
    whole = scored(*arguments).values()
    monkeypatch.setattr(evaluation, "TILE_VALUES", 7000)
    parts = KLAccumulator()
    for rows in (slice(0, 1), slice(1, 50), slice(50, 90)):
        parts.add(*(tensor[rows] for tensor in arguments))
    np.testing.assert_allclose(parts.values().kld, whole.kld, rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(parts.values().same_top, whole.same_top)


def test_a_model_compared_with_itself() -> None:
    reference, _, tokens = noisy()
    result = scored(reference, reference - 3.0, tokens).result()
    assert abs(result.kld.value) < 1e-12
    assert result.same_top.value == 1.0
    assert result.ppl_ratio.value == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_logit_that_is_not_finite_is_an_error_with_its_token(bad: float) -> None:
    reference, candidate, tokens = noisy()
    accumulator = scored(reference, candidate, tokens)
    candidate[41, 3] = bad
    with pytest.raises(ConvertError, match="scored token 131 are not finite"):
        accumulator.add(reference, candidate, tokens)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    reference, candidate, tokens = noisy()
    with pytest.raises(ValueError, match="do not belong together"):
        KLAccumulator().add(reference, candidate[:, :-1], tokens)


def test_one_token_has_no_error_bar() -> None:
    reference, candidate, tokens = noisy(rows=1)
    with pytest.raises(ConvertError, match="1 token"):
        scored(reference, candidate, tokens).result()


def test_json_and_table() -> None:
    result = scored(*waves()).result()
    assert json.loads(json.dumps(result.to_json()))["kld"]["value"] == result.kld.value
    table = result.table()
    assert "KLD mean                      0.086" in table
    assert "same top token                29.333 ± 3.730 %" in table


def stored(path: Path, reference: torch.Tensor, tokens: torch.Tensor, chunks: int) -> ReferenceFile:
    positions = len(reference) // chunks
    header = ReferenceHeader("key", chunks, positions, reference.shape[1])
    with write_reference(path, header) as writer:
        for rows, following in zip(
            reference.split(positions), tokens.split(positions), strict=True
        ):
            writer.add(rows, following)
    return ReferenceFile(path, "key")


def test_the_stored_reference_keeps_the_divergence(tmp_path: Path) -> None:
    reference, candidate, tokens = noisy(vocab_size=3001)
    file = stored(tmp_path / "cache" / "base.kld", reference, tokens, chunks=3)
    accumulator = KLAccumulator()
    for index, (rows, following) in enumerate(
        zip(candidate.split(30), tokens.split(30), strict=True)
    ):
        chunk = file.chunk(index)
        accumulator.add(
            chunk.logits, rows, following, reference_top=chunk.top, reference_nll=chunk.nll
        )
    exact = scored(reference, candidate, tokens).values()
    read = accumulator.values()
    assert np.abs(read.kld - exact.kld).max() < 1e-4
    assert abs(read.kld.mean() - exact.kld.mean()) < 5e-6
    np.testing.assert_allclose(read.nll_reference, exact.nll_reference, rtol=1e-6)
    np.testing.assert_array_equal(read.same_top, exact.same_top)
    size = (tmp_path / "cache" / "base.kld").stat().st_size
    assert size < 2 * reference.numel() + 90 * 16 + 512

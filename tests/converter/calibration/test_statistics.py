"""Statistics of the float model: those that transformers' own layers see, gathered once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import llama_of

from converter.calibration.calibrate import calibrate
from converter.calibration.inputs import Inputs
from converter.calibration.statistics import FloatStatistics, read_inputs, write_inputs
from converter.calibration.tokens import CalibrationTokens
from converter.model.decoder import Decoder
from converter.model.reference import Reference
from converter.storage.cache import Cache

WORDS = ["calibration.tokens=256", "calibration.sequence_length=32", "source.dtype=float32"]
FLOAT = [*WORDS, "calibration.inputs=float", "quant.embedding.bits=16"]
READERS = {
    "attention": "self_attn.q_proj",
    "output": "self_attn.o_proj",
    "feed_forward": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@pytest.fixture
def decoder(build: Callable[..., Any]) -> Decoder:
    found: Decoder = build(until="layout")
    return found


def nothing(done: int, total: int, detail: str) -> None:
    pass


def codes(result: Any, name: str, rows: int) -> torch.Tensor:
    found: torch.Tensor = result.roundings[name](0, rows).codes
    return found


def test_they_are_what_transformers_linears_read(decoder: Decoder, tmp_path: Path) -> None:
    ids = torch.arange(3, 99).reshape(3, 32)
    reference = Reference(decoder)
    weights = torch.rand(3, 32) + 0.5
    statistics = FloatStatistics(
        reference,
        CalibrationTokens(ids, held=1),
        lambda name, index: weights[index],
        Cache(tmp_path),
        {},
        nothing,
    )
    model, seen = llama_of(decoder.checkpoint), dict[str, list[torch.Tensor]]()
    modules = dict(model.named_modules())
    for stage, reader in READERS.items():
        for layer in range(2):
            modules[f"model.layers.{layer}.{reader}"].register_forward_pre_hook(
                lambda _, given, key=f"{layer}.{stage}": seen.setdefault(key, []).append(given[0])
            )
    modules["lm_head"].register_forward_pre_hook(
        lambda _, given: seen.setdefault("head", []).append(given[0])
    )
    for row in ids:
        model(row[None])
    found = {f"{n}.{stage}": x for n in range(2) for stage, x in statistics.layer(n).items()}
    for key, inputs in {**found, "head": statistics.head()}.items():
        x = [(v[0] * w.sqrt()[:, None]).double() for v, w in zip(seen[key], weights, strict=True)]
        expected = x[0].T @ x[0] + x[1].T @ x[1]
        assert (inputs.hessian - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert inputs.held is not None
        assert (inputs.held - x[2]).abs().max() <= 1e-5 * x[2].abs().max()


@pytest.mark.slow
def test_variants_share_them(
    decoder: Decoder,
    make_recipe: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, loaded = Cache(tmp_path), list[int]()
    layer = Reference.layer

    def noted(self: Reference, index: int) -> Any:
        loaded.append(index)
        return layer(self, index)

    monkeypatch.setattr(Reference, "layer", noted)
    calibrate(make_recipe("quant=gptq", *FLOAT), decoder, cache, nothing)
    assert loaded == [0, 1]
    for words in (["quant=gptq", "quant.block_size=16"], ["quant=awq"], ["quant=search"]):
        calibrate(make_recipe(*words, *FLOAT), decoder, cache, nothing)
    assert loaded == [0, 1]


@pytest.mark.slow
def test_the_first_linears_are_rounded_alike_either_way(
    decoder: Decoder, make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    # Nothing has been rounded before them, so the choice makes no difference there.
    cache, results = Cache(tmp_path), []
    for choice in ("float", "rounded"):
        recipe = make_recipe("quant=gptq", *FLOAT, f"calibration.inputs={choice}")
        results.append(calibrate(recipe, decoder, cache, nothing))
    first, last = "layers.0.qkv_proj", "layers.1.down_proj"
    assert torch.equal(*(codes(result, first, 16) for result in results))
    assert not torch.equal(*(codes(result, last, 16) for result in results))


@pytest.mark.slow
def test_a_stopped_run_goes_on(
    decoder: Decoder, make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make_recipe("quant=gptq", *FLOAT)
    whole = calibrate(recipe, decoder, Cache(tmp_path / "whole"), nothing)

    def stop(done: int, total: int, detail: str) -> None:
        if "statistics, layer 2" in detail:
            raise InterruptedError

    cache = Cache(tmp_path / "stopped")
    with pytest.raises(InterruptedError):
        calibrate(recipe, decoder, cache, stop)
    assert len(list(cache.entries())) == 1
    resumed = calibrate(recipe, decoder, cache, nothing)
    for name in whole.forms:
        assert torch.equal(codes(resumed, name, 16), codes(whole, name, 16))


def test_dividing_them_is_dividing_the_inputs(tmp_path: Path) -> None:
    x, held, scales = torch.randn(64, 24), torch.randn(8, 24), torch.rand(24) + 0.5
    found, expected = Inputs(24), Inputs(24)
    found.add(x)
    found.hold(held)
    write_inputs(tmp_path, {"down": found})
    found = read_inputs(tmp_path, "down")
    found.divide(scales)
    expected.add(x / scales)
    expected.hold(held / scales)
    assert torch.allclose(found.hessian, expected.hessian, rtol=1e-4, atol=1e-4)
    weight = torch.randn(5, 24)
    rounded = weight.round()
    errors = [inputs.relative_error(weight, rounded) for inputs in (found, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)

"""The parts of calibration, against transformers and plain computations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.calibration.calibrate import calibrate, fast_bfloat16
from converter.errors import ConvertError
from converter.model.decoder import Decoder
from converter.storage.cache import Cache
from converter.weights.weight import TensorWeight

WORDS = ["calibration.tokens=256", "calibration.sequence_length=32", "source.dtype=float32"]


def nothing(done: int, total: int, detail: str) -> None:
    pass


def codes(result: Any, name: str) -> torch.Tensor:
    rows = sum(result.weights[part].shape[0] for part in parts(name))
    found: torch.Tensor = result.roundings[name](0, rows).codes
    return found


def parts(name: str) -> list[str]:
    stem, _, kind = name.rpartition(".")
    return [f"{stem}.{x}_proj" for x in "qkv"] if kind == "qkv_proj" else [name]


@pytest.mark.slow
def test_budgets_share_no_formats_in_the_cache(
    decoder: Decoder, make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """What decides the formats is not all in the scheme: so they are in the layers' key."""
    found = []
    for words in (["5", "4"], ["4.6", "4"], ["5", "0"], ["5", "4"]):
        choice = [f"quant.bits_per_weight={words[0]}", f"quant.accuracy_level={words[1]}"]
        recipe = make_recipe("quant=gptq", *choice, *WORDS, bias=True)
        shared = calibrate(recipe, decoder, Cache(tmp_path / "shared"), nothing)
        alone = calibrate(recipe, decoder, Cache(tmp_path / "-".join(words)), nothing)
        assert shared.forms == alone.forms
        found.append(shared.forms)
    assert found[0] != found[1] and found[0] == found[3]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["calibration.seed=1"], ["calibration.sequence_length=64"]])
def test_other_tokens_and_gradients_are_other_entries(
    decoder: Decoder, make_recipe: Callable[..., Any], tmp_path: Path, words: list[str]
) -> None:
    for more in ([], words):
        recipe = make_recipe("quant=best", *WORDS, *more, bias=True)
        shared = calibrate(recipe, decoder, Cache(tmp_path / "shared"), nothing)
    alone = calibrate(recipe, decoder, Cache(tmp_path / "alone"), nothing)
    for name in alone.forms:
        assert torch.equal(codes(shared, name), codes(alone, name))


@pytest.mark.slow
def test_threads_only_change_the_order_of_sums(
    decoder: Decoder, make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    found = []
    for threads in (1, 2):
        recipe = make_recipe("quant=best", f"threads={threads}", *WORDS, bias=True)
        found.append(calibrate(recipe, decoder, Cache(tmp_path / str(threads)), nothing))
    assert [item.threads for item in found] == [1, 2]
    again = calibrate(recipe, decoder, Cache(tmp_path / "1"), nothing)
    assert again.threads == 1  # its layers were made before, on one thread
    for one, two in zip(*(item.errors for item in found), strict=True):
        assert one.after == pytest.approx(two.after, rel=0.05)
    first = "layers.0.qkv_proj"  # later ones are rounded against codes that differ already
    same = (codes(found[0], first) == codes(found[1], first)).float().mean()
    assert same > 0.995  # sums in another order may flip a code that lies on an edge


class Stopped(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("keep_hidden", [True, False])
def test_a_stopped_run_goes_on_and_gives_the_same_bytes(
    decoder: Decoder, make_recipe: Callable[..., Any], tmp_path: Path, keep_hidden: bool
) -> None:
    recipe = make_recipe("quant=best", "quant.smooth=awq", *WORDS, bias=True)
    whole = calibrate(recipe, decoder, Cache(tmp_path / "whole"), nothing)
    cache, seen = Cache(tmp_path / "stopped"), list[str]()

    def stop(done: int, total: int, detail: str) -> None:
        if "layer 2/2 o_proj" in detail:
            raise Stopped

    with pytest.raises(Stopped):
        calibrate(recipe, decoder, cache, stop)
    if not keep_hidden:
        for entry in cache.entries():
            if "hidden" in entry.key["entry"]:
                cache.remove(entry.name)
    resumed = calibrate(recipe, decoder, cache, lambda _d, _t, detail: seen.append(detail))
    assert not any("layer 1/2" in detail for detail in seen)
    for name in whole.forms:
        assert torch.equal(codes(resumed, name), codes(whole, name))
    assert not any("hidden" in entry.key["entry"] for entry in cache.entries())
    seen.clear()
    calibrate(recipe, decoder, cache, lambda _d, _t, detail: seen.append(detail))
    assert seen == []


@contextmanager
def raises(text: str) -> Iterator[None]:
    with pytest.raises(ConvertError) as caught:
        yield
    assert text in str(caught.value)


@pytest.mark.parametrize("quant", ["gptq", "best"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layers.1.up_proj", "layers.1.up_proj has NaN"),
        ("lm_head", "lm_head has NaN"),
        ("norm", "norm"),
        ("embed_tokens", "activations of"),
    ],
)
def test_nan_weights_are_named(
    decoder: Decoder,
    make_recipe: Callable[..., Any],
    tmp_path: Path,
    quant: str,
    name: str,
    expected: str,
) -> None:
    broken = decoder.weights[name].read().clone()
    broken.view(-1)[5::7] = float("nan")
    weights = {**decoder.weights, name: TensorWeight(broken, name)}
    recipe = make_recipe(f"quant={quant}", *WORDS, bias=True)
    with raises(expected):
        calibrate(recipe, replace(decoder, weights=weights), Cache(tmp_path), nothing)


def test_activations_out_of_range_name_their_layer(
    decoder: Decoder, make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    huge = torch.full(decoder.weights["layers.1.attn_norm"].shape, 3e30)
    weights = {**decoder.weights, "layers.1.attn_norm": TensorWeight(huge)}
    recipe = make_recipe("quant=gptq", *WORDS, bias=True)
    with raises("activations of layer 1 (attention)"):
        calibrate(recipe, replace(decoder, weights=weights), Cache(tmp_path), nothing)


@pytest.mark.parametrize("quant", ["awq", "best"])
def test_inputs_that_are_always_zero_work(
    decoder: Decoder, make_recipe: Callable[..., Any], tmp_path: Path, quant: str
) -> None:
    zero = torch.zeros(decoder.weights["layers.0.ffn_norm"].shape)
    weights = {**decoder.weights, "layers.0.ffn_norm": TensorWeight(zero)}
    recipe = make_recipe(f"quant={quant}", *WORDS, bias=True)
    found = calibrate(recipe, replace(decoder, weights=weights), Cache(tmp_path), nothing)
    name = "layers.0.down_proj"
    form, rows = found.forms[name], decoder.architecture.hidden_size
    values = found.roundings[name](0, rows).dequantize(form)
    difference = values - decoder.weights[name].read().float()
    assert difference.norm() < 0.2 * values.norm()


@pytest.mark.parametrize(
    ("found", "fast"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"cpu_name": "Intel(R) Xeon(R)", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"cpu_name": "Intel(R) Xeon(R)", "avx512_bf16": True, "amx_bf16": True}, True),
        ({}, False),
    ],
)
def test_bfloat16_is_fast_where_it_was_measured_to_be(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert fast_bfloat16() is fast

"""The parts of calibration, against transformers and plain computations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import llama_of

from converter.calibration.calibrate import calibrate, fast_bfloat16
from converter.calibration.fisher import read_fisher, write_fisher
from converter.calibration.folds import apply_folds, folds_of
from converter.calibration.inputs import Inputs
from converter.calibration.layer import LayerStages
from converter.calibration.tokens import CalibrationTokens
from converter.errors import ConvertError
from converter.model.decoder import Decoder
from converter.model.reference import Reference
from converter.quantization.rtn import BlockFormat, quantize_rtn
from converter.storage.cache import Cache
from converter.weights.spill import Spill
from converter.weights.weight import TensorWeight

WORDS = ["calibration.tokens=256", "calibration.sequence_length=32", "source.dtype=float32"]


@pytest.fixture
def decoder(build: Callable[..., Any], synthetic_biases: None) -> Decoder:
    found: Decoder = build(until="layout", bias=True)
    return found


def nothing(done: int, total: int, detail: str) -> None:
    pass


def codes(result: Any, name: str) -> torch.Tensor:
    rows = sum(result.weights[part].shape[0] for part in parts(name))
    found: torch.Tensor = result.roundings[name](0, rows).codes
    return found


def parts(name: str) -> list[str]:
    stem, _, kind = name.rpartition(".")
    return [f"{stem}.{x}_proj" for x in "qkv"] if kind == "qkv_proj" else [name]


def test_folds_leave_the_logits_equal(decoder: Decoder) -> None:
    arch, generator = decoder.architecture, torch.Generator().manual_seed(0)
    ids, weights = torch.arange(3, 43)[None], dict(decoder.weights)
    channels = {"value": arch.num_key_value_heads * arch.head_dim, "up": arch.intermediate_size}
    for name in (*(f"layers.{layer}" for layer in range(arch.num_hidden_layers)), "lm_head"):
        scales = {}
        for fold in folds_of(name):
            count = channels.get(fold.name, arch.hidden_size)
            scales[fold.name] = torch.empty(count).uniform_(0.2, 5, generator=generator)
        weights = apply_folds(weights, name, scales, arch)
    folded = Reference(arch, weights)
    found = folded.logits(folded.hidden_states(ids))
    expected = llama_of(decoder.checkpoint)(ids).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    for name in ("layers.0.o_proj", "norm", "lm_head"):
        assert not torch.equal(weights[name].read(), decoder.weights[name].read())


def test_stages_compute_what_transformers_layer_does(decoder: Decoder) -> None:
    reference = Reference(decoder.architecture, decoder.weights)
    hidden = torch.randn(1, 20, decoder.architecture.hidden_size)
    with reference.layer(0) as module:
        expected = reference.run_layer(module, hidden)
        stages = LayerStages(reference, module, 0)
        with torch.no_grad():
            context = stages.output_input(stages.attention_input(hidden))
            middle = stages.after_attention(hidden, context)
            product = stages.down_input(stages.feed_forward_input(middle))
            found = stages.after_feed_forward(middle, product)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("columns", [24, 1100])
def test_hessian_is_the_weighted_gram_matrix(columns: int) -> None:
    x, weights, inputs = torch.randn(60, columns), torch.rand(60), Inputs(columns)
    for rows in (slice(0, 13), slice(13, 60)):
        inputs.add(x[rows], weights[rows])
    expected = x.double().T @ (x.double() * weights.double()[:, None])
    assert torch.allclose(inputs.hessian.double(), expected, atol=1e-3)


def test_error_on_held_back_tokens_is_that_of_their_outputs() -> None:
    inputs, x, weight = Inputs(32), torch.randn(50, 32), torch.randn(7, 32)
    inputs.add(torch.randn(10, 32))
    inputs.hold(x)
    form = BlockFormat(4, 32, True)
    rounded = quantize_rtn(weight, form).dequantize(form)
    expected = (
        (x @ weight.T - x @ rounded.T).square().sum() / (x @ weight.T).square().sum()
    ).item()
    assert inputs.relative_error(weight, rounded) == pytest.approx(expected, rel=1e-4)


def test_spilled_tensors_come_back(tmp_path: Path) -> None:
    spill, values = Spill(tmp_path, 3, (1, 4, 5), torch.bfloat16), torch.randn(3, 1, 4, 5)
    for index in (2, 0, 1):
        spill[index] = values[index]
    spill.save(tmp_path / "copy")
    other = Spill(tmp_path, 3, (1, 4, 5), torch.bfloat16)
    other.load(tmp_path / "copy")
    for index in range(3):
        assert torch.equal(other[index], values[index].bfloat16())


def test_gradients_are_those_of_the_whole_model(decoder: Decoder, tmp_path: Path) -> None:
    """The layer-by-layer backward pass against autograd through transformers' whole model."""
    reference = Reference(decoder.architecture, decoder.weights)
    ids = torch.arange(3, 35).view(2, 16)
    write_fisher(tmp_path, reference, ids, 7, nothing)
    fisher = read_fisher(tmp_path)
    model, outputs = llama_of(decoder.checkpoint), dict[str, torch.Tensor]()
    module = model.model.layers[0].mlp.down_proj
    module.register_forward_hook(lambda _m, _i, out: outputs.__setitem__("down", out))
    generator, squares = torch.Generator().manual_seed(7), []
    for row in ids:
        logits = model(row[None]).logits[0]
        labels = torch.multinomial(logits.softmax(-1).detach(), 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        squares.append(torch.autograd.grad(loss, outputs["down"])[0][0].square())
    whole = torch.stack(squares)
    tokens = whole.sum(-1) / whole.sum(-1).mean()
    assert torch.allclose(fisher.tokens["layers.0.down"], tokens, rtol=2e-3)
    rows = whole.sum((0, 1)) / ids.numel()
    assert torch.allclose(fisher.rows["layers.0.down_proj"], rows, rtol=2e-3)


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


def test_inputs_do_not_depend_on_how_tokens_are_batched() -> None:
    x, one, many = torch.randn(96, 40), Inputs(40), Inputs(40)
    one.add(x)
    for row in x.split(7):
        many.add(row)
    assert torch.allclose(one.hessian, many.hessian, rtol=1e-5, atol=1e-4)


def test_batches_cover_all_sequences_and_keep_the_held_back_apart() -> None:
    tokens = CalibrationTokens(torch.zeros(13, 512, dtype=torch.int64), held=2)
    narrow, wide = tokens.batches(1536), tokens.batches(14336)
    assert wide == [slice(index, index + 1) for index in range(13)]
    assert [index for part in narrow for index in range(13)[part]] == list(range(13))
    assert all(part.stop <= 11 or part.start >= 11 for part in narrow)
    assert max(part.stop - part.start for part in narrow) > 1
    assert [tokens.judges(part) for part in wide] == [False] * 11 + [True] * 2
    other = CalibrationTokens(tokens.ids.view(26, 256), held=2)
    assert tokens.digest != other.digest


class Stopped(Exception):
    pass


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
    huge = torch.full(decoder.weights["layers.1.input_layernorm"].shape, 3e30)
    weights = {**decoder.weights, "layers.1.input_layernorm": TensorWeight(huge)}
    recipe = make_recipe("quant=gptq", *WORDS, bias=True)
    with raises("activations of layer 1 (attention)"):
        calibrate(recipe, replace(decoder, weights=weights), Cache(tmp_path), nothing)


@pytest.mark.parametrize("quant", ["awq", "best"])
def test_inputs_that_are_always_zero_work(
    decoder: Decoder, make_recipe: Callable[..., Any], tmp_path: Path, quant: str
) -> None:
    zero = torch.zeros(decoder.weights["layers.0.post_attention_layernorm"].shape)
    weights = {**decoder.weights, "layers.0.post_attention_layernorm": TensorWeight(zero)}
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

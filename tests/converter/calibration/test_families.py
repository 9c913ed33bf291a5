"""Calibration of every dense family, against transformers' own whole model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, random_model, save, token_ids
from parity import read, relative

from converter.calibration.fisher import read_fisher, write_fisher
from converter.calibration.folds import apply_folds, folds_of
from converter.calibration.layer import STAGES, LayerStages, stage_problems
from converter.graph.quantized_operators import quantized_graph
from converter.graph.template import build_graph
from converter.model.cache_ranges import cache_ranges
from converter.model.decoder import Decoder
from converter.model.reference import Reference
from converter.model.tensor_kinds import NORMS
from converter.recipe.schema import Recipe
from converter.weights.weight import TensorWeight

pytestmark = pytest.mark.slow
IDS = token_ids()


@lru_cache(maxsize=2)
def of(name: str) -> tuple[Any, Decoder, Recipe]:
    """transformers' model of a family, the decoder of what it saves, and the recipe."""
    model = random_model(FAMILIES[name])
    with TemporaryDirectory() as folder:
        decoder, recipe = read(save(model, Path(folder)), FAMILIES[name].architecture)
        for weight in decoder.weights.values():
            weight.read()
        weights = {
            key: TensorWeight(value.read().clone(), value.label)
            for key, value in decoder.weights.items()
        }
    if decoder.weights["lm_head"] is decoder.weights["embed_tokens"]:
        weights["lm_head"] = weights["embed_tokens"]
    decoder = Decoder(decoder.architecture, weights, decoder.checkpoint, (), decoder.layout)
    return model, decoder, recipe


def modules_of(model: Any, decoder: Decoder, number: int) -> dict[str, tuple[Any, Any]]:
    """transformers' own modules of a layer's linears, and the rows that each part has."""
    prefix = decoder.layout.layer_prefix.replace("{layer}", str(number))
    inner = next(
        (name for name in ("language_model", "text_model") if hasattr(model.base_model, name)), None
    )
    if inner is not None:
        prefix = prefix.replace("model.", f"model.{inner}.", 1)
    places = Reference(decoder).places
    return {
        part: (
            model.get_submodule(prefix + places[part].name.removesuffix(".weight")),
            places[part].rows,
        )
        for parts in STAGES.values()
        for part in parts
        if part in places and f"layers.{number}.{part}" in decoder.weights
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_see_what_the_whole_model_gives_its_linears(name: str) -> None:
    model, decoder, _ = of(name)
    assert not [*stage_problems(decoder, "quant=rtn")]
    expected: dict[tuple[int, str], torch.Tensor] = {}
    hooks = []
    for number in range(decoder.architecture.num_hidden_layers):
        for part, (module, _) in modules_of(model, decoder, number).items():

            def look(_m: Any, args: Any, key: tuple[int, str] = (number, part)) -> None:
                expected[key] = args[0].reshape(1, -1, args[0].shape[-1])

            hooks.append(module.register_forward_pre_hook(look))
    with torch.no_grad():
        logits = model(IDS, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    reference = Reference(decoder)
    hidden = reference.embed(IDS)
    with torch.no_grad():
        for number in range(decoder.architecture.num_hidden_layers):
            with reference.layer(number) as module:
                stages = LayerStages(reference, module, number)
                context = stages.output_input(hidden)
                attended = stages.attended(context)
                found = {"attention": stages.attention_input(hidden), "output": context}
                together, whole = stages.run(hidden)
                if stages.has_experts:
                    for stage in stages.stages[2:]:
                        found[stage] = stages.shared_input(stage, hidden, attended)
                    hidden = stages.behind_attention(hidden, attended)
                else:
                    found["feed_forward"] = stages.feed_forward_input(hidden, attended)
                    found["down"] = stages.down_input(hidden, attended)
                    hidden = stages.result(hidden, attended, stages.fed(found["down"]))
                assert relative(hidden, whole) < 1e-6
            for stage in stages.stages:
                for part in STAGES[stage]:
                    if (number, part) in expected:
                        assert relative(found[stage], expected[number, part]) < 1e-5, (number, part)
                        assert relative(together[stage], expected[number, part]) < 1e-5
        assert relative(reference.logits(hidden), logits) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    model, decoder, _ = of(name)
    reference, outputs = Reference(decoder), dict[str, tuple[torch.Tensor, Any]]()
    write_fisher(tmp_path, reference, IDS, 7, lambda *_: None)
    fisher, hooks = read_fisher(tmp_path), []
    for number in range(decoder.architecture.num_hidden_layers):
        for part, (module, rows) in modules_of(model, decoder, number).items():
            where = f"{number}.{part}"

            def look(_m: Any, _a: Any, out: Any, where: str = where, rows: Any = rows) -> None:
                outputs[where] = (out, rows)

            hooks.append(module.register_forward_hook(look))
    head = model.get_output_embeddings()
    hooks.append(head.register_forward_hook(lambda _m, _a, out: outputs.update(head=(out, None))))
    embedding = model.get_input_embeddings()  # so that something asks for gradients
    hooks.append(embedding.register_forward_hook(lambda _m, _a, out: out.requires_grad_(True)))
    logits = model(IDS, use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    generator = torch.Generator().manual_seed(7)
    labels = torch.multinomial(logits.softmax(-1).detach(), 1, generator=generator)[:, 0]
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    names = [key for key in outputs if key != "head"]
    found = torch.autograd.grad(loss, [outputs[key][0] for key in names])
    squares = {}
    for key, gradient in zip(names, found, strict=True):
        rows = outputs[key][1]
        own = gradient if rows is None else gradient[..., rows]
        squares[key] = own.reshape(-1, own.shape[-1]).square()
    for key, square in squares.items():
        expected = square.mean(0)
        assert relative(fisher.rows[f"layers.{key}"], expected) < 5e-3, key
    for number in range(decoder.architecture.num_hidden_layers):
        for stage, parts in STAGES.items():
            inside = [f"{number}.{part}" for part in parts if f"{number}.{part}" in squares]
            if not inside:
                continue
            sums = torch.stack([squares[key].sum(-1) for key in inside]).sum(0)
            weights = fisher.tokens[f"layers.{number}.{stage}"]
            assert relative(weights[0], sums / sums.mean()) < 5e-3, (number, stage)


@pytest.mark.parametrize("name", FAMILIES)
def test_folds_leave_the_logits_of_the_reference_and_reach_the_graph(name: str) -> None:
    model, decoder, recipe = of(name)
    generator, weights = torch.Generator().manual_seed(0), dict(decoder.weights)
    arch, changed = decoder.architecture, set()
    weights["lm_head"] = TensorWeight(decoder.weights["lm_head"].read())
    for place in (*(f"layers.{number}" for number in range(arch.num_hidden_layers)), "lm_head"):
        for fold in folds_of(place, decoder):
            prefix = "" if place == "lm_head" else f"{place}."
            count = decoder.weights[prefix + fold.producer].shape[0]
            scales = torch.empty(count).uniform_(0.3, 3, generator=generator)
            weights = apply_folds(weights, place, {fold.name: scales}, decoder)
            changed.add(fold.name)
    assert "value" in changed
    with torch.no_grad():
        expected = model(IDS, use_cache=False).logits
    reference = Reference(decoder, weights)
    states = reference.hidden_states(IDS)
    assert relative(reference.logits(states), expected) < 1e-4
    # Norms and biases of the graph come from the folded weights, its matrices from a rounding.
    plain = build_graph(decoder, recipe)

    quantized_graph(plain, recipe, SimpleNamespace(weights=weights, forms={}, roundings={}))
    own = Decoder(arch, weights, decoder.checkpoint, (), decoder.layout)
    constants = {str(v.name): v.const_value for v in plain.model.graph.initializers.values()}
    compared: list[str] = []
    for value in build_graph(own, recipe).model.graph.initializers.values():
        label = str(value.name)
        if value.const_value is not None and len(value.shape or ()) == 1 and "layer" in label:
            other = constants[label]
            assert other is not None
            a, b = torch.from_numpy(value.const_value.numpy()), torch.from_numpy(other.numpy())
            assert torch.allclose(a, b, atol=1e-6), label
            compared.append(label)
    assert compared or not any(fold.producer in NORMS for fold in folds_of("layers.0", decoder))


@pytest.mark.parametrize("name", FAMILIES)
def test_cache_ranges_hold_what_the_whole_model_stores(name: str) -> None:
    model, decoder, _ = of(name)
    arch = decoder.architecture
    found = cache_ranges(Reference(decoder), IDS, lambda *_: None)
    with torch.no_grad():
        cache = model(IDS, use_cache=True).past_key_values
    for number in range(arch.num_hidden_layers):
        keys, values = cache.layers[number].keys, cache.layers[number].values
        largest = keys[0].abs().amax(1)
        assert bool((largest <= found[number].key * 1.0001).all())
        assert float((found[number].key / largest.clamp(min=1e-6)).max()) < 40
        if arch.attention.windows[number] is None:
            assert torch.allclose(values[0].abs().amax(1), found[number].value, rtol=1e-4)

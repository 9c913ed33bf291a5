from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime_genai")

from converter.calibration.tokens import calibration_tokens
from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.evaluation.runtime_logits import folder_logits
from converter.model.cache_ranges import CacheRanges, cache_ranges
from converter.model.reference import Reference

PASSES = ["load", "layout", "graph", "quantize", "kv_cache", "package", "verify"]
SHORT = ["calibration.tokens=256", "calibration.sequence_length=64"]


@pytest.fixture
def convert(make_recipe: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, *words: str) -> Path:
        recipe = make_recipe(*SHORT, *words)
        recipe.output = str(tmp_path / name)
        return run_recipe(recipe, make_passes(PASSES))

    return run


def rounded(values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """What int8 with 127 levels up to `largest` makes of values."""
    scale = largest / 127
    return (values / scale).round().clamp(-128, 127) * scale


def reference_logits(
    graph: Any, ranges: Sequence[CacheRanges], ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> torch.Tensor:
    """transformers' logits with keys (rotated) and values rounded to int8."""
    from transformers.models.llama import modeling_llama

    reference = Reference(graph.decoder, graph.shipped)
    rotate, hidden = modeling_llama.apply_rotary_pos_emb, reference.embed(ids)
    for number, found in enumerate(ranges):

        def rotated(*args: Any, largest: torch.Tensor = found.key[:, None]) -> Any:
            query, key = rotate(*args)
            return query, rounded(key, largest)

        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotated)
        with reference.layer(number) as module:
            module.get_submodule("self_attn.v_proj").register_forward_hook(
                lambda _module, _given, values, largest=found.value: rounded(
                    values, largest.flatten()
                )
            )
            hidden = reference.run_layer(module, hidden)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotate)
    return reference.logits(hidden)[0]


def test_logits_are_those_of_the_reference_with_rounded_keys_and_values(
    convert: Callable[..., Path],
    build: Callable[..., Any],
    make_recipe: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, graph = convert("int8", "target.kv_cache=int8"), build()
    tokens = calibration_tokens(graph.decoder, make_recipe(*SHORT).calibration)
    reference = Reference(graph.decoder, graph.shipped)
    ranges = cache_ranges(reference, tokens.ids, lambda done, total, detail: None)
    ids = np.arange(3, 99, dtype=np.int64)[None]
    found = torch.from_numpy(next(iter(folder_logits(folder, ids))))
    expected = reference_logits(graph, ranges, torch.from_numpy(ids), monkeypatch)
    plain = reference.logits(reference.hidden_states(torch.from_numpy(ids)))[0]
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert 1e-3 * plain.norm() < (found - plain).norm() < 0.1 * plain.norm()


def test_the_runtime_generates_with_int8_caches_and_shares_their_buffer(
    convert: Callable[..., Path],
) -> None:
    import onnxruntime_genai as og

    folder = convert("int8", "quant=rtn", "target.kv_cache=int8", "verify=standard")
    facts = json.loads((folder / "convert.lock.json").read_text())["facts"]
    assert facts["verify"]["relative_error"] < 0.1
    assert facts["kv_cache"]["tokens"] == 256
    parameters = og.GeneratorParams(model := og.Model(str(folder)))
    parameters.set_search_options(max_length=40, min_length=40)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.arange(3, 13, dtype=np.int32))
    generator.generate_next_token()
    cache = generator.get_output("present.1.value")
    # The whole buffer, not the tokens so far: it is appended in place.
    assert (cache.dtype, cache.shape) == (np.int8, (1, 2, 40, 16))


def test_ranges_hold_the_rotated_keys_at_every_position(build: Callable[..., Any]) -> None:
    from transformers import DynamicCache

    graph = build(num_hidden_layers=1)
    reference = Reference(graph.decoder, graph.shipped)
    ids = torch.arange(3, 67)[None]
    (found,) = cache_ranges(reference, ids, lambda done, total, detail: None)
    cache, hidden = DynamicCache(), reference.embed(ids)
    with reference.layer(0) as module:
        reference.run_layer(module, hidden, cache)
    keys, values = cache.layers[0].keys[0].abs(), cache.layers[0].values[0].abs()
    assert (keys.amax(1) <= found.key * (1 + 1e-5)).all()
    assert (keys.amax(1) >= found.key / 2).float().mean() > 0.9
    torch.testing.assert_close(values.amax(1), found.value)


def test_providers_on_which_it_was_not_checked_are_refused(make_recipe: Callable[..., Any]) -> None:
    with pytest.raises(ConvertError, match=r"target\.kv_cache=float"):
        make_recipe("target=cuda", "target.kv_cache=int8")

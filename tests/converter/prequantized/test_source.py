"""Every quantized format: its values, its codes to the bit, and the logits of the whole graph."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, expected_logits, random_model, save, token_ids
from parity import read, relative, run, session_of
from prequantized import FORMATS, Matrix, quantize_folder, quantize_tensors
from safetensors.torch import load_file, save_file

from converter.errors import ConvertError, Problem
from converter.graph.names import MATRIX
from converter.graph.quantized_operators import quantized_graph
from converter.graph.source_codes import KEPT, source_facts
from converter.graph.template import build_graph
from converter.model.architecture import read_architecture
from converter.model.checkpoint import Checkpoint
from converter.model.decoder import build_decoder
from converter.quantization.coded_weight import CodedWeight, StoredWeight, stored_forms
from converter.weights.weight import ComputedWeight, TensorWeight, Weight

FAMILY = "llama"


def quantized_llama(folder: Path, form: str) -> tuple[Any, Any, Any, dict[str, Matrix]]:
    """A tiny Llama's decoder and recipe, transformers' model with the same values, its matrices."""
    model = random_model(FAMILIES[FAMILY])
    save(model, folder)
    matrices = quantize_folder(folder, FORMATS[form])
    with torch.no_grad():
        for name, matrix in matrices.items():
            model.get_submodule(name).weight.copy_(matrix.values)
    decoder, recipe = read(folder, FAMILY)
    return decoder, recipe, model, matrices


@pytest.mark.parametrize("form", FORMATS)
def test_the_values_are_those_that_were_packed(tmp_path: Path, form: str) -> None:
    decoder, _, _, matrices = quantized_llama(tmp_path, form)
    places = {"self_attn.": "", "mlp.": ""}
    for name, matrix in matrices.items():
        canonical = name.removeprefix("model.")
        for part in places:
            canonical = canonical.replace(part, "")
        weight = decoder.weights[canonical]
        assert isinstance(weight, StoredWeight)
        assert isinstance(weight, CodedWeight) == FORMATS[form].kept
        torch.testing.assert_close(weight.read(), matrix.values, rtol=1e-6, atol=1e-9)
        assert torch.equal(weight.rows(5, 17), weight.read()[5:17])
    (count,) = stored_forms(decoder.weights.values()).values()
    assert count == len(matrices)


def with_quant(recipe: Any, **settings: Any) -> Any:
    return replace(recipe, quant=replace(recipe.quant, round="rtn", **settings))


def node_parts(graph: Any, matrix: str) -> list[np.ndarray]:
    """What the initializers of a matrix's node hold; scales behind a cast as they are stored."""
    node = next(n for n in graph.model.graph if n.metadata_props.get(MATRIX) == matrix)
    found = []
    for value in node.inputs[1:]:
        cast = value.producer()
        held = cast.inputs[0] if cast is not None else value
        found.append(held.const_value.numpy())
    return found


def unpack4(packed: np.ndarray, count: int) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], -1).reshape(packed.shape[0], -1)[:, :count]


@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if form.kept])
def test_kept_codes_scales_and_zero_points_are_the_sources_to_the_bit(
    tmp_path: Path, form: str
) -> None:
    decoder, recipe, _, matrices = quantized_llama(tmp_path, form)
    recipe = with_quant(recipe, bits=8)
    graph = quantized_graph(build_graph(decoder, recipe), recipe)
    for name in ("layers.1.self_attn.o_proj", "layers.2.mlp.down_proj"):
        matrix = matrices[f"model.{name}"]
        canonical = name.replace("self_attn.", "").replace("mlp.", "")
        codes, scales, *points = node_parts(graph, canonical)
        rows, columns = matrix.codes.shape
        bits = 4 if matrix.codes.max() < 16 else 8
        plain = codes.reshape(rows, -1)
        plain = unpack4(plain, columns) if bits == 4 else plain
        assert np.array_equal(plain, matrix.codes)
        block = columns // scales.shape[1]
        assert str(scales.dtype) == str(matrix.scales.dtype).removeprefix("torch.")
        expected = matrix.scales[:, matrix.groups[::block]]
        assert scales.tobytes() == expected.contiguous().view(torch.uint8).numpy().tobytes()
        zeros = matrix.zeros[:, matrix.groups[::block]]
        assert bool(points) == bool((zeros != 1 << (bits - 1)).any())
        if points:
            found = unpack4(points[0], zeros.shape[1]) if bits == 4 else points[0]
            assert np.array_equal(found, zeros)


@pytest.mark.parametrize("form", FORMATS)
def test_the_graph_computes_what_transformers_computes_on_the_same_values(
    tmp_path: Path, form: str
) -> None:
    decoder, recipe, model, _ = quantized_llama(tmp_path, form)
    whole, _ = expected_logits(model)
    if FORMATS[form].kept:
        # Embedding and head stay in float, so the kept codes are all that is quantized.
        quant = with_quant(recipe, bits=8, accuracy_level=1).quant
        left = replace(quant.lm_head, bits=16)
        recipe = replace(recipe, quant=replace(quant, lm_head=left, embedding=left))
        graph = quantized_graph(build_graph(decoder, recipe), recipe)
    else:
        graph = build_graph(decoder, recipe)
    ids = token_ids()
    found, _ = run(session_of(graph, tmp_path), ids, {}, ids.shape[1])
    assert relative(found, whole) < 2e-5


@pytest.mark.parametrize(
    ("form", "settings", "reason"),
    [
        ("gptq_8_bits", {"bits": 4, "block_size": 16}, "the recipe asks for 4 bits"),
        ("gptq", {"source": "requantize", "block_size": 16}, "quant.source=requantize"),
        ("gptq_act_order", {"block_size": 16}, "groups of columns that no block of MatMulNBits"),
        ("nf4", {"block_size": 16}, "not the values of nf4"),
        ("fp8_rows", {"block_size": 16}, "not float8"),
    ],
)
def test_what_cannot_be_kept_is_rounded_again_and_counted(
    tmp_path: Path, form: str, settings: dict[str, Any], reason: str
) -> None:
    decoder, recipe, _, _ = quantized_llama(tmp_path, form)
    recipe = with_quant(recipe, **settings)
    (counts,) = source_facts(recipe, decoder).values()
    ((fate, count),) = counts.items()
    assert reason in fate and count == 5 * 3
    graph = quantized_graph(build_graph(decoder, recipe), recipe)
    node = next(n for n in graph.model.graph if n.metadata_props.get(MATRIX) == "layers.0.o_proj")
    assert node.attributes["block_size"].value == 16 and node.attributes["bits"].value == 4


def test_parts_of_several_formats_are_rounded_again_together(tmp_path: Path) -> None:
    """qkv is one matrix of the graph; with k in 8 bits its codes cannot stand in one."""
    decoder, recipe, _, _ = quantized_llama(tmp_path, "gptq")
    other, _, _, _ = quantized_llama(tmp_path / "other", "gptq_8_bits")
    mixed = {**decoder.weights, "layers.1.k_proj": other.weights["layers.1.k_proj"]}
    facts = source_facts(with_quant(recipe, bits=8), replace(decoder, weights=mixed))
    assert sum(counts.get(KEPT, 0) for counts in facts.values()) == 5 * 3 - 1
    assert any("several formats" in fate for counts in facts.values() for fate in counts)


@pytest.mark.parametrize("form", FORMATS)
def test_the_fused_projection_of_internlm2_is_split_in_its_codes(
    make_recipe: Any, form: str
) -> None:
    from converter.sources.synthetic import open_synthetic

    recipe = make_recipe()
    synthetic = open_synthetic(recipe)
    arch = read_architecture(synthetic.config, recipe)
    tensors = {name: weight.read().float() for name, weight in synthetic.tensors.items()}
    plain = dict(tensors)
    matrices = quantize_tensors(tensors, FORMATS[form], ("wqkv", "wo", "w1", "w2", "w3"))
    plain |= {f"{name}.weight": matrix.values for name, matrix in matrices.items()}
    config = {**synthetic.config, "quantization_config": FORMATS[form].section}

    def decoder(config: Any, tensors: Any) -> Any:
        held = {name: TensorWeight(torch.atleast_1d(x), name) for name, x in tensors.items()}
        return build_decoder(Checkpoint(config, held, {}), recipe.layout, arch)

    expected, found = decoder(synthetic.config, plain), decoder(config, tensors)
    assert set(found.weights) == set(expected.weights)
    for name, weight in found.weights.items():
        torch.testing.assert_close(
            weight.read().float(), expected.weights[name].read(), rtol=1e-6, atol=1e-9
        )
        if name.endswith("_proj"):
            assert isinstance(weight, CodedWeight) == FORMATS[form].kept
    if FORMATS[form].kept:
        quantized = with_quant(recipe, bits=8)
        graph = quantized_graph(build_graph(found, quantized), quantized)
        rows = {n: graph.shipped[n].read() for n in graph.shipped if n.endswith("_proj")}
        for name, values in rows.items():
            torch.testing.assert_close(values, expected.weights[name].read(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMATS)
def test_headers_say_what_a_repository_holds_before_it_is_fetched(
    tmp_path: Path, form: str
) -> None:
    decoder, recipe, _, _ = quantized_llama(tmp_path, form)
    checkpoint = decoder.checkpoint
    far = {name: not_here(weight) for name, weight in checkpoint.tensors.items()}
    remote = build_decoder(replace(checkpoint, tensors=far), recipe.layout, decoder.architecture)
    for name, weight in decoder.weights.items():
        assert remote.weights[name].shape == weight.shape
        assert isinstance(remote.weights[name], CodedWeight) == isinstance(weight, CodedWeight)


def not_here(weight: Weight) -> Weight:
    def compute(start: int, stop: int) -> torch.Tensor:
        raise ConvertError(Problem("It was not fetched.", "weights here", "fetch them"))

    return ComputedWeight(weight.shape, weight.dtype, compute, weight.label)


def test_settings_of_single_modules_and_of_none_are_followed(tmp_path: Path) -> None:
    """GPTQModel's `dynamic`: k in 8 bits and groups of 16, v left in float."""
    model = random_model(FAMILIES[FAMILY])
    save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    matrices = quantize_tensors(tensors, FORMATS["gptq"], ("q_proj", "o_proj"))
    matrices |= quantize_tensors(tensors, FORMATS["gptq_8_bits"], ("k_proj",))
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    config = json.loads((tmp_path / "config.json").read_text())
    dynamic = {r"-:.*v_proj": {}, r"+:.*k_proj$": {"bits": 8, "group_size": 16}}
    config["quantization_config"] = {**FORMATS["gptq"].section, "dynamic": dynamic}
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoder, _ = read(tmp_path, FAMILY)
    for name, matrix in matrices.items():
        found = decoder.weights[name.removeprefix("model.").replace("self_attn.", "")]
        torch.testing.assert_close(found.read(), matrix.values, rtol=1e-6, atol=1e-9)
    assert not isinstance(decoder.weights["layers.0.v_proj"], StoredWeight)
    forms = stored_forms(decoder.weights.values())
    assert forms == {"GPTQ (4 bits, groups of 32)": 6, "GPTQ (8 bits, groups of 16)": 3}


def test_schemes_of_compressed_tensors_are_found_by_their_targets(tmp_path: Path) -> None:
    model = random_model(FAMILIES[FAMILY])
    save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    matrices = quantize_tensors(tensors, FORMATS["compressed"], ("q_proj",))
    matrices |= quantize_tensors(tensors, FORMATS["compressed_8_bits"], ("down_proj",))
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    config = json.loads((tmp_path / "config.json").read_text())
    first, second = (
        FORMATS[name].section["config_groups"]["group_0"]
        for name in ("compressed", "compressed_8_bits")
    )
    groups = {
        "group_0": {**first, "targets": [r"re:.*q_proj$"]},
        "group_1": {**second, "targets": [name for name in matrices if "down_proj" in name]},
    }
    groups["group_1"]["input_activations"] = {"num_bits": 8, "dynamic": True}
    section = {**FORMATS["compressed"].section, "config_groups": groups}
    config["quantization_config"] = section
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoder, _ = read(tmp_path, FAMILY)
    for name, matrix in matrices.items():
        canonical = name.removeprefix("model.").replace("self_attn.", "").replace("mlp.", "")
        found = decoder.weights[canonical]
        torch.testing.assert_close(found.read(), matrix.values, rtol=1e-6, atol=1e-9)
    assert any("activations have no effect" in note for note in decoder.notes)


@pytest.mark.parametrize("form", ["gptq", "awq", "nf4"])
def test_quantized_experts_are_dequantized_into_their_stacks(tmp_path: Path, form: str) -> None:
    """A layer's experts are one matrix of the graph, so their codes do not stay; attention's do."""
    model = random_model(FAMILIES["mixtral"])
    save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    plain = dict(tensors)
    ends = ("w1", "w2", "w3", "q_proj", "k_proj", "v_proj", "o_proj")
    matrices = quantize_tensors(tensors, FORMATS[form], ends)
    plain |= {f"{name}.weight": matrix.values for name, matrix in matrices.items()}
    decoder, recipe = read(tmp_path, "mixtral")
    held = [
        {name: TensorWeight(torch.atleast_1d(x), name) for name, x in each.items()}
        for each in (plain, tensors)
    ]
    config = {**decoder.checkpoint.config, "quantization_config": FORMATS[form].section}
    expected, found = (
        build_decoder(
            replace(decoder.checkpoint, config=own, tensors=own_tensors),
            recipe.layout,
            decoder.architecture,
        )
        for own, own_tensors in zip((decoder.checkpoint.config, config), held, strict=True)
    )
    for name, weight in expected.weights.items():
        torch.testing.assert_close(
            found.weights[name].read(), weight.read(), rtol=1e-6, atol=1e-9, msg=name
        )
    assert sum(found.stored.values()) == len(matrices)
    counts = source_facts(with_quant(recipe, block_size=16), found)
    ((stored, fates),) = counts.items()
    assert stored.startswith(next(iter(found.stored)))
    assert sum(fates.values()) == 3 * (2 + 2)  # qkv and o, and two stacks of experts
    assert any("experts" in fate for fate in fates)

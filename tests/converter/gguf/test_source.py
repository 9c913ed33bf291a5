"""GGUF models as checkpoints: logits against transformers', and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from command import TINY_SIZES
from conftest import TINY_CONFIG
from descriptions import described
from families import FAMILIES, TOKENS, Family, expected_logits, random_model, token_ids
from gguf import GGMLQuantizationType as Kind
from gguf_files import QUANTIZABLE, SIZES, gguf_tensors, neighbours, tiny_llama, write_gguf
from oracle import llama_of
from parity import relative, run, session_of

from converter.errors import ConvertError
from converter.gguf.source import find_gguf, open_gguf
from converter.graph.graph import Graph
from converter.graph.names import MATRIX
from converter.graph.quantized_operators import quantized_graph
from converter.graph.source_codes import KEPT, source_facts
from converter.graph.template import build_graph
from converter.model.architecture import read_architecture
from converter.model.checkpoint import Checkpoint
from converter.model.decoder import Decoder, build_decoder
from converter.model.reference import Reference
from converter.quantization.coded_weight import CodedWeight, stored_forms
from converter.recipe.schema import Recipe
from converter.sources.gguf import gguf_source
from converter.sources.synthetic import random_weight
from converter.weights.weight import TensorWeight


def all_logits(name: str) -> Recipe:
    recipe = described(name)
    return replace(recipe, graph=replace(recipe.graph, last_token_logits=False))


def opened(path: Path, name: str = "llama") -> tuple[Decoder, Recipe]:
    model, recipe = find_gguf(path), all_logits(name)
    assert model is not None
    checkpoint = open_gguf(model, recipe)
    arch = read_architecture(checkpoint.config, recipe)
    return build_decoder(checkpoint, recipe.layout, arch), recipe


def logits(graph: Graph, folder: Path) -> torch.Tensor:
    return run(session_of(graph, folder), token_ids(), {}, TOKENS)[0]


def round_as_stored(model: Any, tensors: dict[str, Any], kind: str, form: str) -> None:
    """Put into a model what its tensors are once they have been stored as `kind`."""
    block, _ = gguf.GGML_QUANT_SIZES[Kind[kind]]
    rounded = {
        name: gguf.quants.dequantize(gguf.quants.quantize(values, Kind[kind]), Kind[kind])
        if values.ndim == 2 and values.shape[1] % block == 0 and kind != "F32"
        else values
        for name, values in tensors.items()
    }
    back = gguf_tensors(model, form)
    assert back.keys() == rounded.keys()
    config = model.config
    with torch.no_grad():
        for (name, parameter), stored in zip(_stored(model), rounded.values(), strict=True):
            values = torch.from_numpy(np.array(stored))
            if form == "llama" and ".q_proj." in name:
                values = halves(values, config.num_attention_heads)
            if form == "llama" and ".k_proj." in name:
                values = halves(values, config.num_key_value_heads)
            if form == "gemma" and name.endswith("norm.weight"):
                values = values - 1
            parameter.copy_(values)


def _stored(model: Any) -> list[tuple[str, torch.Tensor]]:
    tied = model.config.tie_word_embeddings
    return [(n, p) for n, p in model.state_dict().items() if not (tied and n.startswith("lm_head"))]


def halves(values: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `neighbours`."""
    order = neighbours(torch.arange(len(values)), heads)
    return values[torch.argsort(order)]


ROPE_32 = {"attention.key_length": 32, "attention.value_length": 32}
FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", {}),
    "llama_attention_bias": ("llama", "llama", ROPE_32),
    "llama_tied": ("llama", "llama", ROPE_32),
    "qwen2": ("qwen2", "plain", {}),
    "phi3": ("phi3", "plain", {}),
    "gemma2": ("gemma2", "gemma", ROPE_32 | {"attention.sliding_window": 8}),
    "granite": (
        "granite",
        "llama",
        {"attention.scale": 0.0625, "embedding_scale": 12.0}
        | {"residual_scale": 0.22, "logit_scale": 8.0},
    ),
}
"""Families: llama.cpp's architecture, the form of its tensors, further metadata."""


def family_file(path: Path, name: str, kind: str) -> tuple[Path, Any, Family]:
    """A family's file, and its model in transformers with the values that the file holds."""
    architecture, form, more = FORMS[name]
    family = FAMILIES[name]
    if name == "gemma2":  # llama.cpp's scale of scores is that of a head's width
        family = replace(family, settings=family.settings | {"query_pre_attn_scalar": 32})
    model = random_model(family)
    metadata = SIZES | {"attention.layer_norm_rms_epsilon": model.config.rms_norm_eps} | more
    tensors = gguf_tensors(model, form)
    write_gguf(path / "model.gguf", architecture, metadata, tensors, kind)
    round_as_stored(model, tensors, kind, form)
    return path / "model.gguf", model, family


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", FORMS)
def test_logits_are_those_of_transformers_on_the_dequantized_weights(
    tmp_path: Path, name: str, kind: str
) -> None:
    path, model, family = family_file(tmp_path, name, kind)
    decoder, recipe = opened(path, family.architecture)
    whole, _ = expected_logits(model)
    assert relative(logits(build_graph(decoder, recipe), tmp_path), whole) < 1e-5
    reference = Reference(decoder)
    states = reference.hidden_states(token_ids())
    assert relative(reference.logits(states)[0], whole) < 1e-5


@pytest.mark.parametrize("kind", QUANTIZABLE)
def test_logits_from_every_type(tmp_path: Path, kind: str) -> None:
    path, model, _ = family_file(tmp_path, "llama", kind)
    decoder, recipe = opened(path)
    whole, _ = expected_logits(model)
    assert relative(logits(build_graph(decoder, recipe), tmp_path), whole) < 1e-5


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q5_0", 8), ("Q8_0", 8)])
def test_codes_are_kept_where_the_recipe_has_the_bits(tmp_path: Path, kind: str, bits: Any) -> None:
    path, _, _ = family_file(tmp_path, "llama", kind)
    decoder, recipe = opened(path)
    table = replace(recipe.quant.lm_head, bits=bits)
    quant = replace(recipe.quant, round="rtn", bits=bits, lm_head=table, embedding=table)
    recipe = replace(recipe, quant=quant)
    # 3 layers: qkv, o, gate and up; the embedding and the head. The 112 columns of down_proj are
    # no blocks of 32, so it is float32 in the file.
    assert source_facts(recipe, decoder) == {f"GGUF {kind}": {KEPT: 14}}
    graph = quantized_graph(build_graph(decoder, recipe), recipe)
    held = {name: w for name, w in decoder.weights.items() if isinstance(w, CodedWeight)}
    assert len(held) == 3 * 6 + 2
    for name, weight in held.items():
        assert torch.equal(graph.shipped[name].read(), weight.read())
    node = next(n for n in graph.model.graph if n.metadata_props.get(MATRIX) == "lm_head")
    scales = node.inputs[2].producer()  # type: ignore[union-attr]
    assert scales is not None and scales.op_type == "Cast"
    stored = scales.inputs[0].const_value.numpy()  # type: ignore[union-attr]
    packed = held["lm_head"].packed(0, 160)
    assert stored.dtype == np.float16 and np.array_equal(stored, packed.scales.numpy())


@pytest.mark.parametrize(
    ("kind", "bits", "fate"),
    [
        ("Q8_0", 4, "rounded again: the recipe asks for 4 bits"),
        ("Q4_1", 4, "rounded again: MatMulNBits cannot hold Q4_1"),
    ],
)
def test_what_becomes_of_other_codes(tmp_path: Path, kind: str, bits: Any, fate: str) -> None:
    decoder, recipe = opened(tiny_llama(tmp_path / "a.gguf", kind))
    table = replace(recipe.quant.lm_head, bits=bits)
    quant = replace(recipe.quant, round="rtn", bits=bits, lm_head=table, embedding=table)
    assert source_facts(replace(recipe, quant=quant), decoder) == {f"GGUF {kind}": {fate: 14}}


EXPERTS = {"expert_count": 6, "expert_used_count": 3, "expert_feed_forward_length": 48}


def test_experts_are_taken_out_of_their_stacks(tmp_path: Path) -> None:
    model = random_model(FAMILIES["qwen3_moe"])
    tensors, metadata = gguf_tensors(model, "plain"), SIZES | ROPE_32 | EXPERTS
    path = write_gguf(tmp_path / "a.gguf", "qwen3moe", metadata, tensors)
    decoder, recipe = opened(path, "qwen3_moe")
    whole, _ = expected_logits(model)
    assert relative(logits(build_graph(decoder, recipe), tmp_path), whole) < 1e-5


def test_quantized_experts_are_dequantized_one_by_one(tmp_path: Path) -> None:
    tensors = gguf_tensors(random_model(FAMILIES["qwen3_moe"]), "plain")
    metadata = SIZES | ROPE_32 | EXPERTS
    path = write_gguf(tmp_path / "a.gguf", "qwen3moe", metadata, tensors, "Q8_0")
    decoder, _ = opened(path, "qwen3_moe")
    for part in ("gate", "up"):
        packed = gguf.quants.quantize(tensors[f"blk.1.ffn_{part}_exps.weight"], Kind.Q8_0)
        expected = torch.from_numpy(gguf.quants.dequantize(packed, Kind.Q8_0))
        for number in range(6):
            name = f"model.layers.1.mlp.experts.{number}.{part}_proj.weight"
            assert torch.equal(decoder.checkpoint.tensors[name].read(), expected[number])


def internlm2(folder: Path, kind: str) -> tuple[Path, Checkpoint]:
    """InternLM2 with random weights, published, and as llama.cpp stores it: Q, K and V apart."""
    heads, kv_heads = TINY_SIZES["num_attention_heads"], TINY_SIZES["num_key_value_heads"]
    hidden, inner = TINY_SIZES["hidden_size"], TINY_SIZES["intermediate_size"]
    head_dim = hidden // heads
    rows = (heads + 2 * kv_heads) * head_dim

    def weight(name: str, *shape: int) -> torch.Tensor:
        return random_weight(1, name, shape, torch.float32).read()

    published = {
        "model.tok_embeddings.weight": weight("a", 160, hidden),
        "model.norm.weight": weight("b", hidden),
        "output.weight": weight("c", 160, hidden),
    }
    stored = dict(zip(("token_embd", "output_norm", "output"), published.values(), strict=True))
    for layer in range(TINY_SIZES["num_hidden_layers"]):
        own = {
            "attention_norm": weight(f"{layer}n", hidden),
            "attention.wqkv": weight(f"{layer}w", rows, hidden),
            "attention.wo": weight(f"{layer}o", hidden, hidden),
            "ffn_norm": weight(f"{layer}f", hidden),
            "feed_forward.w1": weight(f"{layer}1", inner, hidden),
            "feed_forward.w3": weight(f"{layer}3", inner, hidden),
            "feed_forward.w2": weight(f"{layer}2", hidden, inner),
        }
        published |= {f"model.layers.{layer}.{name}.weight": v for name, v in own.items()}
        grouped = own["attention.wqkv"].reshape(kv_heads, -1, head_dim, hidden)
        q, k, v = (grouped[:, a:b].reshape(-1, hidden) for a, b in ((0, -2), (-2, -1), (-1, None)))
        names = ("attn_norm", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
        rest = [value for name, value in own.items() if name != "attention.wqkv"]
        parts = dict(zip(names, rest, strict=True)) | {
            "attn_q": neighbours(q, heads),
            "attn_k": neighbours(k, kv_heads),
            "attn_v": v,
        }
        stored |= {f"blk.{layer}.{name}": value for name, value in parts.items()}
    metadata = {
        "block_count": TINY_SIZES["num_hidden_layers"],
        "context_length": TINY_SIZES["max_position_embeddings"],
        "embedding_length": hidden,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    }
    tensors = {f"{name}.weight": value.numpy() for name, value in stored.items()}
    path = write_gguf(folder / "i.gguf", "internlm2", metadata, tensors, kind)
    held = {name: TensorWeight(value) for name, value in published.items()}
    return path, Checkpoint(TINY_CONFIG, held, {})


def test_internlm2_gets_its_fused_matrix_back(tmp_path: Path) -> None:
    path, checkpoint = internlm2(tmp_path, "F32")
    decoder, recipe = opened(path, "internlm2")
    for name, weight in checkpoint.tensors.items():
        assert torch.equal(decoder.checkpoint.tensors[name].read(), weight.read()), name
    with torch.no_grad():
        expected = llama_of(checkpoint)(token_ids()).logits[0]
    assert relative(logits(build_graph(decoder, recipe), tmp_path), expected) < 1e-5


def test_internlm2_keeps_its_codes(tmp_path: Path) -> None:
    path, _ = internlm2(tmp_path, "Q4_0")
    decoder, _ = opened(path, "internlm2")
    for part in ("q", "k", "v", "o"):
        assert isinstance(decoder.weights[f"layers.1.{part}_proj"], CodedWeight)
    assert stored_forms(decoder.weights.values()) == {"GGUF Q4_0": 16}


def test_what_a_checkpoint_says_of_its_source(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf", "Q4_0")
    decoder, _ = opened(path)
    assert decoder.checkpoint.files == (path,) and decoder.checkpoint.folder is None
    assert decoder.checkpoint.origin == {
        "kind": "gguf",
        "file": "tiny.gguf",
        "architecture": "llama",
        "types": "20 Q4_0, 10 F32",
    }


def split(path: Path, count: int = 3) -> list[Path]:
    """A file of `tiny_llama` in several, as the library splits it."""
    model = random_model(FAMILIES["llama"])
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=-(-30 // count))
    from gguf_files import add_value

    for key, value in SIZES.items():
        add_value(writer, f"llama.{key}", value)
    for name, values in gguf_tensors(model).items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob("*.gguf"))


def test_a_split_model_by_any_of_its_files_and_by_its_folder(tmp_path: Path) -> None:
    whole, _ = opened(tiny_llama(tmp_path / "whole.gguf"))
    folder = tmp_path / "split"
    folder.mkdir()
    parts = split(folder / "tiny.gguf")
    assert len(parts) == 3
    for path in (folder, *parts):
        decoder, _ = opened(path)
        assert decoder.checkpoint.files == tuple(parts)
        assert decoder.weights.keys() == whole.weights.keys()
        for name, weight in whole.weights.items():
            assert torch.equal(decoder.weights[name].read(), weight.read())


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = split(tmp_path / "tiny.gguf")
    parts[1].unlink()
    for path in (tmp_path, parts[0], parts[2]):
        with pytest.raises(
            ConvertError, match=r"lacks tiny-00002-of-00003\.gguf of a model"
        ) as caught:
            find_gguf(path)
        assert len(caught.value.problems) == 1


def test_a_part_under_another_name(tmp_path: Path) -> None:
    split(tmp_path / "tiny.gguf")[0].rename(tmp_path / "other.gguf")
    with pytest.raises(ConvertError, match="one of 3 files of a split model"):
        find_gguf(tmp_path / "other.gguf")


def test_a_folder_with_several_models(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a.gguf")
    tiny_llama(tmp_path / "b.gguf")
    with pytest.raises(ConvertError, match=r"2 GGUF models: a\.gguf, b\.gguf"):
        find_gguf(tmp_path)
    (tmp_path / "b.gguf").rename(tmp_path / "mmproj-b.gguf")
    assert find_gguf(tmp_path) is not None


def test_transformers_weights_beside_a_file_come_first(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a.gguf")
    assert gguf_source(tmp_path) is not None
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert gguf_source(tmp_path) is None
    assert gguf_source(tmp_path / "a.gguf") is not None
    assert find_gguf(tmp_path / "nowhere") is None


def test_a_missing_tensor_is_named_as_the_file_names_it(tmp_path: Path) -> None:
    tensors = gguf_tensors(random_model(FAMILIES["llama"]))
    kept = {name: value for name, value in tensors.items() if "ffn_gate" not in name}
    path = write_gguf(tmp_path / "a.gguf", "llama", SIZES, kept)
    with pytest.raises(ConvertError, match=r"blk\.0\.ffn_gate\.weight, and 2 more"):
        opened(path)


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    tensors = gguf_tensors(random_model(FAMILIES["llama"]))
    tensors["blk.0.attn_sinks.weight"] = np.zeros(6, np.float32)
    path = write_gguf(tmp_path / "a.gguf", "llama", SIZES, tensors)
    with pytest.raises(ConvertError, match=r"blk\.0\.attn_sinks\.weight, which has no place"):
        opened(path)


def test_a_recipe_for_another_kind_of_model(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="model_type 'llama'"):
        opened(tiny_llama(tmp_path / "a.gguf"), "gemma2")

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from descriptions import architecture

from converter.errors import ConvertError
from converter.model.architecture import read_architecture
from converter.model.checkpoint import Checkpoint
from converter.model.decoder import build_decoder
from converter.sources.synthetic import open_synthetic
from converter.weights.weight import TensorWeight, Weight


def decode(recipe: Any, config: dict[str, Any], tensors: dict[str, Weight]) -> Any:
    checkpoint = Checkpoint(config, tensors, {})
    return build_decoder(checkpoint, recipe.layout, read_architecture(config, recipe))


@pytest.fixture
def parts(make_recipe: Callable[..., Any]) -> tuple[Any, dict[str, Any], dict[str, Weight]]:
    recipe = make_recipe()
    checkpoint = open_synthetic(recipe)
    return recipe, dict(checkpoint.config), dict(checkpoint.tensors)


def test_every_missing_and_left_over_tensor_is_listed(parts: Any) -> None:
    recipe, config, tensors = parts
    del tensors["model.layers.0.attention.wo.weight"], tensors["model.norm.weight"]
    tensors["model.layers.7.attention.wo.weight"] = TensorWeight(torch.zeros(64, 64))
    tensors["extra.weight"] = TensorWeight(torch.zeros(3))
    with pytest.raises(ConvertError) as caught:
        decode(recipe, config, tensors)
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    for name in ("model.layers.0.attention.wo.weight", "model.norm.weight", "model.layers.7"):
        assert name in text
    assert "extra.weight" in text


def test_a_wrong_head_count_is_found_from_the_shapes(parts: Any) -> None:
    recipe, config, tensors = parts
    with pytest.raises(ConvertError, match=r"wqkv.weight has shape \(128, 64\)") as caught:
        decode(recipe, config | {"num_key_value_heads": 4}, tensors)
    assert "(192, 64)" in str(caught.value)
    assert len(caught.value.problems) == 1 and "1 more of its kind" in str(caught.value)


def test_inverse_frequencies_are_ignored(parts: Any) -> None:
    recipe, config, tensors = parts
    name = "model.layers.0.attention.rotary_emb.inv_freq"
    tensors[name] = TensorWeight(torch.zeros(8))
    assert decode(recipe, config, tensors).ignored == (name,)


def test_integer_weights_are_refused(parts: Any) -> None:
    recipe, config, tensors = parts
    tensors["output.weight"] = TensorWeight(torch.zeros(160, 64, dtype=torch.int8))
    with pytest.raises(ConvertError, match="dtype int8"):
        decode(recipe, config, tensors)


def test_a_bias_must_be_in_every_layer(parts: Any) -> None:
    recipe, config, tensors = parts
    tensors["model.layers.0.attention.wo.bias"] = TensorWeight(torch.zeros(64))
    with pytest.raises(
        ConvertError, match=r"lacks the tensor model\.layers\.1\.attention\.wo\.bias"
    ):
        decode(recipe, config, tensors)


def test_tied_embeddings_serve_as_head(parts: Any) -> None:
    recipe, config, tensors = parts
    with pytest.raises(ConvertError, match=r"lacks the tensor output\.weight"):
        decode(recipe, config, {k: v for k, v in tensors.items() if k != "output.weight"})
    del tensors["output.weight"]
    decoder = decode(recipe, config | {"tie_word_embeddings": True}, tensors)
    assert decoder.weights["lm_head"] is decoder.weights["embed_tokens"]


def test_a_tied_head_that_differs_from_the_embedding_is_kept(parts: Any) -> None:
    recipe, config, tensors = parts
    tied = config | {"tie_word_embeddings": True}
    decoder = decode(recipe, tied, tensors)
    assert not decoder.architecture.tie_word_embeddings and not decoder.ignored
    assert decoder.weights["lm_head"] is tensors["output.weight"]
    tensors["output.weight"] = TensorWeight(tensors["model.tok_embeddings.weight"].read())
    decoder = decode(recipe, tied, tensors)
    assert decoder.weights["lm_head"] is decoder.weights["embed_tokens"]
    last = tensors["output.weight"].read()
    last[-1, -1] += 1
    tensors["output.weight"] = TensorWeight(last)
    assert not decode(recipe, tied, tensors).architecture.tie_word_embeddings


def test_layouts_of_other_families_are_yaml_only(parts: Any) -> None:
    """A Phi-3-like checkpoint: concatenated Q|K|V and a fused gate and up."""
    recipe, config, _tensors = parts
    recipe.layout.layer_tensors = {
        "attn_norm": "input_layernorm.weight",
        "qkv_proj": "self_attn.qkv_proj.weight",
        "o_proj": "self_attn.o_proj.weight",
        "ffn_norm": "post_attention_layernorm.weight",
        "gate_up_proj": "mlp.gate_up_proj.weight",
        "down_proj": "mlp.down_proj.weight",
    }
    recipe.layout.row_order = {"qkv_proj": "[q: kv_head group | k: kv_head | v: kv_head] head_dim"}
    fused = open_synthetic(recipe)
    weights = decode(recipe, config, dict(fused.tensors)).weights
    qkv = fused.tensors["model.layers.1.self_attn.qkv_proj.weight"].read()
    gate_up = fused.tensors["model.layers.1.mlp.gate_up_proj.weight"].read()
    assert torch.equal(weights["layers.1.k_proj"].read(), qkv[64:96])
    assert torch.equal(weights["layers.1.up_proj"].read(), gate_up[96:])


def test_config_problems_come_together(tmp_path: Path) -> None:
    config = {
        "hidden_size": 64,
        "intermediate_size": "big",
        "num_hidden_layers": 0,
        "num_attention_heads": 6,
        "num_key_value_heads": 4,
        "hidden_act": "gelu",
        "rope_scaling": {"type": "yarn", "factor": 0.5},
    }
    with pytest.raises(ConvertError) as caught:
        architecture(config)
    text = str(caught.value)
    for part in ("vocab_size", "'big'", "num_hidden_layers=0", "4 key-value", "factor 0.5"):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"q_nrom": "q"}, "names 'q_nrom', which is no tensor of a decoder"),
        ({"input_layernorm": "x"}, "names 'input_layernorm', which is no tensor of a decoder"),
        ({"o_proj": None}, "does not name o_proj: every decoder has it"),
        ({"q_norm": "attention.q_norm"}, "names q_norm, and graph.attention.qk_norm makes no use"),
    ],
    ids=str,
)
def test_names_of_a_description_must_have_a_use(
    parts: Any, changes: dict[str, Any], said: str
) -> None:
    recipe, config, tensors = parts
    recipe.layout.layer_tensors = {**recipe.layout.layer_tensors, **changes}
    with pytest.raises(ConvertError, match=said):
        decode(recipe, config, tensors)


def test_a_tensor_with_a_place_cannot_be_ignored(parts: Any) -> None:
    recipe, config, tensors = parts
    recipe.layout.ignored = ["*attention_norm*"]
    with pytest.raises(ConvertError, match=r"leaves out .*attention_norm.*decoder's.*attn_norm"):
        decode(recipe, config, tensors)


def test_a_bias_of_a_norm_that_has_none_is_refused(parts: Any) -> None:
    recipe, config, tensors = parts
    bias = TensorWeight(torch.zeros(config["hidden_size"]))
    with pytest.raises(ConvertError, match=r"and graph\.norm\.type is rms"):
        decode(recipe, config, tensors | {"model.norm.bias": bias})


def test_published_weights_undo_what_reading_did(parts: Any) -> None:
    from converter.model.decoder import published_weights

    recipe, config, tensors = parts
    decoder = decode(recipe, config, tensors)
    found = published_weights(decoder, decoder.weights)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name].read(), tensors[name].read()) for name in tensors)

"""config.json from the metadata: what each architecture states, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import SIZES, write_gguf
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from converter.errors import ConvertError
from converter.gguf.architectures import KNOWN
from converter.gguf.source import find_gguf
from converter.model.config_view import transformers_config
from converter.recipe.architectures import architecture_of

TABLE = {"token_embd.weight": np.zeros((160, 96), np.float32)}
EPS = {"attention.layer_norm_epsilon": 1e-5}
HEADS = {"attention.key_length": 32, "attention.value_length": 32}


def config_of(
    path: Path, architecture: Any = "llama", tensors: Any = None, whole: Any = None, **more: Any
) -> dict[str, Any]:
    """config.json of a file with `SIZES` and more metadata; a key that is None is left out."""
    metadata = {key: value for key, value in (SIZES | more).items() if value is not None}
    write_gguf(path / "a.gguf", architecture, metadata, TABLE | (tensors or {}), whole=whole)
    model = find_gguf(path / "a.gguf")
    assert model is not None
    return model.config


@pytest.mark.parametrize("architecture", KNOWN)
def test_every_architecture_has_a_description_and_transformers_takes_its_config(
    tmp_path: Path, architecture: str
) -> None:
    config = config_of(tmp_path, architecture, **{**EPS, **HEADS})
    assert architecture_of(config) is not None
    assert config["hidden_size"] == 96 and config["vocab_size"] == 160
    assert config["num_hidden_layers"] == 3 and config["max_position_embeddings"] == 128
    if architecture != "internlm2":  # which has no class in transformers
        found = transformers_config(config)
        assert found.num_key_value_heads == 2 and found.tie_word_embeddings


def test_a_head_of_its_own_unties(tmp_path: Path) -> None:
    assert config_of(tmp_path)["tie_word_embeddings"] is True
    head = {"output.weight": TABLE["token_embd.weight"]}
    assert config_of(tmp_path, tensors=head)["tie_word_embeddings"] is False


def test_stop_tokens_of_text_turn_and_message(tmp_path: Path) -> None:
    names = ("eos_token_id", "eot_token_id", "eom_token_id", "bos_token_id", "padding_token_id")
    ids = dict(zip((f"tokenizer.ggml.{name}" for name in names), (2, 7, 7, 1, 0), strict=True))
    config = config_of(tmp_path, whole=ids)
    assert config["eos_token_id"] == [2, 7] and config["bos_token_id"] == 1
    assert config["pad_token_id"] == 0
    assert config_of(tmp_path, whole={"tokenizer.ggml.eos_token_id": 5})["eos_token_id"] == 5
    assert config_of(tmp_path)["eos_token_id"] is None


@pytest.mark.parametrize(
    ("base", "columns", "numbers"),
    [
        (500000.0, 128, (8.0, 1.0, 4.0, 8192)),
        (500000.0, 64, (32.0, 1.0, 4.0, 8192)),
        (1000000.0, 128, (16.0, 1.0, 4.0, 8192)),
        (10000.0, 128, (4.0, 1.0, 4.0, 512)),
        (10000.0, 32, (8.0, 1.0, 4.0, 32)),
        (10000.0, 128, (6.0, 0.5, 2.75, 4096)),
    ],
)
def test_llama3s_numbers_are_found_from_the_factors_they_made(
    tmp_path: Path, base: float, columns: int, numbers: tuple[float, float, float, int]
) -> None:
    factor, low, high, original = numbers
    stated = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    plain = 1 / base ** (torch.arange(0, columns, 2).float() / columns)
    scaled = frequencies(base, columns, stated)
    config = config_of(
        tmp_path,
        tensors={"rope_freqs.weight": (plain / scaled).numpy()},
        **{"rope.freq_base": base, "attention.key_length": columns},
        **{"attention.value_length": columns},
    )
    torch.testing.assert_close(
        frequencies(base, columns, config["rope_scaling"]), scaled, rtol=1e-4, atol=0
    )
    if high == 4 * low:
        assert config["rope_scaling"] == stated


def frequencies(base: float, columns: int, scaling: dict[str, Any]) -> torch.Tensor:
    """transformers' own frequencies, float32 (columns / 2,)."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=4 * columns,
        num_attention_heads=4,
        head_dim=columns,
        max_position_embeddings=1 << 17,
        rope_parameters={"rope_theta": base, **scaling},
    )
    found: torch.Tensor = ROPE_INIT_FUNCTIONS["llama3"](config, None)[0]
    return found


def test_factors_that_are_not_llama3s(tmp_path: Path) -> None:
    factors = np.linspace(1, 7, 8).astype(np.float32)
    with pytest.raises(ConvertError, match="no numbers of Llama 3's formula"):
        config_of(tmp_path, tensors={"rope_freqs.weight": factors})
    ones = {"rope_freqs.weight": np.ones(8, np.float32)}
    assert config_of(tmp_path, tensors=ones)["rope_scaling"] is None


def test_longrope(tmp_path: Path) -> None:
    long = np.array([1.1, 2.5, 4, 8, 9, 10, 11, 12], np.float32)
    tensors = {"rope_factors_long.weight": long, "rope_factors_short.weight": long / 4}
    attention = math.sqrt(1 + math.log(128 / 32) / math.log(32))
    keys = {"rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": attention}
    config = config_of(tmp_path, "phi3", tensors, **keys)
    section = config["rope_scaling"]
    assert section["rope_type"] == "longrope" and section["long_factor"][:2] == [1.1, 2.5]
    assert config["original_max_position_embeddings"] == 32
    assert "attention_factor" not in section
    keys["rope.scaling.attn_factor"] = 1.5
    assert config_of(tmp_path, "phi3", tensors, **keys)["rope_scaling"]["attention_factor"] == 1.5
    del tensors["rope_factors_short.weight"]
    with pytest.raises(ConvertError, match=r"lacks the tensor rope_factors_short\.weight"):
        config_of(tmp_path, "phi3", tensors, **keys)


def test_yarn_linear_and_unknown_scalings(tmp_path: Path) -> None:
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    assert config_of(tmp_path, **linear)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert config_of(tmp_path, **{"rope.scale_linear": 2.0})["rope_scaling"]["factor"] == 2.0
    yarn = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.yarn_beta_fast": 16.0,
    }
    assert config_of(tmp_path, "qwen2", **yarn)["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
    }
    assert config_of(tmp_path, **{"rope.scaling.type": "none"})["rope_scaling"] is None
    with pytest.raises(ConvertError, match=r"rope\.scaling\.type='twisted'|twisted"):
        config_of(tmp_path, **{"rope.scaling.type": "twisted"})


def kinds(config: dict[str, Any]) -> str:
    return "".join(kind[0] for kind in config["layer_types"])


def test_windows(tmp_path: Path) -> None:
    keys = {"attention.sliding_window": 8, "block_count": 7}
    assert kinds(config_of(tmp_path, "gemma2", **keys, **HEADS)) == "sfsfsfs"
    assert kinds(config_of(tmp_path, "gemma3", **keys, **HEADS)) == "sssssfs"
    assert kinds(config_of(tmp_path, "cohere2", **keys, **EPS)) == "sssfsss"
    stated = {"attention.sliding_window_pattern": [True, False, False] + [True] * 4}
    assert kinds(config_of(tmp_path, "exaone4", **keys, **stated)) == "sffssss"
    mistral, llama = config_of(tmp_path, **keys), config_of(tmp_path)
    assert (mistral["model_type"], mistral["sliding_window"]) == ("mistral", 8)
    assert llama["model_type"] == "llama" and "sliding_window" not in llama
    assert config_of(tmp_path, "olmo2", **keys)["model_type"] == "olmo3"
    assert config_of(tmp_path, "olmo2")["model_type"] == "olmo2"
    assert "sliding_window" not in config_of(tmp_path, "phi3", **{"attention.sliding_window": 0})
    for architecture in ("exaone4", "gemma3"):
        config = config_of(tmp_path, architecture, **HEADS)
        assert config["sliding_window"] is None and kinds(config) == "fff"
    assert config_of(tmp_path, "gemma2", **HEADS)["sliding_window"] == 4096
    with pytest.raises(ConvertError, match="sliding_window_pattern"):
        config_of(tmp_path, "exaone4", **keys, **{"attention.sliding_window_pattern": [True]})


def test_gemmas_scores_and_bases(tmp_path: Path) -> None:
    small = config_of(tmp_path, "gemma3", **HEADS, **{"attention.sliding_window": 8})
    large = config_of(tmp_path, "gemma3", **HEADS, **{"block_count": 62})
    assert (small["query_pre_attn_scalar"], large["query_pre_attn_scalar"]) == (32, 16)
    assert small["rope_parameters"]["sliding_attention"]["rope_theta"] == 10000
    keys = {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    scaled = config_of(tmp_path, "gemma3", **HEADS, **keys)["rope_parameters"]
    assert scaled["full_attention"] == {
        "rope_type": "linear",
        "factor": 8.0,
        "rope_theta": 1e6,
    }
    capped = config_of(tmp_path, "gemma2", **HEADS, **{"final_logit_softcapping": 20.0})
    assert capped["final_logit_softcapping"] == 20 and "attn_logit_softcapping" not in capped


def test_part_of_a_head_is_rotated(tmp_path: Path) -> None:
    config = config_of(tmp_path, "glm4", **{"rope.dimension_count": 8})
    assert config["partial_rotary_factor"] == 0.5
    assert "partial_rotary_factor" not in config_of(tmp_path, **{"rope.dimension_count": 16})


@pytest.mark.parametrize("columns", range(2, 128, 2))
def test_a_share_gives_its_columns_back(tmp_path: Path, columns: int) -> None:
    from converter.gguf.config import _share

    for head_dim in (48, 80, 98, 112, 128):
        if columns <= head_dim:
            assert int(head_dim * _share(columns, head_dim)) == columns


def test_granites_multipliers(tmp_path: Path) -> None:
    keys = {"attention.scale": 0.5, "embedding_scale": 12.0, "logit_scale": 8.0}
    config = config_of(tmp_path, "granite", **keys)
    assert config["attention_multiplier"] == 0.5 and config["embedding_multiplier"] == 12
    assert config["logits_scaling"] == 8 and "residual_multiplier" not in config


def test_biases_are_those_of_the_tensors(tmp_path: Path) -> None:
    bias = {"blk.0.attn_q.bias": np.zeros(96, np.float32)}
    assert config_of(tmp_path, tensors=bias)["attention_bias"] is True
    assert config_of(tmp_path)["attention_bias"] is False
    assert config_of(tmp_path, "internlm2", tensors=bias)["bias"] is True


def test_a_list_that_is_the_same_for_all_layers_is_a_number(tmp_path: Path) -> None:
    assert config_of(tmp_path, **{"attention.head_count": [6, 6, 6]})["num_attention_heads"] == 6
    with pytest.raises(ConvertError, match="the same for all layers"):
        config_of(tmp_path, **{"attention.head_count": [6, 4, 6]})


@pytest.mark.parametrize(
    ("architecture", "keys", "said"),
    [
        ("granite", {"expert_count": 8}, r"granite\.expert_count=8"),
        ("llama", {"logit_scale": 2.0}, r"llama\.logit_scale=2\.0"),
        ("llama", {"embedding_length": None}, r"no llama\.embedding_length"),
        ("llama", {"attention.layer_norm_rms_epsilon": None}, "no llama.attention.layer_norm_rms"),
        ("llama", {"attention.key_length": 32, "attention.value_length": 16}, "value_length=16"),
        ("llama", {"rope.freq_base": "high"}, "rope.freq_base"),
        ("llama", {"block_count": 0}, "block_count=0"),
        ("mamba", {}, "general.architecture='mamba'|mamba"),
        ("qwen3next", {}, "the nearest: qwen3"),
    ],
)
def test_what_a_file_states_is_used_or_refused(
    tmp_path: Path, architecture: str, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConvertError, match=said) as caught:
        config_of(tmp_path, architecture, **keys)
    assert len(caught.value.problems) == 1


def test_experts(tmp_path: Path) -> None:
    keys = {"expert_count": 8, "expert_used_count": 2}
    mixtral = config_of(tmp_path, **keys)
    assert mixtral["model_type"] == "mixtral" and mixtral["num_local_experts"] == 8
    lengths = {"expert_feed_forward_length": 48, "feed_forward_length": None}
    qwen = config_of(tmp_path, "qwen3moe", **keys, **lengths, **HEADS)
    assert (qwen["num_experts"], qwen["num_experts_per_tok"]) == (8, 2)
    assert qwen["moe_intermediate_size"] == qwen["intermediate_size"] == 48
    assert qwen["norm_topk_prob"] is True
    assert config_of(tmp_path, "olmoe", **keys)["norm_topk_prob"] is False


def test_experts_that_are_none_change_nothing(tmp_path: Path) -> None:
    config_of(tmp_path, **{"expert_count": 0, "expert_used_count": 0, "vocab_size": 160})


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"general\.type"):
        config_of(tmp_path, whole={"general.type": "adapter"})

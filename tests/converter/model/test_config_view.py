"""config.json as transformers' class reads it, and the keys that nothing reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from descriptions import described

from converter.errors import ConvertError
from converter.model import config_view
from converter.model.config_view import (
    CONSUMED,
    transformers_config,
    unread_problems,
    view_config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def unread(name: str, read: set[str], **config: Any) -> str:
    config = SIZES | config
    layout = described(name).layout
    problems = unread_problems(config, view_config(config, layout), layout, read)
    return "\n".join(map(str, problems))


def test_a_class_fills_in_what_the_file_leaves_out() -> None:
    found = view_config(SIZES | {"model_type": "mistral"}, described("mistral").layout).values
    assert (found["sliding_window"], found["num_key_value_heads"]) == (4096, 8)


def test_a_class_turns_old_keys_into_todays() -> None:
    config = SIZES | {"model_type": "llama", "rope_theta": 7.0, "rope_scaling": None}
    found = view_config(config, described("llama").layout).values
    assert found["rope_parameters"]["rope_theta"] == 7.0
    assert {"rope_theta", "rope_scaling"} <= CONSUMED.keys()


def test_a_type_with_a_stand_in_stays_as_it_is() -> None:
    config = SIZES | {"model_type": "internlm2"}
    assert view_config(config, described("internlm2").layout).values is config


def test_infinity_is_read_as_transformers_writes_it() -> None:
    config = {"model_type": "granitemoehybrid"}
    config |= {"time_step_limit": [0.0, {"__float__": "Infinity"}]}  # type: ignore[dict-item]
    assert transformers_config(config).time_step_limit[1] == float("inf")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "no_such"}, "'no_such', which transformers does not know"),
        ({}, "None, which transformers does not know"),
        ({"model_type": "llama", "hidden_size": 65}, "is refused by transformers"),
        ({"model_type": "qwen3", "layer_types": ["odd"] * 2}, "is refused by transformers"),
    ],
    ids=str,
)
def test_what_the_class_refuses_is_a_problem(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConvertError, match=said):
        transformers_config(SIZES | config)


def test_a_read_key_is_none_and_an_unread_one_is() -> None:
    granite = {"model_type": "granite", "residual_multiplier": 0.2}
    known = {*SIZES, "rope_parameters.rope_theta", "hidden_act", "rms_norm_eps", "head_dim"}
    known |= {"num_key_value_heads", "max_position_embeddings", "embedding_multiplier"}
    known |= {"logits_scaling", "attention_multiplier"}
    assert "residual_multiplier=0.2" in unread("llama", known, **granite)
    assert unread("llama", known | {"residual_multiplier"}, **granite) == ""


def test_a_default_of_the_class_counts_like_a_stated_value() -> None:
    known = {*SIZES, "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps"}
    known |= {"max_position_embeddings", "rope_parameters"}
    assert "sliding_window=4096" in unread("llama", known, model_type="mistral")
    assert unread("llama", known, model_type="mistral", sliding_window=None) == ""


def test_many_unread_keys_are_one_problem() -> None:
    config = {f"switch_{n}": n + 1 for n in range(9)}
    layout = described("internlm2").layout
    (problem,) = unread_problems(config, view_config(config, layout), layout, {*SIZES})
    assert "switch_0=1" in problem.found and "and 3 more keys" in problem.found
    assert "layout.without_effect=[switch_0" in problem.remedy


@pytest.mark.parametrize(
    ("entry", "fits"),
    [
        ("mamba_*", True),
        ("mamba_d_conv", True),
        ("mamba_d_conv=4", True),
        ("mamba_d_conv=5", False),
        ("mamba", False),
        ("mamba_d_conv=true", False),
    ],
)
def test_entries_without_effect(entry: str, fits: bool) -> None:
    layout = replace(described("internlm2").layout, without_effect=[entry])
    config = SIZES | {"mamba_d_conv": 4}
    found = list(unread_problems(config, view_config(config, layout), layout, {*SIZES}))
    assert bool(found) is not fits


def test_a_share_of_rotated_columns_must_be_read_wherever_it_stands() -> None:
    for place in ({"partial_rotary_factor": 0.5}, {"rope_scaling": {"partial_rotary_factor": 0.5}}):
        assert "partial_rotary_factor=0.5" in unread("internlm2", {*SIZES, "rope_scaling"}, **place)
    read = {*SIZES, "rope_scaling", "rope_parameters.partial_rotary_factor"}
    assert unread("internlm2", read, rope_scaling={"partial_rotary_factor": 0.5}) == ""


def test_a_view_is_kept_and_taken_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second time transformers is not asked; for another config.json it is."""
    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path))
    config, layout = SIZES | {"model_type": "qwen3"}, described("qwen3").layout
    first = view_config(config, layout)

    def refused(_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(config_view, "transformers_config", refused)
    assert view_config(dict(reversed(config.items())), layout) == first
    assert first.own is not None and "layer_types" in first.own
    with pytest.raises(AssertionError, match="asked again"):
        view_config(config | {"hidden_act": "gelu"}, layout)


def test_without_room_for_a_cache_a_view_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path / "file" / "inside"))
    config = SIZES | {"model_type": "qwen3"}
    assert view_config(config, described("qwen3").layout).values["model_type"] == "qwen3"

"""Wrong values of a JSON file: all at once, each with what is expected."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field

from converter.model.config_file import ConfigFile, GenerationConfigFile
from converter.model.json_schema import LONGEST_SHOWN, JsonFile, shown, value_problems

GOOD = {
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


class Sample(JsonFile):
    """A schema with one required key."""

    size: int = Field(description="a whole number")
    name: str | None = Field(None, description="a name")


def test_null_and_unknown_keys_are_no_problem() -> None:
    assert not list(value_problems(Sample, {"size": 1, "name": None, "other": [1]}, "a.json"))


def test_all_problems_come_at_once_with_what_is_expected() -> None:
    first, second = value_problems(Sample, {"size": None, "name": 3}, "a.json")
    assert (first.found, first.expected) == ("a.json has size=None.", "a whole number")
    assert (second.found, second.expected) == ("a.json has name=3.", "a name")


@pytest.mark.parametrize("value", [1.0, "1", True, [1], {}, float("nan")])
def test_nothing_is_coerced(value: Any) -> None:
    assert list(value_problems(Sample, {"size": value}, "a.json"))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"max_position_embeddings": 2**40},
        {"vocab_size": 10**400},
        {"rms_norm_eps": "1e-5"},
        {"rms_norm_eps": float("inf")},
        {"tie_word_embeddings": "false"},
        {"tie_word_embeddings": 0},
        {"rope_scaling": "dynamic"},
        {"rope_scaling": []},
        {"eos_token_id": "2"},
        {"eos_token_id": [[2]]},
        {"eos_token_id": True},
        {"eos_token_id": [2, None]},
        {"bos_token_id": [1]},
        {"architectures": "InternLM2ForCausalLM"},
        {"hidden_act": 1},
    ],
    ids=str,
)
def test_odd_values_of_a_config_are_problems(changes: dict[str, Any]) -> None:
    (problem,) = value_problems(ConfigFile, GOOD | changes, "config.json")
    assert f"{next(iter(changes))}=" in problem.found and problem.expected


@pytest.mark.parametrize("key", sorted(set(ConfigFile.model_fields) - set(GOOD)))
def test_null_takes_the_default_of_the_class(key: str) -> None:
    assert not list(value_problems(ConfigFile, GOOD | {key: None}, "config.json"))


@pytest.mark.parametrize("value", ["2", [2, "3"], {"id": 2}, 2.0, -1, True])
def test_stop_tokens_of_a_generation_config_are_ids(value: Any) -> None:
    assert list(value_problems(GenerationConfigFile, {"eos_token_id": value}, "g.json"))
    assert not list(value_problems(GenerationConfigFile, {"eos_token_id": [2, 5]}, "g.json"))


def test_long_values_are_cut() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    for value in ("x" * 1000, list(range(1000)), 10**9999, nested):
        assert len(shown(value)) <= LONGEST_SHOWN

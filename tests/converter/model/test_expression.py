"""Expressions over config.json: what they give, what they read, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.model.expression import ExpressionError, Reader

CONFIG: dict[str, Any] = {
    "hidden_size": 96,
    "num_attention_heads": 6,
    "head_dim": None,
    "rope_parameters": {"full_attention": {"rope_theta": 1e6}},
    "layer_types": ["full_attention", "sliding_attention"],
    "scaling": 8.0,
    "name": "silu",
    "on": True,
}


def value(text: Any) -> Any:
    return Reader(CONFIG).value(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("config.hidden_size", 96),
        ("config.head_dim", None),
        ("config.absent", None),
        ("config.absent.deeper", None),
        ("config.hidden_size.deeper", None),
        ("config.rope_parameters.full_attention.rope_theta", 1e6),
        ("config.layer_types", ["full_attention", "sliding_attention"]),
        ("config.head_dim | config.hidden_size / config.num_attention_heads", 16),
        ("config.hidden_size | 7", 96),
        ("config.absent | config.head_dim | 7", 7),
        ("config.absent | null", None),
        ("config.absent | silu", "silu"),
        ("config.name", "silu"),
        ("config.on", True),
        ("true", True),
        ("false", False),
        ("null", None),
        ("none", "none"),
        ("12", 12),
        ("1e-6", 1e-6),
        ("1.5", 1.5),
        ("-2", -2),
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("7 - 2 - 1", 4),
        ("2 ** 3 ** 2", 512.0),
        ("4 ** -0.5", 0.5),
        ("1 / config.scaling", 0.125),
        ("96 / 5", 19.2),
        ("sqrt(config.hidden_size)", math.sqrt(96)),
        ("sqrt(4) * 2", 4.0),
        ("config.absent * 2 | 5", 5),
        ("config.absent ** -0.5", None),
        (3, 3),
        (0.5, 0.5),
        (None, None),
        (True, True),
    ],
    ids=str,
)
def test_what_an_expression_gives(text: Any, expected: Any) -> None:
    found = value(text)
    assert found == expected and type(found) is type(expected)


def test_sizes_stay_whole_numbers() -> None:
    assert type(value("config.hidden_size / config.num_attention_heads")) is int


def test_all_paths_are_noted_also_those_behind_the_first() -> None:
    reader = Reader(CONFIG)
    reader.value("config.hidden_size | config.n_embd | 3")
    reader.value("config.rope_parameters.rope_theta")
    assert reader.read == {"hidden_size", "n_embd", "rope_parameters.rope_theta"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "missing before the end"),
        ("1 +", "missing before the end"),
        ("| 2", "missing before |"),
        ("(1", "not closed"),
        ("1)", "where it should end"),
        ("1 2", "where it should end"),
        ("config.name + 1", "'silu' is no number"),
        ("config.on * 2", "True is no number"),
        ("config.layer_types * 2", "is no number"),
        ("1 / 0", "has no result"),
        ("0 ** -1", "has no result"),
        ("-4 ** 0.5 | $", "neither a value nor a sign"),
        ("(-4) ** 0.5", "has no result"),
        ("9 ** 9999", "has no result"),
        ("10 ** 64 ** 64", "has no result"),
        ("config.hidden_size; import os", "neither a value nor a sign"),
        ("${oc.env:HOME}", "neither a value nor a sign"),
        ("'silu'", "neither a value nor a sign"),
        ("1 | " * 200 + "1", "more than 500 characters"),
    ],
    ids=lambda text: text[:30],
)
def test_what_cannot_be_read_or_calculated_is_said(text: str, said: str) -> None:
    with pytest.raises(ExpressionError, match="(?s)" + said.replace("|", r"\|")):
        value(text)


def test_names_that_look_like_python_are_words() -> None:
    assert value("__import__") == "__import__"
    with pytest.raises(ExpressionError):
        value("__import__('os')")


@settings(max_examples=200, deadline=None)
@given(st.text("config.hd_ 0123456789+-*/()|e", max_size=40))
def test_any_text_gives_a_value_or_an_expression_error(text: str) -> None:
    try:
        found = value(text)
    except ExpressionError as error:
        assert str(error)
    else:
        assert found is None or isinstance(found, (str, int, float, list, dict))

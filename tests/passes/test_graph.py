from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from converter.engine.execution import check
from converter.engine.registry import make_passes
from converter.errors import ConvertError

APART = ["target.rotary_in_attention=false", "target.packed_qkv=false", "target.position_ids=true"]


@pytest.mark.parametrize(
    ("head_dim", "words", "expected"),
    [
        (20, [], "a multiple of 8"),
        (100, APART, "a multiple of 8"),
        (24, [], None),
        (8, [], None),
        (24, APART, None),
        (16, [], None),
    ],
)
def test_a_head_size_that_attention_cannot_take_is_refused_before_the_work(
    make_recipe: Callable[..., Any], head_dim: int, words: list[str], expected: str | None
) -> None:
    recipe = make_recipe(*words, num_attention_heads=4, hidden_size=4 * head_dim)
    if expected is None:
        assert check(recipe, make_passes(["load", "layout", "graph"]), None)
        return
    with pytest.raises(ConvertError, match=f"The head size is {head_dim}") as caught:
        check(recipe, make_passes(["load", "layout", "graph"]), None)
    assert expected in caught.value.problems[0].expected

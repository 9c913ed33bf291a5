from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from converter.engine.execution import check
from converter.engine.registry import make_passes
from converter.errors import ConvertError


def test_an_odd_head_size_is_refused_before_the_work(make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe(num_attention_heads=4, hidden_size=60)
    with pytest.raises(ConvertError, match="The head size is 15") as caught:
        check(recipe, make_passes(recipe.passes), None)
    assert "even" in caught.value.problems[0].expected

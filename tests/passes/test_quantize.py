from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from converter.engine.execution import check
from converter.engine.registry import make_passes
from converter.errors import ConvertError


def test_a_block_size_that_does_not_divide_is_refused_with_every_matrix(
    make_recipe: Callable[..., Any],
) -> None:
    recipe = make_recipe("quant=rtn", "quant.block_size=64", "verify=none")
    with pytest.raises(ConvertError) as caught:
        check(recipe, make_passes(recipe.passes), None)
    text = str(caught.value)
    assert "down_proj has 96 columns, which blocks of 64 do not divide" in text
    assert "quant.block_size=32" in text

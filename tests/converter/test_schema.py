from __future__ import annotations

from typing import Any

import pytest

from converter.errors import ConvertError
from converter.recipe import Recipe
from converter.schema import default_values, parse_recipe, schema_paths


def problems(values: dict[str, Any]) -> str:
    with pytest.raises(ConvertError) as caught:
        parse_recipe(values)
    return str(caught.value)


def test_defaults_are_valid() -> None:
    assert parse_recipe(default_values()) == Recipe()


def test_everything_wrong_is_listed_at_once() -> None:
    text = problems(
        {
            "quant": {"blocksize": 64, "bits": 5, "lm_head": {"bits": 3, "bit": 4}},
            "source": {"sed": 1},
            "target": {"execution_provider": "cude"},
            "outptu": "x",
        }
    )
    for part in (
        "'quant.blocksize'",
        "quant.block_size",
        "quant.bits=5",
        "one of 4, 8",
        "quant.lm_head.bits=3",
        "'quant.lm_head.bit'",
        "'source.sed'",
        "source.seed",
        "target.execution_provider=cude",
        "NvTensorRtRtx",
        "'outptu'",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"quant": {"block_size": 48}}, "set quant.block_size=32"),
        ({"quant": {"block_size": 8}}, "set quant.block_size=16"),
        ({"quant": {"embedding": {"block_size": 512}}}, "set quant.embedding.block_size=256"),
        ({"target": {"rotary_in_attention": False}}, "target.packed_qkv=false"),
        ({"target": {"float_type": "bf16"}}, "target.float_type=bf16"),
        ({"graph": {"context_length": 0}}, "graph.context_length=0"),
        ({"threads": 0}, "threads=0"),
        ({"target": {"threads": 9999}}, "target.threads=9999"),
        ({"target": {"threads": -1}}, "target.threads=-1"),
        ({"source": {"kind": "demo", "path": "/models/mine"}}, "source.path=/models/mine"),
    ],
)
def test_impossible_values_say_the_nearest_possible(values: dict[str, Any], part: str) -> None:
    assert part in problems(values)


def test_paths_name_every_key() -> None:
    assert {"quant", "quant.lm_head.bits", "verify.max_error", "output"} <= set(schema_paths())

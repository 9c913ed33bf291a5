from __future__ import annotations

from typing import Any

import pytest

from converter.errors import ConvertError
from converter.recipe.guest_slots import recipe_schema
from converter.recipe.validation import (
    default_values,
    is_text,
    own_problems,
    parse_recipe,
    schema_paths,
)


def problems(values: dict[str, Any]) -> str:
    with pytest.raises(ConvertError) as caught:
        parse_recipe(values)
    return str(caught.value)


def test_defaults_are_valid() -> None:
    assert parse_recipe(default_values()) == recipe_schema()()


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


def test_a_wrong_type_hides_no_impossible_value_but_its_own() -> None:
    text = problems(
        {
            "quant": {"block_size": "x", "lm_head": {"block_size": 33}, "refine": True},
            "target": {"threads": -1},
            "threads": "two",
            "verify": {"max_error": {"fp32": "small"}},
            "olive": {"passes": [{"type": 1}]},
        }
    )
    for part in ("quant.block_size=x", "lm_head.block_size=33", "refine=true", "target.threads=-1"):
        assert part in text
    for part in ("threads=two", "verify.max_error.fp32=small", "olive.passes=1"):
        assert part in text
    assert text.count("next:") == 7


def test_a_stand_in_for_a_wrong_type_is_never_blamed() -> None:
    text = problems({"quant": {"round": "gptqq", "refine": True}})
    assert text.count("next:") == 1 and "quant.round=gptqq" in text


def test_some_values_alone_are_judged_but_not_what_they_refer_to() -> None:
    values = {"quant": {"bitz": 1, "bits": 5, "block_size": "${graph.context_length}"}}
    assert [item.found for item in own_problems(values)] == [
        "Unknown key 'quant.bitz'.",
        "quant.bits=5.",
    ]
    assert not list(own_problems({}))


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_text_names_no_place(text: str) -> None:
    said = problems({"output": text, "source": {"path": text}, "olive": {"workflow": text}})
    assert said.count(" is empty") == 3


def test_texts_are_told_from_other_keys() -> None:
    texts = {"output", "source.path", "evaluate.text", "target.provider_options.x"}
    assert {key for key in texts if is_text(key)} == texts - {"target.provider_options.x"}
    assert not any(is_text(key) for key in ("quant.bits", "quant", "target.kv_cache", "no.key"))


def test_paths_name_every_key() -> None:
    assert {"quant", "quant.lm_head.bits", "verify.max_error", "output"} <= set(schema_paths())

"""What the schema works out from its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.progress import format_bytes
from converter.recipe.schema import SIZE_UNITS, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("89.9MB", 89_900_000),
        ("1GB", 10**9),
        ("1 GiB", 2**30),
        (" 4 kb ", 4000),
        ("0B", 0),
        ("12", None),
        ("MB", None),
        ("-1MB", None),
        ("1.MB", None),
        ("1e3MB", None),
        ("1 MB 2", None),
        ("1TB", None),
        ("", None),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, nbytes: int | None) -> None:
    assert parse_size(text) == nbytes


@given(st.integers(0, 10**12), st.sampled_from(sorted(SIZE_UNITS)))
def test_whole_numbers_of_a_unit_are_exact(count: int, unit: str) -> None:
    assert parse_size(f"{count}{unit}") == int(count * SIZE_UNITS[unit])
    assert parse_size(f"{count} {unit.upper()}") == parse_size(f"{count}{unit.lower()}")


@given(st.integers(0, 10**13))
def test_a_size_that_is_printed_can_be_read(nbytes: int) -> None:
    found = parse_size(format_bytes(nbytes))
    assert found is not None and found == pytest.approx(nbytes, rel=0.006)


@pytest.mark.parametrize(
    ("words", "mixed", "calibrated"),
    [
        (["quant=none"], False, False),
        (["quant=rtn"], False, False),
        (["quant=awq"], False, True),
        (["quant=gptq"], False, True),
        (["quant=gptq", "quant.bits_per_weight=4.5"], True, True),
        (["quant=gptq", "quant.target_size=1MB"], True, True),
    ],
)
def test_schemes_that_need_a_text_or_have_a_budget(
    make_recipe: Callable[..., Any], words: list[str], mixed: bool, calibrated: bool
) -> None:
    quant = make_recipe(*words).quant
    assert (quant.mixed, quant.calibrated) == (mixed, calibrated)
    plain = quant.without_budget()
    assert not plain.mixed and plain.without_budget() == plain
    assert (plain == quant) == (not mixed)


@pytest.mark.parametrize(
    ("words", "scales"),
    [
        (["target=cpu"], "fp32"),
        (["target=cpu", "quant.scale_type=fp16"], "fp16"),
        (["target=cuda", "target.float_type=fp16"], "fp16"),
        (["target=cuda", "target.float_type=bf16"], "bf16"),
        (["target=cuda", "target.float_type=bf16", "quant.scale_type=fp16"], "bf16"),
    ],
    ids=str,
)
def test_only_float32_scales_can_be_stored_narrower(
    make_recipe: Callable[..., Any], words: list[str], scales: str
) -> None:
    assert make_recipe("quant=rtn", *words).scale_type == scales


def test_the_schemes_accuracy_level_wins_over_the_targets(make_recipe: Callable[..., Any]) -> None:
    target = ["target=cpu", "target.accuracy_level=4"]
    recipe = make_recipe("quant=rtn", *target)
    assert recipe.accuracy_level == 4 and recipe.rounds_activations
    own = make_recipe("quant=rtn", "quant.accuracy_level=0", *target)
    assert own.accuracy_level == 0 and not own.rounds_activations
    assert not make_recipe("quant=none", *target).rounds_activations

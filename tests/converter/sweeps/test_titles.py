"""What columns are called, in which unit, and in which order."""

from __future__ import annotations

import pytest

from converter.sweeps.sweep import QUALITY, SIZE
from converter.sweeps.titles import by_weight, number_of, scaled, title_of


@pytest.mark.parametrize(
    ("name", "title", "value", "shown"),
    [
        (SIZE, "size, MB", 1_500_000, 1.5),
        (QUALITY, "mean KL divergence, nats per token", 0.25, 0.25),
        ("benchmark.decode_tokens_per_second", "decoding, tokens per second", 12.0, 12.0),
        ("benchmark.decode_tokens_per_second.median", "decoding, tokens per second", 12.0, 12.0),
        ("benchmark.first_token_seconds.512.median", "first token after 512, ms", 0.5, 500.0),
        ("evaluate.top1_agreement", "same top token, %", 0.98, 98.0),
        ("benchmark.peak_bytes", "peak memory, MB", 2e6, 2.0),
        ("seconds", "conversion, s", 3.0, 3.0),
        ("seconds.load", "seconds.load", 3.0, 3.0),  # nobody described it
        ("quant.bits", "quant.bits", 4.0, 4.0),
    ],
)
def test_titles_carry_the_unit_that_values_are_scaled_to(
    name: str, title: str, value: float, shown: float
) -> None:
    assert title_of(name) == title
    assert scaled(name, value) == pytest.approx(shown)


def test_what_one_chooses_by_comes_first_and_the_rest_stays_in_order() -> None:
    given = ["zebra", "seconds", "apple", QUALITY, "benchmark.peak_bytes", SIZE]
    expected = [SIZE, QUALITY, "benchmark.peak_bytes", "seconds", "zebra", "apple"]
    assert by_weight(given) == expected


def test_a_jobs_number_stands_before_its_label() -> None:
    assert number_of({"job": "03-block_size-32-bits-4"}) == "03"
    assert number_of({"job": "12"}) == "12"

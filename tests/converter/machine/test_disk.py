"""A disk with too little room is refused before any work, with what needs it and what to type."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.graph.formats import quantized_bytes
from converter.graph.tensors import model_weights
from converter.machine.disk import Room, room_problems
from converter.recipe.schema import Recipe
from converter.speed.formats import choices, variant_bytes
from converter.storage.cache import FOLDER_VARIABLE
from passes.formats import ChooseFormats

CALIBRATION = ["calibration.tokens=256", "calibration.sequence_length=32"]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def free_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets every disk have so many bytes free."""

    def set_free(nbytes: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, nbytes))

    return set_free


def test_folders_of_one_disk_share_its_room(
    tmp_path: Path, free_disk: Callable[[int], None]
) -> None:
    rooms = [
        Room(tmp_path / "a", 60, "this", "do this"),
        Room(tmp_path / "a", 50, "less", "do less"),
        Room(tmp_path / "b" / "c", 40, "that", "do that"),
    ]
    free_disk(100)
    assert list(room_problems(rooms)) == []
    free_disk(99)
    (problem,) = room_problems(rooms)
    assert "99 B free" in problem.found and "60 B for this and 40 B for that" in problem.expected
    assert problem.remedy == "do this, or do that, or free some"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["quant=best", *CALIBRATION], ["what calibration spills and keeps", FOLDER_VARIABLE]),
        (
            ["quant=rtn", "tune=standard", "tune.block_sizes=[16,32]"],
            ["the variants that tune measures", "tune.block_sizes"],
        ),
    ],
    ids=["calibration", "formats"],
)
def test_a_run_is_refused_before_it_reads_weights(
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_disk: Callable[[int], None],
    words: list[str],
    named: list[str],
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    recipe = make_recipe(f"output={tmp_path / 'out'}", *words)
    free_disk(20_000)
    with pytest.raises(ConvertError) as raised:
        run_recipe(recipe, make_passes(recipe.passes))
    for name in ["20.00 kB free", *named]:
        assert name in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["quant=rtn"],
        ["quant=rtn", "quant.embedding.bits=16", "quant.lm_head.bits=8"],
        ["quant=search", "quant.symmetric=false"],
        ["quant=search", "target.float_type=fp16"],
    ],
)
def test_weights_have_the_bytes_that_were_said(
    make_recipe: Callable[..., Recipe], build: Callable[..., Any], words: list[str]
) -> None:
    graph = build(*words, *CALIBRATION, until="quantize")
    weights = model_weights(graph.model)
    found = sum(weight.nbytes for name, weight in weights.items() if "cache" not in name)
    assert quantized_bytes(make_recipe(*words), graph.decoder) == found


def test_variants_of_one_setting_lie_on_the_disk_together(
    make_recipe: Callable[..., Recipe], build: Callable[..., Any]
) -> None:
    decoder = build().decoder
    both = ["tune=standard", "tune.block_sizes=[16]", "tune.head_bits=[8]"]
    recipe = make_recipe("quant=rtn")
    one = variant_bytes(recipe, decoder, choices(recipe.quant, [16], []))
    two = variant_bytes(recipe, decoder, choices(recipe.quant, [16], [8]))
    recipe = make_recipe("quant=rtn", *both[:2])
    (room,) = ChooseFormats().disk(recipe, decoder)
    assert room.nbytes == one <= two

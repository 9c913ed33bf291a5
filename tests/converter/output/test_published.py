"""Lock files and recipes that are not what a conversion wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converter.errors import ConvertError
from converter.output.published import read_lock, read_recipe

ENTRY = {"size": 3, "blake3": "0" * 64}


def lock_of(folder: Path, content: Any) -> dict[str, Any]:
    (folder / "convert.lock.json").write_text(json.dumps(content))
    return read_lock(folder)


def test_a_lock_file_is_read(tmp_path: Path) -> None:
    content = {"files": {"a": ENTRY}, "source": {"kind": "demo", "files": {"b": ENTRY}}}
    assert lock_of(tmp_path, content) == content
    assert lock_of(tmp_path, {"files": {}, "source": {}})


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ([], ["holds a list"]),
        ({}, ["files is missing", "source is missing"]),
        ({"files": [], "source": 3}, ["files is no mapping", "source is no mapping"]),
        ({"files": {}, "source": {"files": []}}, ["source.files is no mapping"]),
        ({"files": {"a": 1}, "source": {}}, ["files.a has no size"]),
        ({"files": {"a": {"size": "3"}}, "source": {}}, ["files.a has no size"]),
        ({"files": {}, "source": {"files": {"b": {"size": 3}}}}, ["source.files.b has no size"]),
        ({"files": {}, "source": {}, "versions": []}, ["versions is no mapping"]),
    ],
)
def test_all_that_is_wrong_with_a_lock_file_is_said(
    tmp_path: Path, content: Any, parts: list[str]
) -> None:
    with pytest.raises(ConvertError) as caught:
        lock_of(tmp_path, content)
    assert len(caught.value.problems) == 1
    for part in ["not a folder that `convert` wrote", *parts]:
        assert part in str(caught.value)


def test_a_recipe_without_its_slots_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\nsource: 3\ntarget: {}\n")
    with pytest.raises(ConvertError, match="no keys in source, quant"):
        read_recipe(tmp_path)

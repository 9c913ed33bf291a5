"""What keeps passes to orchestration; the import contract keeps them from each other."""

from __future__ import annotations

from pathlib import Path

import pytest

import passes

LINES = 150
MODULES = sorted(Path(str(passes.__file__)).parent.glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_pass_leaves_the_work_to_its_subject(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES, (
        f"{path.name} has grown: move what is no orchestration to converter/"
    )

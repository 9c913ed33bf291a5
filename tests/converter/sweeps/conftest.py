from __future__ import annotations

from pathlib import Path

import pytest
from measured_sweep import write_sweep


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sweep(tmp_path)

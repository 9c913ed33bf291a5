from __future__ import annotations

from pathlib import Path

import pytest

from converter.machine.cores import physical_cores


def test_two_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    monkeypatch.setattr("converter.machine.cores._allowed", lambda: set(range(8)))
    assert physical_cores(tmp_path) == 4
    monkeypatch.setattr("converter.machine.cores._allowed", lambda: {0, 1, 4})
    assert physical_cores(tmp_path) == 2
    assert physical_cores(tmp_path / "absent") == 3

"""The output folder appears whole or not at all, and killed runs are cleared up."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from converter.errors import ConvertError
from converter.storage.hashing import hash_file
from converter.storage.staging import LOCK, WRITE_ERRORS, open_folder, open_staging, replacing


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_published_folder_has_its_files_and_a_lock(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with open_staging(output) as staging:
        assert not output.exists()
        (staging.folder / "model").write_text("weights")
        (staging.folder / "report").mkdir()
        (staging.folder / "report" / "times.json").write_text("{}")
        staging.lock["name"] = "x"
        staging.publish({"load": 1.23456}, {"verify": {"error": 0.5}})
    assert names(tmp_path / "deep") == ["out"]
    lock = json.loads((output / LOCK).read_text())
    assert lock["files"] == {"model": {"size": 7, "blake3": hash_file(output / "model")}}
    assert lock["seconds"] == {"load": 1.235} and lock["facts"] == {"verify": {"error": 0.5}}
    assert lock["name"] == "x" and (output / "report" / "times.json").is_file()


def test_without_facts_the_lock_has_none(tmp_path: Path) -> None:
    with open_staging(tmp_path / "out") as staging:
        staging.publish({}, {})
    assert "facts" not in json.loads((tmp_path / "out" / LOCK).read_text())


def test_an_error_leaves_the_older_output_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(KeyError), open_folder(tmp_path / "out") as folder:
        (folder / "new").touch()
        raise KeyError
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


def test_a_new_output_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with open_folder(tmp_path / "out") as folder:
            (folder / name).touch()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["second"]


def test_a_staging_that_nobody_publishes_goes(tmp_path: Path) -> None:
    with open_staging(tmp_path / "out") as staging:
        (staging.folder / "x").touch()
    assert names(tmp_path) == []


def test_what_killed_runs_left_is_cleared(tmp_path: Path) -> None:
    dead = dead_process()
    (tmp_path / f".out.tmp-{dead}").mkdir()
    (tmp_path / f".out.old-{dead}").mkdir()
    (tmp_path / f".other.tmp-{dead}").mkdir()  # of another output
    (tmp_path / ".out.tmp-x").mkdir()  # not ours
    (tmp_path / f".out.tmp-{os.getppid()}").mkdir()  # of a run that still works
    (tmp_path / "out").mkdir()
    with open_folder(tmp_path / "out"):
        pass
    expected = [".out.tmp-x", f".other.tmp-{dead}", f".out.tmp-{os.getppid()}", "out"]
    assert names(tmp_path) == sorted(expected)


def test_an_output_that_a_killed_run_moved_aside_comes_back(tmp_path: Path) -> None:
    """It was killed between the two renames: the older output is complete, so it is kept."""
    aside = tmp_path / f".out.old-{dead_process()}"
    aside.mkdir()
    (aside / "kept").touch()
    with pytest.raises(KeyError), open_folder(tmp_path / "out"):
        raise KeyError
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["kept"]


def test_the_older_output_returns_when_the_new_one_cannot_be_moved(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with open_staging(tmp_path / "out") as staging:
        staging.folder.rmdir()  # as if somebody had taken it away
        with pytest.raises(FileNotFoundError):
            staging.rename()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


@pytest.mark.parametrize("number", WRITE_ERRORS)
def test_a_disk_that_cannot_be_written_is_a_problem_with_a_remedy(
    tmp_path: Path, number: int
) -> None:
    with pytest.raises(ConvertError) as caught, open_staging(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    (problem,) = caught.value.problems
    assert os.strerror(number) in problem.found and "MB are free there" in problem.found
    assert "output=FOLDER" in problem.remedy
    assert names(tmp_path) == []


def test_other_errors_of_the_system_are_not_taken_for_the_disks(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Interrupted"), open_staging(tmp_path / "out"):
        raise OSError(errno.EINTR, "Interrupted")


def test_a_place_inside_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConvertError, match="Cannot write"),
        open_folder(tmp_path / "file" / "out"),
    ):
        pass


def test_replacing_a_file_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyError
    assert path.read_text() == "old" and names(tmp_path) == ["table"]
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and names(tmp_path) == ["table"]

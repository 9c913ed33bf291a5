"""The cache under concurrent writers, dead owners, damage and a size limit."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from converter.errors import ConvertError
from converter.storage.cache import ENTRY, Cache, key_hash, only_reading
from converter.storage.hashing import hash_file

KEY = {"pass": "test", "version": 1, "config": {"samples": 4}}
SPAWN = multiprocessing.get_context("spawn")


def fill(folder: Path, text: str = "result") -> None:
    (folder / "value.txt").write_text(text)


def make_slowly(root: str, log: str, seconds: float) -> None:
    def make(folder: Path) -> None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        (folder / "half.txt").write_text("half")
        time.sleep(seconds)
        fill(folder)

    Cache(Path(root)).get_or_make(KEY, make)


def wait_until(condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def leftovers(root: Path) -> list[str]:
    return [p.name for name in ("temporary", "locks") for p in (root / name).iterdir()]


def test_second_request_makes_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = cache.get_or_make(KEY, fill)
    again = cache.get_or_make(dict(reversed(KEY.items())), lambda _: pytest.fail("made again"))
    assert first == again and (again / "value.txt").read_text() == "result"
    assert cache.find({**KEY, "version": 2}) is None and leftovers(tmp_path) == []


def test_key_is_sensitive_to_every_part_and_takes_json_only(tmp_path: Path) -> None:
    changed = [{**KEY, "config": {"samples": 5}}, {**KEY, "version": 2}, {**KEY, "more": None}]
    assert len({key_hash(key) for key in [KEY, *changed]}) == 4
    assert len(key_hash(KEY)) == 64
    with pytest.raises(TypeError):
        Cache(tmp_path).get_or_make({"pass": tmp_path}, fill)


def test_failed_make_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("out of luck")

    cache = Cache(tmp_path)
    with pytest.raises(RuntimeError, match="out of luck"):
        cache.get_or_make(KEY, fail)
    assert cache.find(KEY) is None and leftovers(tmp_path) == []
    assert (cache.get_or_make(KEY, fill) / "value.txt").read_text() == "result"


@pytest.mark.parametrize("damage", ["truncate", "delete", "description"])
def test_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    entry = cache.get_or_make(KEY, fill)
    if damage == "truncate":
        (entry / "value.txt").write_text("res")
    elif damage == "delete":
        (entry / "value.txt").unlink()
    else:
        (entry / ENTRY).write_text('{"key": ')
    assert cache.find(KEY) is None
    assert (cache.get_or_make(KEY, fill) / "value.txt").read_text() == "result"


def test_processes_that_ask_together_compute_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = (str(tmp_path / "cache"), str(log), 0.3)
    racers = [SPAWN.Process(target=make_slowly, args=arguments) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0] * 4
    assert len(log.read_text().split()) == 1
    assert leftovers(tmp_path / "cache") == []


def test_waiter_takes_over_from_a_killed_maker(tmp_path: Path) -> None:
    log, root = tmp_path / "log", tmp_path / "cache"
    maker = SPAWN.Process(target=make_slowly, args=(str(root), str(log), 600.0))
    maker.start()
    wait_until(lambda: any(root.glob("temporary/*/half.txt")))
    maker.kill()
    maker.join()
    cache = Cache(root)
    assert cache.find(KEY) is None and len(leftovers(root)) == 2
    entry = cache.get_or_make(KEY, fill)
    assert sorted(path.name for path in entry.iterdir()) == [ENTRY, "value.txt"]
    assert leftovers(root) == []


def test_lock_of_another_machine_is_taken_over_only_when_it_is_not_renewed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, stale_seconds=0.3)
    cache.get_or_make({"pass": "other"}, fill)
    lock = tmp_path / "locks" / key_hash(KEY)
    lock.write_text("elsewhere.1 0")
    end = time.monotonic() + 1.0
    renewals = 0

    class Renewed(Cache):
        """Sees the other machine renew its lock until `end`."""

        def _find(self, name: str) -> Path | None:
            nonlocal renewals
            if time.monotonic() < end and lock.exists():
                os.utime(lock, (renewals, renewals))
                renewals += 1
            return super()._find(name)

    made_at = []

    def make(folder: Path) -> None:
        made_at.append(time.monotonic())
        fill(folder)

    Renewed(tmp_path, stale_seconds=0.3).get_or_make(KEY, make)
    assert made_at[0] >= end and renewals > 2


def test_prune_drops_what_was_unused_for_longest(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number in range(4):
        entry = cache.get_or_make({"pass": "test", "number": number}, lambda f: fill(f, "x" * 100))
        os.utime(entry / ENTRY, (1000 + number, 1000 + number))
    assert cache.find({"pass": "test", "number": 0}) is not None  # now the most recent
    assert cache.prune(limit=1e9) == 0
    assert cache.prune(limit=250) == 2
    kept = {entry.key["number"] for entry in cache.entries()}
    assert kept == {0, 3} and sum(entry.nbytes for entry in cache.entries()) == 200


def test_limit_does_not_drop_entries_in_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=1)
    entries = [cache.get_or_make({"pass": "test", "n": n}, fill) for n in range(3)]
    assert all(entry.is_dir() for entry in entries)


def test_unwritable_cache_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConvertError, match="CONVERT_CACHE"):
        Cache(tmp_path / "file").get_or_make(KEY, fill)


def test_file_hash_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, calls = tmp_path / "model.safetensors", list[Path]()

    def counted(path: Path) -> str:
        calls.append(path)
        return hash_file(path)

    monkeypatch.setattr("converter.storage.cache.hash_file", counted)
    source.write_text("one")
    os.utime(source, (1000, 1000))
    cache = Cache(tmp_path / "cache")
    assert cache.file_hash(source) == cache.file_hash(source) == hash_file(source)
    assert len(calls) == 1
    source.write_text("two")  # same size, fresh time stamp: not remembered
    assert cache.file_hash(source) == cache.file_hash(source) == hash_file(source)
    assert len(calls) == 3


def test_content_key_follows_content_not_place(tmp_path: Path) -> None:
    from converter.model.checkpoint import Checkpoint  # torch: the spawned processes do without

    cache = Cache(tmp_path / "cache")

    def checkpoint(folder: str, text: str) -> Checkpoint:
        path = tmp_path / folder / "model.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return Checkpoint({"n": 1}, {}, {"kind": "local", "folder": folder}, files=(path,))

    here, moved = checkpoint("a", "same"), checkpoint("b", "same")
    assert cache.content_key(here) == cache.content_key(moved)
    assert cache.content_key(here) != cache.content_key(checkpoint("c", "other"))
    seeds = [Checkpoint({"n": 1}, {}, {"kind": "synthetic", "seed": n}) for n in (0, 1)]
    assert cache.content_key(seeds[0]) != cache.content_key(seeds[1])


def test_entry_describes_its_key(tmp_path: Path) -> None:
    entry = Cache(tmp_path).get_or_make(KEY, fill)
    described = json.loads((entry / ENTRY).read_text())
    assert described["key"] == KEY and described["sizes"] == {"value.txt": 6}


def test_a_cache_that_is_only_read_makes_no_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with only_reading(), pytest.raises(ConvertError, match="only read meanwhile"):
        cache.get_or_make({"pass": "x"}, lambda folder: None)
    assert not (tmp_path / "cache").exists()
    made = cache.get_or_make({"pass": "x"}, lambda folder: None)
    with only_reading():
        assert cache.get_or_make({"pass": "x"}, lambda folder: None) == made

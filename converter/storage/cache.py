"""Expensive results kept under a hash of everything that decides them.

An entry is a folder, complete from the moment its name exists: it is made under a temporary name
and renamed. Any number of processes, on one machine or on several with a shared disk, may want
the same entry at once: one makes it, the others wait for it. If the maker dies, a waiter takes
over. Only renames, links (exclusive creation where there are none) and modification times are used,
which NFS keeps.

Layout of the folder: entries/HASH/ (entry.json and the content), locks/HASH, temporary/, and
sources/HASH.json (remembered hashes of source files).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from converter.errors import ConvertError, Problem
from converter.storage.fallback import is_writable, temporary_folder
from converter.storage.hashing import hash_file
from converter.storage.user_path import user_path

FORMAT = 1
"""Part of every key: a change of the layout makes all older entries unreachable."""
ENTRY = "entry.json"
FOLDER_VARIABLE, LIMIT_VARIABLE = "CONVERT_CACHE", "CONVERT_CACHE_GB"
DEFAULT_LIMIT_GB = 50.0
IN_USE_SECONDS = 24 * 3600.0
"""An entry used within this time is never pruned: a running job may be reading it."""
SETTLED_SECONDS = 2.0
"""A file changed this recently may change again within its time stamp's resolution."""


class Source(Protocol):
    """A checkpoint, as far as its content names what is made of it."""

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json."""

    @property
    def origin(self) -> Mapping[str, Any]:
        """Where it comes from, for one without files."""

    @property
    def files(self) -> Sequence[Path]:
        """Its files."""


_only_reads = threading.Event()


@contextmanager
def only_reading() -> Iterator[None]:
    """Let caches make no entry meanwhile: whoever asks for one that is missing makes its own."""
    _only_reads.set()
    try:
        yield
    finally:
        _only_reads.clear()


@dataclass(frozen=True)
class Entry:
    """What `Cache.entries` lists; `key` holds the parts that the hash was taken of."""

    name: str
    key: Mapping[str, Any]
    nbytes: int
    last_used: float
    """Seconds since the epoch."""


class Cache:
    """A cache folder.

    `limit` is in bytes; the entries unused for longest go when it is exceeded. A waiter takes a
    lock over when it has not been renewed for `stale_seconds`.
    """

    def __init__(self, folder: Path, limit: float | None = None, stale_seconds: float = 60) -> None:
        self.folder = folder
        self.limit = _limit() if limit is None else limit
        self.stale_seconds = stale_seconds

    def get_or_make(self, key_parts: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of the entry with this key; `make(folder)` fills it if it is not there.

        `key_parts` must name everything that decides the content: `pass`, its code version, its
        config, the content of its inputs; JSON values only. `make` is called at most once here,
        and usually once over all processes that ask at the same time.

        Raises:
            ConvertError: the cache folder cannot be written, or may not be; see `only_reading`.
            TypeError: a key part is not JSON.
        """
        name = key_hash(key_parts)
        found = self._find(name)
        if found is not None:
            return found
        if _only_reads.is_set():
            raise ConvertError(_not_now(self.folder))
        self._prepare()
        with self._lock(name):
            found = self._find(name)
            return found if found is not None else self._make(name, key_parts, make)

    def find(self, key_parts: Mapping[str, Any]) -> Path | None:
        """The entry's folder, or None when it is not there."""
        return self._find(key_hash(key_parts))

    def entries(self) -> list[Entry]:
        """All complete entries, the most recently used first."""
        found = []
        for path in sorted(self._entries.glob(f"*/{ENTRY}")):
            described = _read_entry(path.parent)
            if described is not None:
                sizes, key = described["sizes"], described["key"]
                used = path.stat().st_mtime
                found.append(Entry(path.parent.name, key, sum(sizes.values()), used))
        return sorted(found, key=lambda entry: -entry.last_used)

    def remove(self, name: str) -> None:
        """Remove an entry; it disappears at once, by a rename."""
        self._prepare()
        _discard(self._entries / name, self._temporary)

    def prune(self, limit: float | None = None, in_use_seconds: float = IN_USE_SECONDS) -> int:
        """Remove the entries unused for longest until `limit` bytes remain; how many went."""
        limit = self.limit if limit is None else limit
        entries = self.entries()
        total, removed = sum(entry.nbytes for entry in entries), 0
        for entry in reversed(entries):
            if total <= limit or time.time() - entry.last_used < in_use_seconds:
                break
            self.remove(entry.name)
            total, removed = total - entry.nbytes, removed + 1
        return removed

    def content_key(self, source: Source) -> str:
        """SHA-256 of what a checkpoint holds: the BLAKE3 of each source file and its config.

        A file's hash is remembered by path, size and modification time, so that the jobs of a
        sweep read the source once.
        """
        parts = {
            "config": source.config,
            "origin": {} if source.files else source.origin,
            "files": {path.name: self.file_hash(path) for path in source.files},
        }
        return key_hash(parts)

    def entries_of(self, source: Source) -> list[Entry]:
        """The complete entries made from a checkpoint, those whose key has it as `source`.

        No source file is read: one whose hash is not remembered has not been through a run yet.
        """
        if any(self._remembered(path) is None for path in source.files):
            return []
        key = self.content_key(source)
        return [entry for entry in self.entries() if entry.key.get("source") == key]

    def file_hash(self, path: Path) -> str:
        """BLAKE3 of a file's content, remembered by path, size and modification time."""
        remembered = self._remembered(path)
        if remembered is not None:
            return remembered
        path = path.resolve()
        status = path.stat()
        content = hash_file(path)
        if abs(time.time() - status.st_mtime) > SETTLED_SECONDS:
            self._prepare()
            noted = {"stamp": _stamp(path, status), "blake3": content}
            self._write(self._note(path), json.dumps(noted))
        return content

    def _remembered(self, path: Path) -> str | None:
        """The hash that is noted for a file as it is now."""
        path = path.resolve()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(self._note(path).read_text(encoding="utf-8"))
            if noted["stamp"] == _stamp(path, path.stat()):
                return str(noted["blake3"])
        return None

    def _note(self, path: Path) -> Path:
        return self.folder / "sources" / f"{key_hash({'file': str(path)})}.json"

    @property
    def _entries(self) -> Path:
        return self.folder / "entries"

    @property
    def _temporary(self) -> Path:
        return self.folder / "temporary"

    def _prepare(self) -> None:
        try:
            for name in ("entries", "locks", "temporary", "sources"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConvertError(_cannot_write(self.folder, error)) from error

    def _find(self, name: str) -> Path | None:
        path = self._entries / name
        described = _read_entry(path)
        if described is None:
            if not path.exists():
                return None
            described = _read_entry(path)  # it may have appeared since
        if described is None or any(
            _size(path / file) != size for file, size in described["sizes"].items()
        ):
            # Damaged by a full or failing disk, or by hand: it is made again.
            self.remove(name)
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read still serves
            os.utime(path / ENTRY)
        return path

    def _make(self, name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        self._sweep_temporary()
        temporary = self._temporary / f"{name[:16]}.{_owner()}.{uuid.uuid4().hex[:8]}"
        try:
            temporary.mkdir()
            make(temporary)
            sizes = {str(p.relative_to(temporary)): p.stat().st_size for p in _files(temporary)}
            described = {"key": dict(key), "sizes": sizes, "made": time.time()}
            (temporary / ENTRY).write_text(json.dumps(described, indent=1), encoding="utf-8")
            for path in _files(temporary):
                _flush(path)
            # The rename fails when another process was faster; its entry is as good.
            with contextlib.suppress(OSError):
                temporary.rename(self._entries / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        found = self._find(name)
        if found is None:
            raise ConvertError(_cannot_write(self._entries, OSError("the rename failed")))
        self.prune()
        return found

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Hold the entry's lock, or stop waiting as soon as another process has made the entry."""
        path = self.folder / "locks" / name
        mine = f"{_owner()} {uuid.uuid4().hex}"
        held = self._acquire(path, mine, name)
        stop = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(path, mine, stop), daemon=True)
        if held:
            renewal.start()
        try:
            yield
        finally:
            stop.set()
            if held:
                renewal.join()
                if _text(path) == mine:
                    path.unlink(missing_ok=True)

    def _acquire(self, path: Path, mine: str, name: str) -> bool:
        seen, since, wait = None, time.monotonic(), 0.02
        while True:
            if _create(path, mine):
                return True
            if self._find(name) is not None:
                return False
            state = _text(path), _mtime(path)
            if state != seen:
                seen, since = state, time.monotonic()
            elif _owner_is_dead(state[0]) or time.monotonic() - since > self.stale_seconds:
                _retire(path, self._temporary)
                seen = None
                continue
            time.sleep(wait)
            wait = min(wait * 1.5, 1.0)

    def _renew(self, path: Path, mine: str, stop: threading.Event) -> None:
        while not stop.wait(self.stale_seconds / 6):
            with contextlib.suppress(OSError):
                if _text(path) == mine:
                    os.utime(path)

    def _sweep_temporary(self) -> None:
        """Drop what killed processes of this machine left, and anything a week old."""
        for path in self._temporary.iterdir():
            _, _, rest = path.name.partition(".")
            owner = rest.rpartition(".")[0]
            if _owner_is_dead(owner) or time.time() - (_mtime(path) or 0) > 7 * 24 * 3600:
                _erase(path)

    def _write(self, path: Path, text: str) -> None:
        temporary = self._temporary / f"note.{_owner()}.{uuid.uuid4().hex[:8]}"
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise ConvertError(_cannot_write(self.folder, error)) from error


def cache_folder() -> Path:
    """$CONVERT_CACHE, or else ~/.cache/convert; a temporary folder where it cannot be written.

    A cache that is there already and may only be read still serves.
    """
    named = os.environ.get(FOLDER_VARIABLE) or "~/.cache/convert"
    try:
        folder = user_path(named)
    except ConvertError:  # a user without a home folder, as in some containers
        return temporary_folder("cache", named)
    if is_writable(folder) or _is_folder(folder / "entries"):
        return folder
    return temporary_folder("cache", str(folder))


def key_hash(key_parts: Mapping[str, Any]) -> str:
    """SHA-256, 64 hexadecimal digits, of the parts as canonical JSON."""
    parts = {"format": FORMAT, **key_parts}
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _limit() -> float:
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        return float(text or DEFAULT_LIMIT_GB) * 1e9
    except ValueError:
        raise ConvertError(
            Problem(
                f"{LIMIT_VARIABLE}={text}.", "a number of gigabytes", f"export {LIMIT_VARIABLE}=50"
            )
        ) from None


def _stamp(path: Path, status: os.stat_result) -> list[str | int]:
    """What tells a file that has changed from one that has not."""
    return [str(path), status.st_size, status.st_mtime_ns, status.st_ino]


def _owner() -> str:
    """Who made a file: machine and process; dots and blanks separate fields, so hosts lose them.

    Hosts may share a name, so the kernel's boot id goes with it where there is one.
    """
    host = "".join(char if char.isalnum() else "-" for char in socket.gethostname())
    boot = _text(Path("/proc/sys/kernel/random/boot_id")) or ""
    return f"{host}-{boot[:8]}.{os.getpid()}"


def _owner_is_dead(owner: str | None) -> bool:
    """Whether `owner` is a process of this machine that runs no more."""
    host, _, process = (owner or "").split(" ")[0].rpartition(".")
    if host != _owner().rpartition(".")[0] or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _create(path: Path, text: str) -> bool:
    """Create the lock with its content in one step: a link either appears whole or fails."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    draft.write_text(text, encoding="utf-8")
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        return _create_exclusively(path, text)
    finally:
        draft.unlink(missing_ok=True)
    return True


def _create_exclusively(path: Path, text: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _retire(path: Path, temporary: Path) -> None:
    """Take a dead process's lock away: of several waiters, one rename succeeds."""
    target = temporary / f"lock.{_owner()}.{uuid.uuid4().hex[:8]}"
    with contextlib.suppress(OSError):
        path.rename(target)
        target.unlink()


def _discard(path: Path, temporary: Path) -> None:
    target = temporary / f"gone.{_owner()}.{uuid.uuid4().hex[:8]}"
    with contextlib.suppress(OSError):
        path.rename(target)
        _erase(target)


def _erase(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a folder above it may not be entered
        return False


def _read_entry(path: Path) -> dict[str, Any] | None:
    try:
        described = json.loads((path / ENTRY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return described if isinstance(described, dict) else None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(path: Path) -> None:
    """Put a file's content on the disk before the rename makes it visible."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _mtime(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _not_now(folder: Path) -> Problem:
    return Problem(
        f"The cache {folder} is only read meanwhile.",
        "an entry that is there already",
        "run the conversion, which keeps what it makes",
    )


def _cannot_write(folder: Path, error: OSError) -> Problem:
    return Problem(
        f"The cache {folder} cannot be written: {error.strerror or error}.",
        "a writable folder with room for statistics and reference distributions",
        f"set {FOLDER_VARIABLE}=FOLDER, or run `convert cache clear`",
    )

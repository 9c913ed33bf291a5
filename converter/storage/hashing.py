"""Content hashes of files.

BLAKE3 is as strong as SHA-256 and four times as fast on a core, which matters when the sources of
a conversion are tens of gigabytes. Files are read in pieces: a mapped file would count as memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blake3

PIECE = 1 << 24
"""Bytes hashed at a time: enough that a thread seldom waits for the interpreter."""

_ahead: dict[Path, Future[str]] = {}


def hash_file(path: Path, threads: int = 1) -> str:
    """BLAKE3 of a file's content, 64 hexadecimal digits, on so many threads."""
    started = _ahead.get(path.resolve())
    return started.result() if started else _hash(path, threads)


def file_entries(paths: Sequence[Path], threads: int | None = None) -> dict[str, dict[str, Any]]:
    """Size in bytes and BLAKE3 of each file, by its name; `threads` None means one per core."""
    each = threads or blake3.blake3.AUTO
    with ThreadPoolExecutor(threads) as pool:
        hashes = list(pool.map(lambda path: hash_file(path, each), paths))
    return {
        path.name: {"size": path.stat().st_size, "blake3": digest}
        for path, digest in zip(paths, hashes, strict=True)
    }


@contextmanager
def hashing_ahead(paths: Sequence[Path]) -> Iterator[None]:
    """Hash files in the background; `hash_file` waits for what is under way.

    A conversion starts with seconds of imports, which keep one core busy and the disk idle.
    """
    futures = {path.resolve(): Future[str]() for path in paths}
    stopped = threading.Event()

    def work() -> None:
        for path, future in futures.items():
            try:
                future.set_result(_hash(path, 1, stopped))
            except Exception as error:  # whoever asks for the hash gets it
                future.set_exception(error)

    _ahead.update(futures)
    threading.Thread(target=work, daemon=True).start()
    try:
        yield
    finally:
        stopped.set()
        for path in futures:
            del _ahead[path]


def _hash(path: Path, threads: int, stopped: threading.Event | None = None) -> str:
    hasher = blake3.blake3(max_threads=threads)
    buffer = bytearray(min(PIECE, max(1, path.stat().st_size)))
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if stopped and stopped.is_set():
                raise InterruptedError(f"hashing {path} was stopped")
            hasher.update(view[:count])
    return str(hasher.hexdigest())

"""The comparison with the runtime, kept for later conversions of the same tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem
from converter.machine.memory import return_memory
from converter.storage.cache import Cache, cache_folder
from converter.tokenizer.comparison import Comparison, Expected, compare_with_runtime
from converter.tokenizer.runtime_tokenizer import runtime_is_installed

PASS = "tokenizer"
"""What `convert cache list` calls an entry."""
_FILE = "comparison.json"
_DECIDING = ("onnxruntime-genai", "onnxruntime-genai-cuda", "tokenizers", "jinja2")
"""Packages whose versions decide what is found."""
_HERE = Path(__file__).parent


def remembered_comparison(files: Mapping[str, bytes], expected: Expected) -> Comparison:
    """`compare_with_runtime`, from the cache where it was asked before.

    The key is all that decides the result: the files, what is expected of them, the versions of the
    packages that read them, and this folder's code, which holds the texts and conversations.
    """
    if not runtime_is_installed():
        return compare_with_runtime(files, expected)
    made: list[Comparison] = []

    def make(folder: Path) -> None:
        made.append(compare_with_runtime(files, expected))
        text = json.dumps(dataclasses.asdict(made[0]), ensure_ascii=False)
        (folder / _FILE).write_text(text, encoding="utf-8")

    try:
        folder = Cache(cache_folder()).get_or_make(_key(files, expected), make)
        found = made[0] if made else _read(folder / _FILE)
    except ConvertError:  # there is no room for a cache
        found = made[0] if made else compare_with_runtime(files, expected)
    return_memory()
    return found


def _key(files: Mapping[str, bytes], expected: Expected) -> dict[str, Any]:
    return {
        "pass": PASS,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "expected": hashlib.sha256(repr(expected).encode()).hexdigest(),
        "packages": [_version(package) for package in _DECIDING],
        "platform": sys.platform,
        "code": _code(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def _code() -> str:
    """A hash of the modules of this folder."""
    digest = hashlib.sha256()
    for path in sorted(_HERE.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> Comparison:
    said = json.loads(path.read_text(encoding="utf-8"))
    problems = tuple(
        Problem(**{**problem, "key": tuple(problem["key"])}) for problem in said["problems"]
    )
    return Comparison(**{**said, "notes": tuple(said["notes"]), "problems": problems})

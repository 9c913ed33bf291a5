"""`convert explain FOLDER`: what a finished folder is made of."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.output.published import read_lock, read_recipe
from converter.progress import format_bytes
from converter.sweeps.sweep import flat


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    parser.add_argument("folder", type=Path, help="a folder that convert has written")


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    print("\n".join(explanation(parsed.folder)))
    return 0


def explanation(folder: Path) -> Iterator[str]:
    """What the folder is made of, line by line."""
    lock, values = read_lock(folder), read_recipe(folder)
    source, files = lock.get("source", {}), lock.get("files", {})
    yield f"{folder.resolve().name}: recipe {lock.get('recipe', '?')}"
    yield "source:    " + ", ".join(
        f"{key} {value}" for key, value in source.items() if isinstance(value, (str, int))
    )
    yield from _file_lines(source.get("files", {}))
    held = lock.get("facts", {}).get("layout", {}).get("quantized_source", {})
    if held:
        yield "           quantized: " + ", ".join(
            f"{n} weights {form}" for form, n in held.items()
        )
    quant, target = values.get("quant", {}), values.get("target", {})
    yield (
        f"target:    {target.get('execution_provider')} {target.get('float_type')}; quantized: "
        + ", ".join(f"{key} {quant.get(key)}" for key in ("round", "smooth", "bits", "block_size"))
    )
    seconds = lock.get("seconds", {})
    yield "passes:    " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    versions = lock.get("versions", {})
    yield "versions:  " + ", ".join(f"{name} {value}" for name, value in versions.items())
    total = format_bytes(sum(entry["size"] for entry in files.values()))
    yield f"files:     {len(files)}, {total}"
    yield from _file_lines(files)
    yield "measured:"
    yield from _aligned((name, _shown(value)) for name, value in flat(lock.get("facts", {})))


def _file_lines(entries: Mapping[str, Any]) -> Iterator[str]:
    return _aligned(
        (name, f"{format_bytes(entry['size']):>10}", f"blake3 {entry['blake3'][:16]}…")
        for name, entry in entries.items()
    )


def _aligned(rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Rows of a table whose columns are as wide as their longest cell, two spaces apart."""
    listed = list(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    for row in listed:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield f"  {'  '.join(cells)}".rstrip()


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

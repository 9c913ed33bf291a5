"""`convert cache list|clear`: what is kept for later runs."""

from __future__ import annotations

import argparse
import time

from converter.progress import format_bytes
from converter.storage.cache import Cache, cache_folder


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    meaning = "print the entries, or remove what nothing used in the last hour"
    parser.add_argument("action", choices=["list", "clear"], help=meaning)


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    cache = Cache(cache_folder())
    entries = cache.entries()
    if parsed.action == "clear":
        # What a job that runs now may be reading stays.
        count = cache.prune(limit=0, in_use_seconds=3600)
        print(f"{count} of {len(entries)} entries removed from {cache.folder}")
        return 0
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        name = str(entry.key.get("pass", "?"))
        print(f"{entry.name[:12]}  {name:<28}{format_bytes(entry.nbytes):>12}  {used}")
    total = format_bytes(sum(entry.nbytes for entry in entries))
    print(f"{len(entries)} entries, {total}, in {cache.folder}")
    return 0

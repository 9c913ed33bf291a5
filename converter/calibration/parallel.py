"""Many small computations at once, each on one core.

PyTorch's own threads meet after every operation, and operations on a tile that fits into a core's
cache are shorter than the wait when another process has a core. Independent tiles need no meeting,
and their results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_cores(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of every item, in order; as many at once as PyTorch has threads."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1))
    try:
        return list(pool.map(_without_gradients(function), items))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # a worker's setting reaches MKL in the whole process


def _without_gradients(function: Callable[[Item], Result]) -> Callable[[Item], Result]:
    def run(item: Item) -> Result:
        with torch.no_grad():  # the mode belongs to a thread
            return function(item)

    return run

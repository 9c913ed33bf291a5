"""The process that `converter.speed.benchmarking` measures: one folder, loaded and run once.

    python -m converter.speed.benchmark_worker WORK

with WORK as '{"folder": …, "prompt_lengths": […], "new_tokens": …, "threads": …}'.

It prints one line of JSON. It imports onnxruntime-genai and numpy only, so that its peak memory is
that of a program which uses the folder. When the model is gone, the bandwidth of the memory that
it leaves is measured: on a virtual machine some pages can be twice as fast as others.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

BUFFER_BYTES = 1 << 30
"""Larger than any cache, so that the bytes come from memory."""
PASSES = 6
WARM_UP_TOKENS = 2


def measure(
    folder: str, prompt_lengths: Sequence[int], new_tokens: int, threads: int
) -> dict[str, Any]:
    """Seconds to load, to the first token after each prompt, per later token; peak bytes; and
    the bytes per second that `threads` threads read from memory."""
    import onnxruntime_genai as og

    start = time.perf_counter()
    model = og.Model(folder)
    load = time.perf_counter() - start
    with open(f"{folder}/genai_config.json", encoding="utf-8") as stream:
        vocab_size = json.load(stream)["model"]["vocab_size"]
    _generate(og, model, _prompt(vocab_size, prompt_lengths[0]), WARM_UP_TOKENS)
    first, decode = {}, []
    for length in prompt_lengths:
        tokens = new_tokens if length == prompt_lengths[0] else 1
        seconds = _generate(og, model, _prompt(vocab_size, length), tokens)
        first[str(length)] = seconds[0]
        decode += seconds[1:]
    found = {"load": load, "first_token": first, "token": decode, "peak": peak_bytes()}
    del model
    return {**found, "bandwidth": bandwidth(threads)}


def _prompt(vocab_size: int, length: int) -> list[int]:
    """Ids from all over the vocabulary, none of the special ones at its start."""
    return [3 + number * 7919 % (vocab_size - 3) for number in range(length)]


def _generate(og: Any, model: Any, prompt: Sequence[int], new_tokens: int) -> list[float]:
    """Seconds of each greedy token; the first one's include the prompt."""
    import numpy as np

    parameters = og.GeneratorParams(model)
    length = len(prompt) + new_tokens
    # A minimum length keeps a model that ends early from ending the measurement.
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, parameters)
    seconds = []
    start = time.perf_counter()
    generator.append_tokens(np.asarray(prompt, dtype=np.int32))
    for _ in range(new_tokens):
        generator.generate_next_token()
        end = time.perf_counter()
        seconds.append(end - start)
        start = end
    return seconds


def bandwidth(threads: int) -> float:
    """Bytes read from memory per second by `threads` threads: the best of a few passes.

    Each thread's product of vectors runs in BLAS, which has to have one thread itself
    (OPENBLAS_NUM_THREADS=1 before numpy is imported).
    """
    import numpy as np

    parts = np.array_split(np.ones(BUFFER_BYTES // 4, dtype=np.float32), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            start = time.perf_counter()
            list(pool.map(lambda part: float(np.dot(part, part)), parts))
            best = max(best, BUFFER_BYTES / (time.perf_counter() - start))
    return best


def peak_bytes() -> int | None:
    """Largest resident memory that this process had; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Measure what the argument says and print the result."""
    print(json.dumps(measure(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()

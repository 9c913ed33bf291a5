"""One measured run of llama.cpp, in the form of converter.speed.benchmark_worker.

    python benchmarks/llama_worker.py quantize WIDE.gguf Q4_0.gguf Q4_0
    python benchmarks/llama_worker.py logits Q4_0.gguf IDS.npy FIRST STOP LOGITS.npy
    python benchmarks/llama_worker.py tokens Q4_0.gguf TEXTS.json IDS.json
    python benchmarks/llama_worker.py '{"folder": Q4_0.gguf, "prompt_lengths": […],
                                        "new_tokens": …, "threads": …}'

It runs in an environment of its own that has llama-cpp-python, gguf and numpy.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from converter.speed.benchmark_worker import bandwidth

BATCH = 512
WARM_UP_TOKENS = 2


def quantize(source: str, target: str, kind: str) -> None:
    """llama.cpp's own Q4_0, Q4_K_M, …: its quantizer decides about embedding and head."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    plain = kind == "F32"
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{'ALL' if plain else 'MOSTLY'}_{kind}")
    parameters.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters):
        raise SystemExit(f"llama.cpp could not quantize {source}")


def measure(folder: str, prompt_lengths: list[int], new_tokens: int, threads: int) -> Any:
    start = time.perf_counter()
    model = llama_cpp.Llama(
        folder,
        n_ctx=max(prompt_lengths) + new_tokens,
        n_batch=BATCH,
        n_ubatch=BATCH,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    load = time.perf_counter() - start
    vocab_size = model.n_vocab()
    generate(model, prompt(vocab_size, prompt_lengths[0]), WARM_UP_TOKENS)
    first, decode = {}, []
    for length in prompt_lengths:
        tokens = new_tokens if length == prompt_lengths[0] else 1
        seconds = generate(model, prompt(vocab_size, length), tokens)
        first[str(length)] = seconds[0]
        decode += seconds[1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del model
    found = {"load": load, "first_token": first, "token": decode, "peak": peak}
    return {**found, "bandwidth": bandwidth(threads)}


def prompt(vocab_size: int, length: int) -> list[int]:
    """The same ids as converter.speed.benchmark_worker gives."""
    return [3 + number * 7919 % (vocab_size - 3) for number in range(length)]


def generate(model: Any, ids: list[int], new_tokens: int) -> list[float]:
    """Seconds of each greedy token, through llama_decode itself; the first include the prompt."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.ctx), True)
    seconds = []
    start = time.perf_counter()
    for place in range(0, len(ids), BATCH):
        decode(model, ids[place : place + BATCH])
    for _ in range(new_tokens):
        token = best(model)
        end = time.perf_counter()
        seconds.append(end - start)
        start = end
        decode(model, [token])
    return seconds


def decode(model: Any, ids: list[int]) -> None:
    array = (llama_cpp.llama_token * len(ids))(*ids)
    if llama_cpp.llama_decode(model.ctx, llama_cpp.llama_batch_get_one(array, len(ids))):
        raise SystemExit("llama_decode failed")


def best(model: Any) -> int:
    logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
    return int(np.ctypeslib.as_array(logits, shape=(model.n_vocab(),)).argmax())


def write_logits(folder: str, ids: str, first: str, stop: str, output: str) -> None:
    """Logits float32 (chunks, stop - first, vocabulary) of int64 (chunks, tokens), each alone."""
    chunks = np.load(ids)
    length = chunks.shape[1]
    model = llama_cpp.Llama(folder, n_ctx=length, n_batch=length, logits_all=True, verbose=False)
    shape = (len(chunks), int(stop) - int(first), model.n_vocab())
    found = np.lib.format.open_memmap(output, "w+", np.float32, shape)
    for row, tokens in zip(found, chunks, strict=True):
        model.reset()
        model.eval([int(token) for token in tokens])
        row[:] = model.scores[int(first) : int(stop)]
    found.flush()


def write_tokens(path: str, texts: str, output: str) -> None:
    """Ids of each text of a JSON list, special tokens in it read as such, none added."""
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    given = json.loads(Path(texts).read_text("utf-8"))
    found = [model.tokenize(text.encode(), add_bos=False, special=True) for text in given]
    Path(output).write_text(json.dumps(found))


def main() -> None:
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:])
    elif sys.argv[1] == "logits":
        write_logits(*sys.argv[2:])
    elif sys.argv[1] == "tokens":
        write_tokens(*sys.argv[2:])
    else:
        print(json.dumps(measure(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()

"""What calibrated quantization costs: seconds and peak memory of one layer of each size.

    python benchmarks/calibration_cost.py [--sizes 1_8b 7b 20b] [--tokens 8192]

One layer of random weights in the published shape, with a vocabulary of 2048, runs in a process of
its own. The whole model's time is the layers' times as many, plus that of lm_head, which is a
matrix with the columns of the layer's gate projection and is counted by its number of weights. The
rates are those of plain matrix products in the same session; the arithmetic says how long the
products alone would take at these rates.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VOCABULARY = 2048


SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""A model whose calibration compiles the loops, which an installation does once."""


def measure(size: str, quant: str, tokens: int) -> dict[str, Any]:
    """Calibrate one layer in this process: seconds by step, peak memory in bytes."""
    from converter.calibration.calibrate import calibrate
    from converter.cli.compose import compose_values
    from converter.recipe.validation import parse_recipe
    from converter.storage.cache import Cache

    words = [f"recipe=internlm2_{size}_cpu_int4", f"quant={quant}", "source=synthetic"]
    words += [f"calibration.tokens={tokens}", "quant.lm_head.bits=16", "quant.embedding.bits=16"]
    values = compose_values(words)
    config = values["model"]["config"]
    published = dict(config)
    config |= {"num_hidden_layers": 1, "vocab_size": VOCABULARY}
    recipe = parse_recipe(values)
    small = {**values, "model": {**values["model"], "config": {**config, **SMALL}}}
    marks: list[tuple[float, str]] = []
    start = time.perf_counter()

    def advance(done: int, total: int, detail: str) -> None:
        marks.append((time.perf_counter() - start, detail.split(":")[0]))

    with tempfile.TemporaryDirectory() as name:
        compiling = parse_recipe(small)
        compiled = stored_decoder(compiling, Path(name, "small"))
        calibrate(compiling, compiled, Cache(Path(name, "small")), lambda *_: None)
        decoder = stored_decoder(recipe, Path(name))
        start = time.perf_counter()
        calibrate(recipe, decoder, Cache(Path(name) / "cache"), advance)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": peak, "marks": marks, "config": published}


def stored_decoder(recipe: Any, folder: Path) -> Any:
    """The recipe's random weights, read from a checkpoint on the disk as real ones are."""
    from converter.engine.contract import Run
    from converter.engine.registry import make_passes
    from converter.sources.local import open_local
    from converter.sources.synthetic import open_synthetic, write_checkpoint
    from converter.storage.staging import Staging

    path = folder / "checkpoint"
    path.mkdir(parents=True)
    write_checkpoint(open_synthetic(recipe), path)
    # Without its folder the checkpoint has no tokenizer, and calibration takes random tokens.
    checkpoint = dataclasses.replace(open_local(path), folder=None)
    (layout,) = make_passes(["layout"])
    return layout.run(checkpoint, Run(recipe, Staging.nowhere()))


def rates() -> dict[str, float]:
    """FLOP per second: bf16 and float32 products, and the Cholesky factor in float32."""
    import torch

    a, b = torch.randn(2048, 4096), torch.randn(4096, 4096)
    square = b @ b.T + 4096 * torch.eye(4096)
    product, found = 2 * 2048 * 4096 * 4096, {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        x, y = a.to(dtype), b.to(dtype)
        found[name] = product / _fastest(lambda x=x, y=y: x @ y)
    found["cholesky"] = 4096**3 / 3 / _fastest(lambda: torch.linalg.cholesky_ex(square))
    return found


def _fastest(function: Any) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def arithmetic(config: dict[str, Any], quant: str, tokens: int, speed: dict[str, float]) -> float:
    """Seconds that one layer's matrix products take at the measured rates."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv_rows = 2 * hidden // heads * config["num_key_value_heads"]
    shapes = [(hidden + kv_rows, hidden), (hidden, hidden), (2 * wide, hidden), (hidden, wide)]
    forward = sum(2 * tokens * n * k for n, k in shapes)
    # For the gradients of best: forward, forward again without the down projection, backward.
    gradients = 3 - hidden * wide / sum(n * k for n, k in shapes)
    passes = 1 + gradients * (quant == "best") + 0.25 * (quant == "awq")
    # Half of H is computed; AWQ gathers on a quarter of the tokens first.
    gram = sum(tokens * k * k for _, k in shapes) * (1 + 0.25 * (quant == "awq"))
    seconds = passes * forward / speed[compute()] + gram / speed["fp32"]
    if quant == "best":
        # A triangular product for GPTQ, a full and a triangular one for the refinement.
        rounding = sum(n * k * k for n, k in shapes) * 4
        factor = sum(k**3 / 3 for _, k in shapes)
        seconds += rounding / speed["fp32"] + factor / speed["cholesky"]
    return float(seconds)


def compute() -> str:
    """The type of the model's matrix products that `calibration.compute=auto` takes here."""
    from converter.calibration.calibrate import fast_bfloat16

    return "bf16" if fast_bfloat16() else "fp32"


def in_process(size: str, quant: str, tokens: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", size, quant, str(tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(size: str, quant: str, tokens: int, speed: dict[str, float]) -> None:
    found = in_process(size, quant, tokens)
    config, seconds = found["config"], found["seconds"]
    hidden, wide, layers = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    head = config["vocab_size"] / (2 * wide + 2 * hidden) * 0.5
    bound = arithmetic(config, quant, tokens, speed)
    print(
        f"{size:>5} {quant:>5} {tokens:6d} {seconds:9.1f} {bound:11.1f} "
        f"{seconds * (layers + head) / 60:11.1f} {found['peak'] / 1e9:8.2f}",
        flush=True,
    )
    last = 0.0
    for at, detail in found["marks"]:
        print(f"      {at - last:7.1f} s until {detail}", flush=True)
        last = at


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["1_8b", "7b", "20b"])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        size, quant, tokens = options.measure
        print(json.dumps(measure(size, quant, int(tokens))))
        return
    speed = rates()
    print("  ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in speed.items()))
    print(" size quant tokens   s/layer  arithmetic  min, whole  peak GB")
    for size in options.sizes:
        for quant in ("awq", "best") if size == "1_8b" else ("best",):
            report(size, quant, options.tokens, speed)


if __name__ == "__main__":
    main()

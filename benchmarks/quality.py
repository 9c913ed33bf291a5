"""Quality of quantization on a trained model: size against KL divergence from the float model.

    python benchmarks/quality.py CHECKPOINT --text wiki.test.raw --calibration other.txt

CHECKPOINT is what benchmarks/smollm2.py writes. Each row is a complete conversion and evaluation:
24 chunks of 512 tokens, second half scored, through onnxruntime at the shipped accuracy level.
Size is the data file without the rotary caches, the tied embedding once. Rows that are in the
results file already are not run again, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONTEXT = 512
CACHE_BYTES = 2 * CONTEXT * 32 * 4
"""cos and sin caches of the 135M model at this context length."""
SYMMETRIC = {"symmetric": "quant.symmetric=true", "asymmetric": "quant.symmetric=false"}
SCHEMES = ("rtn", "search", "awq", "gptq", "best")
BUDGETS = ("86.3MB", "89.9MB", "103.7MB")


def rows(groups: Sequence[str]) -> dict[str, list[str]]:
    """Name and overrides of each conversion."""
    found: dict[str, list[str]] = {}
    if "budgets" in groups:
        for budget in BUDGETS:
            words = ["quant=best", f"quant.target_size={budget}"]
            found[f"best, at most {budget}"] = words
    if "schemes" in groups:
        for scheme in SCHEMES:
            for block_size in (32, 64):
                for name, word in SYMMETRIC.items():
                    words = [f"quant={scheme}", f"quant.block_size={block_size}", word]
                    words += ["quant.lm_head.bits=8", "quant.embedding.bits=8"]
                    found[f"{scheme}, block {block_size}, {name}, 8-bit head"] = words
    return found


def measure(words: Sequence[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Convert and evaluate once."""
    output = arguments.work / "converted"
    shutil.rmtree(output, ignore_errors=True)
    command = [
        *(sys.executable, "-m", "converter.cli.main", "recipe=internlm2_1_8b_cpu_int4"),
        f"source.path='{arguments.checkpoint}'",
        f"output='{output}'",
        f"graph.context_length={CONTEXT}",
        *("verify=none", "evaluate=standard", f"evaluate.text='{arguments.text}'"),
        *(f"calibration.text='{arguments.calibration}'", f"calibration.tokens={arguments.tokens}"),
        *("quant.embedding.block_size=null", *words),
    ]
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(words)}:\n{result.stderr[-2000:]}")
    lock = json.loads((output / "convert.lock.json").read_text())
    size = (output / "model.onnx.data").stat().st_size - CACHE_BYTES
    seconds = {"quantize": lock["seconds"].get("quantize"), "all": time.perf_counter() - start}
    return {"size": size, "evaluate": lock["facts"]["evaluate"], "seconds": seconds}


def table(results: Mapping[str, Any]) -> str:
    """Markdown table of the results."""
    lines = [
        "| scheme | size | KL divergence | top-1 | perplexity ratio (ln) | seconds to quantize |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        facts = found["evaluate"]
        lines.append(
            f"| {name} | {found['size'] / 1e6:.1f} MB "
            f"| {facts['mean_kld']:.4f} ± {facts['mean_kld_error']:.4f} "
            f"| {facts['top1_agreement']:.1%} | {facts['ln_ppl_ratio']:.4f} "
            f"| {found['seconds']['quantize']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the rows that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="text to evaluate on")
    parser.add_argument("--calibration", default="builtin", help="text to calibrate on")
    parser.add_argument("--tokens", type=int, default=8192, help="calibration tokens")
    parser.add_argument("--groups", nargs="+", default=["budgets", "schemes"])
    parser.add_argument("--work", type=Path, default=Path("quality"))
    arguments = parser.parse_args()
    for key in ("checkpoint", "text", "work"):
        setattr(arguments, key, getattr(arguments, key).resolve())
    arguments.work.mkdir(parents=True, exist_ok=True)
    path = arguments.work / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name, words in rows(arguments.groups).items():
        if name not in results:
            results[name] = measure(words, arguments)
            path.write_text(json.dumps(results, indent=2) + "\n")
            print(name, results[name]["size"], results[name]["evaluate"]["mean_kld"], flush=True)
    print(table(results))


if __name__ == "__main__":
    main()

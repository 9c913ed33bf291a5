"""Size, memory and bytes read per token of every preset, from shapes alone.

    python benchmarks/sizes.py [--share 0.8] [--bandwidth GB/s …]

Prints the table of docs/guide/choosing.md. Folder sizes are exact but for tokenizer and graph (some
7 MB). Memory and tokens per second are estimates; their arithmetic stands under the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from converter.cli.compose import compose_recipe
from converter.engine.contract import Run
from converter.engine.registry import make_passes
from converter.graph.tensors import model_weights
from converter.speed.benchmarking import cache_bytes_per_token, graph_bytes_per_token
from converter.storage.staging import Staging
from converter.weights.placement import data_size, place_tensors

MODELS = ("internlm2_1_8b", "internlm2_7b", "internlm2_20b")
KINDS = {
    "cpu_fp32": "cpu fp32",
    "cpu_int4": "cpu int4, block 32",
    "cpu_int4_fast": "cpu int4, block 256",
    "cuda_fp16": "cuda fp16 or bf16",
    "cuda_int4": "cuda int4",
    "dml_int4": "dml int4",
    "webgpu_int4": "webgpu int4",
    "nvtensorrtrtx_int4": "NvTensorRtRtx int4",
}
CONTEXT = 4096
"""Tokens of prompt and answer that the memory estimate holds keys and values for."""
DECODE_CONTEXT = 512


@dataclass(frozen=True)
class Size:
    """Bytes of one preset."""

    recipe: str
    kind: str
    folder: int
    per_token: int
    cache: int


def sizes() -> Iterator[Size]:
    for model in MODELS:
        for suffix, kind in KINDS.items():
            recipe = compose_recipe([f"recipe={model}_{suffix}", "source=synthetic"])
            artifact: Any = None
            for item in make_passes(["load", "layout", "graph", "quantize"]):
                if item.enabled(recipe):
                    # A calibrated graph has the shapes of its preview, which reads no weights.
                    artifact = item.preview(artifact, Run(recipe, Staging.nowhere()))
            places = place_tensors(model_weights(artifact.model))
            graph = artifact.model.graph
            head_size = artifact.decoder.architecture.head_dim
            yield Size(
                f"{model}_{suffix}",
                kind,
                data_size(places),
                graph_bytes_per_token(graph, DECODE_CONTEXT, head_size),
                cache_bytes_per_token(graph, head_size),
            )


def table(found: list[Size], bandwidths: list[float], share: float) -> str:
    speeds = [f"tok/s at {rate:g} GB/s*" for rate in bandwidths]
    head = ["recipe", "folder (GB)", "memory* (GB)", "read per token (GB)", *speeds]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for item in found:
        memory = item.folder + CONTEXT * item.cache
        cells = [
            f"`{item.recipe}`",
            f"{item.folder / 1e9:.2f}",
            f"{memory / 1e9:.1f}",
            f"{item.per_token / 1e9:.2f}",
            *(f"{share * rate * 1e9 / item.per_token:.1f}" for rate in bandwidths),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--bandwidth", type=float, nargs="+", default=[50, 100, 500, 1000])
    parsed = parser.parse_args()
    print(table(list(sizes()), parsed.bandwidth, parsed.share))
    print(
        f"\n* Estimates. Memory: the folder's data and keys and values of {CONTEXT} tokens. "
        f"Tokens per second: {parsed.share:g} · bandwidth / bytes read per token after "
        f"{DECODE_CONTEXT} tokens."
    )


if __name__ == "__main__":
    main()

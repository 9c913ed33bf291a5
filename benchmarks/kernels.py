"""Bytes per second that onnxruntime's MatMulNBits reads, by bits, block size and threads.

    python benchmarks/kernels.py [--threads 1 2]

One row of activations against many matrices (columns K, rows N) of random codes, more than a cache
holds: what decoding does. The best of a few passes; the memory's own rate is beside it.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: see benchmark_worker.bandwidth

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from converter.speed.benchmark_worker import bandwidth

K, N, MATRICES, PASSES = 2048, 8192, 24, 12
FORMATS = [(4, 16), (4, 32), (4, 64), (4, 128), (4, 256), (8, 32), (8, 128)]


def model(bits: int, block_size: int, symmetric: bool) -> tuple[bytes, int]:
    """The model, and the bytes that it reads."""
    random, blocks = np.random.default_rng(0), K // block_size
    nodes, values = [], []
    for number in range(MATRICES):
        shape: tuple[int, ...] = (N, blocks, block_size * bits // 8)
        arrays: dict[str, np.ndarray] = {
            "codes": random.integers(0, 256, shape, dtype=np.uint8),
            "scales": random.random((N, blocks), dtype=np.float32),
        }
        if not symmetric:
            shape = (N, (blocks * bits + 7) // 8)
            arrays["zero_points"] = random.integers(0, 256, shape, dtype=np.uint8)
        values += [numpy_helper.from_array(a, f"{name}{number}") for name, a in arrays.items()]
        inputs = ["x", *(f"{name}{number}" for name in arrays)]
        sizes: dict[str, Any] = {"K": K, "N": N, "bits": bits, "block_size": block_size}
        sizes["accuracy_level"] = 4
        nodes.append(
            helper.make_node("MatMulNBits", inputs, [f"y{number}"], domain="com.microsoft", **sizes)
        )
    nodes.append(helper.make_node("Max", [f"y{number}" for number in range(MATRICES)], ["y"]))
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s]) for n, s in (("x", K), ("y", N))
    ]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "kernels", ends[:1], ends[1:], values)
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return made.SerializeToString(), sum(len(value.raw_data) for value in values)


def rate(content: bytes, nbytes: int, threads: int) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session: Any = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    feeds, best = {"x": np.ones((1, K), np.float32)}, float("inf")
    for _ in range(PASSES):
        start = time.perf_counter()
        session.run(None, feeds)
        best = min(best, time.perf_counter() - start)
    return nbytes / best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    threads = parser.parse_args().threads
    print("| format | " + " | ".join(f"{n} thread(s), GB/s" for n in threads) + " |")
    print("|---" * (len(threads) + 1) + "|")
    print("| memory | " + " | ".join(f"{bandwidth(n) / 1e9:.1f}" for n in threads) + " |")
    for bits, size in FORMATS:
        for symmetric in (True, False):
            content, nbytes = model(bits, size, symmetric)
            rates = [f"{rate(content, nbytes, n) / 1e9:.1f}" for n in threads]
            sign = "symmetric" if symmetric else "asymmetric"
            print(f"| int{bits}, block {size}, {sign} | " + " | ".join(rates) + " |", flush=True)


if __name__ == "__main__":
    main()

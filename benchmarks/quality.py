"""Quality of quantization on a trained model: size against KL divergence from the float model.

    python benchmarks/smollm2.py CHECKPOINT
    python benchmarks/quality.py CHECKPOINT --text wiki.test.raw --book BOOK --llama PYTHON

Each row is a complete conversion, evaluated on 24 chunks of 512 tokens, second half scored, through
onnxruntime at the shipped accuracy level. When all are made they take turns at decoding 64 tokens
after 16, a process each, three times. The groups of rows:

budgets  best under a size, calibrated on 32,768 tokens: what the float model writes itself
         (`convert sample`), and the middle of BOOK
fast     the formats of benchmarks/speed.py: every matrix in 4 bits, the embedding in float
schemes  every scheme, block size and sign, an 8-bit head and embedding; like fast, calibrated on
         the 8,192 tokens of the built-in text that recipes take by default
llama    llama.cpp's own quantizer and kernels on the same weights and chunks, compared by the same
         code; PYTHON is that of an environment with llama-cpp-python, gguf and numpy
builder  onnxruntime-genai's model builder on the same weights, with its defaults; its embedding
         stays in float32

Size is the weights as stored: the data file without the rotary caches, the GGUF file without its
vocabulary; the tied embedding counts once. What is in the results file already is not made or timed
again, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from conversion import write_twin
from numpy.typing import NDArray
from speed import build

from converter.cli.compose import compose_recipe
from converter.evaluation.folder_evaluation import folder_chunks, score
from converter.evaluation.reference_file import ReferenceFile
from converter.evaluation.reference_logits import stored_reference
from converter.evaluation.statistics import TokenValues, summarize
from converter.machine.cores import physical_cores
from converter.model.architecture import read_architecture
from converter.model.decoder import build_decoder
from converter.sources.local import open_local
from converter.speed.benchmarking import Spread, run_once
from converter.storage.cache import Cache, cache_folder
from converter.text.texts import EvaluationChunks

HERE = Path(__file__).parent
CONVERT = [sys.executable, "-m", "converter.cli.main"]
RECIPE = "recipe=internlm2_1_8b_cpu_int4"
CONTEXT = 512
CACHE_BYTES = 2 * CONTEXT * 32 * 4
"""cos and sin caches of the 135M model at this context length."""
EXCERPT = 62_000  # characters of the book, about 14,000 tokens
OWN_TOKENS, BUDGET_TOKENS = 20_480, 32_768
SYMMETRIC = {"symmetric": "quant.symmetric=true", "asymmetric": "quant.symmetric=false"}
SCHEMES = {name: [f"quant={name}"] for name in ("rtn", "search", "awq", "gptq", "best")}
SCHEMES["best with awq"] = ["quant=best", "quant.smooth=awq"]
BLOCKS = (32, 128, 64)
EMBEDDING = "quant.embedding.block_size"
SAME_BLOCKS = f"{EMBEDDING}=null"
BUDGETS = ("86.3MB", "89.9MB", "103.7MB")
LLAMA = ("Q4_0", "Q4_1", "Q4_K_M", "Q5_0")
PROMPT, NEW_TOKENS, ROUNDS = 16, 64, 3
PARTIAL = "partial"
"""Name of a row's folder or file until the row is measured."""
SAME_MODEL = 1e-3
"""Divergence up to which llama.cpp's float32 file is taken for the same model; it keeps keys and
values in float16."""


def rows(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Name and overrides of each conversion."""
    found: dict[str, list[str]] = {}
    if "budgets" in arguments.groups:
        text = f"calibration.text='{arguments.work / 'texts'}'"
        for budget in BUDGETS:
            words = ["quant=best", f"quant.target_size={budget}"]
            words += [text, f"calibration.tokens={BUDGET_TOKENS}"]
            found[f"best, at most {budget}"] = words
    if "fast" in arguments.groups:
        for scheme in ("rtn", "best"):
            for size in (32, 128, 256):
                words = [f"quant={scheme}", f"quant.block_size={size}", "quant.pad_last_block=true"]
                found[f"{scheme}, all in blocks of {size}"] = [*words, "quant.embedding.bits=16"]
    if "schemes" in arguments.groups:
        found |= {
            f"{scheme}, block {size}, {name}": [
                *(*choice, f"quant.block_size={size}", word, "quant.pad_last_block=true"),
                *("quant.lm_head.bits=8", "quant.lm_head.block_size=64", "quant.embedding.bits=8"),
                f"{EMBEDDING}=64",
            ]
            for size in BLOCKS
            for scheme, choice in SCHEMES.items()
            for name, word in SYMMETRIC.items()
        }
    return found


def convert(words: Sequence[str], output: Path, arguments: argparse.Namespace) -> None:
    shutil.rmtree(output, ignore_errors=True)
    paths = [f"source.path='{arguments.checkpoint}'", f"output='{output}'"]
    run([*CONVERT, *paths, "verify=none", *words])


def write_texts(arguments: argparse.Namespace) -> None:
    """Calibration text of the budgets: the model's own, and part of a book."""
    folder, model = arguments.work / "texts", arguments.work / "float"
    if folder.exists():
        return
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    convert(["recipe=internlm2_1_8b_cpu_fp32"], model, arguments)
    size = ["--tokens", str(OWN_TOKENS), "--length", str(CONTEXT)]
    run([*CONVERT, "sample", str(model), str(partial / "own.txt"), "--plain", *size])
    shutil.rmtree(model)
    book = arguments.book.read_text(encoding="utf-8")
    excerpt = book[len(book) // 2 :][:EXCERPT]
    (partial / "book.txt").write_text(excerpt, encoding="utf-8")
    partial.rename(folder)


def measure(words: Sequence[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Convert and evaluate once."""
    output, start = arguments.work / PARTIAL, time.perf_counter()
    text = [f"evaluate.text='{arguments.text}'", f"graph.context_length={CONTEXT}"]
    blocks = [] if any(word.startswith(EMBEDDING) for word in words) else [SAME_BLOCKS]
    convert([RECIPE, "evaluate=standard", *text, *blocks, *words], output, arguments)
    seconds = time.perf_counter() - start
    lock = json.loads((output / "convert.lock.json").read_text())
    return {
        "size": (output / "model.onnx.data").stat().st_size - CACHE_BYTES,
        **{key: lock["facts"]["evaluate"][key] for key in KEPT},
        "seconds": lock["seconds"].get("quantize", 0) + lock["seconds"]["package"],
        "all_seconds": seconds,
    }


def result_path(name: str, work: Path) -> Path:
    """The folder, or GGUF file, of a row."""
    return work / "made" / re.sub("[^A-Za-z0-9.]+", "_", name)


def decode_rates(names: Sequence[str], arguments: argparse.Namespace) -> dict[str, Spread]:
    """Decoded tokens per second of each row; the rows take turns, in another order each round."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS):
        shift = number * len(names) // ROUNDS
        for name in (*names[shift:], *names[:shift]):
            path = result_path(name, arguments.work)
            llama = path.is_file()
            found = run_llama(path, arguments) if llama else run_once(path, [PROMPT], NEW_TOKENS)
            seconds[name].append(statistics.median(found["token"]))
    return {name: Spread.of(values).per(1) for name, values in seconds.items()}


def run_llama(path: Path, arguments: argparse.Namespace) -> Any:
    """One process of llama.cpp's, as `run_once` gives it."""
    asked = {"folder": str(path), "prompt_lengths": [PROMPT], "new_tokens": NEW_TOKENS}
    command = [arguments.llama, str(HERE / "llama_worker.py")]
    found = run([*command, json.dumps(asked | {"threads": physical_cores()})])
    return json.loads(found.splitlines()[-1])


KEPT = ("mean_kld", "mean_kld_error", "kld_p99", "top1_agreement", "ln_ppl_ratio")


def measure_llama(kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same of llama.cpp's own quantization to `kind`."""
    work, worker = arguments.work, [arguments.llama, str(HERE / "llama_worker.py")]
    wide, path, twin = work / "wide.gguf", work / PARTIAL, work / "llama"
    if not wide.exists():
        write_twin(arguments.checkpoint, twin)
        run([arguments.llama, str(HERE / "gguf_writer.py"), str(twin), str(wide)])
        unrounded = llama_divergence(wide, worker, arguments)["mean_kld"]
        if unrounded > SAME_MODEL:
            raise SystemExit(f"llama.cpp's float32 model has a divergence of {unrounded:.4f}")
    start = time.perf_counter()
    run([*worker, "quantize", str(wide), str(path), kind])
    seconds = time.perf_counter() - start
    divergence = llama_divergence(path, worker, arguments)
    return {"size": path.stat().st_size, **divergence, "seconds": seconds}


def llama_divergence(
    path: Path, worker: Sequence[str], arguments: argparse.Namespace
) -> dict[str, float]:
    """llama.cpp's logits on the same chunks, against the same reference."""
    chunks, reference = stored_chunks(arguments)
    ids, logits = arguments.work / "ids.npy", arguments.work / "logits.npy"
    np.save(ids, chunks.input_ids)
    scored = [str(chunks.scored.start), str(chunks.scored.stop)]
    run([*worker, "logits", str(path), str(ids), *scored, str(logits)])
    values = score((item.copy() for item in np.load(logits, mmap_mode="r")), chunks, reference)
    logits.unlink()
    return kept_facts(values)


def stored_chunks(arguments: argparse.Namespace) -> tuple[EvaluationChunks, ReferenceFile]:
    """The chunks of the text, and the float model's logits on them."""
    words = [RECIPE, f"source.path='{arguments.checkpoint}'", "evaluate=standard"]
    recipe = compose_recipe([*words, f"evaluate.text='{arguments.text}'"])
    checkpoint = open_local(arguments.checkpoint)
    arch = read_architecture(checkpoint.config, recipe)
    decoder = build_decoder(checkpoint, recipe.layout, arch)
    tokenizer = arguments.work / "tokenizer"
    if not tokenizer.exists():
        convert([RECIPE, "quant=rtn", SAME_BLOCKS], tokenizer, arguments)
    chunks = folder_chunks(tokenizer, recipe.evaluate)
    cache = Cache(cache_folder())
    reference = stored_reference(decoder, chunks, cache, lambda *_: None)
    return chunks, reference


def measure_builder(_: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same of the folder that onnxruntime-genai's builder makes."""
    work, output = arguments.work, arguments.work / PARTIAL
    if not (work / "llama").exists():
        write_twin(arguments.checkpoint, work / "llama")
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    build(work / "llama", output)
    seconds = time.perf_counter() - start
    chunks, reference = stored_chunks(arguments)
    logits = builder_logits(output, chunks)
    weights = ir.load(output / "model.onnx").graph.initializers.values()
    size = sum(
        value.const_value.nbytes
        for value in weights
        if value.const_value is not None and "_cache" not in str(value.name)
    )
    facts = kept_facts(score(logits, chunks, reference))
    return {"size": size, **facts, "seconds": seconds}


def builder_logits(folder: Path, chunks: EvaluationChunks) -> Iterator[NDArray[np.float32]]:
    """Logits of each chunk's scored tokens; the graph does not say how long a cached key is."""
    import onnxruntime

    config = json.loads((folder / "genai_config.json").read_text())
    head_size = config["model"]["decoder"]["head_size"]
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    for row in chunks.input_ids:
        feeds = {"input_ids": row[None], "attention_mask": np.ones((1, len(row)), np.int64)}
        for item in session.get_inputs():
            if item.name not in feeds:
                feeds[item.name] = np.zeros((1, item.shape[1], 0, head_size), np.float32)
        yield session.run(["logits"], feeds)[0][0, chunks.scored]


def kept_facts(values: TokenValues) -> dict[str, float]:
    """The figures of a row, as `Evaluation.facts` (folder_evaluation) has them."""
    result = summarize(values)
    figures = (
        *(result.kld.value, result.kld.error, result.kld_percentiles["99%"]),
        *(result.same_top.value, result.ln_ppl_ratio.value),
    )
    return dict(zip(KEPT, figures, strict=True))


def run(command: Sequence[str]) -> str:
    """The command's output; what it says of its progress is kept for an error."""
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
    return done.stdout


def table(results: Mapping[str, Any]) -> str:
    """Markdown table of the results."""
    lines = [
        "| scheme | size | KL divergence | 99 % of tokens below "
        "| top-1 | decode (tok/s) | made in |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        median, low, high = found["decode"]
        lines.append(
            f"| {name} | {found['size'] / 1e6:.1f} MB "
            f"| {found['mean_kld']:.4f} ± {found['mean_kld_error']:.4f} | {found['kld_p99']:.2f} "
            f"| {found['top1_agreement']:.1%} | {median:.0f} ({low:.0f}–{high:.0f}) "
            f"| {found['seconds']:.0f} s |"
        )
    return "\n".join(lines)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Size against divergence, the schemes apart; without `fast`, whose embedding is in float."""
    from matplotlib.figure import Figure

    groups: dict[str, list[tuple[float, float]]] = {}
    for name, found in results.items():
        scheme, *rest = name.split(", ")
        if rest[:1] and rest[0].startswith("all in blocks"):
            continue
        label = "best, to a size" if rest[:1] and rest[0].startswith("at most") else scheme
        label = f"llama.cpp {label.removeprefix('llama.cpp ')}" if "llama" in scheme else label
        groups.setdefault(label, []).append((found["size"] / 1e6, found["mean_kld"]))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for label, points in groups.items():
        style = "s" if label.startswith("llama") else "o-" if "to a size" in label else "o"
        axes.plot(*zip(*sorted(points), strict=True), style, label=label)
    axes.set(xlabel="weights as stored (MB)", ylabel="mean KL divergence (nats)", yscale="log")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the rows that are missing, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="text to evaluate on")
    parser.add_argument("--book", type=Path, help="other text, for the budgets' calibration")
    parser.add_argument("--llama", help="python of llama.cpp's environment")
    groups = ["budgets", "fast", "schemes", "llama", "builder"]
    parser.add_argument("--groups", nargs="+", default=groups, choices=groups)
    parser.add_argument("--work", type=Path, default=Path("quality"))
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    for key in ("checkpoint", "text", "work"):
        setattr(arguments, key, getattr(arguments, key).resolve())
    arguments.work.mkdir(parents=True, exist_ok=True)
    if "budgets" in arguments.groups:
        if arguments.book is None:
            parser.error("the group budgets needs --book")
        write_texts(arguments)
    jobs: dict[str, tuple[Callable[[Any, argparse.Namespace], dict[str, Any]], Any]] = {
        name: (measure, words) for name, words in rows(arguments).items()
    }
    if "builder" in arguments.groups:
        jobs["genai builder int4"] = (measure_builder, "")
    if "llama" in arguments.groups and arguments.llama:
        jobs |= {f"llama.cpp {kind}": (measure_llama, kind) for kind in LLAMA}
    path, made = arguments.work / "results.json", arguments.work / "made"
    made.mkdir(exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    for name, (function, what) in jobs.items():
        if name not in results:
            results[name] = function(what, arguments)
            (arguments.work / PARTIAL).rename(result_path(name, arguments.work))
            path.write_text(json.dumps(results, indent=2) + "\n")
            print(name, results[name], file=sys.stderr, flush=True)
    if any("decode" not in results[name] for name in jobs):
        for name, rate in decode_rates(list(jobs), arguments).items():
            results[name]["decode"] = [rate.median, rate.low, rate.high]
        path.write_text(json.dumps(results, indent=2) + "\n")
    results = {name: results[name] for name in jobs}
    print(table(results))
    if arguments.picture:
        draw(results, arguments.picture)


if __name__ == "__main__":
    main()

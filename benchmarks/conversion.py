"""Time and peak memory of a conversion, against onnxruntime-genai's model builder.

    python benchmarks/conversion.py [--model llama3_2_1b] [--work FOLDER] [--no-builder]

Writes a synthetic checkpoint of the model's shape (bf16, sharded) and runs each converter on it as
a process of its own, with its input in the page cache and nothing in `convert`'s cache. The builder
cannot read InternLM2's own form, so there it gets a Llama-shaped twin. Time is wall-clock, memory
is the peak resident memory of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.cli.compose import compose_recipe
from converter.model.architecture import read_architecture
from converter.model.checkpoint import Checkpoint
from converter.model.decoder import build_decoder
from converter.model.reference import llama_config
from converter.sources.local import open_local
from converter.sources.synthetic import open_synthetic, write_checkpoint
from converter.storage.hashing import hash_file

OPTIONS = {
    "int4, block 32": ["quant=rtn"],
    "int4, block 128": ["quant=rtn", "quant.block_size=128"],
    "fp16": ["target=cuda", "quant=none"],
    "fp32": ["quant=none"],
    "int4, block 32, verified": ["quant=rtn", "verify=standard"],
}


@dataclass(frozen=True)
class Measured:
    """One process: wall-clock seconds, peak resident bytes, bytes of its folder."""

    name: str
    seconds: float
    peak: int
    size: int


def measure(name: str, command: Sequence[str], output: Path) -> Measured:
    """Run a command and measure it with the folder that it makes, which is removed then.

    What it prints goes to a log beside `output`.
    """
    shutil.rmtree(output, ignore_errors=True)
    found = measure_process(name, command, output.with_suffix(".log"))
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    shutil.rmtree(output)
    return replace(found, size=size)


def measure_process(name: str, command: Sequence[str], log: Path) -> Measured:
    """Run a command and measure it; what it prints goes to `log`."""
    cache = log.with_suffix(".cache")
    shutil.rmtree(cache, ignore_errors=True)
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"CONVERT_CACHE": str(cache)}
    start = time.perf_counter()
    with log.open("wb") as stream:
        process = os.posix_spawn(
            command[0],
            list(command),
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, stream.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, stream.fileno(), 2),
            ],
        )
        _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{name} failed:\n{log.read_text()[-2000:]}")
    shutil.rmtree(cache, ignore_errors=True)
    return Measured(name, seconds, usage.ru_maxrss * 1024, 0)


def write_inputs(model: str, tokenizer: Path | None, work: Path, twin: bool) -> tuple[Path, Path]:
    """The checkpoint and what the builder reads, if asked: the same, or its Llama twin."""
    recipe = compose_recipe([f"recipe={model}_cpu_int4", "source=synthetic"])
    published, llama = work / model, work / f"{model}_llama"
    if not published.exists():
        published.mkdir()
        checkpoint = open_synthetic(recipe)
        write_checkpoint(checkpoint, published)
        _copy_tokenizer(tokenizer, published)
    if recipe.layout.reference == "config":
        if tokenizer is None:
            _write_builder_tokenizer(published)
        return published, published
    if twin and not llama.exists():
        write_twin(published, llama)
    return published, llama


def write_twin(published: Path, llama: Path) -> None:
    """The same weights in Llama's form; a tied head once, as the embedding."""
    recipe = compose_recipe(["recipe=internlm2_1_8b_cpu_int4"])
    checkpoint = open_local(published)
    arch = read_architecture(checkpoint.config, recipe)
    weights = dict(build_decoder(checkpoint, recipe.layout, arch).weights)
    tied = weights["lm_head"] is weights["embed_tokens"]
    if tied:
        del weights["lm_head"]
    tensors = {llama_name(name): weight for name, weight in weights.items()}
    config = llama_config(arch).to_dict()
    config |= {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": tied}
    llama.mkdir()
    write_checkpoint(Checkpoint(config, tensors, {}), llama)
    _write_builder_tokenizer(llama)


def llama_name(canonical: str) -> str:
    if canonical == "lm_head":
        return "lm_head.weight"
    leaf = canonical.rsplit(".", 1)[-1]
    part = {"q_proj": "self_attn.", "k_proj": "self_attn.", "v_proj": "self_attn."}.get(leaf, "")
    part = {
        "o_proj": "self_attn.",
        "gate_proj": "mlp.",
        "up_proj": "mlp.",
        "down_proj": "mlp.",
    }.get(leaf, part)
    return "model." + canonical.removesuffix(leaf) + part + leaf + ".weight"


def _copy_tokenizer(tokenizer: Path | None, folder: Path) -> None:
    if tokenizer is not None and tokenizer.is_dir():
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    elif tokenizer is not None:
        shutil.copy(tokenizer, folder / "tokenizer.model")


def _write_builder_tokenizer(folder: Path) -> None:
    """The least that the builder loads: it copies a tokenizer, but does not convert with it."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1}, merges=[])).save(
        str(folder / "tokenizer.json")
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def warm(folder: Path) -> None:
    """Read the weights, so that they are in the page cache whatever ran before."""
    for path in folder.glob("*.safetensors"):
        hash_file(path)


def run(arguments: argparse.Namespace, work: Path) -> list[Measured]:
    """All conversions in turn."""
    inputs = write_inputs(arguments.model, arguments.tokenizer, work, not arguments.no_builder)
    convert = [sys.executable, "-m", "converter.cli.main", f"recipe={arguments.model}_cpu_int4"]
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    results = []
    if not arguments.no_builder:
        output = work / "builder"
        options = ["-i", str(inputs[1]), "-o", str(output), "-p", "int4", "-e", "cpu"]
        cache = ["-c", str(work / "builder_cache")]
        warm(inputs[1])
        results.append(measure("genai builder, int4", [*builder, *options, *cache], output))
    for name in arguments.only or OPTIONS:
        output = work / "converted"
        paths = [f"source.path='{inputs[0]}'", f"output='{output}'"]
        command = [*convert, *paths, "verify=none", *OPTIONS[name]]
        for _ in range(arguments.repeat):
            warm(inputs[0])
            results.append(measure(name, command, output))
    return results


def table(results: Sequence[Measured]) -> str:
    """Markdown table, with ratios to the first row when that is the builder."""
    first = results[0]
    lines = [
        "| conversion | seconds | times faster | peak memory | folder |",
        "|---|---|---|---|---|",
    ]
    for item in results:
        ratio = f"{first.seconds / item.seconds:.1f}" if first.name.startswith("genai") else ""
        lines.append(
            f"| {item.name} | {item.seconds:.1f} | {ratio} | {item.peak / 1e9:.2f} GB "
            f"| {item.size / 1e9:.3f} GB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="internlm2_1_8b")
    parser.add_argument("--work", type=Path, help="folder to keep the checkpoints in")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.model, or a folder of files")
    parser.add_argument("--no-builder", action="store_true")
    parser.add_argument("--only", nargs="+", choices=OPTIONS)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        results = run(arguments, work)
    print(table(results))
    if arguments.json:
        values: list[Mapping[str, Any]] = [vars(item) for item in results]
        arguments.json.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()

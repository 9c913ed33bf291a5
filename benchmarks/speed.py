"""Speed of 1.8B-shaped folders: ours, the genai builder's default int4, llama.cpp's Q4_0.

    python benchmarks/speed.py --work FOLDER [--llama PYTHON] [--prepare] [--only NAME …]

All are made from the same synthetic bf16 weights and run interleaved, a process each; medians with
their spread. `--llama` is the Python of an environment with llama-cpp-python, gguf and numpy;
without it llama.cpp is left out. `--prepare` makes the folders and stops, so that the measurement
can run alone on the machine later. Preparing takes the builder 14 GB of memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conversion import write_inputs

from converter.machine.cores import physical_cores
from converter.speed.benchmarking import (
    Measured,
    Report,
    bandwidth,
    draw,
    run_once,
    summarise,
    table,
)
from converter.speed.tuning import THREADS, write_settings

HERE = Path(__file__).parent
BUILDER, LLAMA = "genai builder int4", "llama.cpp Q4_0"
OURS = {  # a kernel's speed depends on shapes alone: the last is what quant=fast stores
    "int4 block 32": ["quant=rtn"],
    "int4 block 128": ["quant=rtn_block128"],
    "int4 block 256, zero points": [
        *("quant=rtn", "quant.block_size=256", "quant.symmetric=false", "quant.scale_type=fp16")
    ],
}
VARIANTS = {
    "block 128, all tokens' logits": ["quant=rtn_block128", "graph.last_token_logits=false"],
    "block 128, gate and up in one": ["quant=rtn_block128", "target.packed_gate_up=true"],
    "block 128, separate q, k, v": ["quant=rtn_block128", "target.packed_qkv=false"],
    "block 128, 8-bit head": ["quant=rtn_block128", "quant.lm_head.bits=8"],
    "block 128, asymmetric": ["quant=rtn_block128", "quant.symmetric=false"],
    "block 128, fp32 activations": ["quant=rtn_block128", "quant.accuracy_level=1"],
    "block 64": ["quant=rtn", "quant.block_size=64"],
    "block 32, fp16 scales": ["quant=rtn", "quant.scale_type=fp16"],
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "block 128, threads left to the runtime": {THREADS: None},
    "block 128, 1 thread": {THREADS: 1},
    "block 128, no spinning": {"session_options.session.intra_op.allow_spinning": "0"},
    "block 128, chunks of 128": {"search.chunk_size": 128},
    "block 128, no shared KV buffer": {"search.past_present_share_buffer": False},
    "block 128, no memory arena": {"session_options.enable_cpu_mem_arena": False},
    "genai builder int4, threads set": {THREADS: physical_cores()},
}
GOALS = {
    BUILDER: {"decode": 2.3, "prefill": 2.5},
    LLAMA: {"decode": 1.2, "prefill": 1.1},
}


def prepare(work: Path, model: str, llama: str | None, names: Sequence[str]) -> None:
    """Make every folder (and GGUF file) of `names` that is not there yet."""
    published, twin = write_inputs(model, None, work, twin=True)
    for name, words in (OURS | VARIANTS).items():
        output = work / slug(name)
        if name in names and not output.exists():
            source = f"source.path='{published}'"
            command = [sys.executable, "-m", "converter.cli.main", f"recipe={model}_cpu_int4"]
            call([*command, source, f"output='{output}'", "verify=none", *words])
    if BUILDER in names and not (work / slug(BUILDER)).exists():
        build(twin, work / slug(BUILDER))
    if LLAMA in names and llama and not (work / f"{slug(LLAMA)}.gguf").exists():
        wide = work / "f16.gguf"
        call([llama, str(HERE / "gguf_writer.py"), str(twin), str(wide)])
        target = str(work / f"{slug(LLAMA)}.gguf")
        call([llama, str(HERE / "llama_worker.py"), "quantize", str(wide), target, "Q4_0"])
        wide.unlink()
    for name, settings in SETTINGS.items():
        if name in names:
            base = BUILDER if name.startswith(BUILDER) else "int4 block 128"
            linked_folder(work / slug(base), work / slug(name), settings)


def build(twin: Path, output: Path) -> None:
    """The genai builder's default int4 folder."""
    partial = output.with_name("builder_partial")
    shutil.rmtree(partial, ignore_errors=True)
    options = ["-i", str(twin), "-o", str(partial), "-p", "int4", "-e", "cpu"]
    cache = ["-c", str(partial.with_name("builder_cache"))]
    call([sys.executable, "-m", "onnxruntime_genai.models.builder", *options, *cache])
    partial.rename(output)


def linked_folder(base: Path, output: Path, settings: Mapping[str, Any]) -> None:
    """`base` by links, with other settings in genai_config.json."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    for path in base.iterdir():
        if path.name != "genai_config.json":
            (output / path.name).symlink_to(path.resolve())
    write_settings(base, settings, output)


def measure(
    work: Path,
    names: Sequence[str],
    llama: str | None,
    lengths: list[int],
    new_tokens: int,
    rounds: int,
) -> Report:
    """All of `names` in turn, `rounds` times."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            results[name].append(run_named(work, name, llama, lengths, new_tokens))
            print(json.dumps(results[name][-1]), file=sys.stderr, flush=True)
    folders = [summarise_named(work, name, results[name], lengths, new_tokens) for name in names]
    return Report(physical_cores(), bandwidth(results.values()), rounds, new_tokens, folders)


def run_named(
    work: Path, name: str, llama: str | None, lengths: list[int], new_tokens: int
) -> dict[str, Any]:
    if name != LLAMA:
        return run_once(work / slug(name), lengths, new_tokens)
    assert llama
    asked = {
        "folder": str(work / f"{slug(LLAMA)}.gguf"),
        "prompt_lengths": lengths,
        "new_tokens": new_tokens,
        "threads": physical_cores(),
    }
    command = [llama, str(HERE / "llama_worker.py"), json.dumps(asked)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def summarise_named(
    work: Path,
    name: str,
    rounds: Sequence[dict[str, Any]],
    lengths: list[int],
    new_tokens: int,
) -> Measured:
    if name != LLAMA:
        found = summarise(work / slug(name), rounds, lengths, new_tokens)
        return dataclasses.replace(found, folder=name)
    # The bytes of its tensors are not read here: the figures that need them stay those of a file.
    like = summarise(work / slug("int4 block 32"), rounds, lengths, new_tokens)
    size = (work / f"{slug(LLAMA)}.gguf").stat().st_size
    share = size / like.bytes_per_token * like.bandwidth_share
    return dataclasses.replace(
        like, folder=name, folder_bytes=size, bytes_per_token=size, bandwidth_share=share
    )


def ratios(report: Report) -> str:
    """Markdown: our folders' speed over the others', with the goals."""
    by_name = {item.folder: item for item in report.folders}
    lines = ["| folder | over | decode | goal | prefill | goal |", "|---|---|---|---|---|---|"]
    longest = max(report.folders[0].first_token_seconds)
    for name in OURS:
        for other, goal in GOALS.items():
            if name in by_name and other in by_name:
                mine, theirs = by_name[name], by_name[other]
                decode = (
                    mine.decode_tokens_per_second.median / theirs.decode_tokens_per_second.median
                )
                prefill = (
                    mine.prefill_tokens_per_second(longest).median
                    / theirs.prefill_tokens_per_second(longest).median
                )
                lines.append(
                    f"| {name} | {other} | {decode:.2f} | {goal['decode']} "
                    f"| {prefill:.2f} | {goal['prefill']} |"
                )
    return "\n".join(lines)


def slug(name: str) -> str:
    kept = "".join(letter if letter.isalnum() else "_" for letter in name.lower())
    return "_".join(part for part in kept.split("_") if part)


def call(command: Sequence[str]) -> None:
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)


def main() -> None:
    """Prepare and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="internlm2_1_8b")
    parser.add_argument("--llama", help="python of llama.cpp's environment")
    parser.add_argument("--prepare", action="store_true")
    everything = [BUILDER, LLAMA, *OURS, *VARIANTS, *SETTINGS]
    parser.add_argument("--only", nargs="+", default=[BUILDER, LLAMA, *OURS], choices=everything)
    parser.add_argument("--prompt-lengths", type=int, nargs="+", default=[16, 128, 512])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parsed = parser.parse_args()
    names = [name for name in parsed.only if name != LLAMA or parsed.llama]
    work = parsed.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, parsed.model, parsed.llama, names)
    if parsed.prepare:
        return
    lengths = sorted(parsed.prompt_lengths)
    report = measure(work, names, parsed.llama, lengths, parsed.new_tokens, parsed.rounds)
    print(f"{table(report)}\n\n{ratios(report)}")
    if parsed.json:
        parsed.json.write_text(report.to_json())
    if parsed.picture:
        draw(report, parsed.picture)


if __name__ == "__main__":
    main()

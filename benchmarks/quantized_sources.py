"""Time and peak memory of conversions from quantized checkpoints, against bf16 of the same shape.

    python benchmarks/quantized_sources.py [--work FOLDER] [--repeat N] [--formats gptq awq …]

Writes random checkpoints of Llama-2-7B's shape (or fewer --layers): bf16 (13.5 GB), and in each
format (about 4 GB, groups of 128). Each is converted to int4 for the CPU, in turns with bf16,
as a process of its own, with its input in the page cache as far as memory goes. The quantized ones
keep their codes; the bf16 one is rounded to nearest. Time is wall-clock, memory the peak resident
memory of the whole process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from conversion import Measured, measure, warm

from converter.model.checkpoint import Checkpoint
from converter.sources.synthetic import write_checkpoint
from converter.weights.weight import ComputedWeight, Weight

GROUP = 128
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BASE = "bf16"
_NOISE = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0))


def noise(label: str, shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Weight:
    """Random numbers, the same ones over and over; integers are random bits."""
    row = shape[1] if len(shape) > 1 else 1

    def compute(start: int, stop: int) -> torch.Tensor:
        count = (stop - start) * row
        whole = _NOISE.repeat(-(-count // len(_NOISE)))[:count]
        found = whole.view(torch.int32) if dtype == torch.int32 else (whole * scale).to(dtype)
        return found.reshape(stop - start, *shape[1:])

    return ComputedWeight(shape, dtype, compute, label)


def constant(label: str, shape: tuple[int, ...], dtype: torch.dtype, value: int) -> Weight:
    """The same value everywhere."""
    return ComputedWeight(
        shape,
        dtype,
        lambda start, stop: torch.full((stop - start, *shape[1:]), value, dtype=dtype),
        label,
    )


def gptq(name: str, rows: int, columns: int) -> Iterator[tuple[str, Weight]]:
    """GPTQ v1, symmetric."""
    groups, order = columns // GROUP, torch.arange(columns, dtype=torch.int32) // GROUP
    yield f"{name}.qweight", noise(name, (columns // 8, rows), torch.int32)
    yield f"{name}.qzeros", constant(name, (groups, rows // 8), torch.int32, 0x77777777)
    yield f"{name}.scales", noise(name, (groups, rows), torch.float16, 0.01)
    yield f"{name}.g_idx", ComputedWeight((columns,), torch.int32, lambda a, b: order[a:b], name)


def awq(name: str, rows: int, columns: int) -> Iterator[tuple[str, Weight]]:
    groups = columns // GROUP
    yield f"{name}.qweight", noise(name, (columns, rows // 8), torch.int32)
    yield f"{name}.qzeros", noise(name, (groups, rows // 8), torch.int32)
    yield f"{name}.scales", noise(name, (groups, rows), torch.float16, 0.01)


def compressed(name: str, rows: int, columns: int) -> Iterator[tuple[str, Weight]]:
    """compressed-tensors' pack-quantized, symmetric."""
    yield f"{name}.weight_packed", noise(name, (rows, columns // 8), torch.int32)
    yield f"{name}.weight_scale", noise(name, (rows, columns // GROUP), torch.bfloat16, 0.01)


Packer = Callable[[str, int, int], Iterator[tuple[str, Weight]]]
FORMATS: dict[str, tuple[Packer, Mapping[str, Any]]] = {
    "gptq": (
        gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False},
    ),
    "awq": (
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"},
    ),
    "compressed": (
        compressed,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "strategy": "group", "group_size": GROUP},
                }
            },
        },
    ),
}


def write(form: str, layers: int, folder: Path) -> Path:
    """A checkpoint in the format, or in bf16."""
    if folder.exists():
        return folder
    hidden, inner, vocabulary = (CONFIG[k] for k in _SIZES)
    config, tensors = CONFIG | {"num_hidden_layers": layers}, dict[str, Weight]()
    linears = {f"self_attn.{part}_proj": (hidden, hidden) for part in "qkvo"}
    linears |= {f"mlp.{part}_proj": (inner, hidden) for part in ("gate", "up")}
    linears["mlp.down_proj"] = (hidden, inner)
    tensors["model.embed_tokens.weight"] = _float("embed", (vocabulary, hidden))
    for layer in range(layers):
        for part in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{part}.weight"] = _float(part, (hidden,))
        for part, shape in linears.items():
            name = f"model.layers.{layer}.{part}"
            if form == BASE:
                tensors[f"{name}.weight"] = _float(name, shape)
            else:
                tensors |= dict(FORMATS[form][0](name, *shape))
    tensors["model.norm.weight"] = _float("norm", (hidden,))
    tensors["lm_head.weight"] = _float("head", (vocabulary, hidden))
    if form != BASE:
        config["quantization_config"] = FORMATS[form][1]
    folder.mkdir(parents=True)
    write_checkpoint(Checkpoint(config, tensors, {}), folder)
    return folder


_SIZES = ("hidden_size", "intermediate_size", "vocab_size")


def _float(label: str, shape: tuple[int, ...]) -> Weight:
    return noise(label, shape, torch.bfloat16, 0.02)


def convert(form: str, source: Path, work: Path) -> Measured:
    """One conversion, with what fits of its input in the page cache."""
    output = work / "converted"
    command = [sys.executable, "-m", "converter.cli.main", "recipe=auto", "verify=none"]
    command += [f"source.path='{source}'", f"output='{output}'"]
    warm(source)
    return measure(form, command, output)


def table(results: Sequence[Measured]) -> str:
    """Markdown table: medians, and the share of the bf16 conversion's time."""
    names = list(dict.fromkeys(item.name for item in results))
    lines = ["| source | seconds | share of bf16 | peak memory | folder |", "|---|---|---|---|---|"]
    seconds = {
        name: statistics.median(item.seconds for item in results if item.name == name)
        for name in names
    }
    for name in names:
        own = [item for item in results if item.name == name]
        lines.append(
            f"| {name} | {seconds[name]:.1f} | {seconds[name] / seconds[BASE]:.2f} "
            f"| {max(item.peak for item in own) / 1e9:.2f} GB | {own[0].size / 1e9:.3f} GB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="folder to keep the checkpoints in")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        forms = [BASE, *arguments.formats]
        sources = {form: write(form, arguments.layers, work / form) for form in forms}
        results = [
            convert(form, sources[form], work) for _ in range(arguments.repeat) for form in forms
        ]
    print(table(results))


if __name__ == "__main__":
    main()

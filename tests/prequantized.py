"""Quantized checkpoints by their published layouts, packed value by value.

Nothing here reads what the project reads: each packer follows the code that writes the format, as
its text says, with plain loops. `converter/prequantized/` is tested against what went in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Matrix:
    """A linear (rows, columns): its tensors by the ends of their names, and what they mean.

    `codes` int (rows, columns), `scales` and `zeros` (rows, groups), `groups` int (columns,).
    """

    tensors: Mapping[str, torch.Tensor]
    values: torch.Tensor
    codes: np.ndarray
    scales: torch.Tensor
    zeros: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Format:
    """A quantized format: its section of config.json, and what packs a linear."""

    section: dict[str, Any]
    pack: Callable[[int, int, torch.Generator], Matrix]
    kept: bool = True
    """Whether MatMulNBits can hold its codes, with groups of 16 or 32 columns."""


def _integers(
    rows: int,
    columns: int,
    generator: torch.Generator,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = False,
    dtype: torch.dtype = torch.float16,
    order: bool = False,
) -> tuple[np.ndarray, torch.Tensor, np.ndarray, np.ndarray, torch.Tensor]:
    """Random codes, scales, zero points and groups, and the values that they stand for."""
    size = columns if group == -1 else group
    count, middle = -(-columns // size), 1 << (bits - 1)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator).numpy()
    scales = (torch.rand(rows, count, generator=generator) + 0.5) * columns**-0.5 / middle
    scales = scales.to(dtype)
    zeros = np.full((rows, count), middle)
    if not symmetric:
        # Zero points of 0 are left out: AutoGPTQ's v1 packer spoils their neighbours.
        zeros = torch.randint(1, 1 << bits, (rows, count), generator=generator).numpy()
    groups = np.arange(columns) // size
    if order:
        groups = groups[torch.randperm(columns, generator=generator).numpy()]
    values = torch.from_numpy(codes - zeros[:, groups]).float() * scales.float()[:, groups]
    return codes, scales, zeros, groups, values


def _words(integers: np.ndarray, bits: int, order: list[int] | None = None) -> torch.Tensor:
    """Integers (r, c) packed along c into int32 words, by a loop over the integers of a word."""
    count = 32 // bits
    padded = np.zeros((integers.shape[0], -(-integers.shape[1] // count) * count), np.uint32)
    padded[:, : integers.shape[1]] = integers
    words = np.zeros((padded.shape[0], padded.shape[1] // count), np.uint32)
    for column in range(words.shape[1]):
        for place, source in enumerate(order or range(count)):
            words[:, column] |= padded[:, column * count + source] << np.uint32(bits * place)
    return torch.from_numpy(words.view(np.int32))


def pack_gptq(
    rows: int, columns: int, generator: torch.Generator, v2: bool = False, **options: Any
) -> Matrix:
    """AutoGPTQ's `qlinear_cuda_old.py`, `QuantLinear.pack`; v2 leaves the minus one out."""
    bits = options.get("bits", 4)
    codes, scales, zeros, groups, values = _integers(rows, columns, generator, **options)
    tensors = {
        "qweight": _words(codes, bits).T.contiguous(),
        "qzeros": _words((zeros if v2 else zeros - 1).T, bits),
        "scales": scales.T.contiguous(),
        "g_idx": torch.from_numpy(groups.astype(np.int32)),
    }
    return Matrix(tensors, values, codes, scales, zeros, groups)


def pack_awq(rows: int, columns: int, generator: torch.Generator, **options: Any) -> Matrix:
    """AutoAWQ's `gemm.py`, `WQLinear_GEMM.from_linear`, with its order_map."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    codes, scales, zeros, groups, values = _integers(rows, columns, generator, **options)
    tensors = {
        "qweight": _words(codes.T, 4, order),
        "qzeros": _words(zeros.T, 4, order),
        "scales": scales.T.contiguous(),
    }
    return Matrix(tensors, values, codes, scales, zeros, groups)


def pack_compressed(
    rows: int, columns: int, generator: torch.Generator, integers: bool = False, **options: Any
) -> Matrix:
    """compressed-tensors' `pack_quantized/helpers.py`, `pack_to_int32`; int8 as it is."""
    bits = options.get("bits", 4)
    codes, scales, zeros, groups, values = _integers(
        rows, columns, generator, dtype=torch.bfloat16, **options
    )
    if integers:
        tensors = {"weight": torch.from_numpy((codes - 128).astype(np.int8))}
        if not options.get("symmetric"):
            tensors["weight_zero_point"] = torch.from_numpy((zeros - 128).astype(np.int8))
    else:
        tensors = {"weight_packed": _words(codes, bits)}
        tensors["weight_shape"] = torch.tensor([rows, columns])
        if not options.get("symmetric"):
            tensors["weight_zero_point"] = _words(zeros.T, bits).T.contiguous()
    if options.get("order"):
        tensors["weight_g_idx"] = torch.from_numpy(groups.astype(np.int32))
    return Matrix(tensors | {"weight_scale": scales}, values, codes, scales, zeros, groups)


def pack_fp8(rows: int, columns: int, generator: torch.Generator, scale: str) -> Matrix:
    """DeepSeek-V3's `inference/kernel.py`, `weight_dequant`; FBGEMM's rows; one for all."""
    stored = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    tile = {"tiles": (32, 16), "rows": (1, columns), "one": (rows, columns)}[scale]
    count = (-(-rows // tile[0]), -(-columns // tile[1]))
    scales = (torch.rand(count, generator=generator) + 0.5) * columns**-0.5
    values = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            here = scales[row // tile[0], column // tile[1]]
            values[row, column] = stored[row, column].float() * here
    name = "weight_scale" if scale == "rows" else "weight_scale_inv"
    tensors = {"weight": stored, name: scales.reshape(()) if scale == "one" else scales}
    return Matrix(tensors, values, np.zeros(0), scales, np.zeros(0), np.zeros(0))


NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
"""QLoRA (arXiv 2305.14314), appendix E."""


def pack_nf4(rows: int, columns: int, generator: torch.Generator, nested: bool) -> Matrix:
    """bitsandbytes' `functional.py`, `quantize_4bit` and `QuantState.as_dict(packed=True)`."""
    size, outer = 64, 256
    codes = torch.randint(0, 16, (rows * columns,), generator=generator)
    count = -(-rows * columns // size)
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": size,
        "dtype": "float16",
        "shape": [rows, columns],
    }
    tensors = {
        "weight": (codes[::2] << 4 | codes[1::2]).to(torch.uint8).reshape(-1, 1),
        "weight.quant_map": torch.tensor(NF4),
    }
    if nested:
        table = torch.linspace(-1, 1, 256)
        inner = torch.randint(0, 256, (count,), generator=generator)
        scales = torch.rand(-(-count // outer), generator=generator) * 0.01
        absmax = table[inner] * scales[torch.arange(count) // outer] + 0.1
        state |= {"nested_blocksize": outer, "nested_dtype": "float32", "nested_offset": 0.1}
        tensors["weight.absmax"] = inner.to(torch.uint8)
        tensors["weight.nested_absmax"], tensors["weight.nested_quant_map"] = scales, table
    else:
        absmax = torch.rand(count, generator=generator) * 0.2
        tensors["weight.absmax"] = absmax
    text = json.dumps(state).encode()
    tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    values = torch.tensor(NF4)[codes] * absmax[torch.arange(rows * columns) // size]
    found = values.reshape(rows, columns)
    return Matrix(tensors, found, np.zeros(0), absmax, np.zeros(0), np.zeros(0))


def pack_int8(rows: int, columns: int, generator: torch.Generator) -> Matrix:
    """bitsandbytes' `int8_vectorwise_quant`: codes by rows, SCB their largest magnitudes."""
    codes = torch.randint(-127, 128, (rows, columns), generator=generator)
    largest = torch.rand(rows, generator=generator) * columns**-0.5 + 0.1
    values = codes.float() * (largest / 127).unsqueeze(1)
    tensors = {
        "weight": codes.to(torch.int8),
        "SCB": largest,
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    zeros, groups = np.full((rows, 1), 128), np.zeros(columns, np.int64)
    scales = (largest / 127).unsqueeze(1)
    return Matrix(tensors, values, codes.numpy() + 128, scales, zeros, groups)


def gptq(kept: bool = True, **options: Any) -> Format:
    section = {
        "quant_method": "gptq",
        "bits": options.get("bits", 4),
        "group_size": options.get("group", 32),
        "desc_act": options.get("order", False),
        "sym": options.get("symmetric", False),
        "checkpoint_format": "gptq_v2" if options.get("v2") else "gptq",
    }
    return Format(section, partial(pack_gptq, **options), kept)


def awq(**options: Any) -> Format:
    section = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": options.get("group", 32),
        "zero_point": True,
        "version": "gemm",
    }
    return Format(section, partial(pack_awq, **options))


def compressed(form: str = "pack-quantized", kept: bool = True, **options: Any) -> Format:
    group = options.get("group", 32)
    weights = {
        "num_bits": options.get("bits", 4),
        "type": "int",
        "symmetric": options.get("symmetric", False),
        "strategy": "channel" if group == -1 else "group",
        "group_size": None if group == -1 else group,
    }
    section = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    integers = form == "int-quantized"
    return Format(section, partial(pack_compressed, integers=integers, **options), kept)


def fp8(scale: str) -> Format:
    section: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    section["weight_block_size"] = [32, 16] if scale == "tiles" else None
    return Format(section, partial(pack_fp8, scale=scale), kept=False)


def nf4(nested: bool) -> Format:
    section = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return Format(section, partial(pack_nf4, nested=nested), kept=False)


FORMATS: dict[str, Format] = {
    "awq": awq(),
    "awq_rows": awq(group=-1),
    "gptq": gptq(),
    "gptq_symmetric": gptq(symmetric=True),
    "gptq_v2": gptq(v2=True),
    "gptq_8_bits": gptq(bits=8, group=16),
    "gptq_rows": gptq(group=-1, symmetric=True),
    "gptq_act_order": gptq(kept=False, order=True),
    "compressed": compressed(),
    "compressed_symmetric": compressed(symmetric=True, group=16),
    "compressed_8_bits": compressed(bits=8, symmetric=True, group=-1),
    "compressed_act_order": compressed(kept=False, order=True),
    "compressed_int8": compressed("int-quantized", bits=8, symmetric=True, group=-1),
    "compressed_int8_zeros": compressed("int-quantized", bits=8, group=-1),
    "fp8_tiles": fp8("tiles"),
    "fp8_rows": fp8("rows"),
    "fp8_one": fp8("one"),
    "nf4": nf4(False),
    "nf4_nested": nf4(True),
    "int8": Format({"quant_method": "bitsandbytes", "load_in_8bit": True}, pack_int8),
}


def quantize_tensors(
    tensors: dict[str, torch.Tensor], form: Format, ends: tuple[str, ...] = LINEARS
) -> dict[str, Matrix]:
    """Replace the linears among a checkpoint's tensors by random quantized ones; in place."""
    generator, found = torch.Generator().manual_seed(5), {}
    for name in list(tensors):
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.rpartition(".")[2] in ends:
            rows, columns = tensors.pop(name).shape
            found[module] = made = form.pack(rows, columns, generator)
            tensors |= {f"{module}.{end}": value for end, value in made.tensors.items()}
    return found


def quantize_folder(folder: Path, form: Format) -> dict[str, Matrix]:
    """The same for a folder that transformers has written; config.json gets the section."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    found = quantize_tensors(tensors, form)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = form.section
    (folder / "config.json").write_text(json.dumps(config))
    return found

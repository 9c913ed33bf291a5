"""The finished layers of a calibration, in the cache: codes, scales, folds and errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from converter.calibration.rounding import Rounded
from converter.quantization.linear_error import LinearError
from converter.quantization.quantized_matrix import Rounding
from converter.quantization.rtn import BlockFormat, Codes, pack, unpack
from converter.weights.safetensors_file import open_safetensors, write_safetensors
from converter.weights.weight import TensorWeight, Weight

TENSORS = "codes.safetensors"
FACTS = "facts.json"
HIDDEN = "hidden.float32"


@dataclass(frozen=True)
class Layer:
    """What calibration made of one layer (or of lm_head), read back from its entry."""

    folder: Path
    forms: Mapping[str, BlockFormat]
    methods: Mapping[str, str]
    errors: tuple[LinearError, ...]
    folds: Mapping[str, torch.Tensor]
    """By the fold's name the scales of its producer, float32 (channels,)."""
    experts: Mapping[str, torch.Tensor]
    """Where the layer has some: by the kind of their matrix what each is rounded by, float32
    (experts, columns), and `tokens`, int64 (experts,), how many each saw."""
    tensors: Mapping[str, Weight]
    threads: int
    """On how many it was made."""

    def rounding(self, name: str, columns: int) -> Rounding:
        """Codes of rows of the matrix `name`, read when they are asked for."""
        form, tensors = self.forms[name], self.tensors
        blocks = form.blocks(columns)

        def read(start: int, stop: int) -> Codes:
            packed = tensors[f"{name}.codes"].rows(start, stop)
            codes = unpack(packed, form.bits, blocks * form.block_size)
            zero = tensors[f"{name}.zero_points"].rows(start, stop) if not form.symmetric else None
            return Codes(
                codes.reshape(stop - start, blocks, form.block_size),
                tensors[f"{name}.scales"].rows(start, stop),
                zero,
            )

        return read


def write_layer(
    folder: Path,
    rounded: Mapping[str, Rounded],
    errors: list[LinearError],
    folds: Mapping[str, torch.Tensor],
    experts: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write one layer's entry into `folder`; matrices by their canonical names.

    `experts` are what `Layer.experts` gives back.
    """
    tensors: dict[str, torch.Tensor] = {f"fold.{name}": scales for name, scales in folds.items()}
    tensors |= {f"experts.{name}": values for name, values in (experts or {}).items()}
    for name, item in rounded.items():
        codes = item.codes
        tensors[f"{name}.codes"] = pack(codes.codes, item.form.bits).flatten(1)
        tensors[f"{name}.scales"] = codes.scales
        if codes.zero_points is not None:
            tensors[f"{name}.zero_points"] = codes.zero_points
    lazy = {name: TensorWeight(tensor.contiguous()) for name, tensor in tensors.items()}
    write_safetensors(folder / TENSORS, lazy)
    facts = {
        "forms": {name: asdict(item.form) for name, item in rounded.items()},
        "methods": {name: item.method for name, item in rounded.items()},
        "errors": [asdict(error) for error in errors],
        "threads": torch.get_num_threads(),
    }
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def read_layer(folder: Path) -> Layer:
    """Open one layer's entry; codes stay in the file."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    tensors = open_safetensors(folder / TENSORS)
    return Layer(
        folder,
        {name: BlockFormat(**form) for name, form in facts["forms"].items()},
        facts["methods"],
        tuple(LinearError(**error) for error in facts["errors"]),
        _beginning("fold.", tensors),
        _beginning("experts.", tensors),
        tensors,
        facts["threads"],
    )


def _beginning(start: str, tensors: Mapping[str, Weight]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(start): weight.read()
        for name, weight in tensors.items()
        if name.startswith(start)
    }

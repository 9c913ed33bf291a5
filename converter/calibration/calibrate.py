"""Calibrated quantization of a decoder: tokens, gradients, formats, then the walk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from converter.calibration.experts import expert_facts, expert_rounding
from converter.calibration.fisher import Fisher, read_fisher, write_fisher
from converter.calibration.folds import apply_folds
from converter.calibration.rounding import Scheme
from converter.calibration.sensitivity import measure_losses, read_losses
from converter.calibration.statistics import FloatStatistics
from converter.calibration.store import Layer
from converter.calibration.tokens import CalibrationTokens, calibration_tokens
from converter.calibration.walk import Walk
from converter.graph.formats import choose_mixed, tied_format
from converter.graph.matrices import Matrix, graph_matrices, matrix_format
from converter.graph.tensors import FLOAT_TYPES
from converter.model.decoder import Decoder
from converter.model.reference import Reference
from converter.model.tensor_kinds import EXPERTS_DOWN, EXPERTS_GATE_UP, HEAD
from converter.progress import Advance
from converter.quantization.linear_error import LinearError
from converter.quantization.quantized_matrix import QuantizedMatrix, Rounding
from converter.quantization.rtn import BlockFormat
from converter.recipe.schema import CalibrationConfig, Recipe
from converter.storage.cache import Cache
from converter.weights.weight import Weight

CODE_VERSION = 10
"""Counted up when the same weights, tokens and recipe would give other codes."""


@dataclass(frozen=True)
class Calibrated:
    """The result, for the graph: folded float weights, and the codes of every matrix.

    `weights` are the decoder's with norms, biases and matrices folded; `forms` and `roundings` go
    by the matrices' names in the graph.
    """

    weights: Mapping[str, Weight]
    forms: Mapping[str, BlockFormat]
    roundings: Mapping[str, Rounding]
    methods: Mapping[str, str]
    errors: tuple[LinearError, ...]
    tokens: CalibrationTokens
    threads: int | None
    """On how many the layers were made; None when their numbers differ. With another number sums
    are taken in another order, and some codes differ."""
    experts: Mapping[str, int] = field(default_factory=dict)
    """How many tokens the experts saw; empty where there are none."""

    def facts(self) -> dict[str, Any]:
        """What the report and the lock file say."""
        found = list(self.methods.values())
        return {
            "calibration_tokens": int(self.tokens.ids.numel()),
            "calibration_sha256": self.tokens.digest,
            "threads": self.threads,
            "methods": {name: found.count(name) for name in sorted(set(found))},
            "formats": _counted(self.forms),
            **self.experts,
            "linears": [asdict(error) for error in self.errors],
        }


def calibrate(recipe: Recipe, decoder: Decoder, cache: Cache, advance: Advance) -> Calibrated:
    """Run the scheme of `recipe.quant` over the decoder; finished parts come from the cache.

    Raises:
        ConvertError: calibration text that cannot be used, weights or activations that are not
            finite, a size that no choice of formats reaches.
    """
    with _threads(recipe.threads):
        return _calibrate(recipe, decoder, cache, advance)


def _calibrate(recipe: Recipe, decoder: Decoder, cache: Cache, advance: Advance) -> Calibrated:
    tokens = calibration_tokens(decoder, recipe.calibration)
    cache.folder.mkdir(parents=True, exist_ok=True)
    dtype = compute_dtype(recipe.calibration, decoder)
    reference = Reference(decoder, dtype=dtype)
    scheme = Scheme(recipe.quant, FLOAT_TYPES[recipe.scale_type])
    matrices = [m for m in graph_matrices(recipe, decoder) if matrix_format(m.name, recipe.quant)]
    base = {
        "pass": "quantize",
        "code_version": CODE_VERSION,
        "source": cache.content_key(decoder.checkpoint),
        "layout": asdict(recipe.layout),
        "architecture": asdict(decoder.architecture),
        "tokens": tokens.digest,
        "compute": str(dtype),
    }
    key: dict[str, Any] = {
        **base,
        "quant": asdict(recipe.quant.without_budget()),
        "matrices": [m.name for m in matrices],
        "scales": recipe.scale_type,
        "inputs": recipe.calibration.inputs,
    }
    fisher = _fisher(recipe, reference, tokens, cache, base, advance)
    seeded = {"seed": recipe.calibration.seed} if fisher else {}
    forms = {m.name: form for m in matrices if (form := matrix_format(m.name, recipe.quant))}
    if recipe.quant.mixed and fisher is not None:
        rounds = recipe.rounds_activations

        def measure(folder: Path) -> None:
            measure_losses(
                folder, reference, matrices, scheme, tokens, fisher, cache, advance, rounds
            )

        entry = {**key, "entry": "losses", "int8 activations": rounds, **seeded}
        losses = read_losses(cache.get_or_make(entry, measure))
        forms = choose_mixed(recipe, decoder, losses)
    key |= {"forms": {name: asdict(form) for name, form in forms.items()}, **seeded}
    embedding, shared = _shipped_embedding(recipe, decoder, forms.get(HEAD))
    walk = Walk(
        reference,
        embedding,
        shared,
        matrices,
        forms,
        scheme,
        tokens,
        fisher,
        cache,
        key,
        advance,
    )
    if recipe.calibration.inputs == "float":
        gathered = {**base, "token_weights": recipe.quant.token_weights, **seeded}
        walk.statistics = FloatStatistics(
            reference, tokens, walk.token_weights, cache, gathered, advance
        )
    return _collected(decoder, matrices, walk.run(), tokens, forms, scheme.scale_dtype)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use `count` threads meanwhile; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute_dtype(config: CalibrationConfig, decoder: Decoder) -> torch.dtype:
    """Type of the matrix products; see `CalibrationConfig.compute`."""
    if config.compute != "auto":
        return FLOAT_TYPES[config.compute]
    if decoder.architecture.experts is not None:  # a router's choice is not for bfloat16
        return torch.float32
    half = decoder.weights["layers.0.q_proj"].dtype in (torch.bfloat16, torch.float16)
    return torch.bfloat16 if half and fast_bfloat16() else torch.float32


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32.

    Measured: 2.3 times as fast with AVX-512's instructions on AMD's Zen 4, half as fast with those
    on an Intel processor, where only the tiles of AMX count. An older PyTorch tells of AMX alone.
    """
    if not hasattr(torch.cpu, "get_capabilities"):
        return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
    found = torch.cpu.get_capabilities()
    amd = str(found.get("cpu_name", "")).startswith("AMD")
    return bool(found.get("amx_bf16") or (amd and found.get("avx512_bf16")))


def _fisher(
    recipe: Recipe,
    reference: Reference,
    tokens: CalibrationTokens,
    cache: Cache,
    base: Mapping[str, Any],
    advance: Advance,
) -> Fisher | None:
    if recipe.quant.token_weights == "none" and not recipe.quant.mixed:
        return None
    seed = recipe.calibration.seed

    def make(folder: Path) -> None:
        write_fisher(folder, reference, tokens.ids, seed, advance)

    return read_fisher(cache.get_or_make({**base, "entry": "fisher", "seed": seed}, make))


def _shipped_embedding(
    recipe: Recipe, decoder: Decoder, head: BlockFormat | None
) -> tuple[Weight, bool]:
    """The embedding as the graph looks it up, and whether it shares the head's codes; it is in
    float then, as they are not known before the walk ends."""
    table, form = decoder.weights["embed_tokens"], matrix_format("embed_tokens", recipe.quant)
    shared = tied_format(recipe.quant, decoder, head) is not None
    if form is None or shared:
        return table, shared
    return QuantizedMatrix(table, form, FLOAT_TYPES[recipe.scale_type]).dequantized(), shared


def _collected(
    decoder: Decoder,
    matrices: list[Matrix],
    layers: Mapping[str, Layer],
    tokens: CalibrationTokens,
    own: Mapping[str, BlockFormat],
    scale_dtype: torch.dtype,
) -> Calibrated:
    """What the layers hold together; `own` are the formats of all matrices, experts' too."""
    weights: dict[str, Weight] = dict(decoder.weights)
    forms: dict[str, BlockFormat] = {}
    roundings: dict[str, Rounding] = {}
    methods: dict[str, str] = {}
    columns = {matrix.name: matrix.columns for matrix in matrices}
    for name, layer in layers.items():
        weights = apply_folds(weights, name, layer.folds, decoder)
        for matrix, form in layer.forms.items():
            forms[matrix] = form
            roundings[matrix] = layer.rounding(matrix, columns[matrix])
        for kind in (EXPERTS_GATE_UP, EXPERTS_DOWN):
            if kind in layer.experts:
                matrix = f"{name}.{kind}"
                forms[matrix] = own[matrix]
                roundings[matrix] = expert_rounding(
                    decoder.weights[matrix], own[matrix], layer.experts[kind], scale_dtype
                )
                methods[matrix] = "search"
        methods |= layer.methods
    errors = tuple(error for layer in layers.values() for error in layer.errors)
    numbers = {layer.threads for layer in layers.values()}
    threads = numbers.pop() if len(numbers) == 1 else None
    seen = {name: layer.experts for name, layer in layers.items() if layer.experts}
    return Calibrated(
        weights, forms, roundings, methods, errors, tokens, threads, expert_facts(seen)
    )


def _counted(forms: Mapping[str, BlockFormat]) -> dict[str, int]:
    """How many matrices have each format, such as `int4 block 32 symmetric`."""
    names = [
        f"int{form.bits} block {form.block_size} {'symmetric' if form.symmetric else 'asymmetric'}"
        for form in forms.values()
    ]
    return {name: names.count(name) for name in sorted(set(names))}

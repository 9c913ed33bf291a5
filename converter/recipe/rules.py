"""What cannot go together in a recipe, told from its values alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

from converter.errors import Problem
from converter.recipe.schema import (
    CalibrationConfig,
    EvaluateConfig,
    QuantConfig,
    Recipe,
    SourceConfig,
    VerifyConfig,
    parse_size,
)
from converter.recipe.target_rules import target_problems

MOST_POSITIONS = 1 << 24
"""More than any model was trained with; each takes a row of the rotary caches."""


def impossible_values(recipe: Recipe) -> Iterator[Problem]:
    """Values that are well typed but that nothing can be made of, alone or together."""
    yield from _block_size_problems(recipe)
    yield from _scheme_problems(recipe.quant)
    yield from _calibration_problems(recipe.calibration)
    yield from target_problems(recipe.target, recipe.quant)
    length = recipe.graph.context_length
    if length is not None and not 1 <= length <= MOST_POSITIONS:
        yield Problem(
            f"graph.context_length={length}.",
            f"1 to {MOST_POSITIONS:,} tokens, or null for max_position_embeddings",
            "set graph.context_length=4096",
            key=("graph.context_length",),
        )
    yield from _source_problems(recipe.source)
    yield from _evaluate_problems(recipe.evaluate)
    yield from _verify_problems(recipe.verify)
    most = most_threads()
    if recipe.threads is not None and not 1 <= recipe.threads <= most:
        yield Problem(
            f"threads={recipe.threads}.",
            f"1 to {most} on this machine, or null for all cores",
            "set threads=2",
            key=("threads",),
        )


def most_threads() -> int:
    """Threads that this machine can start without harm: more are slower, and may hang it."""
    return max(64, 4 * (os.cpu_count() or 1))


def _verify_problems(verify: VerifyConfig) -> Iterator[Problem]:
    for key, value, usual in (
        ("verify.new_tokens", verify.new_tokens, 16),
        ("verify.first_layers", verify.first_layers, 2),
    ):
        if value < 1:
            yield Problem(f"{key}={value}.", "at least 1", f"set {key}={usual}", key=(key,))
    for kind, error in verify.max_error.items():
        if not error > 0:
            yield Problem(
                f"verify.max_error.{kind}={error}.",
                "a positive relative error",
                f"set verify.max_error.{kind}=0.01, or add verify=none",
                key=(f"verify.max_error.{kind}",),
            )


def _source_problems(source: SourceConfig) -> Iterator[Problem]:
    if source.kind != "checkpoint" and source.path is not None:
        yield Problem(
            f"source.path={source.path} with source.kind={source.kind}, which reads no path.",
            "one of the two",
            "choose a recipe for the model at source.path, with source=checkpoint, or set "
            "source.path=null",
            key=(
                "source.path",
                "source.kind",
            ),
        )


def _evaluate_problems(evaluate: EvaluateConfig) -> Iterator[Problem]:
    if evaluate.n_ctx < 4:
        yield Problem(
            f"evaluate.n_ctx={evaluate.n_ctx}.",
            "chunks of at least 4 tokens",
            "set evaluate.n_ctx=512",
            key=("evaluate.n_ctx",),
        )
    if evaluate.max_chunks is not None and evaluate.max_chunks < 1:
        yield Problem(
            f"evaluate.max_chunks={evaluate.max_chunks}.",
            "at least 1, or null for the whole text",
            "set evaluate.max_chunks=24",
            key=("evaluate.max_chunks",),
        )
    if evaluate.max_kld is not None and not evaluate.enabled:
        yield Problem(
            f"evaluate.max_kld={evaluate.max_kld}, and the recipe does not evaluate.",
            "a measurement to compare it with",
            "add evaluate=standard",
            key=(
                "evaluate.max_kld",
                "evaluate.enabled",
            ),
        )


def _scheme_problems(quant: QuantConfig) -> Iterator[Problem]:
    if quant.round == "none" and quant.calibrated:
        yield Problem(
            f"quant.round=none with quant.smooth={quant.smooth}, "
            f"target_size={quant.target_size}, bits_per_weight={quant.bits_per_weight}.",
            "a rounding for the others to work on",
            "set quant.round=gptq, or quant=none alone",
            key=(
                "quant.round",
                "quant.smooth",
                "quant.target_size",
                "quant.bits_per_weight",
            ),
        )
    if quant.refine and quant.round != "gptq":
        yield Problem(
            f"quant.refine=true with quant.round={quant.round}.",
            "quant.round=gptq, whose result is refined",
            "set quant.round=gptq or quant.refine=false",
            key=(
                "quant.refine",
                "quant.round",
            ),
        )
    if quant.target_size is not None and quant.bits_per_weight is not None:
        yield Problem(
            f"quant.target_size={quant.target_size} and bits_per_weight={quant.bits_per_weight}.",
            "one of the two",
            "set quant.target_size=null, or quant.bits_per_weight=null",
            key=(
                "quant.target_size",
                "quant.bits_per_weight",
            ),
        )
    if quant.target_size is not None and parse_size(quant.target_size) is None:
        yield Problem(
            f"quant.target_size={quant.target_size}.",
            "a number and a unit: kB, MB, GB (thousands) or KiB, MiB, GiB",
            "set quant.target_size=89.9MB",
            key=("quant.target_size",),
        )


def _calibration_problems(calibration: CalibrationConfig) -> Iterator[Problem]:
    if not 1 <= calibration.sequence_length <= calibration.tokens:
        yield Problem(
            f"calibration.sequence_length={calibration.sequence_length} and "
            f"calibration.tokens={calibration.tokens}.",
            "at least one whole sequence of at least one token",
            "set calibration.tokens=8192 calibration.sequence_length=512",
            key=(
                "calibration.sequence_length",
                "calibration.tokens",
            ),
        )


def _block_size_problems(recipe: Recipe) -> Iterator[Problem]:
    quant = recipe.quant
    for key, size in (
        ("quant.block_size", quant.block_size),
        ("quant.lm_head.block_size", quant.lm_head.block_size),
        ("quant.embedding.block_size", quant.embedding.block_size),
        ("quant.experts.block_size", quant.experts.block_size),
    ):
        if size is not None:
            yield from block_size_problems(key, size)


def block_size_problems(key: str, size: int) -> Iterator[Problem]:
    """Why MatMulNBits has no blocks of the size that the dotted `key` states."""
    if size < 16 or size > 256 or size & (size - 1):
        below = max(16, min(256, 1 << max(size, 1).bit_length() - 1))
        yield Problem(
            f"{key}={size}.",
            "a power of two from 16 to 256 (MatMulNBits)",
            f"set {key}={below}" if key.startswith("quant") else f"write {below} instead",
            key=(key,),
        )

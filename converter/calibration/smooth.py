"""AWQ's scales for the folds of one layer, or of lm_head."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from converter.calibration.folds import Fold, fold_prefix, folds_of, input_groups
from converter.calibration.inputs import Inputs, restored
from converter.calibration.parallel import on_cores
from converter.calibration.rounding import Scheme, sample_rows
from converter.model.decoder import Decoder
from converter.quantization.awq import AwqScales, awq_search
from converter.quantization.rtn import BlockFormat
from converter.quantization.search import search_blocks
from converter.weights.weight import Weight

SAMPLE_ROWS = 64
"""Rows of each linear on which scales are judged; all rows share the scales."""


def find_folds(
    weights: Mapping[str, Weight],
    name: str,
    inputs: Mapping[str, Inputs],
    forms: Mapping[str, BlockFormat],
    scheme: Scheme,
    decoder: Decoder,
) -> dict[str, torch.Tensor]:
    """Scales of each fold's producer, float32 (channels,), by the fold's name.

    `name` is `layers.N` or `lm_head`; `inputs` holds the statistics by stage, `forms` the formats
    by part. A fold whose best scales are the identity is left out.
    """
    prefix = fold_prefix(name)

    def search(fold: Fold) -> AwqScales:
        samples = [sample_rows(weights[prefix + part], SAMPLE_ROWS) for part in fold.consumers]
        return awq_search(
            samples,
            inputs[fold.stages[0]].hessian,
            [_rounding(forms[part], scheme) for part in fold.consumers],
            groups=input_groups(fold, decoder.architecture),
        )

    folds = [
        fold for fold in folds_of(name, decoder) if all(part in forms for part in fold.consumers)
    ]
    results = zip(folds, on_cores(search, folds), strict=True)
    return {fold.name: scales.producer for fold, scales in results if scales.exponent > 0}


def _rounding(
    form: BlockFormat, scheme: Scheme
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def rounded(weight: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
        if scheme.quant.round == "rtn":
            codes = scheme.plain(weight, form)
        else:
            codes = search_blocks(weight, diagonal, form, scheme.scale_dtype)
        return restored(codes, form, weight.shape[1])

    return rounded

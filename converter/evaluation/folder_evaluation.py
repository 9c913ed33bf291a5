"""Evaluating a converted folder against the float model, and the report that it leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.evaluation.reference_file import ReferenceFile
from converter.evaluation.runtime_logits import folder_logits
from converter.evaluation.statistics import KLAccumulator, KLStatistics, TokenValues, summarize
from converter.progress import Advance
from converter.recipe.schema import EvaluateConfig
from converter.storage.staging import replacing
from converter.text.folder_tokenizer import FolderTokenizer
from converter.text.texts import EvaluationChunks, evaluation_chunks, load_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REPORT = "report"
REPORT_FILE = "evaluate.json"
PICTURE = "kld.png"


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a folder, on what."""

    text: str
    chunks: EvaluationChunks
    reference_key: str
    values: TokenValues
    seconds: float
    """Wall-clock seconds of onnxruntime and the comparison, without making the reference."""

    @property
    def statistics(self) -> KLStatistics:
        return summarize(self.values)

    def facts(self) -> dict[str, Any]:
        """The main figures under flat names: divergences in nats, agreement as a fraction of 1."""
        found = self.statistics
        return {
            "mean_kld": found.kld.value,
            "mean_kld_error": found.kld.error,
            "kld_p50": found.kld_percentiles["median"],
            "kld_p90": found.kld_percentiles["90%"],
            "kld_p99": found.kld_percentiles["99%"],
            "kld_max": found.kld_percentiles["max"],
            "top1_agreement": found.same_top.value,
            "top1_agreement_error": found.same_top.error,
            "perplexity": found.ppl.value,
            "perplexity_reference": found.ppl_reference.value,
            "ln_ppl_ratio": found.ln_ppl_ratio.value,
            "ln_ppl_ratio_error": found.ln_ppl_ratio.error,
            "tokens": found.tokens,
            "chunks": len(self.chunks.input_ids),
            "text": self.text,
            "seconds": round(self.seconds, 3),
        }

    def to_json(self) -> dict[str, Any]:
        """The facts, with how they were obtained and the full statistics."""
        return {
            **self.facts(),
            "n_ctx": self.chunks.input_ids.shape[1],
            "first_scored": self.chunks.first,
            "reference": self.reference_key,
            "statistics": self.statistics.to_json(),
        }


def folder_chunks(folder: Path, config: EvaluateConfig) -> EvaluationChunks:
    """The text that `config` names as token chunks of the folder's own tokenizer.

    Raises:
        ConvertError: the folder has no tokenizer; the text is missing, unreadable or too short.
    """
    return text_chunks(FolderTokenizer(folder), config)


def text_chunks(tokenizer: FolderTokenizer, config: EvaluateConfig) -> EvaluationChunks:
    """The text that `config` names as chunks of a tokenizer's tokens; errors as `folder_chunks`."""
    return evaluation_chunks(
        load_text(config.text, half="evaluation", render_chat=tokenizer.render_chat),
        tokenizer.encode,
        n_ctx=config.n_ctx,
        bos_token_id=tokenizer.bos_token_id,
        max_chunks=config.max_chunks,
    )


def evaluate_folder(
    folder: Path,
    text: str,
    chunks: EvaluationChunks,
    reference: ReferenceFile,
    advance: Advance,
    threads: int | None = None,
) -> Evaluation:
    """Run `folder` over `chunks` on the CPU and compare each scored token with `reference`.

    `text` says where the chunks come from; `advance(done, total, detail)` is told each chunk.

    Raises:
        ConvertError: onnxruntime cannot run the folder, or gives NaN or infinity.
    """
    start = time.perf_counter()
    logits = folder_logits(folder, chunks.input_ids, chunks.scored, threads)
    values = score(logits, chunks, reference, advance)
    seconds = time.perf_counter() - start
    return Evaluation(text, chunks, reference.header.key, values, seconds)


def score(
    logits: Iterable[NDArray[np.float32]],
    chunks: EvaluationChunks,
    reference: ReferenceFile,
    advance: Advance = lambda done, total, detail: None,
) -> TokenValues:
    """Compare a model's logits of each chunk, float32 [T, vocab_size], with the reference's.

    Raises:
        ConvertError: they are not finite.
    """
    import torch

    found, next_tokens = KLAccumulator(), torch.from_numpy(chunks.next_tokens)
    for number, candidate in enumerate(logits):
        expected = reference.chunk(number)
        found.add(
            expected.logits,
            torch.from_numpy(candidate),
            next_tokens[number],
            reference_top=expected.top,
            reference_nll=expected.nll,
        )
        advance(number + 1, len(reference), "onnxruntime, chunk")
    return found.values()


def write_report(folder: Path, label: str, evaluation: Evaluation) -> Path:
    """Write evaluate.json and kld.png (named `label` in it) into the folder's report; its path."""
    from converter.evaluation.charts import kld_distribution

    report = folder / REPORT
    report.mkdir(exist_ok=True)
    with replacing(report / PICTURE) as path:
        kld_distribution(path, {label: evaluation.values.kld})
    write_json(report / REPORT_FILE, evaluation.to_json())
    return report


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")

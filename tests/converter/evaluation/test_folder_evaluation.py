"""What is measured of a folder, as facts, as a report and as chunks of its own tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from converter.evaluation.folder_evaluation import (
    PICTURE,
    REPORT_FILE,
    Evaluation,
    folder_chunks,
    score,
    write_json,
    write_report,
)
from converter.evaluation.reference_file import ReferenceFile, ReferenceHeader, write_reference
from converter.recipe.schema import EvaluateConfig
from converter.text.folder_tokenizer import FolderTokenizer
from converter.text.texts import EvaluationChunks

CHUNKS = EvaluationChunks(np.arange(24, dtype=np.int64).reshape(2, 12) % 20, 6)
POSITIONS, VOCABULARY = 5, 20


@pytest.fixture
def reference(tmp_path: Path) -> tuple[ReferenceFile, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, POSITIONS, VOCABULARY, generator=generator)
    header = ReferenceHeader("key", 2, POSITIONS, VOCABULARY)
    with write_reference(tmp_path / "reference", header) as writer:
        for rows, tokens in zip(logits, CHUNKS.next_tokens, strict=True):
            writer.add(rows, torch.from_numpy(tokens))
    return ReferenceFile(tmp_path / "reference", "key"), logits


def evaluation(reference: tuple[ReferenceFile, torch.Tensor], noise: float) -> Evaluation:
    file, logits = reference
    candidate = logits + noise * torch.randn(logits.shape, generator=torch.Generator())
    return Evaluation("a text", CHUNKS, "key", score(candidate.numpy(), CHUNKS, file), 1.23456)


def test_figures_are_those_of_torch(reference: tuple[ReferenceFile, torch.Tensor]) -> None:
    file, logits = reference
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    candidate = logits + 0.5 * noise
    facts = Evaluation("t", CHUNKS, "key", score(candidate.numpy(), CHUNKS, file), 0.0).facts()
    p, q = logits.double().log_softmax(-1), candidate.double().log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1).flatten()
    assert facts["mean_kld"] == pytest.approx(float(divergence.mean()), abs=1e-4)
    assert facts["kld_max"] == pytest.approx(float(divergence.max()), abs=1e-3)
    same = (logits.argmax(-1) == candidate.argmax(-1)).double().mean()
    assert facts["top1_agreement"] == pytest.approx(float(same))
    tokens = torch.from_numpy(CHUNKS.next_tokens).flatten()
    for name, rows in (("perplexity", candidate), ("perplexity_reference", logits)):
        loss = torch.nn.functional.cross_entropy(rows.flatten(0, 1).double(), tokens)
        assert facts[name] == pytest.approx(float(loss.exp()), rel=1e-4)
    assert (facts["tokens"], facts["chunks"], facts["text"]) == (10, 2, "t")


def test_progress_counts_chunks(reference: tuple[ReferenceFile, torch.Tensor]) -> None:
    seen: list[tuple[int, int, str]] = []
    file, logits = reference
    score(logits.numpy(), CHUNKS, file, lambda *told: seen.append(told))
    assert [(done, total) for done, total, _ in seen] == [(1, 2), (2, 2)]


def test_the_report_has_the_figures_and_a_picture(
    reference: tuple[ReferenceFile, torch.Tensor], tmp_path: Path
) -> None:
    measured = evaluation(reference, 0.3)
    report = write_report(tmp_path, "int4", measured)
    assert sorted(path.name for path in report.iterdir()) == sorted([PICTURE, REPORT_FILE])
    content = json.loads((report / REPORT_FILE).read_text())
    assert content.items() >= measured.facts().items()
    assert (content["n_ctx"], content["first_scored"], content["reference"]) == (12, 6, "key")
    assert content["seconds"] == 1.235 and content["statistics"]
    assert (report / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_a_second_report_takes_the_place_of_the_first(
    reference: tuple[ReferenceFile, torch.Tensor], tmp_path: Path
) -> None:
    write_report(tmp_path, "x", evaluation(reference, 0.1))
    first = (tmp_path / "report" / REPORT_FILE).read_text()
    report = write_report(tmp_path, "x", evaluation(reference, 2.0))
    assert (report / REPORT_FILE).read_text() != first and len(list(report.iterdir())) == 2


def test_json_is_utf8_and_whole_or_not_there(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "书"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "text": "书"\n}\n'
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"text": object()})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"text": "书"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_chunks_are_the_text_as_the_folder_reads_it(demo_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time there was a fox. " * 60)
    chunks = folder_chunks(demo_folder, EvaluateConfig(text=str(text), n_ctx=32, max_chunks=3))
    assert chunks.input_ids.shape == (3, 32) and chunks.first == 16
    tokenizer = FolderTokenizer(demo_folder)
    ids = tokenizer.encode(text.read_text())
    assert (chunks.input_ids[:, 0] == tokenizer.bos_token_id).all()
    assert (
        chunks.input_ids[0, 1:].tolist() == ids[1:32]
        or chunks.input_ids[0, 1:].tolist() == ids[:31]
    )

"""A folder's copy for the CPU, and the tokens and logits that it gives."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import llama_of

pytest.importorskip("onnxruntime_genai")

from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.runtime.cpu_folder import (
    cpu_copy,
    forced_logits,
    generate,
    prompt_tokens,
    spread_ids,
)

PROMPT = [5, 9, 77, 140]


@pytest.fixture
def convert(make_recipe: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    def run(*words: str) -> Path:
        recipe = make_recipe(*words)
        recipe.output = str(tmp_path / "model")
        return run_recipe(recipe, make_passes(["load", "layout", "graph", "quantize", "package"]))

    return run


def copied(folder: Path) -> Path:
    target = folder.parent / "copy"
    target.mkdir()
    return cpu_copy(folder, target)


def expected(build: Callable[..., Any], tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = llama_of(build(until="load"))(torch.tensor([tokens])).logits[0]
    return found


def test_greedy_tokens_and_logits_are_transformers(
    convert: Callable[..., Path], build: Callable[..., Any]
) -> None:
    tokens, logits = generate(copied(convert()), PROMPT, 6)
    assert tokens[:4] == PROMPT and len(tokens) == 10 and logits.shape == (6, 160)
    wanted = expected(build, tokens)[3:-1]
    assert torch.allclose(logits, wanted, atol=1e-4)
    assert tokens[4:] == wanted.argmax(-1).tolist()


def test_forced_tokens_have_the_logits_of_one_forward(
    convert: Callable[..., Path], build: Callable[..., Any]
) -> None:
    tokens = [*PROMPT, 8, 8, 100, 3]
    found = forced_logits(copied(convert()), tokens, prompt=3)
    assert torch.allclose(found, expected(build, tokens)[2:], atol=1e-4)


@pytest.mark.parametrize("words", [["target=cuda"], ["target=cuda", "target.float_type=bf16"]])
def test_a_folder_of_another_provider_runs_here_and_stays_as_it_is(
    convert: Callable[..., Path], words: list[str]
) -> None:
    folder = convert(*words)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    copy = copied(folder)
    options = json.loads((copy / "genai_config.json").read_text())
    assert options["model"]["decoder"]["session_options"]["provider_options"] == []
    tokens, logits = generate(copy, PROMPT, 3)
    assert len(tokens) == 7 and bool(torch.isfinite(logits).all())
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    data = "model.onnx.data"
    assert (copy / data).stat().st_ino == (folder / data).stat().st_ino  # linked, not copied


def test_another_machines_threads_become_this_ones(convert: Callable[..., Path]) -> None:
    folder = convert("target.threads=1024")
    options = json.loads((copied(folder) / "genai_config.json").read_text())
    threads = options["model"]["decoder"]["session_options"]["intra_op_num_threads"]
    assert threads == os.cpu_count()


@pytest.mark.parametrize(("vocab_size", "count"), [(92544, 8), (10, 10), (7, 3)])
def test_spread_ids_reach_over_the_whole_vocabulary(vocab_size: int, count: int) -> None:
    ids = spread_ids(vocab_size, count)
    assert len(set(ids)) == count and ids == sorted(ids)
    assert ids[0] == 0 and vocab_size - vocab_size // count - 1 <= ids[-1] < vocab_size


def test_the_prompt_is_text_after_bos_or_spread_ids(
    convert: Callable[..., Path], demo_folder: Path
) -> None:
    assert prompt_tokens(convert(), "anything", 160) == spread_ids(160, 8)
    from converter.text.folder_tokenizer import FolderTokenizer

    own = FolderTokenizer(demo_folder).encode("Tell me")
    assert prompt_tokens(demo_folder, "Tell me", 1024) == [1, *own]

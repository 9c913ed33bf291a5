"""Text that the demo model, which is a chat model, writes to calibrate on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime_genai")

from converter.cli.compose import compose_recipe
from converter.cli.verbs import run_verb
from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.runtime.sampling import UNCUT, SampleOptions, sample_texts
from converter.runtime.session import LARGEST_SEED, Runtime
from converter.text.texts import load_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "model"
    words = ["recipe=demo", "quant=none", "verify=none", f"output='{output}'", "target.threads=1"]
    recipe = compose_recipe(words)
    return run_recipe(recipe, make_passes(recipe.passes))


@pytest.fixture(scope="module")
def runtime(folder: Path) -> Runtime:
    return Runtime(folder)


def quiet(*_: Any) -> None:
    pass


def test_a_chat_model_asks_and_answers(runtime: Runtime) -> None:
    seen: list[int] = []
    options = SampleOptions(tokens=600, length=120)
    lines = sample_texts(runtime, options, lambda done, total, text: seen.append(done))
    chats = [json.loads(line)["messages"] for line in lines]
    assert all([turn["role"] for turn in chat] == ["user", "assistant"] for chat in chats)
    text = "".join(turn["content"] for chat in chats for turn in chat)
    assert "<|im_" not in text
    count = sum(len(runtime.encode(turn["content"])) for chat in chats for turn in chat)
    assert count > 500
    assert seen[-1] == 600


def test_the_same_seed_writes_the_same_text(runtime: Runtime) -> None:
    options = SampleOptions(tokens=300, length=40, chats=False)
    first, again = (sample_texts(runtime, options, quiet) for _ in range(2))
    other = sample_texts(runtime, SampleOptions(300, 40, 7, False), quiet)
    assert first == again != other


def test_the_largest_seed_has_successors(runtime: Runtime) -> None:
    options = SampleOptions(tokens=200, length=4, seed=LARGEST_SEED)
    assert sample_texts(runtime, options, quiet)


def test_tokens_are_drawn_from_the_models_own_distribution(runtime: Runtime) -> None:
    """The second token of many texts, against the probabilities that the runtime computes."""
    drawn, batch, rounds = [], 32, 60
    for seed in range(rounds):
        search = {**UNCUT, "batch_size": batch, "max_length": 2, "random_seed": seed}
        generator = runtime.generator(search)
        generator.append_tokens(np.full((batch, 1), runtime.tokenizer.bos_token_id, np.int32))
        logits = np.asarray(generator.get_output("logits"), np.float64)[0, -1]
        generator.generate_next_token()
        drawn += [int(generator.get_sequence(index)[1]) for index in range(batch)]
    chances, count = np.exp(logits - logits.max()), batch * rounds
    chances /= chances.sum()
    counts = np.bincount(drawn, minlength=len(chances))
    often = chances * count >= 5
    expected, found = chances[often] * count, counts[often]
    statistic = float(((found - expected) ** 2 / expected).sum())
    freedom = int(often.sum())
    assert freedom > 5
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5
    assert counts[~often].sum() < chances[~often].sum() * count + 60


def test_the_file_is_what_calibration_reads(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "own.jsonl"
    assert run_verb("sample", [str(folder), str(output), "--tokens", "300", "--length", "60"]) == 0
    kinds = load_text(str(output), half="calibration")
    assert len(kinds[0].documents) == len(output.read_text("utf-8").splitlines())
    plain = tmp_path / "own.txt"
    words = ["--plain", "--tokens", "100", "--length", "30"]
    assert run_verb("sample", [str(folder), str(plain), *words]) == 0
    assert load_text(str(plain), half="calibration")[0].documents
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.jsonl", "own.txt"]


def test_what_cannot_be_written_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.jsonl"
    there.write_text("kept")
    with pytest.raises(ConvertError) as caught:
        run_verb("sample", [str(folder), str(there), "--tokens", "0", "--length", "0"])
    assert len(caught.value.problems) == 3
    assert there.read_text() == "kept"
    with pytest.raises(ConvertError, match=r"give .*own\.jsonl, or --plain"):
        run_verb("sample", [str(folder), str(tmp_path / "own.txt")])
    with pytest.raises(ConvertError, match="so that every text fits"):
        run_verb("sample", [str(folder), str(tmp_path / "own.jsonl"), "--length", "100000"])
    with pytest.raises(ConvertError, match="cannot be read"):
        run_verb("sample", [str(tmp_path), str(tmp_path / "own.jsonl")])
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]

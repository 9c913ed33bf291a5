"""The page of real tokenizers: what it is measured on, and how, without its downloads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import DEMO
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
sys.path.append(BENCHMARKS)  # not for longer: its names are those of others' packages too
try:
    from real_tokenizers import HEAD, OWN, PACKAGES, PAGE, measure, page
    from tokenizer_texts import ATOMS, COUNT, many_texts
finally:
    sys.path.remove(BENCHMARKS)


@pytest.mark.parametrize("added", [[], ["<x>"], [f"<{number}>" for number in range(900)]])
def test_there_are_two_thousand_texts_and_none_twice(added: list[str]) -> None:
    texts = many_texts(added)
    assert len(texts) == COUNT == len({text for _, text in texts})
    assert all(text and "\0" not in text and len(text) < 4000 for _, text in texts)
    assert texts == many_texts(added)


def test_every_kind_is_put_beside_every_other() -> None:
    kinds = {kind for kind, _ in many_texts(["<x>"])}
    pairs = {f"{a} and {b}" for a in ATOMS for b in ATOMS if a != b}
    assert len(pairs & kinds) > 0.8 * len(pairs) and {"lines", "runs", "added tokens"} <= kinds


@pytest.mark.slow
def test_the_demos_tokenizer_differs_nowhere() -> None:
    found = measure(DEMO)
    assert (found.after, found.before) == (0, "–") and found.converting.startswith("0 of ")
    equal, _, total = found.conversations.partition(" of ")
    assert equal == total


def test_what_differs_is_counted_before_and_after(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["it is 12 and 34"] * 20, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "</s>", "chat_template": "{{ messages[0].content | upper }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = measure(tmp_path)
    assert int(found.before) > found.after and sum(found.kinds.values()) == found.after
    assert found.conversations.startswith("0 of ") and any(
        "renders" in note for note in found.notes
    )
    text = page({"Own": found})
    assert f"| Own | – | {found.before} | {found.after} |" in text


def test_the_page_has_every_family() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.startswith(HEAD), "run `python benchmarks/real_tokenizers.py`"
    lines = text.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ")][1:]
    assert [row[0].strip("| ") for row in rows] == [*OWN, *PACKAGES]
    for family, before, after in ((row[0], row[2], row[3]) for row in rows):
        assert before == "–" or int(after) <= int(before), family

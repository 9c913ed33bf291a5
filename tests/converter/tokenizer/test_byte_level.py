"""Pre-tokenizers of byte-level BPE: equal steps for the tokenizers library and the runtime."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from converter.tokenizer.byte_level import GPT2_PATTERN, mend_byte_level, split_step
from converter.tokenizer.comparison import Expected, compare_with_runtime
from converter.tokenizer.read_texts import read_texts
from converter.tokenizer.tokenizer_json import mend_tokenizer_json

CORPUS = ["the cat's 12345 hats, they'll cost 1,234.5 and 67", "x = y1 + 22; print(x)\n\n  end"] * 9
CONFIG = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}).encode()


def trained(*steps: Any) -> dict[str, Any]:
    """The tokenizer.json of a small byte-level BPE with these steps."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence([*steps])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return dict(json.loads(tokenizer.to_str()))


def level(use_regex: bool = True, prefix: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)


def differing(content: dict[str, Any], mended: dict[str, Any]) -> int:
    files = {"tokenizer.json": json.dumps(mended).encode(), "tokenizer_config.json": CONFIG}
    reader = Tokenizer.from_str(json.dumps(content))
    return compare_with_runtime(files, Expected(read_texts(reader), mended=True)).differing


DIGITS = pre_tokenizers.Digits(individual_digits=True)
LITERAL = pre_tokenizers.Split("(x)", "isolated")


@pytest.mark.parametrize(
    "steps",
    [(DIGITS, level()), (DIGITS, level(use_regex=False)), (LITERAL, level()), (level(False),),
     (pre_tokenizers.Sequence([DIGITS]), level()),
     (pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"), level())],
)  # fmt: skip
def test_steps_become_splits_with_the_same_ids(steps: tuple[Any, ...]) -> None:
    content, notes = trained(*steps), list[str]()
    mended = mend_tokenizer_json(content, notes)
    assert mended is not content and "pre_tokenizer" in notes[0]
    assert differing(content, mended) == 0


def test_without_the_splits_the_runtime_has_other_ids() -> None:
    groups = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
    for content in (trained(groups, level()), trained(level(use_regex=False))):
        assert differing(content, content) > 0


@pytest.mark.parametrize(
    "steps",
    [(level(),), (pre_tokenizers.Split(Regex(GPT2_PATTERN), "isolated"), level(use_regex=False))],
)
def test_steps_that_the_runtime_follows_stay(steps: tuple[Any, ...]) -> None:
    content = trained(*steps)
    assert mend_tokenizer_json(content, []) is content
    assert differing(content, content) == 0


@pytest.mark.parametrize(
    "steps",
    [None, {}, {"type": "Whitespace"}, {"type": "Sequence", "pretokenizers": []},
     json.loads(json.dumps({"type": "Sequence", "pretokenizers": [
         {"type": "Punctuation", "behavior": "Isolated"}, {"type": "ByteLevel"}]})),
     {"type": "Sequence", "pretokenizers": [
         {"type": "Digits", "individual_digits": False}, {"type": "ByteLevel"}]},
     {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}]}],
)  # fmt: skip
def test_steps_without_an_equal_are_left(steps: dict[str, Any] | None) -> None:
    assert mend_byte_level(steps) is None


def test_a_split_step_isolates() -> None:
    step = split_step("a+")
    assert (step["pattern"], step["behavior"]) == ({"Regex": "a+"}, "Isolated")

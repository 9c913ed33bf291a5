"""Runs of blanks in split patterns: equal for the tokenizers library and for the runtime."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from converter.tokenizer.blank_runs import BLANK_RUNS, with_blank_runs
from converter.tokenizer.byte_level import mend_byte_level
from converter.tokenizer.runtime_tokenizer import RuntimeTokenizer

TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDING}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
)
TIKTOKEN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
)
HEADS = {"llama3": LLAMA3, "qwen2": QWEN2, "gpt4o": GPT4O, "tiktoken": TIKTOKEN, "qwen3.5": QWEN35}
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*"
)
BLANKS = ("", " ", "  ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\n  ", " \n \n", "\u00a0",
          "\u3000\u3000", " \u2003", "\u2028")  # fmt: skip
TEXTS = [
    f"{before}{first}{second}{after}"
    for before, first, second, after in product(
        ("", "a", "B1", "};", "中"), BLANKS, BLANKS, ("", "x", "1", "#", "文")
    )
]


@cache
def trained(pattern: str) -> dict[str, Any]:
    """The tokenizer.json of a small byte-level BPE with this pattern, trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return dict(json.loads(tokenizer.to_str()))


def runtime(content: dict[str, Any]) -> RuntimeTokenizer:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    files = {"tokenizer.json": content, "tokenizer_config.json": config}
    return RuntimeTokenizer({name: json.dumps(value).encode() for name, value in files.items()})


def differing(content: dict[str, Any], reader: RuntimeTokenizer) -> list[str]:
    """Texts that the library reads otherwise by `content` than `reader` does."""
    library = Tokenizer.from_str(json.dumps(content))
    return [text for text in TEXTS if library.encode(text).ids != reader.encode(text)]


@pytest.mark.parametrize("name", HEADS)
def test_the_runtime_reads_every_run_of_blanks_as_the_library_does(name: str) -> None:
    content = trained(f"{HEADS[name]}|{TAIL}")
    mended = {**content, "pre_tokenizer": mend_byte_level(content["pre_tokenizer"])}
    assert mended["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].endswith(BLANK_RUNS)
    assert differing(content, runtime(mended)) == []


@pytest.mark.parametrize("name", HEADS)
def test_the_library_splits_by_the_written_pattern_as_before(name: str) -> None:
    pattern = f"{HEADS[name]}|{TAIL}"
    before, after = (
        pre_tokenizers.Split(Regex(p), "isolated") for p in (pattern, with_blank_runs(pattern))
    )
    texts = [
        *TEXTS,
        "a\u0085 \u0085\n b",
        "\u0085\u0085x",
        "\x1c \x1c\n",
        " \u200b \n",
        "e\u0301 \n",
    ]
    for text in texts:
        assert after.pre_tokenize_str(text) == before.pre_tokenize_str(text), repr(text)


def test_without_it_lines_of_blanks_are_read_to_other_ids() -> None:
    content = trained(f"{LLAMA3}|{TAIL}")
    assert "a\n \n  x" in differing(content, runtime(content))


@pytest.mark.parametrize(
    "pattern",
    [
        f"{DEEPSEEK}|{TAIL}",  # a control character has no alternative
        f"{GPT4O.split('|')[0]}|{TAIL}",
        rf"\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{TAIL}",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        TAIL,
    ],
)
def test_other_patterns_stay(pattern: str) -> None:
    assert with_blank_runs(pattern) == pattern


def test_line_ends_may_be_written_as_they_are() -> None:
    pattern = f"{LLAMA3}|{TAIL}".replace(r"\r", "\r").replace(r"\n", "\n")
    assert with_blank_runs(pattern) == f"{LLAMA3}|{BLANK_RUNS}"

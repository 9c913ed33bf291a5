"""tokenizer.json files that came from SentencePiece models, as Gemma's and Llama 2's."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from converter.tokenizer.merges import SAFE_SPLIT_PATTERN, WHOLE_TEXT_PATTERN, split_pattern
from converter.tokenizer.runtime_tokenizer import RuntimeTokenizer
from converter.tokenizer.tokenizer_json import mend_tokenizer_json

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE = "\u2581"
CORPUS = [
    "<td> </td><td> </td> <b>word</b> <i> </i>",
    "the cat sat on the mat\nand the\n\n\tdog did",
    "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏",
    " x  y\r\n z\r\n\r\n",
] * 8
TEXTS = [
    *CORPUS[:4], "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往" * 12, "thecat" * 40, "a> </td>b", "> x",
    ">  </", ">> </td> >", "word> word", " >", "> ", "a >\n </td>", "\r\n", "a\r\n\r\nb", "x\r",
    "é🙂", "1 2  3",
]  # fmt: skip


@cache
def trained(split: bool) -> dict[str, Any]:
    """A BPE with byte fallback; with `split`, the pre_tokenizer of Gemma."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    if split:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", "</s>", *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    content = dict(json.loads(tokenizer.to_str()))
    kept = [token for token in content["added_tokens"] if token["content"] not in BYTES]
    return {**content, "added_tokens": kept}


def without_pieces_of(content: dict[str, Any], part: str) -> dict[str, Any]:
    """Without the merges that make a piece with `part` in it."""
    model = content["model"]
    merges = [pair for pair in model["merges"] if part not in "".join(pair)]
    return {**content, "model": {**model, "merges": merges}}


def runtime_ids(content: dict[str, Any]) -> list[list[int]]:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    files = {"tokenizer.json": content, "tokenizer_config.json": config}
    reader = RuntimeTokenizer({name: json.dumps(value).encode() for name, value in files.items()})
    return [reader.encode(text) for text in TEXTS]


def library_ids(content: dict[str, Any]) -> list[list[int]]:
    library = Tokenizer.from_str(json.dumps(content))
    return [library.encode(text).ids for text in TEXTS]


def only_gluing(content: dict[str, Any]) -> dict[str, Any]:
    """Without pieces that hold a space or a line end in their middle, but for `>` and a space."""
    merges = []
    for pair in content["model"]["merges"]:
        piece = "".join(pair)
        if split_pattern([piece.replace(f">{SPACE}", ">")]) == SAFE_SPLIT_PATTERN:
            merges.append(pair)
    return {**content, "model": {**content["model"], "merges": merges}}


def test_words_of_a_hundred_characters_are_not_cut() -> None:
    content, notes = only_gluing(trained(split=True)), list[str]()
    assert any(f">{SPACE}<" in "".join(pair) for pair in content["model"]["merges"])
    mended = mend_tokenizer_json(content, notes)
    pattern = mended["pre_tokenizer"]["pattern"]["Regex"]
    assert pattern not in (SAFE_SPLIT_PATTERN, WHOLE_TEXT_PATTERN) and len(notes) == 1
    expected = library_ids(content)
    assert library_ids(mended) == expected == runtime_ids(mended)
    assert runtime_ids(content) != expected  # or there would be nothing to mend


def test_a_split_that_applies_stays() -> None:
    content = {**trained(split=True), "normalizer": None}
    assert mend_tokenizer_json(content, []) is content


def test_merges_as_texts_keep_their_carriage_returns() -> None:
    content, notes = only_gluing(trained(split=False)), list[str]()
    model = content["model"]
    texts = [" ".join(pair) for pair in model["merges"]]
    assert any("\r" in text for text in texts)
    older = {**content, "model": {**model, "merges": texts}}
    mended = mend_tokenizer_json(older, notes)
    assert mended["model"]["merges"] == model["merges"] and "carriage returns" in notes[0]
    expected = library_ids(older)
    assert library_ids(mended) == expected == runtime_ids(mended)
    assert runtime_ids({**mended, "model": older["model"]}) != expected


def test_merges_as_texts_stay_where_they_are_read_alike() -> None:
    content = without_pieces_of(trained(split=False), "\r")
    texts = [" ".join(pair) for pair in content["model"]["merges"]]
    older = {**content, "model": {**content["model"], "merges": texts}}
    assert mend_tokenizer_json(older, [])["model"] is older["model"]


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [([f">{SPACE}</"], False), ([f"é{SPACE}a"], True), ([f"a{SPACE}b"], True),
     ([f"{sign}{SPACE}x" for sign in ">])}\\"], True)],
)  # fmt: skip
def test_signs_alone_may_be_glued_to_a_space(pieces: list[str], whole: bool) -> None:
    assert (split_pattern(pieces) == WHOLE_TEXT_PATTERN) == whole

"""tokenizer.json of a byte-level BPE vocabulary in a GGUF file (`tokenizer.ggml.model` gpt2)."""

from __future__ import annotations

from typing import Any

from converter.errors import ConvertError, Problem
from converter.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from converter.gguf.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary
from converter.model.json_schema import shown
from converter.tokenizer.byte_level import split_step
from converter.tokenizer.tokenizer_json import added_token

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}


def pre_tokenizer(vocabulary: Vocabulary) -> PreTokenizer:
    """The way that the file names.

    Raises:
        ConvertError: it names none, or one that is not known.
    """
    name = vocabulary.get("pre")
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    raise ConvertError(
        Problem(
            f"{vocabulary.header.path} has tokenizer.ggml.pre={shown(name)}, by which no way to "
            "split a text is known.",
            f"one of {', '.join(PRE_TOKENIZERS)}",
            "take the checkpoint that the file was made from, and give its folder",
        )
    )


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of tokenizer.json.

    Raises:
        ConvertError: the pre-tokenizer is not known, or the file has no merges.
    """
    way = pre_tokenizer(vocabulary)
    merges = vocabulary.header.texts("tokenizer.ggml.merges")
    if not merges:
        raise ConvertError(
            Problem(
                f"{vocabulary.header.path} has a byte-level vocabulary without merges.",
                "tokenizer.ggml.merges",
                "take a file that llama.cpp's converter wrote",
            )
        )
    added = [
        {"id": index, **added_token(text, special=kind != USER_DEFINED)}
        for index, text, kind in vocabulary.used()
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*map(split_step, way.patterns), _BYTE_LEVEL],
        },
        "post_processor": _around(vocabulary),
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": way.whole_tokens,
            "vocab": {text: index for index, text, _ in vocabulary.used()},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def adds_bos(vocabulary: Vocabulary) -> bool:
    """Whether a text begins with the bos token."""
    return bool(vocabulary.get("add_bos_token", pre_tokenizer(vocabulary).add_bos))


def _around(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """The step that puts the bos token before a text and the eos token behind it, as asked."""
    ids, adds = vocabulary.named(), adds_bos(vocabulary)
    before = [ids["bos_token"]] if adds and "bos_token" in ids else []
    behind = [ids["eos_token"]] if vocabulary.get("add_eos_token") and "eos_token" in ids else []
    if not before and not behind:
        return None

    def sequence(name: str, type_id: int) -> list[dict[str, Any]]:
        def token(index: int) -> dict[str, Any]:
            return {"SpecialToken": {"id": vocabulary.tokens[index], "type_id": type_id}}

        text = {"Sequence": {"id": name, "type_id": type_id}}
        return [*map(token, before), text, *map(token, behind)]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": [*sequence("A", 0), *sequence("B", 1)],
        "special_tokens": {
            vocabulary.tokens[index]: {
                "id": vocabulary.tokens[index],
                "ids": [index],
                "tokens": [vocabulary.tokens[index]],
            }
            for index in {*before, *behind}
        },
    }

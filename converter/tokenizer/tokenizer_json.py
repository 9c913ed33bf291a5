"""tokenizer.json: built from a SentencePiece model, or taken from the checkpoint and checked.

Source of the format: the serialization of the `tokenizers` library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.errors import ConvertError, Problem
from converter.tokenizer.byte_level import mend_byte_level, split_step
from converter.tokenizer.merges import bpe_merges, split_pattern
from converter.tokenizer.sentencepiece_model import NORMAL, SPACE, SentencePieceModel
from converter.tokenizer.special_tokens import AddedTokens

_FROM_ELSEWHERE = "put the model's tokenizer.model next to config.json; it is always enough"


def build_tokenizer_json(
    model: SentencePieceModel, added: AddedTokens, add_bos_token: bool
) -> dict[str, Any]:
    """The content of tokenizer.json, whose ids for a text are SentencePiece's.

    With `add_bos_token`, `post_processor` puts the bos token before a text when the caller wants
    special tokens, as the published tokenizers do; onnxruntime-genai never wants them.
    """
    normal = [model.pieces[index] for index in model.ids_of_type(NORMAL)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(added),
        "normalizer": _normalizer(model.add_dummy_prefix),
        "pre_tokenizer": split_step(split_pattern(normal)),
        "post_processor": _bos_first(model) if add_bos_token else None,
        "decoder": _decoder(model.add_dummy_prefix),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[model.unk_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": _vocabulary(model, added),
            "merges": [list(pair) for pair in bpe_merges(model)],
        },
    }


def _vocabulary(model: SentencePieceModel, added: AddedTokens) -> dict[str, int]:
    """Text to id, ascending ids; an added token that shares a piece's id replaces the piece."""
    texts = dict(enumerate(model.pieces))
    texts.update({index: text for text, index in {**added.ordinary, **added.special}.items()})
    return {texts[index]: index for index in sorted(texts)}


def _added_tokens(added: AddedTokens) -> list[dict[str, Any]]:
    every = [(index, text, True) for text, index in added.special.items()]
    every += [(index, text, False) for text, index in added.ordinary.items()]
    return [
        {
            "id": index,
            **added_token(text, special),
            **dict.fromkeys(sorted(added.flags.get(text, ())), True),
        }
        for index, text, special in sorted(every)
    ]


def added_token(text: str, special: bool) -> dict[str, Any]:
    """One entry of `added_tokens`, without its id: matched anywhere, exactly as it is written."""
    return {
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _normalizer(add_dummy_prefix: bool) -> dict[str, Any]:
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if not add_dummy_prefix:
        return spaces
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces]}


def _decoder(add_dummy_prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _bos_first(model: SentencePieceModel) -> dict[str, Any]:
    bos = model.pieces[model.bos_id]

    def sequence(name: str, type_id: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": bos, "type_id": type_id}},
            {"Sequence": {"id": name, "type_id": type_id}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": [*sequence("A", 0), *sequence("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [model.bos_id], "tokens": [bos]}},
    }


def mend_tokenizer_json(content: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """A checkpoint's own tokenizer.json, written so that onnxruntime-genai reads it alike.

    SentencePiece-like files (byte fallback) often have no pre_tokenizer, or `Metaspace`, and
    onnxruntime-genai then splits the text by a regular expression of its own; it follows no
    `Digits` either. `notes` receives what was changed.
    """
    model, given = content["model"], content.get("pre_tokenizer")
    if _lose_returns(model):
        notes.append("merges of tokenizer.json were written as pairs, which keep carriage returns")
        pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
        content = {**content, "model": {**model, "merges": pairs}}
    if not model.get("byte_fallback"):
        if (steps := mend_byte_level(given)) is None:
            return content
        notes.append(
            "pre_tokenizer of tokenizer.json was written as steps that the runtime follows"
        )
        return {**content, "pre_tokenizer": steps}
    if not (given is None or given.get("type") == "Metaspace" or _never_splits(content)):
        return content
    mended = {**content, "pre_tokenizer": split_step(split_pattern(_merged_pieces(model)))}
    if given is not None and given["type"] == "Metaspace":
        prefix = given.get("prepend_scheme", "always") != "never"
        mended |= {"normalizer": _normalizer(prefix), "decoder": _decoder(prefix)}
    notes.append("tokenizer.json had no pre_tokenizer that onnxruntime-genai respects; one was set")
    return mended


def _lose_returns(model: Mapping[str, Any]) -> bool:
    r"""Whether merges are texts of which the runtime drops a `\r`, or stops at a first `#`."""
    merges = [pair for pair in model.get("merges") or () if isinstance(pair, str)]
    return any("\r" in pair for pair in merges) or (bool(merges) and merges[0].startswith("#"))


def _never_splits(content: Mapping[str, Any]) -> bool:
    """Whether it splits at spaces that the normalizer has replaced already, as Gemma's does.

    The runtime takes any `Split` by a text for one that never applies, and then cuts words of a
    hundred characters, which a line of Chinese has.
    """
    given, normalizer = content.get("pre_tokenizer") or {}, content.get("normalizer") or {}
    splits = given.get("type") == "Split" and given.get("pattern") == {"String": " "}
    steps = normalizer.get("normalizers", [normalizer])
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return splits and any(step == replaced for step in steps)


def _merged_pieces(model: dict[str, Any]) -> set[str]:
    """What the merges make; older files write a pair as one string with a space."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return {"".join(pair) for pair in pairs}


def tokenizer_json_problems(content: Any, vocab_size: int) -> list[Problem]:
    """What keeps a checkpoint's own tokenizer.json from being used as it is."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return [Problem("tokenizer.json has no model.", "a tokenizers file", _FROM_ELSEWHERE)]
    kind = content["model"].get("type")
    if kind != "BPE":
        return [Problem(f"tokenizer.json holds a {kind} model.", "a BPE model", _FROM_ELSEWHERE)]
    if not _is_vocabulary(content["model"].get("vocab")):
        found = "tokenizer.json has a vocabulary that is no object of whole numbers."
        return [Problem(found, "an id for every text", _FROM_ELSEWHERE)]
    problems = []
    if content["model"].get("byte_fallback") and _splits_words(content.get("pre_tokenizer")):
        problems.append(
            Problem(
                "tokenizer.json splits words with Metaspace, which onnxruntime-genai does not do.",
                "a pre_tokenizer that both read alike",
                _FROM_ELSEWHERE,
            )
        )
    if content["model"].get("byte_fallback"):
        missing = sum(f"<0x{byte:02X}>" not in content["model"]["vocab"] for byte in range(256))
        if missing:
            problems.append(
                Problem(
                    f"tokenizer.json lacks {missing} of the 256 byte pieces.",
                    "all of them, as byte_fallback is on",
                    _FROM_ELSEWHERE,
                )
            )
    past = sorted(text for text, index in token_ids(content).items() if not 0 <= index < vocab_size)
    if past:
        problems.append(
            Problem(
                f"tokenizer.json maps {len(past)} tokens past the embedding, such as {past[0]}.",
                f"ids below {vocab_size}",
                _FROM_ELSEWHERE,
            )
        )
    return problems


def _is_vocabulary(value: Any) -> bool:
    return isinstance(value, dict) and all(type(index) is int for index in value.values())


def _splits_words(pre_tokenizer: Any) -> bool:
    return bool(
        isinstance(pre_tokenizer, dict)
        and pre_tokenizer.get("type") == "Metaspace"
        and pre_tokenizer.get("split", True)
    )


def read_with_library(content: bytes) -> Any:
    """A `tokenizers.Tokenizer` of a file's content, which the library checks in full.

    Like transformers, it neither cuts nor pads a text, whatever the file says; trainers leave that.

    Raises:
        ConvertError: the library refuses it.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(content)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        said = " ".join(str(error).split()).rstrip(".")[:200]
        found = f"The tokenizers library cannot read tokenizer.json: {said}."
        raise ConvertError(Problem(found, "a tokenizers file", _FROM_ELSEWHERE)) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_ids(content: dict[str, Any]) -> dict[str, int]:
    """Text to id of a tokenizer.json: its model's vocabulary and its added tokens."""
    ids = dict(content["model"].get("vocab", {}))
    ids.update({token["content"]: token["id"] for token in content.get("added_tokens") or ()})
    return ids

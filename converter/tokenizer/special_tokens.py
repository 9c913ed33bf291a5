"""Which special tokens a checkpoint declares, and the ids that they really have.

A checkpoint names them in up to four files. Published InternLM2 repositories disagree with
themselves: one maps the chat tokens to 92544...92549, rows that the embedding does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.errors import Problem
from converter.tokenizer.sentencepiece_model import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
)

CHAT_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|action_start|>",
    "<|action_end|>",
    "<|interpreter|>",
    "<|plugin|>",
)
"""What InternLM2's chat models call the last pieces, from the last one (92543) down to 92538."""


@dataclass(frozen=True)
class Declared:
    """What a checkpoint's files say about one token; `index` None: no file gives an id."""

    index: int | None
    special: bool = True


@dataclass
class AddedTokens:
    """Tokens that are looked for in the text before BPE, and what was found wrong with them.

    `special` ones are left out of decoded text; `ordinary` ones are text that is never split.
    """

    special: dict[str, int]
    ordinary: dict[str, int]
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def declared_tokens(files: Mapping[str, Any]) -> dict[str, Declared]:
    """Tokens that the JSON `files` (contents by file name) declare, by their text."""
    config = files.get("tokenizer_config.json", {})
    declared: dict[str, Declared] = {}
    for source in (config, files.get("special_tokens_map.json", {})):
        for entry in source.get("additional_special_tokens") or ():
            declared[_content(entry)] = Declared(None)
    for content, index in files.get("added_tokens.json", {}).items():
        declared[content] = Declared(index)
    for index, entry in (config.get("added_tokens_decoder") or {}).items():
        declared[_content(entry)] = Declared(int(index), bool(entry.get("special")))
    return declared


def _content(entry: Any) -> str:
    return str(entry["content"]) if isinstance(entry, dict) else str(entry)


def resolve_added_tokens(
    model: SentencePieceModel, declared: Mapping[str, Declared], vocab_size: int
) -> AddedTokens:
    """Give every declared token the id that the model was trained with.

    A token that is a piece has the piece's id; one declared at an `[UNUSED_TOKEN_n]` takes its
    place; otherwise InternLM2's chat tokens have the ids that `CHAT_TOKENS` tells. Anything else
    keeps a declared id between the last piece and `vocab_size` (the number of rows of the
    embedding), or is a problem.
    """
    piece_ids = {piece: index for index, piece in enumerate(model.pieces)}
    added = AddedTokens(
        special={model.pieces[index]: index for index in model.ids_of_type(UNKNOWN, CONTROL)},
        ordinary={model.pieces[index]: index for index in model.ids_of_type(USER_DEFINED)},
    )
    renamed: dict[int, str] = {}
    for content, token in declared.items():
        right = _right_id(model, piece_ids, content, token.index, vocab_size)
        if right is None or renamed.get(right, content) != content:
            added.problems.append(_misplaced(content, token.index, vocab_size))
            continue
        if token.index not in (None, right):
            added.notes.append(
                f"the token {content} was declared with id {token.index}; its id is {right}"
            )
        if content not in piece_ids:
            renamed[right] = content
        added.ordinary.pop(content, None)
        (added.special if token.special else added.ordinary)[content] = right
    _drop_placeholders(model, added, renamed)
    return added


def _drop_placeholders(
    model: SentencePieceModel, added: AddedTokens, renamed: Mapping[int, str]
) -> None:
    """One id has one text: a renamed piece's own name is plain text from then on."""
    for index in renamed:
        if index < len(model.pieces):
            added.ordinary.pop(model.pieces[index], None)
            added.special.pop(model.pieces[index], None)


def _right_id(
    model: SentencePieceModel,
    piece_ids: Mapping[str, int],
    content: str,
    index: int | None,
    vocab_size: int,
) -> int | None:
    if content in piece_ids:
        return piece_ids[content]
    count = len(model.pieces)
    if index is not None and 0 <= index < count and is_placeholder(model.pieces[index]):
        return index
    if chat_token_id(model, content) is not None:
        return chat_token_id(model, content)
    return index if index is not None and count <= index < vocab_size else None


def chat_token_id(model: SentencePieceModel, content: str) -> int | None:
    """The id of one of `CHAT_TOKENS` in a vocabulary that ends with placeholders for them."""
    if content not in CHAT_TOKENS:
        return None
    index = len(model.pieces) - 1 - CHAT_TOKENS.index(content)
    return index if is_placeholder(model.pieces[index]) else None


def is_placeholder(piece: str) -> bool:
    """Whether `piece` is one that a fine-tuned model may rename."""
    return piece.startswith("[UNUSED_TOKEN_")


def _misplaced(content: str, index: int | None, vocab_size: int) -> Problem:
    where = "without an id" if index is None else f"with id {index}"
    return Problem(
        f"The tokenizer declares the token {content} {where}, which is not its own.",
        f"a piece of tokenizer.model, or a free id below {vocab_size}, the embedding's rows",
        "correct added_tokens.json and tokenizer_config.json in the checkpoint's folder",
    )

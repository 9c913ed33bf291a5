"""Which special tokens a checkpoint declares, and the ids that they really have.

A checkpoint names them in up to four files. Published InternLM2 repositories disagree with
themselves: one maps the chat tokens to 92544...92549, rows that the embedding does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.errors import Problem
from converter.tokenizer.sentencepiece_model import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
)
from converter.tokenizer.settings import (
    ADDED_TOKENS,
    TOKEN_LISTS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    TOKENS_MAP,
    listed_tokens,
    token_text,
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


FLAGS = ("lstrip", "rstrip", "single_word")
"""Settings by which a token takes blanks beside it along, or is found between words only."""


@dataclass(frozen=True)
class Declared:
    """What a checkpoint's files say about one token; `index` None: no file gives an id."""

    index: int | None
    special: bool = True
    places: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    """Every file that gives an id, and the id."""
    flags: frozenset[str] = field(default=frozenset(), compare=False)
    """Those of `FLAGS` that are set."""


@dataclass
class AddedTokens:
    """Tokens that are looked for in the text before BPE, and what was found wrong with them.

    `special` ones are left out of decoded text; `ordinary` ones are text that is never split.
    """

    special: dict[str, int]
    ordinary: dict[str, int]
    flags: dict[str, frozenset[str]] = field(default_factory=dict)
    """Those of `FLAGS` that are set for a token; none for most."""
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def declared_tokens(files: Mapping[str, Any]) -> dict[str, Declared]:
    """Tokens that the JSON `files` (contents by file name) declare, by their text.

    An id is that of tokenizer_config.json, else of tokenizer.json, else of added_tokens.json. A
    token whose kind no file tells is special when one of the lists of special tokens names it.
    """
    listed = _listed(files)
    places: dict[str, list[tuple[str, int]]] = {text: [] for text in listed}
    entries: dict[str, Mapping[str, Any]] = {}
    for name, text, index, entry in _with_ids(files):
        places.setdefault(text, []).append((name, index))
        if entry is not None:
            entries.setdefault(text, entry)
    kinds = {text: bool(entry.get("special")) for text, entry in entries.items()}
    return {
        text: Declared(
            found[0][1] if found else None,
            kinds.get(text, text in listed or text in CHAT_TOKENS),
            tuple(found),
            frozenset(flag for flag in FLAGS if entries.get(text, {}).get(flag)),
        )
        for text, found in places.items()
    }


def _listed(files: Mapping[str, Any]) -> list[str]:
    entries = (
        entry
        for name in (TOKENIZER_CONFIG, TOKENS_MAP)
        for key in TOKEN_LISTS
        for entry in listed_tokens(files.get(name, {}).get(key))
    )
    return [text for entry in entries if (text := token_text(entry)) is not None]


def _with_ids(
    files: Mapping[str, Any],
) -> Iterator[tuple[str, str, int, Mapping[str, Any] | None]]:
    """File, text, id and entry of every token that has an id, the most exact file first."""
    decoder = files.get(TOKENIZER_CONFIG, {}).get("added_tokens_decoder") or {}
    for index, entry in decoder.items():
        yield TOKENIZER_CONFIG, entry["content"], int(index), entry
    for entry in files.get(TOKENIZER_JSON, {}).get("added_tokens") or ():
        yield TOKENIZER_JSON, entry["content"], entry["id"], entry
    for text, index in files.get(ADDED_TOKENS, {}).items():
        yield ADDED_TOKENS, text, index, None


def resolve_added_tokens(
    model: SentencePieceModel, declared: Mapping[str, Declared], vocab_size: int
) -> AddedTokens:
    """Give every declared token the id that the model was trained with.

    One declared behind the last piece, where the embedding has a row (`vocab_size` counts them),
    has that id, and one declared at an `[UNUSED_TOKEN_n]` takes its place. A piece has its own id.
    Otherwise InternLM2's chat tokens have the ids that `CHAT_TOKENS` tells, and a note says so.
    Anything else is a problem, as are two files that give different ids.
    """
    piece_ids = {piece: index for index, piece in enumerate(model.pieces)}
    added = AddedTokens(
        special={model.pieces[index]: index for index in model.ids_of_type(UNKNOWN, CONTROL)},
        ordinary={model.pieces[index]: index for index in model.ids_of_type(USER_DEFINED)},
    )
    renamed: dict[int, str] = {}
    for content, token in declared.items():
        if (contradiction := _contradiction(content, token, vocab_size)) is not None:
            added.problems.append(contradiction)
            continue
        right = _right_id(model, piece_ids, content, token.index, vocab_size)
        if right is None or renamed.get(right, content) != content:
            added.problems.append(_misplaced(content, token.index, vocab_size))
            continue
        if token.index is None and content not in piece_ids:
            added.notes.append(f"no file gives the id of {content}; it got InternLM2's, {right}")
        elif token.index not in (None, right):
            added.notes.append(
                f"the token {content} was declared with id {token.index}; its id is {right}"
            )
        if content not in piece_ids:
            renamed[right] = content
        added.ordinary.pop(content, None)
        if token.flags:
            added.flags[content] = token.flags
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
    count = len(model.pieces)
    if index is not None and count <= index < vocab_size:
        return index
    if content in piece_ids:
        return piece_ids[content]
    if index is not None and 0 <= index < count and is_placeholder(model.pieces[index]):
        return index
    return chat_token_id(model, content)


def _contradiction(content: str, token: Declared, vocab_size: int) -> Problem | None:
    """Two files with different ids that both have a row; an id without one is mended instead."""
    given = {name: index for name, index in token.places if 0 <= index < vocab_size}
    if len(set(given.values())) < 2:
        return None
    said = ", ".join(f"{index} in {name}" for name, index in given.items())
    return Problem(
        f"The files of the tokenizer give the token {content} different ids: {said}.",
        "one id, that of the row that was trained",
        "correct or remove the file that is wrong",
    )


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

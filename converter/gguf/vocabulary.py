"""The vocabulary of a GGUF file: its tokens, and which of them are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from converter.errors import ConvertError, Problem
from converter.gguf.header import GgufHeader, TextList
from converter.model.json_schema import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens, with SentencePiece's numbers."""
NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
"""tokenizer_config.json's names of tokens to the metadata's of their ids."""
TEMPLATE, TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, with their kinds, and the rest of the metadata behind `tokenizer.ggml.`."""

    header: GgufHeader
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `tokenizer.ggml.key`."""
        return self.header.metadata.get(f"tokenizer.ggml.{key}", default)

    def named(self, among: dict[str, int] | None = None) -> dict[str, int]:
        """Ids of bos, eos, unk and pad; `among` has ids that hold where the file states none."""
        found = {name: self.get(key, (among or {}).get(name)) for name, key in NAMED.items()}
        return {name: index for name, index in found.items() if self._is_id(index)}

    def used(self) -> Iterator[tuple[int, str, int]]:
        """Id, text and kind of every token but the unused ones, which fill the table up."""
        for index, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True)):
            if kind != UNUSED:
                yield index, token, kind

    def _is_id(self, value: Any) -> bool:
        return isinstance(value, int) and 0 <= value < len(self.tokens)


def read_vocabulary(header: GgufHeader) -> Vocabulary:
    """The vocabulary of a file that has one.

    Raises:
        ConvertError: it has no tokens, a token twice, or kinds for another number of them.
    """
    tokens = header.texts("tokenizer.ggml.tokens") or []
    kinds = header.metadata.get("tokenizer.ggml.token_type", (NORMAL,) * len(tokens))
    twice = [token for token, count in Counter(tokens).items() if count > 1]
    if not tokens or twice or len(kinds) != len(tokens):
        found = f"{len(tokens):,} tokens with {len(kinds):,} kinds"
        raise ConvertError(
            Problem(
                f"{header.path} has {f'the token {shown(twice[0])} twice' if twice else found}.",
                "a vocabulary of different tokens, each with its kind",
                "fetch the file again",
            )
        )
    return Vocabulary(header, tuple(tokens), tuple(kinds))


def chat_templates(header: GgufHeader) -> str | list[dict[str, str]] | None:
    """The chat template, or several as tokenizer_config.json lists them; None without one."""
    default = header.metadata.get(TEMPLATE)
    named = {
        name: header.metadata.get(f"{TEMPLATE}.{name}") for name in header.texts(TEMPLATES) or ()
    }
    every = {"default": default, **named} if default is not None else named
    listed = [{"name": name, "template": text} for name, text in every.items() if text is not None]
    return default if len(listed) == 1 and default is not None else listed or None


def has_vocabulary(header: GgufHeader) -> bool:
    """Whether the file has tokens at all."""
    found = header.metadata.get("tokenizer.ggml.tokens")
    return isinstance(found, TextList) and found.count > 0

"""Token ids of the hard texts, as the `tokenizers` library reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from converter.tokenizer.hard_texts import hard_texts


class ReadText(NamedTuple):
    """A text, what is hard about it, and its ids without special tokens."""

    kind: str
    text: str
    ids: tuple[int, ...]


def read_texts(
    tokenizer: Any, texts: Iterable[tuple[str, str]] | None = None
) -> tuple[ReadText, ...]:
    """What a `tokenizers.Tokenizer` reads of `texts`, kind and text of each.

    Without `texts`, the hard texts for its own added tokens.
    """
    if texts is None:
        added = tokenizer.get_added_tokens_decoder()
        texts = hard_texts([added[index].content for index in sorted(added)])
    return tuple(
        ReadText(kind, text, tuple(tokenizer.encode(text, add_special_tokens=False).ids))
        for kind, text in texts
    )

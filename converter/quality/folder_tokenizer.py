"""Text to token ids with the tokenizer that a converted folder ships."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from converter.errors import ConvertError, Problem
from converter.quality.texts import Message, plain_chat

TOKENIZER_FILE = "tokenizer.json"


class FolderTokenizer:
    """The tokenizer of `folder`, read by transformers from its tokenizer.json.

    Raises `ConvertError` when the folder has none: it was made from weights without a tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / TOKENIZER_FILE).is_file():
            raise ConvertError(
                Problem(
                    f"{folder} has no {TOKENIZER_FILE}.",
                    "a folder with a tokenizer, to read text with",
                    "convert again from a source that has its tokenizer",
                )
            )
        from transformers import PreTrainedTokenizerFast

        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.bos_token_id = _bos_token_id(folder)
        """The id that stands before every text; None for a model that wants none."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS."""
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return list(map(int, ids))

    def render_chat(self, messages: Sequence[Message]) -> str:
        """A conversation as the folder's chat template writes it, or as plain paragraphs."""
        if self._tokenizer.chat_template is None:
            return plain_chat(messages)
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False))


def _bos_token_id(folder: Path) -> int | None:
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if not settings.get("add_bos_token", True):
        return None
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    bos: int | None = config["model"].get("bos_token_id")
    return bos

"""Text to token ids with the tokenizer that a converted folder ships."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from converter.errors import ConvertError, Problem, first_line
from converter.model.checkpoint import TOKENIZERS
from converter.model.decoder import Decoder
from converter.text.texts import Message, plain_chat
from converter.tokenizer import prepare_tokenizer
from converter.tokenizer.runtime_tokenizer import RuntimeTokenizer, runtime_is_installed

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
        try:
            self._tokenizer = _read(folder)
            self._runtime = _runtime_tokenizer(folder) if self._tokenizer.chat_template else None
            self.bos_token_id = _bos_token_id(folder)
            """The id that stands before every text; None for a model that wants none."""
        except Exception as error:  # transformers and the runtime raise what their parsers raise
            raise ConvertError(
                Problem(
                    f"The tokenizer of {folder} cannot be read: {first_line(error)}.",
                    "the tokenizer files that `convert` wrote",
                    "copy the folder again from where it was made, or convert the model again",
                )
            ) from error

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS."""
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return list(map(int, ids))

    def render_chat(self, messages: Sequence[Message]) -> str:
        """A conversation as the folder's chat template writes it, or as plain paragraphs.

        onnxruntime-genai renders it where it is installed, as it does for the folder's user.

        Raises:
            ValueError: the template refuses it; many want user and assistant to take turns.
        """
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            return plain_chat(messages)
        try:
            if self._runtime is not None:
                return self._runtime.render(messages, None, generation=False)
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False))
        except (TemplateError, RuntimeError) as error:
            raise ValueError(f"the chat template refuses it: {error}") from error


def _read(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def _runtime_tokenizer(folder: Path) -> RuntimeTokenizer | None:
    if not runtime_is_installed():
        return None
    names = (TOKENIZER_FILE, "tokenizer_config.json")
    return RuntimeTokenizer({name: (folder / name).read_bytes() for name in names})


def source_tokenizer(decoder: Decoder) -> FolderTokenizer:
    """The tokenizer of a decoder's checkpoint as it will be packaged.

    Raises:
        ConvertError: the checkpoint has none, or one that cannot be packaged.
    """
    checkpoint = decoder.checkpoint
    if checkpoint.folder is None:
        raise ConvertError(
            Problem("The source has no tokenizer.", " or ".join(TOKENIZERS), "fetch the tokenizer")
        )
    files = prepare_tokenizer(checkpoint.folder, decoder.architecture.vocab_size)
    config = {"model": {"bos_token_id": files.bos_token_id}}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.files.items():
            (folder / file).write_bytes(content)
        (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
        return FolderTokenizer(folder)


def _bos_token_id(folder: Path) -> int | None:
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if not settings.get("add_bos_token", False):
        return None
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    bos: int | None = config["model"].get("bos_token_id")
    return bos

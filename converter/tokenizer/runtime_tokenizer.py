"""The tokenizer files of a folder, read by onnxruntime-genai; no model is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_LEAST_CONFIG = {
    "model": {
        "type": "llama",
        "context_length": 16,
        "vocab_size": 16,
        "decoder": {
            "filename": "model.onnx",
            **dict.fromkeys(
                (
                    "head_size",
                    "hidden_size",
                    "num_attention_heads",
                    "num_hidden_layers",
                    "num_key_value_heads",
                ),
                1,
            ),
        },
    }
}


def runtime_is_installed() -> bool:
    """Whether onnxruntime-genai can be asked."""
    return find_spec("onnxruntime_genai") is not None


class RuntimeTokenizer:
    """What onnxruntime-genai makes of tokenizer `files`, contents by name.

    Raises:
        RuntimeError: it cannot load them; the text says why.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        import onnxruntime_genai

        with TemporaryDirectory(prefix="convert-tokenizer-") as name:
            for file, content in files.items():
                (Path(name) / file).write_bytes(content)
            (Path(name) / "genai_config.json").write_text(json.dumps(_LEAST_CONFIG), "utf-8")
            self._tokenizer: Any = onnxruntime_genai.Tokenizer(name)

    def encode(self, text: str) -> list[int]:
        """Ids of a text that holds no NUL."""
        return list(map(int, self._tokenizer.encode(text)))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        generation: bool,
    ) -> str:
        """A conversation as the chat template of the files writes it.

        Raises:
            RuntimeError: the template refuses it, or the runtime cannot follow the template.
        """
        extra = {} if tools is None else {"tools": json.dumps(tools, ensure_ascii=False)}
        content = json.dumps(messages, ensure_ascii=False)
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    content, add_generation_prompt=generation, **extra
                )
            )
        except (RuntimeError, UnicodeDecodeError) as error:
            raise RuntimeError(template_words(error)) from error


def template_words(error: RuntimeError | UnicodeDecodeError) -> str:
    """What a template, or the engine, says; without the places in the template behind it."""
    if isinstance(error, UnicodeDecodeError):
        return "it cuts a character into bytes"
    return str(error).partition(" at row ")[0].strip().rstrip(".")

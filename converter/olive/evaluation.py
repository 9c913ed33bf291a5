"""The text on which Olive measures perplexity, in the tokens of a folder."""

from __future__ import annotations

from pathlib import Path

from converter.errors import ConvertError, Problem
from converter.text.texts import BUILTIN, evaluation_chunks, load_text

EVALUATION_TOKENS, EVALUATION_CHUNKS = 128, 4
"""Built-in text for Olive's perplexity: the same tokens for every model with one tokenizer."""


def evaluation_rows(folder: Path) -> list[list[int]]:
    """Rows of equal length: the built-in evaluation text in the tokens of `folder`."""
    import onnxruntime_genai as og

    if not (folder / "tokenizer.json").is_file():
        raise ConvertError(
            Problem(
                "olive.evaluate asks for perplexity, and the folder has no tokenizer.",
                "a source with a tokenizer, to turn text into tokens",
                "remove perplexity from olive.evaluate",
            )
        )
    chunks = evaluation_chunks(
        load_text(BUILTIN, half="evaluation"),
        og.Tokenizer(str(folder)).encode,
        n_ctx=EVALUATION_TOKENS,
        max_chunks=EVALUATION_CHUNKS,
    )
    rows: list[list[int]] = chunks.input_ids.tolist()
    return rows

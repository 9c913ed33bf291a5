"""The source's tokenizer as the folder gets it, and the ids by which generation begins and ends."""

from __future__ import annotations

from collections.abc import Iterator

from converter.errors import ConvertError, Problem, shortened
from converter.model.checkpoint import TOKENIZERS, Checkpoint
from converter.output.genai_config import TokenIds
from converter.recipe.schema import Recipe
from converter.tokenizer import TokenizerFiles, prepare_tokenizer
from converter.tokenizer.settings import dangling_link
from converter.tokenizer.stop_tokens import StopTokens, row_problems, stop_tokens


def packaged_tokenizer(checkpoint: Checkpoint, vocab_size: int) -> TokenizerFiles | None:
    """The checkpoint's tokenizer as it is packaged; None where there is none.

    Raises:
        ConvertError: it cannot be read, or does not fit an embedding of `vocab_size` rows.
    """
    if checkpoint.folder is None or not checkpoint.has_tokenizer:
        return None
    return prepare_tokenizer(checkpoint.folder, vocab_size)


def tokenizer_problems(
    recipe: Recipe, checkpoint: Checkpoint, vocab_size: int
) -> Iterator[Problem]:
    """What keeps the tokenizer from being packaged, or the runtime from reading it alike."""
    yield from _missing_tokenizer(recipe, checkpoint)
    try:
        tokenizer = packaged_tokenizer(checkpoint, vocab_size)
        if tokenizer is None:
            yield from row_problems(_declared_stops(checkpoint), vocab_size)
            return
    except ConvertError as error:
        yield from error.problems
        return
    yield from tokenizer.comparison.problems
    yield from tokenizer.comparison.text_problems(recipe.verify.max_text_differences)


def tokenizer_notes(recipe: Recipe, tokenizer: TokenizerFiles | None) -> Iterator[str]:
    """What whoever uses the folder should know of its tokenizer."""
    if tokenizer is None:
        yield "The source has no tokenizer: the folder takes token ids only."
        return
    if recipe.model.chat and not tokenizer.is_chat:
        yield (
            "The recipe is for a chat model, and the source has no chat template: "
            "`convert chat` will continue plain text."
        )
    hidden = tokenizer.hidden_tool_tokens
    if hidden:
        yield (
            f"Decoded text does not show the special tokens of a tool call, "
            f"{', '.join(hidden)}: look for their ids in the answer."
        )
    for note in tokenizer.notes + tokenizer.comparison.notes:
        yield shortened(f"tokenizer: {note}")


def token_ids(checkpoint: Checkpoint, tokenizer: TokenizerFiles | None) -> TokenIds:
    """The ids of genai_config.json: the tokenizer's, or those that the configs name."""
    bos = checkpoint.config.get("bos_token_id", 1)
    if tokenizer is not None:
        if tokenizer.bos_token_id is not None:
            bos = tokenizer.bos_token_id
        return TokenIds(bos, tokenizer.eos_token_ids, tokenizer.pad_token_id)
    ids = _declared_stops(checkpoint).ids
    pad = checkpoint.config.get("pad_token_id")
    return TokenIds(bos, ids, pad if pad is not None else (*ids, 0)[0])


def _missing_tokenizer(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Problem]:
    """A chat model needs its tokenizer; other folders may take token ids only."""
    folder = checkpoint.folder
    if folder is None or checkpoint.has_tokenizer:
        return
    for path in (folder / name for name in TOKENIZERS):
        if path.is_symlink():
            yield dangling_link(path)
            return
    if recipe.model.chat:
        yield Problem(
            f"{folder} has no tokenizer, and the recipe is for a chat model.",
            " or ".join(TOKENIZERS),
            "copy the tokenizer's files from the model's repository into the folder",
        )


def _declared_stops(checkpoint: Checkpoint) -> StopTokens:
    """Those that the configs name; all there is for a source without a tokenizer.

    A config.json without the key has the classes' default, 2; null means that there is none.
    """
    settings = {
        "generation_config.json": checkpoint.generation_config,
        "config.json": {"eos_token_id": 2, **checkpoint.config},
    }
    return stop_tokens(settings, None, {})

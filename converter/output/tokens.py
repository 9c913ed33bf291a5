"""The tokenizer of a folder and the ids by which generation begins, ends and pads."""

from __future__ import annotations

from collections.abc import Iterable

from converter.errors import ConvertError, Problem
from converter.model.checkpoint import TOKENIZERS, Checkpoint
from converter.model.decoder import Decoder
from converter.output.genai_config import (
    TokenIds,
    generation_problems,
    search_size_problems,
)
from converter.recipe.schema import Recipe
from converter.tokenizer.prepare import TokenizerFiles, prepare_tokenizer
from converter.tokenizer.stop_tokens import StopTokens, row_problems, stop_tokens


def token_problems(recipe: Recipe, decoder: Decoder, length: int) -> Iterable[Problem]:
    """What keeps the tokenizer, the token ids or the search options from being packaged.

    `length` is the context's, in tokens.
    """
    checkpoint, vocab_size = decoder.checkpoint, decoder.architecture.vocab_size
    yield from missing_tokenizer(recipe, decoder)
    try:
        tokenizer, generation = packaged_tokenizer(decoder), checkpoint.generation_config
    except ConvertError as error:
        yield from error.problems
        return
    if tokenizer is None:
        yield from row_problems(declared_stops(checkpoint), vocab_size)
    else:
        yield from tokenizer.comparison.problems
        yield from tokenizer.comparison.text_problems(recipe.verify.max_text_differences)
    yield from generation_problems(generation, recipe.target, vocab_size)
    yield from search_size_problems(recipe.target, length, vocab_size)


def missing_tokenizer(recipe: Recipe, decoder: Decoder) -> Iterable[Problem]:
    """A chat model needs its tokenizer; other folders may take token ids only."""
    folder = decoder.checkpoint.folder
    if folder is None or decoder.checkpoint.has_tokenizer:
        return
    for path in (folder / name for name in TOKENIZERS):
        if path.is_symlink():
            yield Problem(
                f"{path} is a link to {path.readlink()}, which is not there.",
                "the file itself, as a complete download has it",
                "fetch the file again",
            )
            return
    if recipe.model.chat:
        yield Problem(
            f"{folder} has no tokenizer, and the recipe is for a chat model.",
            " or ".join(TOKENIZERS),
            "copy the tokenizer's files from the model's repository into the folder",
        )


def packaged_tokenizer(decoder: Decoder) -> TokenizerFiles | None:
    """The source's tokenizer as it is packaged; None where there is none."""
    checkpoint = decoder.checkpoint
    if checkpoint.folder is None or not checkpoint.has_tokenizer:
        return None
    return prepare_tokenizer(checkpoint.folder, decoder.architecture.vocab_size)


def token_ids(checkpoint: Checkpoint, tokenizer: TokenizerFiles | None) -> TokenIds:
    """The ids of a folder: its tokenizer's, or those that the configs name."""
    bos = checkpoint.config.get("bos_token_id", 1)
    if tokenizer is not None:
        if tokenizer.bos_token_id is not None:
            bos = tokenizer.bos_token_id
        return TokenIds(bos, tokenizer.eos_token_ids, tokenizer.pad_token_id)
    ids = declared_stops(checkpoint).ids
    pad = checkpoint.config.get("pad_token_id")
    return TokenIds(bos, ids, pad if pad is not None else (*ids, 0)[0])


def declared_stops(checkpoint: Checkpoint) -> StopTokens:
    """Those that the configs name; all there is for a source without a tokenizer.

    A config.json without the key has the classes' default, 2; null means that there is none.
    """
    settings = {
        "generation_config.json": checkpoint.generation_config,
        "config.json": {"eos_token_id": 2, **checkpoint.config},
    }
    return stop_tokens(settings, None, {})

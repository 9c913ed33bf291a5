"""package: stream graph and weights into the staging folder and add what the runtime needs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from converter.engine.contract import Done, Pass, Run
from converter.engine.estimates import writing_memory
from converter.errors import ConvertError, Problem
from converter.graph.form import context_length, recipe_form
from converter.graph.graph import Graph
from converter.graph.tensors import model_weights
from converter.machine.disk import RESULT, Room
from converter.model.checkpoint import TOKENIZERS, Checkpoint
from converter.model.decoder import Decoder
from converter.output.genai_config import (
    TokenIds,
    genai_config,
    generation_problems,
    search_size_problems,
)
from converter.output.lock import lock_entries, resolved_recipe
from converter.output.model_writer import write_model
from converter.output.package import Package
from converter.output.place import output_folder
from converter.progress import format_bytes
from converter.recipe.schema import Recipe
from converter.storage.hashing import file_entries
from converter.storage.staging import RECIPE_FILE
from converter.tokenizer import TokenizerFiles, prepare_tokenizer
from converter.tokenizer.stop_tokens import StopTokens, row_problems, stop_tokens


class MakePackage(Pass[Graph, Package]):
    """Writes model.onnx, its weights, genai_config.json, tokenizer, recipe and lock file."""

    name = "package"
    slot = "target"
    guarantees = (
        "the folder is complete: graph, weights, genai_config.json, tokenizer, recipe, lock file",
        "no weight that is NaN or infinite is written",
        "the bytes do not depend on the number of threads",
    )

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        if decoder is None:
            return
        yield from _missing_tokenizer(recipe, decoder)
        try:
            tokenizer = _tokenizer_of(decoder)
            generation = decoder.checkpoint.generation_config
        except ConvertError as error:
            yield from error.problems
            return
        length, vocab_size = (
            context_length(decoder.architecture, recipe),
            decoder.architecture.vocab_size,
        )
        if tokenizer is None:
            yield from row_problems(_declared_stops(decoder.checkpoint), vocab_size)
        else:
            yield from tokenizer.comparison.problems
            yield from tokenizer.comparison.text_problems(recipe.verify.max_text_differences)
        yield from generation_problems(generation, recipe.target, vocab_size)
        yield from search_size_problems(recipe.target, length, vocab_size)

    def disk(self, recipe: Recipe, decoder: Decoder) -> Iterable[Room]:
        yield Room(
            output_folder(recipe).parent,  # the staging folder lies beside the output
            smallest_size(recipe, decoder),
            RESULT,
            "set output=FOLDER on a disk with more room",
        )

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        return writing_memory(model_weights(graph.model).values(), recipe.threads)

    def run(self, artifact: Graph, run: Run) -> Done[Package]:
        folder, recipe = run.staging.folder, run.recipe
        checkpoint = artifact.decoder.checkpoint
        with ThreadPoolExecutor(1) as pool:
            # Hashing leaves the interpreter to the writer.
            sources = pool.submit(file_entries, checkpoint.files, recipe.threads)
            tokenizer = self._tokenizer(artifact, run)
            write_model(artifact.model, folder, recipe.threads, run.progress.advance)
            run.staging.lock |= lock_entries(recipe.name, checkpoint, sources.result())
        tokens = _token_ids(checkpoint, tokenizer)
        arch, length = artifact.decoder.architecture, artifact.context_length
        positions = recipe_form(arch, recipe).takes_positions
        generation = checkpoint.generation_config
        config = genai_config(arch, length, recipe.target, tokens, generation, positions)
        _write_json(folder / "genai_config.json", config)
        for name, content in (tokenizer.files if tokenizer else {}).items():
            (folder / name).write_bytes(content)
        (folder / RECIPE_FILE).write_text(resolved_recipe(recipe), encoding="utf-8")
        nbytes = sum(path.stat().st_size for path in folder.iterdir())
        return Done(Package(folder, artifact, nbytes), summary=format_bytes(nbytes))

    def _tokenizer(self, graph: Graph, run: Run) -> TokenizerFiles | None:
        tokenizer = _tokenizer_of(graph.decoder)
        if tokenizer is None:
            run.progress.message("The source has no tokenizer: the folder takes token ids only.")
            return None
        if run.recipe.model.chat and not tokenizer.is_chat:
            run.progress.message(
                "The recipe is for a chat model, and the source has no chat template: "
                "`convert chat` will continue plain text."
            )
        hidden = tokenizer.hidden_tool_tokens
        if hidden:
            run.progress.message(
                f"Decoded text does not show the special tokens of a tool call, "
                f"{', '.join(hidden)}: look for their ids in the answer."
            )
        for note in tokenizer.notes + tokenizer.comparison.notes:
            run.progress.message(f"tokenizer: {note}")
        return tokenizer


def _missing_tokenizer(recipe: Recipe, decoder: Decoder) -> Iterable[Problem]:
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


def _tokenizer_of(decoder: Decoder) -> TokenizerFiles | None:
    """The source's tokenizer as it is packaged; None where there is none."""
    checkpoint = decoder.checkpoint
    if checkpoint.folder is None or not checkpoint.has_tokenizer:
        return None
    return prepare_tokenizer(checkpoint.folder, decoder.architecture.vocab_size)


def smallest_size(recipe: Recipe, decoder: Decoder) -> int:
    """A lower bound of the result's bytes, from shapes alone."""
    bits = {"fp32": 32, "fp16": 16, "bf16": 16}[recipe.target.float_type]
    if recipe.quant.round != "none":
        bits = recipe.quant.bits
    return sum(weight.numel for weight in decoder.weights.values()) * bits // 8


def _token_ids(checkpoint: Checkpoint, tokenizer: TokenizerFiles | None) -> TokenIds:
    bos = checkpoint.config.get("bos_token_id", 1)
    if tokenizer is not None:
        if tokenizer.bos_token_id is not None:
            bos = tokenizer.bos_token_id
        return TokenIds(bos, tokenizer.eos_token_ids, tokenizer.pad_token_id)
    ids = _declared_stops(checkpoint).ids
    pad = checkpoint.config.get("pad_token_id")
    return TokenIds(bos, ids, pad if pad is not None else (*ids, 0)[0])


def _declared_stops(checkpoint: Checkpoint) -> StopTokens:
    """Those that the configs name; all there is for a source without a tokenizer.

    A config.json without the key has the classes' default, 2; null means that there is none.
    """
    settings = {
        "generation_config.json": checkpoint.generation_config,
        "config.json": {"eos_token_id": 2, **checkpoint.config},
    }
    return stop_tokens(settings, None, {})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")

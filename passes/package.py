"""package: stream graph and weights into the staging folder and add what the runtime needs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from converter.engine.contract import Done, Pass, Run
from converter.engine.estimates import smallest_size, writing_memory
from converter.errors import ConvertError, Problem
from converter.graph.form import context_length, recipe_form
from converter.graph.graph import Graph
from converter.graph.tensors import model_weights
from converter.machine.disk import RESULT, Room
from converter.model.decoder import Decoder
from converter.output.genai_config import (
    genai_config,
    generation_problems,
    search_size_problems,
)
from converter.output.lock import lock_entries, resolved_recipe
from converter.output.model_writer import write_model
from converter.output.package import Package
from converter.output.packaged_tokenizer import (
    packaged_tokenizer,
    token_ids,
    tokenizer_notes,
    tokenizer_problems,
)
from converter.output.place import output_folder
from converter.progress import format_bytes
from converter.recipe.schema import Recipe
from converter.storage.hashing import file_entries
from converter.storage.staging import RECIPE_FILE


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
        checkpoint, vocab_size = decoder.checkpoint, decoder.architecture.vocab_size
        yield from tokenizer_problems(recipe, checkpoint, vocab_size)
        try:
            generation = checkpoint.generation_config
        except ConvertError as error:
            yield from error.problems
            return
        yield from generation_problems(generation, recipe.target, vocab_size)
        length = context_length(decoder.architecture, recipe)
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
            tokenizer = packaged_tokenizer(checkpoint, artifact.decoder.architecture.vocab_size)
            for note in tokenizer_notes(recipe, tokenizer):
                run.progress.message(note)
            write_model(artifact.model, folder, recipe.threads, run.progress.advance)
            run.staging.lock |= lock_entries(recipe.name, checkpoint, sources.result())
        tokens = token_ids(checkpoint, tokenizer)
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


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")

"""load: open the checkpoint that the recipe names; a repository on the hub is fetched first."""

from __future__ import annotations

from pathlib import Path

from converter.engine.contract import Done, Pass, Run
from converter.errors import ConvertError, Problem
from converter.gguf.source import open_gguf
from converter.model.checkpoint import Checkpoint
from converter.progress import format_bytes
from converter.recipe.schema import Recipe
from converter.sources.config import demo_folder
from converter.sources.gguf import gguf_source
from converter.sources.hub import open_hub, preview_hub
from converter.sources.local import open_local
from converter.sources.synthetic import open_synthetic
from converter.storage.user_path import user_path


class Load(Pass[None, Checkpoint]):
    """Opens a local folder, a repository on the hub, the built-in demo, or synthetic weights."""

    name = "load"
    slot = "source"
    guarantees = (
        "headers only: no weight is read yet, and no code of the checkpoint ever runs",
        "what is opened is recorded in the lock file, with sizes and hashes",
    )
    headers_only = True

    def run(self, artifact: None, run: Run) -> Done[Checkpoint]:
        source = run.recipe.source
        if _on_hub(run.recipe) and source.repo:
            opened = open_hub(source.repo, source.revision, run.progress.advance)
        else:
            opened = self._open_here(run.recipe)
        total = sum(weight.nbytes for weight in opened.tensors.values())
        return Done(opened, summary=f"{len(opened.tensors)} tensors, {format_bytes(total)}")

    def preview(self, artifact: None, run: Run) -> Checkpoint:
        source = run.recipe.source
        if _on_hub(run.recipe) and source.repo:
            return preview_hub(source.repo, source.revision, run.recipe)
        return self._open_here(run.recipe)

    def _open_here(self, recipe: Recipe) -> Checkpoint:
        if recipe.source.kind == "demo":
            return open_local(demo_folder(), {"kind": "demo"})
        if recipe.source.kind == "synthetic":
            return open_synthetic(recipe)
        if recipe.source.path is None:
            raise ConvertError(_no_path(recipe))
        return _open_path(user_path(recipe.source.path), recipe)


def _open_path(path: Path, recipe: Recipe) -> Checkpoint:
    """A folder with weights as transformers saves them, or a GGUF model."""
    model = gguf_source(path)
    return open_gguf(model, recipe) if model else open_local(path)


def _on_hub(recipe: Recipe) -> bool:
    return recipe.source.kind == "checkpoint" and recipe.source.path is None


def _no_path(recipe: Recipe) -> Problem:
    return Problem(
        "The recipe names no checkpoint.",
        "a local folder, a repository on the hub, the demo or synthetic weights",
        f"convert recipe={recipe.name} source.path=FOLDER, or source.repo=OWNER/NAME "
        f"(or source=synthetic to try the recipe without a checkpoint)",
    )

"""tune: try runtime settings on this machine and keep the fastest in genai_config.json."""

from __future__ import annotations

from collections.abc import Iterable

from converter.engine.engine import Pass, Run
from converter.errors import Problem
from converter.model.decoder import Decoder
from converter.output.package import Package
from converter.recipe.schema import Recipe
from converter.runtime.session import missing_runtime
from converter.speed.tuning import Tuned, tune, write_settings


class Tune(Pass[Package, Package]):
    """Threads, spinning and chunk size; the folder's weights and graph stay as they are."""

    name = "tune"
    takes = Package
    gives = Package
    slot = "target"
    guarantees = ("only session options and the chunk size in genai_config.json change",)

    def __init__(self) -> None:
        self._tuned: Tuned | None = None

    def enabled(self, recipe: Recipe) -> bool:
        return recipe.target.tune

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        return missing_runtime("target.tune measures the result", "target.tune=false")

    def run(self, artifact: Package, run: Run) -> Package:
        folder = artifact.folder
        self._tuned = tune(folder, advance=run.progress.advance)
        write_settings(folder, self._tuned.best.settings)
        run.facts[self.name] = self._tuned.facts()
        return artifact

    def summary(self, given: Package) -> str:
        if self._tuned is None:
            return ""
        best, start = self._tuned.best, self._tuned.start
        shown = ", ".join(
            f"{name.rpartition('.')[2]}={value}"
            for name, value in best.settings.items()
            if value is not None
        )
        return f"{shown or 'the defaults'}: {start.seconds:.2f} s → {best.seconds:.2f} s an answer"

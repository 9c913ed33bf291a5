"""tune: try runtime settings on this machine and keep the fastest in genai_config.json."""

from __future__ import annotations

from collections.abc import Iterable

from converter.engine.contract import Done, Pass, Run
from converter.errors import Problem
from converter.model.decoder import Decoder
from converter.output.package import Package
from converter.providers import PROVIDERS
from converter.recipe.guest_slots import own_settings
from converter.recipe.schema import Recipe
from converter.runtime.session import missing_runtime
from converter.speed.tuning import tune, write_settings
from passes.tune_settings import TuneSettings


class Tune(Pass[Package, Package]):
    """Threads, spinning and chunk size; the folder's weights and graph stay as they are."""

    name = "tune"
    slot = "tune"
    guarantees = ("only session options and the chunk size in genai_config.json change",)

    def enabled(self, recipe: Recipe) -> bool:
        return own_settings(recipe, TuneSettings).enabled

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        yield from missing_runtime("the recipe tunes the result", "tune=none")
        provider = recipe.target.execution_provider
        if not PROVIDERS[provider].tunes:
            yield Problem(
                f"tune.enabled=true for the {provider} execution provider.",
                "a target whose threads, spinning and chunk size can be set, such as cpu",
                "set tune=none",
            )

    def run(self, artifact: Package, run: Run) -> Done[Package]:
        tuned = tune(artifact.folder, advance=run.progress.advance)
        best, start = tuned.best, tuned.start
        write_settings(artifact.folder, best.settings)
        shown = ", ".join(
            f"{name.rpartition('.')[2]}={value}"
            for name, value in best.settings.items()
            if value is not None
        )
        seconds = f"{start.seconds:.2f} s → {best.seconds:.2f} s an answer"
        summary = f"{shown or 'the defaults'}: {seconds}"
        return Done(artifact, tuned.facts(), summary)

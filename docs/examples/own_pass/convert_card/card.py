"""card: write README.md, a model card, into the packaged folder."""

import dataclasses
from collections.abc import Iterable

from convert_card.settings import CardConfig
from converter.engine import Decoder, Done, Package, Pass, Problem, Recipe, Run, own_settings


class Card(Pass[Package, Package]):
    """Writes a model card for the folder."""

    name = "card"
    slot = "card"
    guarantees = ("README.md has a title, a license, and the bytes of the model",)

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        """Called before any work, together with every other pass: all problems, one error."""
        if not own_settings(recipe, CardConfig).title:
            yield Problem("card.title is empty.", "the card's first line", 'set card.title="…"')

    def run(self, artifact: Package, run: Run) -> Done[Package]:
        """Write below `artifact.folder` only: it becomes the output once every pass succeeded."""
        config = own_settings(run.recipe, CardConfig)
        lines = [
            "---",
            f"license: {config.license}",
            f"language: [{', '.join(config.languages)}]",
            "---",
            f"# {config.title}",
            "",
            f"Runs with onnxruntime-genai; {artifact.nbytes:,} bytes.",
        ]
        text = "\n".join(lines) + "\n"
        (artifact.folder / "README.md").write_text(text, encoding="utf-8")
        made = dataclasses.replace(artifact, nbytes=artifact.nbytes + len(text.encode()))
        return Done(made, {"license": config.license}, "README.md")

    def ensures(self, given: Package, run: Run) -> Iterable[Problem]:
        """What is wrong with the result; nothing is published then."""
        if not (given.folder / "README.md").read_text(encoding="utf-8").startswith("---"):
            yield Problem("README.md has no header.", "a model card", "report this")

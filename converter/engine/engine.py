"""The pass engine: checks a recipe's passes as a whole, then runs them in order.

A pass takes one artifact and gives the next. Before any weight is read the engine checks that the
passes fit together and asks each one what it `requires`, so all problems appear in one error. The
output folder appears at the end, complete, by one rename.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from converter.errors import ConvertError, Problem, raise_if
from converter.graph.graph import Graph
from converter.machine.disk import Room, room_problems
from converter.model.decoder import Decoder
from converter.output.place import output_folder, output_problems
from converter.output.staging import Staging, open_staging
from converter.progress import Progress, Silent
from converter.recipe.schema import Recipe

Taken = TypeVar("Taken")
Given = TypeVar("Given")


@dataclass
class Run:
    """What the passes of one run share: the recipe, the staging folder, the progress display."""

    recipe: Recipe
    staging: Staging
    progress: Progress = field(default_factory=Silent)
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds of each finished pass."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What passes measured, by pass name; goes into the report."""


class Pass(ABC, Generic[Taken, Given]):
    """One step of a conversion. A subclass states its name and types and implements `run`."""

    name: ClassVar[str]
    takes: ClassVar[type]
    """Type of the artifact that `run` takes; `type(None)` for the first pass."""
    gives: ClassVar[type]
    slot: ClassVar[str] = ""
    """The recipe's slot with this pass's settings: a built-in one, or one of `convert.slots`."""
    guarantees: ClassVar[tuple[str, ...]] = ()
    """What holds when the pass has not raised; the documentation lists it."""
    headers_only: ClassVar[bool] = False
    """`preview` reads headers, not weights, and so takes part in the check before the work."""

    def enabled(self, recipe: Recipe) -> bool:
        """Whether the recipe wants this pass; a pass left out is skipped silently."""
        return True

    def requires(self, recipe: Recipe, decoder: Decoder | None) -> Iterable[Problem]:
        """What is wrong with the recipe for this pass; `decoder` is None when it could not be read.

        Called before any weight is read.
        """
        return ()

    def disk(self, recipe: Recipe, decoder: Decoder) -> Iterable[Room]:
        """Room on disks that `run` needs at least, from shapes; checked before the work."""
        return ()

    @abstractmethod
    def run(self, artifact: Taken, run: Run) -> Given:
        """Do the work. Raises ConvertError with what is wrong."""

    def preview(self, artifact: Taken, run: Run) -> Given:
        """What `run` will give, from headers alone; for a pass whose `run` does more than that."""
        return self.run(artifact, run)

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        """Bytes that `run` takes at its peak, estimated from shapes; None when it cannot tell."""
        return None

    def ensures(self, given: Given, run: Run) -> Iterable[Problem]:
        """What is wrong with the pass's own result."""
        return ()

    def summary(self, given: Given) -> str:
        """What came out, in a few words, for the log."""
        return ""


def run_recipe(
    recipe: Recipe, passes: Sequence[Pass[Any, Any]], progress: Progress | None = None
) -> Path:
    """Run `passes` as the recipe says and publish the output folder.

    Returns:
        The output folder.

    Raises:
        ConvertError: nothing is written then, and an existing output is untouched.
    """
    passes = [item for item in passes if item.enabled(recipe)]
    raise_if(order_problems(passes))
    progress = progress or Silent()
    output = output_folder(recipe)
    check(recipe, passes, output)
    with open_staging(output) as staging:
        run = Run(recipe, staging, progress)
        artifact: Any = None
        done: list[str] = []
        for item in passes:
            artifact = _run_pass(item, artifact, run, done)
            done.append(item.name)
        staging.publish(run.seconds, run.facts)
    return output


def check(recipe: Recipe, passes: Sequence[Pass[Any, Any]], output: Path | None) -> Decoder | None:
    """Raise everything that is wrong with the recipe, from headers alone; give the decoder."""
    decoder, problems = find_problems(recipe, passes, output)
    raise_if(problems)
    return decoder


def find_problems(
    recipe: Recipe, passes: Sequence[Pass[Any, Any]], output: Path | None
) -> tuple[Decoder | None, list[Problem]]:
    """The decoder, or None where it cannot be read, and everything that is wrong."""
    decoder, problems = read_headers(recipe, passes)
    before = list(output_problems(recipe, output)) if output else []
    return decoder, [*before, *problems, *pass_problems(recipe, passes, decoder)]


def read_headers(
    recipe: Recipe, passes: Sequence[Pass[Any, Any]]
) -> tuple[Decoder | None, list[Problem]]:
    """What the passes that read headers only give, as far as they come."""
    problems: list[Problem] = []
    decoder, artifact = None, None
    dry = Run(recipe, Staging.nowhere())
    for item in passes:
        if not item.headers_only:
            break
        try:
            artifact = item.preview(artifact, dry)
        except ConvertError as error:
            problems += error.problems
            break
        decoder = artifact if isinstance(artifact, Decoder) else decoder
    return decoder, problems


def pass_problems(
    recipe: Recipe, passes: Sequence[Pass[Any, Any]], decoder: Decoder | None
) -> Iterator[Problem]:
    """What the passes miss, and room on the disks that is not there."""
    for item in passes:
        yield from item.requires(recipe, decoder)
    yield from room_problems(rooms(recipe, passes, decoder))


def rooms(recipe: Recipe, passes: Sequence[Pass[Any, Any]], decoder: Decoder | None) -> list[Room]:
    """What the passes need of the disks; nothing is known without a decoder."""
    if decoder is None:
        return []
    return [room for item in passes for room in item.disk(recipe, decoder)]


def order_problems(passes: Sequence[Pass[Any, Any]]) -> Iterable[Problem]:
    """What keeps the passes from following each other."""
    if not passes:
        yield Problem("The recipe lists no passes.", "passes: [load, layout, …]", "set passes")
        return
    given: type = type(None)
    previous = "the start"
    for item in passes:
        if not issubclass(given, item.takes):
            yield Problem(
                f"The pass {item.name} follows {previous}, which gives {given.__name__}.",
                f"{item.takes.__name__}, which {item.name} takes",
                "correct the order in the recipe's passes",
            )
        given, previous = item.gives, item.name


def _run_pass(item: Pass[Any, Any], artifact: Any, run: Run, done: Sequence[str]) -> Any:
    run.progress.start(item.name)
    start = time.perf_counter()
    try:
        given = item.run(artifact, run)
        raise_if(item.ensures(given, run))
    except ConvertError as error:
        raise ConvertError(_in_pass(item.name, problem) for problem in error.problems) from error
    except (OSError, RuntimeError, ValueError) as error:
        after = f" after {', '.join(done)}" if done else ""
        error.add_note(f"in the pass {item.name}{after}")
        raise
    run.seconds[item.name] = time.perf_counter() - start
    run.progress.finish(item.name, run.seconds[item.name], item.summary(given))
    return given


def _in_pass(name: str, problem: Problem) -> Problem:
    return Problem(f"{name}: {problem.found}", problem.expected, problem.remedy)

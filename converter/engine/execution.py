"""Runs a recipe's passes: checks them as a whole, then runs them in order.

A pass takes one artifact and gives the next. Before any weight is read the engine checks that the
passes fit together and asks each one what it `requires`, so all problems appear in one error. The
output folder appears at the end, complete, by one rename.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from converter.engine.contract import Pass, Run
from converter.errors import ConvertError, Problem, raise_if
from converter.graph.graph import Graph
from converter.machine.disk import Room, room_problems
from converter.model.decoder import Decoder
from converter.output.place import output_folder, output_problems
from converter.progress import Progress, Silent
from converter.recipe.guest_slots import own_slots as guest_slots
from converter.recipe.schema import Recipe
from converter.storage.staging import Staging, open_staging


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
    yield from _absent(recipe)
    for item in passes:
        yield from item.requires(recipe, decoder)
    yield from room_problems(rooms(recipe, passes, decoder))


def _absent(recipe: Recipe) -> Iterator[Problem]:
    """Slots of passes that are switched on, and whose pass the recipe does not run."""
    for name in guest_slots().schemas:
        settings = getattr(recipe, name, None)
        if getattr(settings, "enabled", False) and name not in recipe.passes:
            yield Problem(
                f"{name}.enabled=true, and the passes are {', '.join(recipe.passes)}.",
                f"the pass {name} among them",
                f"set {name}=none, or add {name} to the recipe's passes",
            )


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
        before = None if item.changes_input else _outline(artifact)
        given = item.run(artifact, run)
        raise_if(item.ensures(given.artifact, run))
        raise_if(_change_problems(item, before, artifact))
    except ConvertError as error:
        raise ConvertError(problem.at(item.name) for problem in error.problems) from error
    except (OSError, RuntimeError, ValueError) as error:
        after = f" after {', '.join(done)}" if done else ""
        error.add_note(f"in the pass {item.name}{after}")
        raise
    run.seconds[item.name] = time.perf_counter() - start
    if given.facts:
        run.facts[item.name] = dict(given.facts)
    run.recipe = given.recipe or run.recipe
    run.progress.finish(item.name, run.seconds[item.name], given.summary)
    return given.artifact


def _outline(artifact: Any) -> object:
    """What tells one state of a graph from another; None for other artifacts."""
    if not isinstance(artifact, Graph):
        return None
    graph = artifact.model.graph
    nodes = [
        (node.op_type, node.name, tuple(map(id, node.inputs)), tuple(node.attributes.items()))
        for node in graph
    ]
    values = [(value.name, value.dtype) for value in (*graph.inputs, *graph.outputs)]
    tensors = {name: id(value.const_value) for name, value in graph.initializers.items()}
    return nodes, values, tensors


def _change_problems(item: Pass[Any, Any], before: object, artifact: Any) -> Iterator[Problem]:
    """A graph that a pass changed without having said so: an earlier artifact would be wrong."""
    if before is not None and before != _outline(artifact):
        yield Problem(
            f"The pass {item.name} changed the graph that it was given.",
            "a new graph, or changes_input = True in the pass",
            f"state changes_input in {type(item).__qualname__}",
        )

"""The contract between the engine and a pass: what a pass says, takes and gives."""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from converter.errors import ConvertError, Problem
from converter.graph.graph import Graph
from converter.machine.disk import Room
from converter.model.decoder import Decoder
from converter.progress import Progress, Silent
from converter.recipe.schema import Recipe
from converter.storage.staging import Staging

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


@dataclass(frozen=True)
class Done(Generic[Given]):
    """What a pass hands on, and what it says of its work."""

    artifact: Given
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What it measured; the lock file keeps it under the pass's name."""
    summary: str = ""
    """What came out, in a few words, for the log."""
    recipe: Recipe | None = None
    """The recipe that the passes after it follow, where it chose values; None: the same."""


class Pass(ABC, Generic[Taken, Given]):
    """One step of a conversion. A subclass is a `Pass[X, Y]`: it takes an X and gives a Y.

    It states its name and implements `run`; where X and Y differ and the plan has to know what
    comes out, `preview` too. It keeps nothing between its methods.
    """

    name: ClassVar[str]
    takes: ClassVar[type]
    """Type of the artifact that `run` takes, from `Pass[X, Y]`; `type(None)` for the first pass."""
    gives: ClassVar[type]
    slot: ClassVar[str] = ""
    """The recipe's slot with this pass's settings, an entry point of `convert.slots` or one of
    `Recipe`'s own."""
    guarantees: ClassVar[tuple[str, ...]] = ()
    """What holds when the pass has not raised; the documentation lists it."""
    headers_only: ClassVar[bool] = False
    """`preview` reads headers, not weights, and so takes part in the check before the work."""
    changes_input: ClassVar[bool] = False
    """`run` changes the graph that it is given, and gives it back; the engine checks others."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in getattr(cls, "__orig_bases__", ()):
            if typing.get_origin(base) is Pass:
                cls.takes, cls.gives = (_plain(item) for item in typing.get_args(base))

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
    def run(self, artifact: Taken, run: Run) -> Done[Given]:
        """Do the work. Raises ConvertError with what is wrong."""

    def preview(self, artifact: Taken, run: Run) -> Given:
        """What `run` will give, from headers alone: `convert plan` and the check before the work.

        A pass that gives what it takes, such as a folder with one file more, has nothing to say.

        Raises:
            ConvertError: the pass gives something else and has no `preview` of its own.
        """
        if isinstance(artifact, self.gives):
            return typing.cast(Given, artifact)
        raise ConvertError(
            Problem(
                f"The pass {self.name} does not say what it gives before it runs.",
                f"a method preview that gives a {self.gives.__name__}",
                f"implement preview in {type(self).__qualname__}",
            )
        )

    def peak_memory(self, graph: Graph, recipe: Recipe) -> int | None:
        """Bytes that `run` takes at its peak, estimated from shapes; None when it cannot tell."""
        return None

    def ensures(self, given: Given, run: Run) -> Iterable[Problem]:
        """What is wrong with the pass's own result."""
        return ()


def _plain(kind: Any) -> type:
    """The class of a type argument: `X` of `X[Y]`, anything for `Any`."""
    if kind is Any or isinstance(kind, TypeVar):
        return object
    found: type = typing.get_origin(kind) or kind
    return found

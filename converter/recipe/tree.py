"""The recipe tree: what exists, and what a recipe's files give, layer by layer.

Three kinds of places hold recipe files: this package (`demo`), a team's repository (`acme/demo`),
and the user's own folder (`./demo.yaml`, which becomes `local/demo`). Files of the last two are
checked by `converter.recipe.trust`. All are flattened here into plain values with their origins;
Hydra then composes these with the words of the command line, and sees data only.

A recipe without a file is composed of a model and an export: `internlm2_7b_cuda_int4` is
model/internlm2_7b with export/cuda_int4. A file of that name wins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import ConvertError, Problem, raise_if
from converter.recipe.trust import (
    ACROSS,
    NAME,
    RENAMED,
    name_problems,
    parse_built_in,
    parse_foreign,
)
from converter.recipe.validation import nearest_names

if TYPE_CHECKING:
    from converter.recipe.repositories import Repository

PRIMARY = "convert"
LOCAL = "local"
OWN = f"{LOCAL}/_file"
"""The option that stands for the user's file, whatever its name; no file can be called so."""
RECIPE, SWEEP, MODEL, EXPORT, SOURCE = "recipe", "sweep", "model", "export", "source"


@dataclass(frozen=True)
class Layer:
    """One file's own values, and the file's label."""

    label: str
    values: Mapping[str, Any]


@dataclass
class Piece:
    """A recipe or a slot's choice with all that it builds on, the outermost file last."""

    layers: list[Layer] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)
    """Slot to chosen option."""

    def merged(self) -> dict[str, Any]:
        """All layers' values in one."""
        merged: dict[str, Any] = {}
        for layer in self.layers:
            merged = merge(merged, layer.values)
        return merged

    def origins(self) -> dict[str, str]:
        """Dotted key to the label of the layer that has the last word on it."""
        return {key: layer.label for layer in self.layers for key, _ in leaves(layer.values)}

    def follow(self, other: Piece) -> None:
        """Put this piece on top of another, which it builds on."""
        self.layers = [*other.layers, *self.layers]
        self.choices = other.choices | self.choices


@dataclass(frozen=True)
class Pair:
    """The model and the export that a recipe without a file is composed of."""

    model: str
    export: str


@dataclass
class Survey:
    """The files that are not built in and that a choice builds on, as far as they can be read."""

    broken: list[Problem] = field(default_factory=list)
    """What keeps the choice from being composed, each with its file."""
    layers: list[Layer] = field(default_factory=list)
    """The own values of every file, below their slot."""
    seen: set[tuple[str, str]] = field(default_factory=set)


def recipes_folder() -> Path:
    """Folder of the built-in recipe tree."""
    folder: Any = files("recipes")
    return Path(str(folder))


@lru_cache(maxsize=1)
def folders() -> tuple[str, ...]:
    """Names of all folders of the tree: the slots, recipe, export and sweep."""
    found = (path for path in recipes_folder().iterdir() if path.is_dir())
    return tuple(sorted(path.name for path in found if path.name[0] not in "_."))


def chosen_folders() -> list[str]:
    """Folders that a word of the command line chooses from: the slots, recipe and export."""
    return [name for name in folders() if name != SWEEP]


@lru_cache(maxsize=1)
def primary() -> Piece:
    """The primary config: its own values, and its choice for every slot."""
    values = dict(built_in_values(f"{PRIMARY}.yaml"))
    listed = _named_in(PRIMARY, values.pop("defaults"))
    chosen = {slot: option for slot, option in listed if slot not in (PRIMARY, RECIPE)}
    return Piece([Layer(f"recipes/{PRIMARY}.yaml", values)], chosen)


@lru_cache(maxsize=64)
def built_in_files(folder: str) -> list[str]:
    """Names of the built-in files of a folder of the tree."""
    return sorted(path.stem for path in (recipes_folder() / folder).glob("*.yaml"))


@lru_cache(maxsize=64)
def built_in(folder: str) -> list[str]:
    """Names of a folder's built-in choices: its files, and the recipes composed without one."""
    if folder != RECIPE:
        return built_in_files(folder)
    composed = products(built_in_models(), built_in_files(EXPORT))
    return sorted({*built_in_files(RECIPE), *composed})


def built_in_models() -> list[str]:
    """Built-in models that have a name of their own; the others are what those build on."""
    return [n for n in built_in_files(MODEL) if built_in_values(f"{MODEL}/{n}.yaml").get("name")]


def products(models: Iterable[str], exports: Iterable[str]) -> list[str]:
    """Names of the recipes that are composed of each of the models with each of the exports."""
    listed = list(exports)
    return [f"{model}_{export}" for model in models for export in listed]


@lru_cache(maxsize=1024)
def built_in_values(path: str) -> Mapping[str, Any]:
    """What a built-in file holds; `path` is below recipes/."""
    return parse_built_in((recipes_folder() / path).read_bytes())


def product_name(model: str, export: str) -> str:
    """Name of the recipe of a model and an export; the home of either is the recipe's."""
    (own, _, first), (other, _, second) = model.rpartition("/"), export.rpartition("/")
    home = own or other
    return f"{home}/{first}_{second}" if home else f"{first}_{second}"


def choices(folder: str) -> list[str]:
    """Names of a folder's files, built in and from the repositories in use."""
    return built_in(folder) + [f"{name}/{path}" for name, path in _foreign_names(folder)]


def _foreign_names(folder: str) -> Iterator[tuple[str, str]]:
    for name in known_repositories():
        files = repository_tree(name)
        yield from ((name, choice) for choice in own_names(files, folder))
        if folder == RECIPE:
            yield from ((name, choice) for choice in own_products(files))


def own_names(files: Iterable[str], folder: str) -> list[str]:
    """Names of a folder's files among the paths of a repository."""
    paths = (path for path in files if path.startswith(f"{folder}/"))
    return [path.removeprefix(f"{folder}/").removesuffix(".yaml") for path in paths]


def own_products(files: Iterable[str]) -> list[str]:
    """Names of the recipes that a repository's models and exports compose with all others."""
    listed = list(files)
    models, exports = own_names(listed, MODEL), own_names(listed, EXPORT)
    own = products(models, [*exports, *built_in_files(EXPORT)])
    composed = [*own, *products(built_in_models(), exports)]
    return [name for name in composed if f"{RECIPE}/{name}.yaml" not in listed]


_trial: dict[str, Mapping[str, bytes]] = {}
"""Repositories that are being checked and not yet pinned."""


def known_repositories() -> list[str]:
    """Names of the repositories in use."""
    from converter.recipe.repositories import repositories

    return list(dict.fromkeys([*_trial, *repositories()]))


@lru_cache(maxsize=64)
def _pinned_tree(repository: Repository) -> Mapping[str, bytes]:
    from converter.recipe.repositories import read_files

    return read_files(repository, folders())


def repository_tree(name: str) -> Mapping[str, bytes]:
    """The recipe files of a repository in use, at its pinned commit."""
    from converter.recipe.repositories import repositories

    return _trial[name] if name in _trial else _pinned_tree(repositories()[name])


@contextmanager
def trial(name: str, tree: Mapping[str, bytes]) -> Iterator[None]:
    """Use a repository's files, under this name, before it is pinned."""
    _trial[name] = tree
    try:
        yield
    finally:
        del _trial[name]


@lru_cache(maxsize=64)
def local_tree(root: Path) -> Mapping[str, bytes]:
    """The recipe files below a folder of the user's own, links left out."""
    found = {}
    for folder in folders():
        for path in sorted((root / folder).glob("*.yaml")):
            if not path.is_symlink() and path.is_file():
                found[f"{folder}/{path.name}"] = _read(path)
    return found


def local_file(text: str) -> Path | None:
    """The recipe file that `text` names by its path; None when it is a plain name.

    There need not be a file where the folders beside it compose a recipe of its name.
    """
    if not text.endswith((".yaml", ".yml")):
        return None
    path = Path(os.path.realpath(os.path.expanduser(text)))  # neither raises, as pathlib's do
    if not os.path.isfile(path) and Tree(path).pair(OWN) is None:
        raise ConvertError(
            Problem(f"{path} does not exist.", "a recipe file", "convert new NAME --from OTHER")
        )
    return path


def is_foreign(choice: str) -> bool:
    """Whether an option comes from a repository or the user's folder."""
    return "/" in choice


class Tree:
    """The places that recipe files are read from; `local` is the user's file in use, if any."""

    def __init__(self, local: Path | None = None) -> None:
        self.local = local
        self._files = _local_files(local) if local else {}

    def recipe(self, picked: Mapping[str, str]) -> Piece:
        """A whole recipe: the slots' values, then the primary config's, then the recipe's own.

        `picked` are the options that a command line chooses: a recipe, or a model and an export,
        and any slot's. An export beside a recipe comes on top of it.

        Raises:
            ConvertError: one of the options does not exist, is refused, or builds on itself.
        """
        top = self._top(picked)
        chosen = primary().choices | top.choices | dict(picked)
        layers = [
            Layer(layer.label, layer.values if slot in ACROSS else {slot: layer.values})
            for slot in primary().choices
            for layer in self.piece(slot, chosen[slot]).layers
        ]
        return Piece([*layers, *primary().layers, *top.layers], chosen)

    def _top(self, picked: Mapping[str, str]) -> Piece:
        """What the picked recipe and export say, without the slots that they choose."""
        piece = Piece()
        if RECIPE in picked:
            piece = self.piece(RECIPE, picked[RECIPE])
        elif MODEL in picked:
            piece = self._of_model(picked[MODEL])
        if EXPORT in picked:
            export = self.piece(EXPORT, picked[EXPORT])
            export.follow(piece)
            return export
        return piece

    def piece(self, folder: str, choice: str, above: tuple[str, ...] = ()) -> Piece:
        """A file of the tree, flattened.

        Raises:
            ConvertError: it does not exist, is refused, or builds on itself.
        """
        if choice in above:
            raise ConvertError(self._circular(folder, (*above, choice)))
        pair = self.pair(choice) if folder == RECIPE else None
        if pair is not None:
            piece = self.piece(EXPORT, pair.export)
            piece.follow(self._of_model(pair.model))
            return piece
        label, values = self._read(folder, choice)
        piece, home = Piece(), choice.rpartition("/")[0]
        for slot, name in _named_in(folder, values.pop("defaults", [])):
            option = self.qualified(slot, name, home)
            if slot == folder:
                piece.follow(self.piece(folder, option, (*above, choice)))
            else:
                piece.choices[slot] = option
        piece.layers.append(Layer(label, values))
        return piece

    def pair(self, choice: str) -> Pair | None:
        """What the recipe `choice` is composed of; None for one that has a file or that is unknown.

        Raises:
            ConvertError: the name can be read in two ways.
        """
        home, name = self._place(choice)
        if self._has_file(RECIPE, name, home):
            return None
        parts = name.split("_")
        splits = (("_".join(parts[:at]), "_".join(parts[at:])) for at in range(1, len(parts)))
        found = [
            Pair(self.qualified(MODEL, model, home), self.qualified(EXPORT, export, home))
            for model, export in splits
            if self._has(MODEL, model, home) and self._has(EXPORT, export, home)
        ]
        if home:  # one part at least is the repository's own
            found = [pair for pair in found if is_foreign(pair.model) or is_foreign(pair.export)]
        if len(found) > 1:
            raise ConvertError(_ambiguous(choice, found))
        return found[0] if found else None

    def _has(self, folder: str, name: str, home: str) -> bool:
        """Whether a file of `home` can name this choice: its own, or a built-in one."""
        known = built_in_models() if folder == MODEL else built_in_files(folder)
        return self._has_file(folder, name, home) or name in known

    def _has_file(self, folder: str, name: str, home: str) -> bool:
        """Whether `home` itself has a file of this name; the package has no home."""
        if not home:
            return name in built_in_files(folder)
        return f"{folder}/{name}.yaml" in self._tree(home)

    def _of_model(self, model: str) -> Piece:
        """The choice of a model, and of the source that goes with it if the model says which."""
        source = self.piece(MODEL, model).merged().get(SOURCE)
        return Piece(choices={MODEL: model} | ({SOURCE: str(source)} if source else {}))

    def survey(self, folder: str, choice: str) -> Survey:
        """Everything that `choice`, which is not built in, builds on; it raises nothing."""
        found = Survey()
        self._survey(folder, choice, (), found)
        return found

    def _survey(self, folder: str, choice: str, above: tuple[str, ...], found: Survey) -> None:
        if choice in above:
            found.broken.append(self._circular(folder, (*above, choice)))
        if (folder, choice) in found.seen:
            return
        found.seen.add((folder, choice))
        try:
            pair = self.pair(choice) if folder == RECIPE else None
            if pair is not None:
                for part, option in ((MODEL, pair.model), (EXPORT, pair.export)):
                    if is_foreign(option):
                        self._survey(part, option, (), found)
                return
            label, values = self._read(folder, choice)
        except ConvertError as error:
            found.broken += error.problems
            return
        home = choice.rpartition("/")[0]
        for slot, name in _named_in(folder, values.pop("defaults", [])):
            option = self.qualified(slot, name, home)
            if is_foreign(option):
                self._survey(slot, option, (*above, choice) if slot == folder else (), found)
            elif option not in built_in(slot):
                found.broken.append(self._unknown_in(label, folder, slot, name, home))
        found.layers.append(Layer(label, values if folder in ACROSS else {folder: values}))

    def recipe_name(self, picked: Mapping[str, str]) -> str:
        """The name of a recipe that states none: its file's, or MODEL_EXPORT."""
        name = picked.get(RECIPE, "")
        if EXPORT in picked:
            pair = self.pair(name) if name else None
            base = picked.get(MODEL) or (pair.model if pair else "/".join(self._place(name)))
            name = product_name(base, picked[EXPORT])
        return "/".join(self._place(name)).removeprefix(f"{LOCAL}/").strip("/").replace("/", "_")

    def _place(self, choice: str) -> tuple[str, str]:
        """The home of a choice, empty for the package, and the name of its file there."""
        home, _, name = choice.rpartition("/")
        return (home, self.local.stem) if choice == OWN and self.local else (home, name)

    def qualified(self, folder: str, name: str, home: str) -> str:
        """A name in a repository's file: its own file where it has one, or else the built-in."""
        if home == LOCAL and folder == RECIPE and self.local and name == self.local.stem:
            return OWN
        if not home or name in built_in_files(folder):
            return name
        composed = folder == RECIPE and self.pair(f"{home}/{name}") is not None
        return f"{home}/{name}" if composed or self._has_file(folder, name, home) else name

    def _read(self, folder: str, choice: str) -> tuple[str, dict[str, Any]]:
        home, name = self._place(choice)
        path = f"{folder}/{name}.yaml"
        if not home:
            if name not in built_in_files(folder):
                raise ConvertError(unknown_choice(folder, choice))
            return f"recipes/{path}", dict(built_in_values(path))
        content = self._tree(home).get(path)
        if content is None:
            raise ConvertError(unknown_choice(folder, choice))
        if home == LOCAL:
            label = str(self.local) if choice == OWN else path
            return label, parse_foreign(label, content, folder, folders(), own=True)
        return f"{home}: {path}", parse_foreign(f"{home}: {path}", content, folder, folders())

    def _tree(self, home: str) -> Mapping[str, bytes]:
        if home == LOCAL:
            return self._files
        return repository_tree(home) if home in known_repositories() else {}

    def _unknown_in(self, label: str, folder: str, slot: str, name: str, home: str) -> Problem:
        """The problem of an option that the defaults of the file `label` name."""
        own = [Path(path).stem for path in self._tree(home) if path.startswith(f"{slot}/")]
        near, among = _nearest(name, [*built_in(slot), *own])
        entry = f"override /{slot}: {near}" if slot != folder else near
        remedy = f"write `- {entry}` in its defaults, or run `convert list {slot}`"
        return Problem(f"Unknown {slot} {name!r}.", among, remedy, where=label)

    def _circular(self, folder: str, chain: Iterable[str]) -> Problem:
        names = [str(self.local) if choice == OWN else choice for choice in chain]
        return Problem(
            f"{' → '.join(names)} builds on itself.",
            "a chain with an end",
            "remove one of these from the defaults of the file before it",
            where=folder,
        )


def _named_in(folder: str, defaults: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Slot and option of each entry of a file's defaults; a base has the file's own folder."""
    for item in defaults:
        if isinstance(item, dict):
            ((key, option),) = item.items()
            slot = str(key).removeprefix("override ").lstrip("/")
            yield RENAMED.get(slot, slot), str(option)
        elif item != "_self_":
            yield folder, str(item)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`: mappings merge, everything else replaces."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, lists whole; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_files(label: str, tree: Mapping[str, bytes]) -> None:
    """Check a whole foreign tree: every file's content, and that it shadows nothing built in.

    Raises:
        ConvertError: lists the problems of all files.
    """
    problems: list[Problem] = []
    for path, content in tree.items():
        folder, _, file = path.partition("/")
        name = file.removesuffix(".yaml")
        problems += name_problems(f"{label}: {path!r}", name)
        if name in built_in(folder):
            problems.append(
                Problem(
                    f"{path} has the name of a built-in {folder}.",
                    "another name, so that nobody mistakes one for the other",
                    f"rename it, for instance {folder}/{label}_{name}.yaml",
                    where=label,
                )
            )
        try:
            parse_foreign(f"{label}: {path}", content, folder, folders())
        except ConvertError as error:
            problems += error.problems
    raise_if(problems)


def unknown_choice(folder: str, choice: str) -> Problem:
    """The problem of an option that does not exist, with the nearest that do."""
    if folder == RECIPE and not os.path.isfile(f"{choice}.yaml"):
        for problem in _half_known(choice):
            return problem
    near, among = _nearest(choice, choices(folder))
    remedy = f"write {folder}={near}, or run `convert list {folder}`"
    home = choice.rpartition("/")[0]
    if folder == RECIPE and os.path.isfile(f"{choice}.yaml"):
        remedy = f"write {folder}=./{os.path.normpath(choice)}.yaml for the file of that name"
    elif choice.endswith((".yaml", ".yml")):
        place = f"the folder {folder}/ of a repository (`convert repo init FOLDER`)"
        remedy = f"put the file into {place}, or {remedy}"
    elif home != LOCAL and NAME.fullmatch(home) and home not in known_repositories():
        remedy = f"`convert repo add {home} URL`, or {remedy}"
    return Problem(f"Unknown {folder} {choice!r}.", among, remedy)


def _half_known(name: str) -> Iterator[Problem]:
    """The problem of a recipe's name of which only the model, or only the export, is known."""
    models, exports = built_in_models(), built_in_files(EXPORT)
    model = max((m for m in models if f"{name}_".startswith(f"{m}_")), key=len, default="")
    export = max((e for e in exports if f"_{name}".endswith(f"_{e}")), key=len, default="")
    if model:
        rest = name.removeprefix(model).removeprefix("_")
        pattern, example, kind, known = f"{model}_EXPORT", f"{model}_cpu_int4", EXPORT, exports
    elif export:
        rest = name.removesuffix(export).removesuffix("_")
        pattern, example, kind, known = f"MODEL_{export}", f"internlm2_7b_{export}", MODEL, models
    else:
        return
    if not nearest_names(rest, known):  # or else a whole name is near
        missing = f"it has no {kind}" if not rest else f"there is no {kind} {rest!r}"
        yield Problem(
            f"Unknown recipe {name!r}: {missing}.",
            f"{pattern}, such as {example}",
            f"write recipe={example}, or run `convert list {kind}`",
        )


def _ambiguous(choice: str, found: Iterable[Pair]) -> Problem:
    """The problem of a composed name that a model and an export give in two ways."""
    shown = [f"model={pair.model} export={pair.export}" for pair in found]
    return Problem(
        f"The recipe {choice!r} can be read as {' or as '.join(shown)}.",
        "a name with one reading",
        "rename one of these models or exports",
    )


def _nearest(name: str, known: list[str]) -> tuple[str, str]:
    """The known name that is most like `name`, and what is said of those that were expected."""
    near = nearest_names(name, known)
    shown = near or known[:8]
    lead = "; the nearest: " if near else ", such as "
    return shown[0], f"one of the {len(known)} known ones{lead}{', '.join(shown)}"


def _local_files(path: Path) -> dict[str, bytes]:
    """The user's file, with the slots' folders beside it when it lies in a folder `recipe`."""
    around = local_tree(path.parent.parent) if path.parent.name == RECIPE else {}
    return {**around, **({f"{RECIPE}/{path.stem}.yaml": _read(path)} if path.is_file() else {})}


def _read(path: Path) -> bytes:
    from converter.recipe.trust import MAX_FILE_BYTES

    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        found = f"{path} cannot be read: {error.strerror or error}."
        remedy = f"check its permissions: ls -l '{path}'"
        raise ConvertError(Problem(found, "a file that you may read", remedy)) from error

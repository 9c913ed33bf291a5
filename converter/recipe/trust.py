"""What a recipe file from elsewhere may hold; everything else is refused before composing.

A recipe is data. These checks read bytes and give plain containers: Hydra never opens such a file
itself. So a file cannot name code, read the environment, reach outside of the output folder, or
be costly to read, whatever the versions of Hydra and OmegaConf make of its syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from converter.errors import ConvertError, Problem, raise_if

MAX_FILE_BYTES = 64 * 1024
MAX_FILES = 2000
MAX_DEPTH = 16
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""Names of recipes, of slots' choices and of repositories."""
WHOLE = ("recipe", "export")
"""Folders whose files hold keys of the whole recipe, and may choose options of its slots."""
ARCHITECTURE = "architecture"
ACROSS = (*WHOLE, ARCHITECTURE)
"""Folders whose files hold keys of several sections: an architecture's are layout and graph."""
RENAMED = {"layout": ARCHITECTURE}
"""Former names of slots, which words and defaults may still have."""
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_NODE = re.compile(r"(/[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*)+")
_REFERENCE = re.compile(r"\$\{([a-z_]+)(\.[A-Za-z][A-Za-z0-9_]*)*\}")
_DEFAULT = re.compile(r"(?:override )?/?([a-z_]+)")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*(\.[A-Za-z0-9_+-]+)*")
_PACKAGE = re.compile(r"^\s*#\s*@\s*package\b(.*)$", re.MULTILINE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
OUTSIDE = re.compile(
    r"(_path|_paths|_dir|_dirs|_file|_files|_script|_func|data_config|external_data_name)$"
)
"""Settings of Olive that read, run or write something outside of the recipe and its output."""
FREE_TEXT = ("verify.prompt",)
"""Keys whose value is read as text and never as a name."""
NODE_NAMES = "olive.passes."
"""Below it, a leading slash names a node of the graph; settings that name files are refused."""
USER_KEYS = {
    "output": (),
    "overwrite": (False,),
    "source.path": (None,),
    "evaluate.text": ("builtin",),
    "calibration.text": ("builtin",),
    "olive.workflow": (None,),
}
"""Keys that name places on the user's machine, with the values that any recipe may give them."""
RUNTIME_OPTIONS = {
    "target.session_options": frozenset(
        [
            "intra_op_num_threads",
            "inter_op_num_threads",
            "graph_optimization_level",
            "log_severity_level",
            "log_verbosity_level",
            "enable_cpu_mem_arena",
            "enable_mem_pattern",
            "use_env_allocators",
            "disable_cpu_ep_fallback",
            "disable_quant_qdq",
            "enable_quant_qdq_cleanup",
            "session_use_device_allocator_for_initializers",
        ]
    ),
    "target.provider_options": frozenset(
        [
            "enable_cuda_graph",
            "enable_graph_capture",
            "enableGraphCapture",
            "validationMode",
            "enable_skip_layer_norm_strict_mode",
            "use_tf32",
            "prefer_nhwc",
            "device_filter",
            "performance_preference",
            "cudnn_conv_algo_search",
            "arena_extend_strategy",
            "nv_profile_min_shapes",
            "nv_profile_max_shapes",
            "nv_profile_opt_shapes",
            "nv_multi_profile_enable",
            "nv_cuda_graph_enable",
            "preferredLayout",
            "storageBufferCacheMode",
            "powerPreference",
        ]
    ),
}
"""Runtime settings that neither load a library nor write a file."""


# libyaml's loader is ten times as fast as the one in Python; not every PyYAML is built with it.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):  # type: ignore[misc]
    """A safe loader that reads 1e-5 as a number, as OmegaConf does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_built_in(content: bytes) -> dict[str, Any]:
    """The values of a file of this package."""
    return dict(yaml.load(content, _Loader) or {})  # a safe loader all the same


def parse_trusted(label: str, content: bytes) -> dict[str, Any]:
    """The values of a recipe file of the user's own; `label` names it.

    Its syntax is checked as a foreign file's is, its values are not.
    """
    text = _text(label, content)
    raise_if(_syntax_problems(label, text))
    values = yaml.load(text, _Loader)  # a SafeLoader, on text without tags and aliases
    if not isinstance(values or {}, dict):
        raise ConvertError(_problem(label, "is not a mapping", "keys with values"))
    return dict(values or {})


def parse_foreign(
    label: str, content: bytes, slot: str, slots: Iterable[str], own: bool = False
) -> dict[str, Any]:
    """The values of a recipe file from elsewhere, `defaults` among them.

    `slot` is the folder that it lies in (`recipe` for a recipe), `slots` are all that exist. A file
    of the user's `own` may name places of the user's machine.

    Raises:
        ConvertError: lists everything in it that a foreign file may not have.
    """
    values = parse_trusted(label, content)
    given, values = values, {key: value for key, value in values.items() if key != "defaults"}
    prefix = "" if slot in (*ACROSS, "sweep") else f"{slot}."
    problems = [*_package_problems(label, content.decode(), slot)]
    problems += _defaults_problems(label, given.get("defaults", []), slot, set(slots))
    if slot == "sweep":
        problems += _sweep_problems(label, values)
    else:
        problems += _value_problems(label, values, prefix, own)
    raise_if(problems)
    return given


def name_problems(label: str, name: str) -> Iterator[Problem]:
    """What is wrong with the name of a recipe, a choice or a repository."""
    if not NAME.fullmatch(name):
        possible = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-")[:100] or "mine"
        yield Problem(
            f"{label} has the name {name!r}.",
            "a letter or digit, then letters, digits, - and _ (at most 100; A to Z, no accents)",
            f"choose another name, such as {possible}",
        )


def _text(label: str, content: bytes) -> str:
    if len(content) > MAX_FILE_BYTES:
        size = f"has {len(content)} bytes"
        raise ConvertError(_problem(label, size, f"a recipe of at most {MAX_FILE_BYTES} bytes"))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ConvertError(_problem(label, "is not UTF-8", "a text file")) from None
    if any(ord(char) < 32 and char not in "\n\r\t" for char in text):
        raise ConvertError(_problem(label, "holds control characters", "plain text"))
    return text


def _syntax_problems(label: str, text: str) -> list[Problem]:
    """What makes YAML more than data, found in its events, before anything is constructed."""
    try:
        problems = list(_event_problems(label, text))
        # Without aliases the nodes are a tree of the text's size, which is safe to walk.
        return problems or list(_key_problems(label, yaml.compose(text, yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        found = f"is not YAML: {' '.join(str(error).split())}"
        return [_problem(label, found, "a YAML mapping")]


def _event_problems(label: str, text: str) -> Iterator[Problem]:
    depth, documents = 0, 0
    for event in yaml.parse(text, yaml.SafeLoader):
        found = _event_problem(event)
        if found:
            yield _problem(label, f"has {found} in line {event.start_mark.line + 1}", "data")
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or documents > 1:
            what = f"nests deeper than {MAX_DEPTH}" if depth > MAX_DEPTH else "has two documents"
            yield _problem(label, what, "one flat mapping of slots and keys")
            return


def _event_problem(event: yaml.Event) -> str | None:
    if isinstance(event, yaml.AliasEvent):
        return "an alias (*)"
    if getattr(event, "anchor", None):
        return "an anchor (&)"
    if isinstance(event, yaml.DocumentStartEvent) and (event.tags or event.version):
        return "a % directive"
    if getattr(event, "tag", None):
        return f"the tag {event.tag}"
    return None


def _key_problems(label: str, node: yaml.Node | None) -> Iterator[Problem]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "a collection"
            if key.tag != "tag:yaml.org,2002:str":
                yield _problem(label, f"has the key {name!r}, which is no text", "a name")
            elif name in seen:
                yield _problem(label, f"has the key {name!r} twice", "each key once")
            seen.add(name)
            yield from _key_problems(label, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _key_problems(label, item)


def _package_problems(label: str, text: str, slot: str) -> Iterator[Problem]:
    for package in _PACKAGE.findall(text):
        if slot not in ACROSS or package.strip() != "_global_":
            yield _problem(label, f"has the header @package{package}", _package_expected(slot))


def _package_expected(slot: str) -> str:
    return "# @package _global_" if slot in ACROSS else f"no @package: its keys go to {slot}"


def _defaults_problems(label: str, defaults: Any, slot: str, slots: set[str]) -> Iterator[Problem]:
    if not isinstance(defaults, list):
        yield _problem(label, "has a defaults that is no list", "defaults: [NAME, …]")
        return
    for item in defaults:
        for found in _default_problems(item, slot, slots):
            expected = (
                f"a name of the same slot, or `override /SLOT: NAME` ({', '.join(sorted(slots))})"
            )
            yield _problem(label, f"has {found} in its defaults", expected)


def _default_problems(item: Any, slot: str, slots: set[str]) -> Iterator[str]:
    if isinstance(item, str):
        if item != "_self_" and not NAME.fullmatch(item):
            yield f"{item!r}"
        return
    if not isinstance(item, dict) or len(item) != 1:
        yield f"{str(item)[:80]!r}"
        return
    ((key, choice),) = item.items()
    match = _DEFAULT.fullmatch(str(key))
    chosen = RENAMED.get(match[1], match[1]) if match else ""
    if slot not in WHOLE or chosen not in slots - {*WHOLE, "sweep"}:
        yield f"{str(key)[:80]!r}"
    elif not isinstance(choice, str) or not NAME.fullmatch(choice):
        yield f"{key}: {str(choice)[:80]!r}"


def _sweep_problems(label: str, values: Mapping[str, Any]) -> Iterator[Problem]:
    """A sweep's keys are dotted, and its values become words of a command line."""
    for part in ("set", "grid"):
        entries = values.get(part, {})
        for path, value in entries.items() if isinstance(entries, Mapping) else ():
            listed = value if isinstance(value, list) else [value]
            yield from _places(label, str(path), listed)
            for item in listed:
                if not isinstance(item, (int, float, type(None))) and not _WORD.fullmatch(
                    str(item)
                ):
                    yield _problem(label, f"sets {path} to {str(item)[:80]!r}", "names and numbers")
    for key in set(values) - {"set", "grid"}:
        if key != "recipe" or not NAME.fullmatch(str(values[key])):
            yield _problem(label, f"has {key}: {str(values[key])[:80]!r}", "recipe, set and grid")


def _places(label: str, path: str, values: Iterable[Any]) -> Iterator[Problem]:
    parts = path.split(".")
    if not all(_KEY.fullmatch(part) for part in parts):
        yield _problem(label, f"sets {path!r}", "dotted keys of the recipe")
        return
    for value in values:
        yield from _place_problems(label, path, parts[-1], value)


def _value_problems(label: str, value: Any, path: str, own: bool) -> Iterator[Problem]:
    """Problems of a value whose dotted path is `path`, with a dot at its end."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            here = f"{path}{key}"
            yield from _place_problems(label, here, str(key), inner, own)
            yield from _value_problems(label, inner, f"{here}.", own)
    elif isinstance(value, list):
        for inner in value:
            yield from _value_problems(label, inner, path, own)
    elif isinstance(value, str):
        key = path.rstrip(".")
        reason = _reference_problem(value, key) or (None if own else _path_problem(value, key))
        if reason:
            yield _problem(label, f"sets {key} to {value[:80]!r}", reason)


def _place_problems(
    label: str, path: str, key: str, value: Any, own: bool = False
) -> Iterator[Problem]:
    parent = path.rpartition(".")[0]
    named = _KEY.fullmatch(key) or (path.startswith(NODE_NAMES) and _NODE.fullmatch(key))
    if not named or path.split(".")[0] == "hydra":
        yield _problem(label, f"sets {path!r}", "keys of the recipe; nothing in one is code")
    elif own:
        return
    elif path in USER_KEYS and value not in USER_KEYS[path]:
        expected = f"no place of the user's machine; give {path}=… with the command instead"
        yield _problem(label, f"sets {path}", expected)
    elif parent in RUNTIME_OPTIONS and key not in RUNTIME_OPTIONS[parent]:
        yield _problem(label, f"sets {path}", "runtime settings known to open no file")
    elif path.startswith(NODE_NAMES) and OUTSIDE.search(key):
        yield _problem(label, f"sets {path}", "settings that name no file or code")


def _reference_problem(value: str, key: str) -> str | None:
    """What is wrong with the interpolations of a text."""
    for found in re.findall(r"\$\{[^}]*\}?", value):
        match = _REFERENCE.fullmatch(found)
        if key in FREE_TEXT or match is None or match[1] == "hydra":
            return "no interpolation but of a recipe's key, such as ${model.repo}"
    return None


def _path_problem(value: str, key: str) -> str | None:
    """Why a text could lead out of the output folder."""
    if key in FREE_TEXT:
        return None
    absolute = value.startswith("/") and not key.startswith(NODE_NAMES)
    parts = PurePosixPath(value.replace("\\", "/")).parts
    if absolute or value.startswith("~") or ".." in parts or _DRIVE.match(value):
        return "no path that leads out of the output folder"
    return "a name or a number" if "://" in value or "\n" in value else None


def _problem(label: str, found: str, expected: str) -> Problem:
    remedy = "correct the file; do not use it if you do not know why"
    return Problem(f"It {found}.", expected, remedy, where=label)

"""`convert completion bash|zsh|fish`: TAB for verbs, recipes, slots, their choices and keys.

The scripts ask `convert completion -- WORD …`, which answers with one candidate a line; Hydra's own
completion would import Hydra and takes longer than a keystroke should.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from converter.cli.tree import RECIPE, SWEEP, choices, folders
from converter.errors import ConvertError, Problem
from converter.recipe import Recipe

NAMED = ("show", "check", "diff", "plan")
"""Verbs whose words are recipes' names."""
FOLDERS = ("chat", "bench", "eval", "explain", "reproduce", "pick", "check")
"""Verbs whose words are folders."""
SCRIPTS = {
    "bash": """_convert() {
    local IFS=$' \\t\\n' word="${COMP_LINE:0:COMP_POINT}"
    local -a typed
    read -ra typed <<< "$word"
    word="${word##* }"
    IFS=$'\\n'
    COMPREPLY=($(convert completion -- "${typed[1]}" "$word" 2>/dev/null))
    local prefix="${word%"${word##*[=:]}"}"
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    [[ ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace
}
complete -o default -F _convert convert
""",
    "zsh": """#compdef convert
_convert() {
    local -a found
    found=(${(f)"$(convert completion -- "${words[2]}" "${words[CURRENT]}" 2>/dev/null)"})
    compadd -S '' -- $found || _files
}
compdef _convert convert
""",
    "fish": """function __convert_complete
    set -l words (commandline -opc)
    convert completion -- "$words[2]" (commandline -ct) 2>/dev/null
end
complete -c convert -a '(__convert_complete)'
""",
}
INSTALL = {
    "bash": 'eval "$(convert completion bash)"    # in ~/.bashrc',
    "zsh": 'eval "$(convert completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "convert completion fish > ~/.config/fish/completions/convert.fish",
}


def main(arguments: Sequence[str]) -> int:
    """Print a script, or the candidates that a script asks for."""
    if arguments[:1] == ["--"]:
        verb, word = [*arguments[1:], "", ""][:2]
        print("\n".join(candidates(verb, word)))
        return 0
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        shells = ", ".join(SCRIPTS)
        raise ConvertError(Problem("No shell is named.", f"one of {shells}", INSTALL["bash"]))
    print(f"# {INSTALL[arguments[0]]}\n{SCRIPTS[arguments[0]]}", end="")
    return 0


def candidates(verb: str, word: str) -> list[str]:
    """What `word` can become behind `verb` (the command's first word, perhaps `word` itself)."""
    key, equal, value = word.partition("=")
    if equal:
        return [f"{key}={name}" for name in _values(key) if name.startswith(value)]
    return sorted({name for name in _words(verb, word) if name.startswith(word)})


def _words(verb: str, word: str) -> Iterator[str]:
    from converter.cli.main import SWEEPS, VERBS

    if verb == word:
        yield from VERBS
        yield from SWEEPS[:1]
    if verb in SWEEPS:
        yield f"{SWEEP}="
    if verb in NAMED:
        yield from choices(RECIPE)
    if verb in FOLDERS:
        yield from _folders(word)
        return
    if verb in VERBS and verb not in (*NAMED, "synth"):
        return
    yield from (f"{name}=" for name in folders() if name != SWEEP)
    yield from (f"{name}=" for name in _keys(word))


def _keys(word: str) -> list[str]:
    """The recipe's keys one level below what is typed: `quant.` gives `quant.bits`."""
    from converter.schema import schema_paths

    depth = word.count(".")
    return [path for path in schema_paths() if path.count(".") == depth and path not in folders()]


def _values(key: str) -> list[str]:
    if key in folders():
        return choices(key)
    kind = _type_of(key)
    found = [
        choice
        for option in (kind, *typing.get_args(kind))
        if typing.get_origin(option) is typing.Literal
        for choice in typing.get_args(option)
    ]
    return [str(value) for value in found] or (["true", "false"] if kind is bool else [])


def _type_of(key: str) -> Any:
    """The declared type of a dotted key; None for one that does not exist."""
    kind: Any = Recipe
    for part in key.split("."):
        kind = typing.get_type_hints(kind).get(part) if isinstance(kind, type) else None
    return kind


def _folders(word: str) -> Iterator[str]:
    base = Path(word).parent if word and not word.endswith("/") else Path(word or ".")
    try:
        yield from (f"{path}/" for path in base.iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError:
        return

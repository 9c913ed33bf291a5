"""`convert completion bash|zsh|fish`: TAB for verbs, recipes, slots, their choices and keys.

The scripts ask `convert completion -- WORD …`, the words up to the cursor, and get one candidate a
line; the line `/` asks for folders, and no line for files, which the shells know how to quote.
Hydra's own completion would import Hydra and takes longer than a keystroke should.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from converter.cli.verbs import VERBS, called_as, spelled
from converter.errors import ConvertError, Problem
from converter.recipe.guest_slots import recipe_schema
from converter.recipe.tree import RECIPE, SWEEP, choices, folders

NAMED = ("show", "check", "diff")
"""Verbs whose words are recipes' names."""
TUNED = (*NAMED, "plan", "olive-config", "synth")
"""Verbs that take key=value as a run does."""
FOLDERS = ("chat", "bench", "eval", "explain", "reproduce", "pick", "check", "synth")
"""Verbs whose words are folders."""
FOLDER = "/"
SCRIPTS = {
    "bash": """_convert() {
    local -a typed=("")
    local index piece line
    # Readline cuts at = and :, so the pieces are put together again; $2 ends at the cursor.
    for ((index = 1; index <= COMP_CWORD; index++)); do
        piece="${COMP_WORDS[index]}"
        ((index == COMP_CWORD)) && [[ $piece != [=:] ]] && piece="$2"
        if [[ $piece == [=:]* || ${COMP_WORDS[index - 1]} == *[=:] ]]; then
            typed[${#typed[@]} - 1]+="$piece"
        else
            typed+=("$piece")
        fi
    done
    local word="${typed[${#typed[@]} - 1]}"
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ $line == / ]]; then
            compopt -o plusdirs -o filenames 2>/dev/null
        else
            COMPREPLY+=("${line#"${word%"$2"}"}")
        fi
    done < <("${1/#\\~/$HOME}" completion -- "${typed[@]:1}" 2>/dev/null)
    [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace 2>/dev/null
}
complete -o default -F _convert COMMAND
""",
    "zsh": """#compdef COMMAND
_convert() {
    local word="${(Q)PREFIX}"
    local -a found open
    found=(${(f)"$(${~words[1]} completion -- "${(@Q)words[2,CURRENT-1]}" "$word" 2>/dev/null)"})
    compset -P '*='
    if (( ! $#found )); then
        _files
    elif [[ $found[-1] == / ]]; then
        found=(${found:#/})
        (( $#found )) && compadd -a found
        _files -/
    else
        compset -P '*,'
        found=(${found#${word%${word##*[=,]}}})
        open=(${(M)found:#*[=.]})
        found=(${found:#*[=.]})
        compadd -S '' -a open
        compadd -a found
    fi
}
# Sourced, it registers itself; as a file of fpath it is the function's body.
if [[ $funcstack[1] == _convert ]]; then _convert "$@"; else compdef _convert COMMAND; fi
""",
    "fish": """function __convert_asked
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set -l command (string replace -r '^~' ~ -- $words[1])
    set -g __convert_found ($command completion -- $words[2..-1] "$word" 2>/dev/null)
end
function __convert_found
    # A switch is fish's own matter, and a folder is asked for by /.
    string match -v -r -- '^(-.*|/)$' $__convert_found
    contains / $__convert_found; and __fish_complete_directories (commandline -ct) ''
end
# Files are fish's own, where nothing was found: they follow key= and quotes too.
complete -c COMMAND -n '__convert_asked; set -q __convert_found[1]' -f -a '(__convert_found)'
complete -c COMMAND -n __fish_is_first_arg -s m -l multirun -d 'a sweep over all combinations'
""",
}
INSTALL = {
    "bash": 'eval "$(convert completion bash)"    # in ~/.bashrc',
    "zsh": 'eval "$(convert completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "convert completion fish > ~/.config/fish/completions/convert.fish",
}
ACTIONS = {
    "cache": ("list", "clear"),
    "completion": tuple(SCRIPTS),
    "list": ("passes",),
    "repo": ("add", "list", "update", "remove", "init"),
}
"""Verb to the words that it knows."""


def run_words(words: Sequence[str]) -> int:
    """Print a script, or the candidates that a script asks for."""
    if words[:1] == ["--"]:
        print("".join(f"{name}\n" for name in candidates(words[1:])), end="")
        return 0
    if len(words) != 1 or words[0] not in SCRIPTS:
        shells = ", ".join(SCRIPTS)
        raise ConvertError(Problem("No shell is named.", f"one of {shells}", INSTALL["bash"]))
    # The hint comes last: in a file of zsh's fpath the first line is #compdef.
    script = SCRIPTS[words[0]].replace("COMMAND", called_as())
    print(f"{script}# {spelled(INSTALL[words[0]])}")
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of the words can become; they follow the command and end at the cursor."""
    *before, word = words or [""]
    key, equal, value = word.partition("=")
    if equal:
        return list(_assigned(key, value, swept=before[:1] in _sweep_verbs()))
    found = sorted({name for name in _words(before, word) if name.startswith(word)})
    return found + [FOLDER] * (before[:1] in [[verb] for verb in FOLDERS])


def _assigned(key: str, value: str, swept: bool) -> Iterator[str]:
    """`key=value` for each value that fits; a sweep's are a list."""
    listed, comma, last = value.rpartition(",") if swept else ("", "", value)
    for name in _values(key):
        if name.startswith(last) and name not in listed.split(","):
            yield f"{key}={listed}{comma}{name}"


def _sweep_verbs() -> list[list[str]]:
    from converter.cli.main import SWEEPS

    return [[name] for name in SWEEPS]


def _words(before: Sequence[str], word: str) -> Iterator[str]:
    from converter.cli.main import SWEEPS

    if not before:
        yield from (*VERBS, *SWEEPS)
    verb = before[0] if before else ""
    yield from ACTIONS.get(verb, ()) if len(before) == 1 else ()
    if verb in NAMED or before[-1:] == ["--from"]:
        yield from choices(RECIPE)
    if verb in SWEEPS:
        yield f"{SWEEP}="
    if verb not in VERBS or verb in TUNED:
        yield from (f"{name}=" for name in folders() if name != SWEEP)
        yield from _keys(word)


def _keys(word: str) -> Iterator[str]:
    """The recipe's keys one level below what is typed: `quant.` gives `quant.bits=`.

    What has keys of its own ends with a dot; at the top only once something is typed, or else TAB
    on nothing would list every slot twice.
    """
    *above, _ = word.split(".")
    schema = _type_of(".".join(above)) if above else recipe_schema()
    if not dataclasses.is_dataclass(schema):
        return
    for item in dataclasses.fields(schema):
        path = ".".join([*above, item.name])
        inner = dataclasses.is_dataclass(_type_of(path))
        if word or not inner:
            yield f"{path}." if inner else f"{path}="


def _values(key: str) -> list[str]:
    """What a slot or a key may be set to, where that is a list; a type's `None` is `null`."""
    if key in folders():
        return choices(key)
    kind = _type_of(key)
    options = (kind, *typing.get_args(kind))
    found = [
        str(choice)
        for option in options
        if typing.get_origin(option) is typing.Literal
        for choice in typing.get_args(option)
    ]
    found += ["true", "false"] if bool in options else []
    return [*found, "null"] if found and type(None) in options else found


def _type_of(key: str) -> Any:
    """The declared type of a dotted key; None for one that does not exist."""
    kind: Any = recipe_schema()
    for part in key.split("."):
        kind = typing.get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else None
    return kind

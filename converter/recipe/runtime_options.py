"""What onnxruntime-genai takes in the `search` and `session_options` of its genai_config.json.

*Measured* with onnxruntime-genai 0.18: its parser refuses keys that it does not know and values of
another type when it loads a folder, and numbers out of range when it generates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from converter.errors import Problem

MOST_THREADS = 1024
LARGEST = 2**31 - 1
"""The runtime keeps whole numbers in 32 bits."""


@dataclass(frozen=True)
class Option:
    """The values of an option: a switch, a text, or numbers from `least` to `most`."""

    kind: type
    least: float = -math.inf
    most: float = math.inf
    texts: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What a problem says that it takes."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return f"one of {', '.join(self.texts)}" if self.texts else "a text, in quotes"
        number = "a whole number" if self.kind is int else "a number"
        least, most = (f"{bound:,.9g}" for bound in (self.least, self.most))
        if self.most < LARGEST:
            return f"{number} from {least} to {most}"
        return number if self.least <= -LARGEST else f"{number} of at least {least}"

    def takes(self, value: Any) -> bool:
        """Whether `value` is one of them."""
        if self.kind in (bool, str) or isinstance(value, bool):
            right = isinstance(value, self.kind)
            return right and (not self.texts or value in self.texts)
        if not isinstance(value, int) and not (isinstance(value, float) and math.isfinite(value)):
            return False
        whole = self.kind is float or value == int(value)
        return whole and self.least <= value <= self.most


SWITCH, COUNT = Option(bool), Option(int, 0, LARGEST)
SEARCH_OPTIONS: Mapping[str, Option] = {
    "batch_size": Option(int, 1, 32),
    "chunk_size": Option(int, 1, LARGEST),
    "diversity_penalty": Option(float, 0, LARGEST),
    "do_sample": SWITCH,
    "early_stopping": SWITCH,
    "length_penalty": Option(float, -LARGEST, LARGEST),
    "max_length": Option(int, 1, LARGEST),
    "min_length": COUNT,
    "no_repeat_ngram_size": COUNT,
    "num_beams": Option(int, 1, 32),
    "num_return_sequences": Option(int, 1, 32),
    "past_present_share_buffer": SWITCH,
    "random_seed": Option(int, -1, LARGEST),
    "repetition_penalty": Option(float, 1e-6, LARGEST),
    "temperature": Option(float, 0, LARGEST),
    "top_k": COUNT,
    "top_p": Option(float, 0, 1),
}
SESSION_OPTIONS: Mapping[str, Option] = {
    "enable_cpu_mem_arena": SWITCH,
    "enable_mem_pattern": SWITCH,
    "graph_optimization_level": Option(
        str, texts=("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
    ),
    "inter_op_num_threads": Option(int, 0, MOST_THREADS),
    "intra_op_num_threads": Option(int, 0, MOST_THREADS),
    "log_severity_level": Option(int, 0, 4),
    "log_verbosity_level": COUNT,
}
"""Keys with values of their own; every other one is a text, which goes to onnxruntime as it is."""


def search_problems(
    search: Mapping[str, Any], place: str, remedy: str = "", known_only: bool = True
) -> Iterator[Problem]:
    """Search options that the runtime does not take.

    Args:
        search: options by name.
        place: what the problem calls an option, with `{}` for its name: `target.search.{}`.
        remedy: what to do, with `{}` for the name; left out, to correct the value.
        known_only: whether a name that the runtime does not know is a problem.
    """
    for key, value in search.items():
        option, label = SEARCH_OPTIONS.get(key), place.format(key)
        if option is None and known_only:
            near = get_close_matches(key, SEARCH_OPTIONS, n=1)
            yield Problem(
                f"{label} is no search option of the runtime.",
                f"one of {', '.join(SEARCH_OPTIONS)}",
                f"write {place.format(near[0])}" if near else "leave it out",
                key=(label,),
            )
        elif option is not None and not option.takes(value):
            advice = remedy.format(key) or f"correct {label}, or leave it out"
            yield Problem(f"{label}={value!r:.60}.", option.expected, advice, key=(label,))
    if known_only:
        yield from _beam_problems(search, place)


def _beam_problems(search: Mapping[str, Any], place: str) -> Iterator[Problem]:
    beams, returned = search.get("num_beams", 1), search.get("num_return_sequences", 1)
    if isinstance(returned, int) and isinstance(beams, int) and returned > max(beams, 1):
        yield Problem(
            f"{place.format('num_return_sequences')}={returned} with num_beams={beams}.",
            "at most as many sequences as beams",
            f"set {place.format('num_beams')}={returned}",
            key=(place.format("num_return_sequences"), place.format("num_beams")),
        )
    if search.get("do_sample") is True and isinstance(beams, int) and beams > 1:
        yield Problem(
            f"{place.format('num_beams')}={beams} with do_sample=true.",
            "one of the two; the runtime's beams do not sample",
            f"set {place.format('do_sample')}=false",
            key=(place.format("num_beams"), place.format("do_sample")),
        )


def size_problems(
    search: Mapping[str, Any], label: str, remedy: str, context_length: int, vocab_size: int
) -> Iterator[Problem]:
    """Well-typed search options that are too large for a model; `label` and `remedy` hold `{}`."""
    for key, most, what in (
        ("max_length", context_length, "the context length"),
        ("top_k", vocab_size, "the size of the vocabulary"),
    ):
        value = search.get(key)
        if isinstance(value, int) and value > most:
            name = label.format(key)
            yield Problem(
                f"{name}={value}.",
                f"at most {most}, {what}",
                remedy.format(key, most),
                key=(name,),
            )


def session_problems(options: Mapping[str, Any], place: str) -> Iterator[Problem]:
    """Session options that the runtime does not take; `place` holds `{}` for the name."""
    for key, value in options.items():
        option = SESSION_OPTIONS.get(key, Option(str))
        if not option.takes(value):
            label = place.format(key)
            remedy = f"correct {label}, or leave it out"
            if option.kind is str and not option.texts:
                remedy = f"write \"{label}='{value}'\""
            yield Problem(f"{label}={value!r:.60}.", option.expected, remedy, key=(label,))

"""What onnxruntime-genai makes of the written tokenizer files, against transformers.

Both are asked while converting: token ids of hard texts, and every conversation of `SAMPLES`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converter.errors import Problem
from converter.machine.memory import return_memory
from converter.tokenizer.conversations import SAMPLES, Sample
from converter.tokenizer.jinja import RenderError, render
from converter.tokenizer.read_texts import ReadText, read_texts
from converter.tokenizer.runtime_tokenizer import RuntimeTokenizer, runtime_is_installed
from converter.tokenizer.tokenizer_json import read_with_library

_WORDS = 40
"""Characters that an example shows of a longer text."""


@dataclass(frozen=True)
class Expected:
    """What transformers reads: the checkpoint's own tokenizer and template."""

    texts: tuple[ReadText, ...] | None
    """Ids by the checkpoint's own file; None where the written one says what is right."""
    mended: bool = False
    """Whether the written file differs from it."""
    template: str | None = None
    tool_use: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    """Texts of `bos_token` and the like, as transformers gives them to a template."""

    def template_for(self, sample: Sample) -> str:
        """The template that transformers takes for a conversation."""
        assert self.template is not None
        return self.tool_use if sample.tools and self.tool_use else self.template

    def render(self, sample: Sample, generation: bool) -> str:
        """The text that transformers makes; raises `RenderError`."""
        template = self.template_for(sample)
        return render(template, sample.messages, sample.tools, generation, self.names)


@dataclass(frozen=True)
class Comparison:
    """What differs between the two; empty when nothing does."""

    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    texts: int = 0
    """Texts whose ids were compared; 0 where the runtime is not installed."""
    differing: int = 0
    """How many of them the runtime reads differently."""
    example: str = ""

    def text_problems(self, limit: float) -> Iterator[Problem]:
        """A problem when more than the share `limit` of the texts differ."""
        if self.texts and self.differing > limit * self.texts:
            yield Problem(
                f"onnxruntime-genai reads {self.differing} of {self.texts} texts to other ids than "
                f"the checkpoint's tokenizer, such as {self.example}.",
                f"at most {limit:.0%} (verify.max_text_differences)",
                "put the model's tokenizer.model next to config.json, if there is one; or set "
                "verify.max_text_differences=1 to publish the folder all the same",
                key=("verify.max_text_differences",),
            )


def compare_with_runtime(files: Mapping[str, bytes], expected: Expected) -> Comparison:
    """Ask the runtime about the files that will be written; a note says when it is not there."""
    if not runtime_is_installed():
        return Comparison(
            ("onnxruntime-genai is not installed, so ids and templates were not compared",)
        )
    texts = _texts(files["tokenizer.json"], expected)
    return_memory()  # one reader after the other
    try:
        runtime = RuntimeTokenizer(files)
    except Exception as error:  # the runtime raises bare exceptions of several types
        return Comparison(problems=(_cannot_load(error),))
    notes: list[str] = []
    problems: list[Problem] = []
    if expected.template is not None:
        endless = _endless(expected)
        differing = [] if endless else _template_differences(runtime, expected)
        problems += [said for said in (endless, _template_problem(differing)) if said]
        notes += [said for said in (_refusal_note(expected), _template_note(differing)) if said]
    wrong = [said for text in texts if (said := _difference(runtime, text))]
    example = wrong[0].text if wrong else ""
    return Comparison(
        (*notes, *_text_notes(len(texts), wrong)), tuple(problems), len(texts), len(wrong), example
    )


def _cannot_load(error: Exception) -> Problem:
    return Problem(
        f"onnxruntime-genai cannot load the tokenizer: {_line(str(error))}.",
        "a tokenizer.json that the runtime can read",
        "put the model's tokenizer.model next to config.json, if there is one",
    )


def _line(text: str) -> str:
    return " ".join(text.split())[:200].rstrip(".")


# --- templates ---


@dataclass(frozen=True)
class _TemplateDifference:
    sample: Sample
    generation: bool
    expected: str
    found: str


def _template_differences(
    runtime: RuntimeTokenizer, expected: Expected
) -> list[_TemplateDifference]:
    differing = []
    for sample in SAMPLES:
        for generation in (True, False):
            theirs = _or_refusal(lambda s=sample, g=generation: expected.render(s, g))
            if isinstance(theirs, RenderError) and theirs.is_failure:
                continue  # no template's meaning, and the runtime may never come back from it
            ours = _or_refusal(
                lambda s=sample, g=generation: runtime.render(s.messages, s.tools, g)
            )
            both_refuse = isinstance(theirs, Exception) and isinstance(ours, Exception)
            if ours != theirs and not both_refuse:
                shown = _apart(theirs, ours)
                differing.append(_TemplateDifference(sample, generation, *shown))
    return differing


def _endless(expected: Expected) -> Problem | None:
    """The problem of a template whose macros call themselves; the runtime would die of it."""
    for sample in SAMPLES:
        said = _or_refusal(lambda s=sample: expected.render(s, True))
        if isinstance(said, RenderError) and isinstance(said.__cause__, RecursionError):
            return Problem(
                f"The chat template calls itself without end for {sample.name}.",
                "a template that ends",
                "correct chat_template in the checkpoint's folder",
            )
    return None


def _refusal_note(expected: Expected) -> str | None:
    """What whoever chats will see first, when the template refuses the simplest question."""
    said = _or_refusal(lambda: expected.render(SAMPLES[0], True))
    if isinstance(said, str):
        return None
    return f"the chat template refuses {SAMPLES[0].name}: {_line(str(said))}"


def _or_refusal(rendered: Any) -> str | Exception:
    try:
        return str(rendered())
    except (RenderError, RuntimeError, MemoryError) as error:
        return error


def _apart(theirs: str | Exception, ours: str | Exception) -> tuple[str, str]:
    """Both as an example shows them: a refusal, or the text from where they part."""
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        return _shown(theirs), _shown(ours)
    start = next(
        (i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b),
        min(len(theirs), len(ours)),
    )
    start = max(0, start - 8)
    return _shown(theirs[start:]), _shown(ours[start:])


def _shown(text: str | Exception) -> str:
    if isinstance(text, Exception):
        return f"a refusal ({_line(str(text))[:100]})"
    return repr(text if len(text) <= _WORDS else text[:_WORDS] + "…")


def _template_problem(differing: Sequence[_TemplateDifference]) -> Problem | None:
    first = next((found for found in differing if found.sample.plain), None)
    if first is None or first.expected.startswith("a refusal"):
        return None
    return Problem(
        f"onnxruntime-genai renders {first.sample.name} with the chat template as {first.found}; "
        f"transformers renders {first.expected}.",
        "a chat template that both render alike, at least for a plain conversation",
        "correct chat_template in the checkpoint's folder; docs/reference/tokenizers.md says what "
        "the runtime cannot render",
    )


def _template_note(differing: Sequence[_TemplateDifference]) -> str | None:
    further = [found for found in differing if not found.sample.plain or _refused(found)]
    if not further:
        return None
    names = ", ".join(dict.fromkeys(found.sample.name for found in further))
    first = further[0]
    return (
        f"the chat template renders differently in onnxruntime-genai for {names}: "
        f"{first.found} where transformers has {first.expected}"
    )


def _refused(found: _TemplateDifference) -> bool:
    return found.expected.startswith("a refusal")


# --- ids ---


@dataclass(frozen=True)
class _TextDifference:
    kind: str
    text: str


@dataclass(frozen=True)
class _Read:
    """A text, and its ids by the checkpoint's file and by the written one."""

    right: ReadText
    written: tuple[int, ...]


def _texts(content: bytes, expected: Expected) -> list[_Read]:
    """The written file is read only where it is not the checkpoint's own."""
    if expected.texts is not None and not expected.mended:
        return [_Read(item, item.ids) for item in expected.texts]
    reader = read_with_library(content)
    if expected.texts is None:
        return [_Read(item, item.ids) for item in read_texts(reader)]
    again = read_texts(reader, [(item.kind, item.text) for item in expected.texts])
    return [_Read(a, b.ids) for a, b in zip(expected.texts, again, strict=True)]


def _difference(runtime: RuntimeTokenizer, text: _Read) -> _TextDifference | None:
    """What the runtime or the written file misreads of a text."""
    ids, found = text.right.ids, _encoded(runtime, text.right.text)
    if found == ids and text.written == ids:
        return None
    shown = _ids_apart(text.written if found == ids else found, ids)
    return _TextDifference(text.right.kind, f"{_shown(text.right.text)}: {shown}")


def _encoded(runtime: RuntimeTokenizer, text: str) -> tuple[int, ...] | None:
    try:
        return tuple(runtime.encode(text))
    except RuntimeError:
        return None


def _ids_apart(found: Sequence[int] | None, expected: Sequence[int]) -> str:
    """The ids of both from the first that differs."""
    if found is None:
        return "a refusal"
    start = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
        min(len(found), len(expected)),
    )
    place = f" from token {start + 1} on" if start else ""
    return f"{_ids(found[start:])}, not {_ids(expected[start:])}{place}"


def _ids(ids: Sequence[int]) -> str:
    return f"[{', '.join(map(str, ids[:6]))}{', …' if len(ids) > 6 else ''}]"


def _text_notes(total: int, wrong: Sequence[_TextDifference]) -> list[str]:
    if not wrong:
        return []
    kinds = ", ".join(f"{n} of {kind}" for kind, n in Counter(w.kind for w in wrong).items())
    return [
        f"onnxruntime-genai reads {len(wrong)} of {total} hard texts to other ids ({kinds}), "
        f"such as {wrong[0].text}"
    ]

"""Two thousand hard texts, made by combining what tokenizers read differently.

The same texts on every machine: those that every conversion compares (converter/tokenizer/
hard_texts.py), code with every kind of blank at the end and the beginning of a line, long runs of
each of `ATOMS`, added tokens between them, and as many pairs of them as there is room for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, product
from math import gcd

from converter.tokenizer.hard_texts import hard_texts

COUNT = 2000
ATOMS = {
    "words": ("word", "Word", "WORD", "it's", "It'S"),
    "scripts": ("中文", "かな", "한국", "мир", "مرحبا", "नमस्ते", "ไทย"),
    "digits": ("7", "1234567", "٣٤", "½"),
    "blanks": (" ", "  ", "   ", "\t", "\t\t", "\u00a0", "\u3000\u3000"),
    "line ends": ("\n", "\n\n", "\r\n", " \n", "\n \n", "\n  "),
    "signs": (".", "...", "};", "//", "*/", "_", "€", "—"),
    "emoji": ("🙂", "👩‍👩‍👧", "👍🏽", "🇩🇪"),
    "marks": ("e\u0301", "o\u0302\u0323", "\u0301", "\ufe0f", "ﬁ"),
    "controls": ("\x01", "\x1c", "\x85", "\x7f", "\u200b", "\ufeff"),
}
"""What is put side by side, by kind."""
_INDENTS = ("", " ", "  ", "    ", "\t", "\t\t", " \t", "\u3000")
_LINES = ("x = 1;", "// y", "}", "if z:", "中文ABC。", "- 3")
_RUN = 150
_STRIDE = 605


def many_texts(added_tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Kind and text of each; `COUNT` of them, none twice, whatever the added tokens."""
    return list(islice(_unique(added_tokens), COUNT))


def _unique(added_tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for kind, text in _all(added_tokens):
        if text not in seen:
            seen.add(text)
            yield kind, text


def _all(added_tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from hard_texts(added_tokens)
    yield from _lines()
    yield from _runs()
    yield from _added(added_tokens)
    yield from _pairs(("{}{}", "a{}{}b", "{} {}", "{}\n{}", "1{}{}2", "{}{}{}"))


def _lines() -> Iterator[tuple[str, str]]:
    for first, end, begin in product(_LINES, ("", " ", "  ", "\t"), _INDENTS):
        second = _LINES[(_LINES.index(first) + 1) % len(_LINES)]
        yield "lines", f"{begin}{first}{end}\n{begin}{begin}{second}"
        yield "lines", f"{first}\n{begin}\n{begin}{second}{end}\n"


def _runs() -> Iterator[tuple[str, str]]:
    for texts in ATOMS.values():
        for text in texts:
            yield "runs", text * _RUN
            yield "runs", f"a {text * (_RUN // 10)} b"


def _added(added_tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    for token in added_tokens[:: max(1, len(added_tokens) // 4)][:4]:
        for texts in ATOMS.values():
            yield "added tokens", f"{texts[0]}{token}{texts[-1]}"


def _pairs(forms: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every ordered pair once, in an order that has all kinds wherever it is cut off."""
    every = [(kind, text) for kind, texts in ATOMS.items() for text in texts]
    pairs = list(product(every, every))
    assert gcd(_STRIDE, len(pairs)) == 1
    for number in range(len(pairs)):
        (kind, left), (other, right) = pairs[number * _STRIDE % len(pairs)]
        name = kind if kind == other else f"{kind} and {other}"
        yield name, forms[number % len(forms)].format(left, right, left)

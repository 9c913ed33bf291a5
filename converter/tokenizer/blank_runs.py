r"""Split patterns that end with what takes runs of blanks, written as the runtime follows them.

onnxruntime-genai matches the alternatives that it knows by functions of its own. That for
`\s*[\r\n]+` does not go back: of a line that holds only blanks, before an indented one, it takes
too little. An alternative that it does not know it leaves to std::regex, which reads bytes, tries
it after all others, and does go back. Source: `PreTokenizerWithRegEx` in `bpe_utils.hpp` of
onnxruntime-extensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

_TAIL = re.compile(r"\|\\s\*\[(?:\\r|\r)(?:\\n|\n)\]\+?\|\\s\+\(\?!\\S\)\|\\s\+$")
r"""What nearly all byte-level tokenizers since GPT-4's end with; `[\r\n]` alone means the same."""

_WIDE = "|".join(map(chr, (0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F,
                           0x205F, 0x3000)))  # fmt: skip
_BLANK = r"[\t-\r ]"
_MORE = rf"{_BLANK}*(?:(?:{_WIDE}){_BLANK}*)*"
_RUN = rf"(?:{_BLANK}|{_WIDE}){_MORE}"
BLANK_RUNS = rf"{_MORE}[\r\n]+|{_RUN}(?={_BLANK}|{_WIDE}|$)|{_RUN}"
r"""`\s*[\r\n]+|\s+(?!\S)|\s+` in words that std::regex reads alike, byte by byte."""

_SAME = {
    r"'(?i:[sdmt]|ll|ve|re)": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"[^\r\n\p{L}\p{N}]?+\p{L}+": r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r" ?[^\s\p{L}\p{N}]++[\r\n]*": r" ?[^\s\p{L}\p{N}]+[\r\n]*",
}
"""Other spellings of an alternative; the runtime knows the second alone."""

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKED_LETTERS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_CASED_LETTERS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_ENDINGS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
)
_DIGITS = (r"\p{N}{1,3}", r"\p{N}")
_SIGNS = (r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r" ?[^\s\p{L}\p{N}]+[\r\n]*")
_UNMARKED_SIGNS = r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"


def _heads() -> Iterator[str]:
    """All that may stand before the blanks: with them every character has an alternative.

    The runtime knows each, so that std::regex is left with the blanks. It would look for them
    further on otherwise, and lose its place.
    """
    cased = ["|".join(f"{case}{end}" for case in _CASED_LETTERS) for end in (f"{_ENDINGS[0]}?", "")]
    endings = ["", *(f"{ending}|" for ending in _ENDINGS)]
    for ending, digits in product(endings, _DIGITS):
        for words, signs in product((_LETTERS, _MARKED_LETTERS, *cased), _SIGNS):
            yield f"{ending}{words}|{digits}|{signs}"
        yield f"{ending}{_MARKED_LETTERS}|{digits}|{_UNMARKED_SIGNS}"


_HEADS = frozenset(_heads())


def with_blank_runs(pattern: str) -> str:
    """A pattern that splits every text as `pattern` does, and that the runtime follows as well.

    The same pattern where it does not end with runs of blanks, or begins with anything else than
    the alternatives for words, digits and signs that the runtime knows.
    """
    tail = _TAIL.search(pattern)
    if tail is None:
        return pattern
    head = pattern[: tail.start()].replace("\r", r"\r").replace("\n", r"\n")
    for spelled, known in _SAME.items():
        head = head.replace(spelled, known)
    return f"{head}|{BLANK_RUNS}" if head in _HEADS else pattern

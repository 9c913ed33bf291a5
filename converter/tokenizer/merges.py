"""BPE merges and a safe pre-tokenizer, both worked out from a SentencePiece vocabulary.

SentencePiece has no list of merges: at each step it joins the two neighbours whose union is the
piece of highest score, the leftmost on a tie (Model::SampleEncode in bpe_model.cc). tokenizer.json
needs the pairs themselves, ranked.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from string import punctuation

from converter.tokenizer.sentencepiece_model import NORMAL, SPACE, SentencePieceModel

WHOLE_TEXT_PATTERN = r"[\s\S]+"
"""Splits nothing: right for every vocabulary, see `split_pattern` for what it costs."""

_BLANK, _BREAK = r"[\t-\r ]", r"[\t-\r]"
_JOIN = rf"(?:{_BREAK}{_BLANK}*(?:[\t\v\f\r ]|(?={SPACE}))|[\t\v\f\r]|\n(?={SPACE}))"


def _safe_pattern(glued: str = "") -> str:
    """`SAFE_SPLIT_PATTERN` that does not cut between one of the signs `glued` and a space."""
    signs = "".join(f"\\{sign}" for sign in glued)
    joined = f"(?:{SPACE}|[{signs}])" if glued else SPACE
    other = rf"(?:[^\t-\r 0-9{SPACE}{signs}]+|{joined}(?: {_BLANK}*)?|[{SPACE}])+"
    return rf"[0-9]+|{_BLANK}*{other}(?:{_JOIN}{other})*(?:{_BREAK}{_BLANK}*)?|{_BLANK}+"


SAFE_SPLIT_PATTERN = _safe_pattern()
r"""Splits where `_cuts` says: around digits, before a space after a word, after a line break.

onnxruntime-genai matches it byte by byte, before it turns spaces into \u2581; tokenizers matches it
character by character, after. It is right both ways: a lone byte of \u2581 belongs to some other
character, and a space turned into \u2581 only means a cut less.
"""


def bpe_merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """All pairs of pieces whose union is a piece, best score first.

    Only NORMAL pieces take part: SentencePiece cuts USER_DEFINED ones out of the text before it
    merges, and never joins characters to a CONTROL, UNKNOWN or BYTE piece. Of pairs with an equal
    score the one with the longer left part comes first. This is SentencePiece's leftmost rule in
    runs of one character, which are shared out from the left: a shorter part can only be the last.
    """
    pieces, scores = model.pieces, model.scores
    normal = {pieces[index]: index for index in model.ids_of_type(NORMAL)}
    ranked = [
        (-scores[index], -split, index)
        for piece, index in normal.items()
        for split in range(1, len(piece))
        if piece[:split] in normal and piece[split:] in normal
    ]
    ranked.sort()
    return [(pieces[index][:-split], pieces[index][-split:]) for _, split, index in ranked]


def split_pattern(pieces: Iterable[str]) -> str:
    """The regular expression for a top-level `Split` pre-tokenizer that no piece is cut by.

    onnxruntime-genai needs one: without, it splits as GPT-4's tokenizer does, and other ids follow.
    It matches with std::regex, whose recursion overflows the stack on a match of 20 to 30 kB, so
    that `WHOLE_TEXT_PATTERN` kills the process on a long prompt; its BPE is also quadratic in the
    length of a match. `SAFE_SPLIT_PATTERN` has neither fault and is used when the vocabulary
    allows it: when no piece holds a pair of characters that the pattern parts. A few signs before a
    space are let off, as in Gemma's `>\u2581</`.
    """
    pairs: set[tuple[str, str]] = set()
    for piece in pieces:
        pairs.update(pairwise(piece))
    parted = [pair for pair in pairs if _cuts(*pair)]
    glued = {left for left, right in parted if right == SPACE and left in punctuation}
    if len(glued) > _MOST_GLUED or any(left not in glued or right != SPACE
                                       for left, right in parted):  # fmt: skip
        return WHOLE_TEXT_PATTERN
    return _safe_pattern("".join(sorted(glued)))


def _cuts(left: str, right: str) -> bool:
    """Whether `SAFE_SPLIT_PATTERN` may split between two characters of a piece."""
    if left in _DIGITS or right in _DIGITS:
        return not (left in _DIGITS and right in _DIGITS)
    if right == SPACE:
        return left not in _BREAKS and left != SPACE
    return left == "\n" and right not in _BREAKS


_MOST_GLUED = 4
_DIGITS = frozenset("0123456789")
_BREAKS = frozenset("\t\n\v\f\r")

"""Pre-tokenizers of byte-level BPE, in the steps that onnxruntime-genai follows.

The runtime follows `Split` steps with a regular expression, each as `Isolated`, one after the
other; a `ByteLevel` step splits as GPT-2 does only where there is no other. Source:
`bpe_tokenizer_model.hpp` and `bpe_kernels.cc` of onnxruntime-extensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converter.tokenizer.blank_runs import with_blank_runs

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` splits by; the runtime knows exactly this spelling."""
_DIGIT_PATTERN = r"\p{N}"
_WHOLE_TEXT = r"[\s\S]+"
_MEANT = re.compile(r"([\\^$.|?*+()\[\]{}])")


def split_step(pattern: str) -> dict[str, Any]:
    """A step that cuts the text before and behind every match."""
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def mend_byte_level(pre_tokenizer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An equal pre-tokenizer that the runtime follows; None where it needs none, or has none."""
    if pre_tokenizer is None:
        return None
    steps = list(_flat(pre_tokenizer))
    if not steps or steps[-1].get("type") != "ByteLevel" or not _needs_mending(steps):
        return None
    splits = [_as_split(step) for step in steps[:-1]]
    if any(step is None for step in splits):
        return None
    last = {**steps[-1], "use_regex": False}
    if steps[-1].get("use_regex", True):
        splits.append(split_step(GPT2_PATTERN))
    return {"type": "Sequence", "pretokenizers": [*(splits or [split_step(_WHOLE_TEXT)]), last]}


def _flat(step: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if step.get("type") == "Sequence":
        for inner in step.get("pretokenizers") or ():
            yield from _flat(inner)
    else:
        yield step


def _needs_mending(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the runtime would follow other steps than these."""
    before, last = steps[:-1], steps[-1]
    if not before:
        return not last.get("use_regex", True)
    as_it_is = all(step == _as_split(step) for step in before)
    return bool(last.get("use_regex", True)) or not as_it_is


def _as_split(step: Mapping[str, Any]) -> dict[str, Any] | None:
    """The step as an isolating `Split` by a regular expression; None where there is no equal."""
    match step:
        case {"type": "Digits", "individual_digits": True}:
            return split_step(_DIGIT_PATTERN)
        case {"type": "Split", "behavior": "Isolated", "pattern": {"String": str(text)}}:
            return split_step(_MEANT.sub(r"\\\1", text))
        case {"type": "Split", "pattern": {"Regex": str(pattern)}}:
            written = with_blank_runs(pattern)
            return dict(step) if written == pattern else {**step, "pattern": {"Regex": written}}
    return None

"""Text that a converted model writes itself, to calibrate on.

What a model expects to read is what it writes: sampled without temperature or cut-off, its text
covers the activations that calibration has to keep right. A base model writes from its first token
on; a chat model writes the question of a user and then answers it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from converter.errors import ConvertError, Problem
from converter.progress import Advance
from converter.runtime.session import LARGEST_SEED, Runtime

BATCH = 16
"""Sequences that are written together: each step reads all weights once for all of them."""
UNCUT: Mapping[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
"""Search options that draw from the model's own distribution."""
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
_FRUITLESS = 3  # batches in a row without any text, after which to give up


@dataclass(frozen=True)
class SampleOptions:
    """How much to write: `tokens` in all, in texts (for a chat, turns) of at most `length`.

    `chats` lets a chat model write chats; without, it writes text as a base model does.
    """

    tokens: int = 16384
    length: int = 512
    seed: int = 0
    chats: bool = True


def sample_texts(runtime: Runtime, options: SampleOptions, advance: Advance) -> list[str]:
    """Lines of a text file, one a text of a base model, or of a .jsonl file, one a chat.

    Raises:
        ConvertError: the model writes nothing, or its context is too short for `length`.
    """
    _check(runtime, options)
    write = _chats if writes_chats(runtime, options) else _documents
    found: list[str] = []
    made = fruitless = number = 0
    while made < options.tokens:
        lines, count = write(runtime, options, options.seed + number)
        found, made, number = [*found, *lines], made + count, number + 2
        fruitless = 0 if lines else fruitless + 1
        if fruitless == _FRUITLESS:
            raise ConvertError(
                Problem(
                    f"{runtime.folder} wrote no text in {_FRUITLESS * BATCH} attempts.",
                    "a model that writes text by itself",
                    "calibrate on a text file instead: calibration.text=FILE",
                )
            )
        advance(min(made, options.tokens), options.tokens, f"{made} tokens")
    return found


def writes_chats(runtime: Runtime, options: SampleOptions) -> bool:
    """Whether the lines are chats."""
    return runtime.has_template and options.chats


def _documents(runtime: Runtime, options: SampleOptions, seed: int) -> tuple[list[str], int]:
    rows = _write(runtime, [[runtime.start]] * BATCH, options, seed)
    texts = [runtime.tokenizer.decode(row).strip() for row in rows]
    return [text for text in texts if text], sum(map(len, rows))


def _chats(runtime: Runtime, options: SampleOptions, seed: int) -> tuple[list[str], int]:
    """One user's turn and the answer to it, in each chat."""
    opening = runtime.render([{"role": "user", "content": _MARK}]).partition(_MARK)[0]
    asked = _write(runtime, [runtime.encode(opening)] * BATCH, options, seed)
    questions = [text for row in asked if (text := runtime.tokenizer.decode(row).strip())]
    if not questions:
        return [], 0
    prompts = [runtime.encode(runtime.render(_messages(text))) for text in questions]
    answers = _write(runtime, prompts, options, seed + 1)
    lines = [
        _line(_messages(question, runtime.tokenizer.decode(row).strip()))
        for question, row in zip(questions, answers, strict=True)
    ]
    return lines, sum(map(len, asked)) + sum(map(len, answers))


def _line(messages: Sequence[Mapping[str, str]]) -> str:
    return json.dumps({"messages": messages}, ensure_ascii=False)


def _messages(*turns: str) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for role, content in zip(("user", "assistant"), turns, strict=False)
    ]


def _write(
    runtime: Runtime, prompts: Sequence[Sequence[int]], options: SampleOptions, seed: int
) -> list[list[int]]:
    """What the model writes after each prompt, without stop tokens."""
    import numpy as np

    longest, pad = max(map(len, prompts)), runtime.tokenizer.pad_token_id
    ids = [[*prompt, *[pad] * (longest - len(prompt))] for prompt in prompts]
    search = {
        "batch_size": len(ids),
        "max_length": longest + options.length,
        "random_seed": seed % (LARGEST_SEED + 1),
    }
    generator = runtime.generator({**UNCUT, **search})
    generator.append_tokens(np.asarray(ids, dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    rows = [generator.get_sequence(index)[longest:] for index in range(len(ids))]
    return [_until(row, runtime.stops | {pad}) for row in rows]


def _until(ids: Sequence[int], stops: frozenset[int]) -> list[int]:
    return list(takewhile(lambda token: token not in stops, map(int, ids)))


def _check(runtime: Runtime, options: SampleOptions) -> None:
    room = runtime.context_length // (3 if writes_chats(runtime, options) else 1)
    if options.length >= room:
        raise ConvertError(
            Problem(
                f"Each text is to have {options.length} tokens, and the folder's context has "
                f"{runtime.context_length}.",
                f"fewer than {room} tokens, so that every text fits",
                f"give --length {max(1, room - 1)}",
            )
        )

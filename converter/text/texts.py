"""Text for calibration and evaluation: where it comes from, and how it becomes token chunks.

A source is the word `builtin`, a text file, a `.jsonl` file (one chat or text per line), or a
folder of those. Each file is one kind of text; the built-in text is such a folder, with prose,
chat, code and maths in English and Chinese, in two halves that share no sentence.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import ConvertError, Problem, first_line, gathered, raise_if

BUILTIN = "builtin"
HALVES = ("calibration", "evaluation")
_DATA = Path(__file__).parents[1] / "data" / "text"
_FOLDER_SUFFIXES = (".txt", ".md", ".jsonl")
_LISTED = 10
"""Ways in which lines are wrong that are listed one by one."""
_DOCUMENT_CHARACTERS = 1200
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}

Message = Mapping[str, str]
RenderChat = Callable[[Sequence[Message]], str]
Tokenize = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class TextKind:
    """One file's text, in pieces that may be put in another order: chats, or runs of lines."""

    name: str
    documents: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationChunks:
    """Input of a perplexity run: `input_ids` int64 [n, n_ctx], scored from position `first` on."""

    input_ids: NDArray[np.int64]
    first: int

    @property
    def scored(self) -> slice:
        """The positions whose logits are compared: n_ctx/2 … n_ctx-2, as in llama.cpp."""
        return slice(self.first, self.input_ids.shape[1] - 1)

    @property
    def next_tokens(self) -> NDArray[np.int64]:
        """What came after each scored position, int64 [n, n_ctx - 1 - first]."""
        return self.input_ids[:, self.first + 1 :]


def plain_chat(messages: Sequence[Message]) -> str:
    """How a chat reads for a model that has no chat template: a paragraph per message."""
    return "\n\n".join(message["content"] for message in messages)


def load_text(
    source: str, *, half: str = "calibration", render_chat: RenderChat = plain_chat
) -> list[TextKind]:
    """Read `source` (see the module) into kinds of text, in the order of their names.

    `half` chooses between the built-in text's halves; `render_chat` writes a list of messages
    as the model's chat template does. Raises `ConvertError` with every problem of every file:
    missing, empty, not UTF-8 (with the byte's offset), a malformed line (with its number).
    """
    if source == BUILTIN and half not in HALVES:
        raise ValueError(f"half is {half!r}, not one of {HALVES}")
    problems: list[Problem] = []
    render = _system_or_not(render_chat) if source == BUILTIN else render_chat
    kinds = [
        TextKind(path.stem, tuple(_documents(path, render, problems)))
        for path in _files(_DATA / half if source == BUILTIN else Path(source), problems)
    ]
    raise_if(problems)
    return kinds


def calibration_chunks(
    kinds: Sequence[TextKind],
    tokenize: Tokenize,
    *,
    n_tokens: int,
    sequence_length: int,
    seed: int,
    bos_token_id: int | None = None,
) -> NDArray[np.int64]:
    """Draw `n_tokens // sequence_length` sequences, int64 [n, sequence_length].

    `tokenize` gives ids without BOS. The documents of each kind are shuffled by `seed`; then the
    kinds take turns with a piece each, so short that even a small budget holds two of every kind.
    The same arguments give the same chunks on every machine. With `bos_token_id` it takes the
    first place of each sequence. Raises `ConvertError` when the text is too short.
    """
    if not 1 <= sequence_length <= n_tokens:
        raise ConvertError(
            Problem(
                f"{n_tokens} calibration tokens in sequences of {sequence_length}.",
                "at least one whole sequence of at least one token",
                "raise the number of tokens or shorten the sequences",
            )
        )
    wanted = n_tokens // sequence_length * sequence_length
    piece = max(1, min(sequence_length, wanted // (2 * max(1, len(kinds)))))
    streams = [_shuffled_tokens(kind, tokenize, seed) for kind in kinds]
    tokens: list[int] = []
    while streams and len(tokens) < wanted:
        pieces = [list(islice(stream, piece)) for stream in streams]
        tokens.extend(chain.from_iterable(pieces))
        streams = [s for s, taken in zip(streams, pieces, strict=True) if len(taken) == piece]
    if len(tokens) < wanted:
        raise _too_short(len(tokens), wanted, "ask for fewer calibration tokens")
    chunks = np.array(tokens[:wanted], dtype=np.int64).reshape(-1, sequence_length)
    return _with_bos(chunks, bos_token_id)


def evaluation_chunks(
    kinds: Sequence[TextKind],
    tokenize: Tokenize,
    *,
    n_ctx: int = 512,
    bos_token_id: int | None = None,
    max_chunks: int | None = None,
) -> EvaluationChunks:
    """Cut the text into contiguous chunks exactly as llama.cpp's perplexity tool does.

    The text is tokenized in one go (`tokenize` gives ids without BOS). For a model that adds BOS
    (`bos_token_id` given) one is put before the text, and one replaces each chunk's first token.
    A remainder shorter than `n_ctx` is dropped. Several kinds are interleaved document by
    document, so that the first `max_chunks` hold something of each. Raises `ConvertError` for
    fewer than two chunks' tokens, which is llama.cpp's own limit.
    """
    ids = list(tokenize(interleaved(kinds)))
    if bos_token_id is not None:
        ids.insert(0, bos_token_id)
    if len(ids) < 2 * n_ctx:
        raise _too_short(len(ids), 2 * n_ctx, "shorten the evaluation's chunks")
    count = min(len(ids) // n_ctx, max_chunks or len(ids))
    chunks = np.array(ids[: count * n_ctx], dtype=np.int64).reshape(count, n_ctx)
    return EvaluationChunks(_with_bos(chunks, bos_token_id), n_ctx // 2)


def interleaved(kinds: Sequence[TextKind]) -> str:
    """All documents in one text: each kind in its own order, spread evenly among the others.

    A single text file comes back as it was.
    """
    placed = sorted(
        ((index + 0.5) / len(kind.documents), place, document)
        for place, kind in enumerate(kinds)
        for index, document in enumerate(kind.documents)
    )
    if len(kinds) == 1:
        return "".join(kinds[0].documents)
    return "\n\n".join(document.strip("\n") for _, _, document in placed)


def _with_bos(chunks: NDArray[np.int64], bos_token_id: int | None) -> NDArray[np.int64]:
    if bos_token_id is not None:
        chunks[:, 0] = bos_token_id
    return chunks


def _shuffled_tokens(kind: TextKind, tokenize: Tokenize, seed: int) -> Iterator[int]:
    """The kind's tokens, tokenized only as far as they are taken."""
    order = list(kind.documents)
    random.Random(f"{seed}/{kind.name}").shuffle(order)
    return (token for document in order for token in tokenize(document))


def _system_or_not(render_chat: RenderChat) -> RenderChat:
    """The built-in chats for a template that refuses their system messages: without them."""

    def render(messages: Sequence[Message]) -> str:
        try:
            return render_chat(messages)
        except ValueError:
            if messages[0]["role"] != "system":
                raise
            return render_chat(messages[1:])

    return render


def _files(path: Path, problems: list[Problem]) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        problems.append(
            Problem(
                f"There is no text at {path}.",
                f"'{BUILTIN}', a text file, a .jsonl file, or a folder of those",
                "correct the path; relative paths start at the current folder",
            )
        )
        return []
    found = sorted(file for file in path.iterdir() if file.suffix in _FOLDER_SUFFIXES)
    if not found:
        problems.append(
            Problem(
                f"The folder {path} holds no text.",
                f"files that end in {', '.join(_FOLDER_SUFFIXES)}",
                "rename the files, or name one of them instead of the folder",
            )
        )
    return found


def _documents(path: Path, render_chat: RenderChat, problems: list[Problem]) -> list[str]:
    text = _decoded(path, problems)
    if text is None:
        return []
    if not text.strip():
        problems.append(Problem(f"{path} is empty.", "text", "give another file, or use 'builtin'"))
        return []
    if path.suffix == ".jsonl":
        return list(_conversations(path, text, render_chat, problems))
    return list(_runs_of_lines(text))


def _decoded(path: Path, problems: list[Problem]) -> str | None:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.append(
            Problem(
                f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}, "
                f"in line {line}.",
                "text encoded as UTF-8",
                f"change its encoding, for example: iconv -f {_likely_encoding(data)} -t UTF-8",
            )
        )
        return None


def _likely_encoding(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    try:
        data.decode("gb18030")
    except UnicodeDecodeError:
        return "LATIN1"
    return "GB18030"


def _runs_of_lines(text: str) -> Iterator[str]:
    """Cut at line ends into documents of about `_DOCUMENT_CHARACTERS`; joined, the text again."""
    run: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        # A paragraph's end is a better place than the middle of one, but not at any price.
        full = size >= _DOCUMENT_CHARACTERS and (
            not run[-1].strip() or size >= 2 * _DOCUMENT_CHARACTERS
        )
        if full:
            yield "".join(run)
            run, size = [], 0
        run.append(line)
        size += len(line)
    yield "".join(run)


def _conversations(
    path: Path, text: str, render_chat: RenderChat, problems: list[Problem]
) -> Iterator[str]:
    reasons: dict[str, list[int]] = {}
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield _conversation(json.loads(line), render_chat)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reasons.setdefault(_reason(error), []).append(number)
    found = (
        Problem(
            f"{path}, line {first}{f' and {len(others)} more' if others else ''}: {reason}.",
            'one object per line: {"messages": [{"role": …, "content": …}]}, '
            '{"conversations": [{"from": …, "value": …}]} or {"text": …}',
            "correct or remove the line",
        )
        for reason, (first, *others) in reasons.items()
    )
    problems += gathered(found, listed=_LISTED)


def _conversation(data: Any, render_chat: RenderChat) -> str:
    if not isinstance(data, dict):
        raise TypeError(f"a {type(data).__name__} where an object should be")
    if "text" in data:
        return _string(data["text"], "text") + "\n"
    if "conversations" in data:
        turns = [(turn["from"], turn["value"]) for turn in data["conversations"]]
    else:
        turns = [(turn["role"], turn["content"]) for turn in data["messages"]]
    if not turns:
        raise ValueError("a chat without messages")
    return render_chat([_message(role, content) for role, content in turns])


def _message(role: Any, content: Any) -> Message:
    if role not in _ROLES:
        raise ValueError(f"the unknown role {role!r}")
    return {"role": _ROLES[role], "content": _string(content, "content")}


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__} where a string should be")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f"{name} holds half of a character in UTF-16")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"the key {error} is missing"
    return first_line(error)


def _too_short(found: int, wanted: int, remedy: str) -> ConvertError:
    return ConvertError(
        Problem(
            f"The text has {found} tokens.",
            f"at least {wanted}",
            f"give a longer text, or {remedy}",
        )
    )

"""Talking to a converted model: turns over onnxruntime-genai, streamed as text."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, raise_if
from converter.runtime.session import Runtime, read_configs

RESET_COMMAND = "/new"
"""Typed instead of a message, it forgets the conversation."""


@dataclass(frozen=True)
class ChatOptions:
    """How to generate. A `temperature` of 0 takes the most likely token each time."""

    max_length: int = 4096
    """Tokens of the whole conversation; the runtime reserves its key/value cache for so many."""
    max_new_tokens: int = 1024
    """Tokens of one answer."""
    temperature: float = 0.0
    top_p: float = 0.8
    seed: int | None = None

    def search(self, context_length: int) -> dict[str, Any]:
        """The `search` options of onnxruntime-genai, for a model of `context_length` tokens."""
        search: dict[str, Any] = {
            "max_length": min(self.max_length, context_length),
            "do_sample": self.temperature > 0,
        }
        if self.temperature > 0:
            search |= {"temperature": self.temperature, "top_p": self.top_p}
        if self.seed is not None:
            search["random_seed"] = self.seed
        return search


class ChatSession:
    """One conversation with the model in a converted folder.

    A folder without a chat template (a base model) completes each text by itself. Raises
    `ConvertError` when the folder is not a converted model, or when a system prompt is given that
    the folder cannot render.
    """

    def __init__(
        self, folder: Path, system: str | None = None, options: ChatOptions | None = None
    ) -> None:
        has_template = "chat_template" in read_configs(folder)[1]
        raise_if(_system_problems(folder, system, has_template))
        self.options, self._runtime = options or ChatOptions(), Runtime(folder)
        self.has_template = self._runtime.has_template
        self._search = self.options.search(self._runtime.context_length)
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self._generator = self._runtime.generator(self._search)
        self.messages = list(self._opening)

    def ask(self, prompt: str) -> Iterator[str]:
        """Yield the answer to `prompt` piece by piece, each valid text.

        The answer becomes part of the conversation once it is complete or the caller stops
        listening. Raises `ConvertError` when the conversation no longer fits.
        """
        asked = [*self.messages, {"role": "user", "content": prompt}]
        self._feed(self._ids(asked, prompt))
        answer: list[str] = []
        try:
            for text in self._generate():
                answer.append(text)
                yield text
        finally:
            self.messages = [*asked, {"role": "assistant", "content": "".join(answer)}]

    def _ids(self, messages: list[dict[str, str]], prompt: str) -> list[int]:
        if not self.has_template:
            bos, ids = self._runtime.bos, self._runtime.encode(prompt)
            return ids if bos and ids[:1] == bos else [*bos, *ids]  # typed already, it is there
        return self._runtime.encode(self._runtime.render(messages))

    def _feed(self, ids: list[int]) -> None:
        """Bring the generator to `ids`; what it already holds of them is not computed again."""
        room = self._search["max_length"]
        if not ids or len(ids) >= room:
            raise ConvertError(
                Problem(
                    f"The conversation has {len(ids)} tokens.",
                    f"at least one and fewer than {room} tokens, so that an answer fits",
                    f"start over ({RESET_COMMAND}), or allow more with max_length",
                )
            )
        shared = self._go_back_to_shared(ids)
        self._generator.append_tokens(ids[shared:])

    def _go_back_to_shared(self, ids: list[int]) -> int:
        """How many of `ids` the generator holds, after it forgot all else.

        onnxruntime-genai has not yet computed keys and values of the last token that it generated;
        appending to it leaves a hole there and gives wrong logits. So that token is taken back, and
        one more, as it only goes back to before a computed one. On DirectML it cannot go back.
        """
        held = int(self._generator.token_count())
        if not held:
            return 0
        if not self._runtime.goes_back:
            self._generator = self._runtime.generator(self._search)
            return 0
        known = list(map(int, self._generator.get_sequence(0)))
        shared = max(0, min(_common_prefix(known, ids), held - 2, len(ids) - 1))
        self._generator.rewind_to(shared)
        return shared

    def _generate(self) -> Iterator[str]:
        stream = self._runtime.tokenizer.create_stream()
        for _ in range(self.options.max_new_tokens):
            if self._generator.is_done():
                return
            self._generator.generate_next_token()
            token = int(self._generator.get_next_tokens()[0])
            if token in self._runtime.stops:
                return
            text = stream.decode(token)
            if text:
                yield text


def run_chat(
    folder: Path,
    system: str | None = None,
    prompt: str | None = None,
    options: ChatOptions | None = None,
) -> int:
    """Talk on the terminal to the model in `folder`, or answer `prompt` once; the exit code.

    Ctrl-C ends an answer, Ctrl-D (or Ctrl-C while typing) the conversation. Raises `ConvertError`
    for what is wrong with the folder or the one prompt.
    """
    session = ChatSession(folder, system, options)
    if prompt is not None:
        _print_answer(session, prompt)
        return 0
    kind = "a chat model" if session.has_template else "no chat template: it continues your text"
    _keep_odd_bytes()
    print(f"{folder.name}, {kind}. {RESET_COMMAND} starts over, Ctrl-D ends.")
    while (typed := _read_prompt()) is not None:
        if typed == RESET_COMMAND:
            session.reset()
        elif typed:
            try:
                _print_answer(session, typed)
            except ConvertError as error:
                print(error, file=sys.stderr)
    return 0


def _keep_odd_bytes() -> None:
    """Let a typed byte that is not UTF-8 become a lone surrogate, which the line is refused for."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def _read_prompt() -> str | None:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _print_answer(session: ChatSession, prompt: str) -> None:
    pieces = session.ask(prompt)
    try:
        for text in pieces:
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
    print(flush=True)


def _system_problems(folder: Path, system: str | None, has_template: bool) -> list[Problem]:
    if system is None or has_template:
        return []
    return [
        Problem(
            f"A system prompt was given, but {folder} has no chat template.",
            "a chat model",
            "leave the system prompt out, or convert a chat model",
        )
    ]


def _common_prefix(left: list[int], right: list[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))

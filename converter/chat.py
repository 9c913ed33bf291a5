"""Talking to a converted model: turns over onnxruntime-genai, streamed as text."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, raise_if

RESET_COMMAND = "/new"
"""Typed instead of a message, it forgets the conversation."""

_LONGEST_RUN = 8_000
_UNBROKEN = re.compile(rb"[^\t-\r 0-9]+")


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
        config, tokenizer_config = _read_configs(folder)
        self.has_template = "chat_template" in tokenizer_config
        raise_if(_system_problems(folder, system, self.has_template))
        self.options = options or ChatOptions()
        self._search = self.options.search(config["context_length"])
        self._bos = [config["bos_token_id"]] if tokenizer_config.get("add_bos_token") else []
        self._runtime, self._model = _load_model(folder)
        self._tokenizer = self._runtime.Tokenizer(self._model)
        self._stops = frozenset(self._tokenizer.eos_token_ids)
        self._goes_back = "dml" not in _providers(config)
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self._generator = self._new_generator()
        self.messages = list(self._opening)

    def _new_generator(self) -> Any:
        params = self._runtime.GeneratorParams(self._model)
        params.set_search_options(**self._search)
        return self._runtime.Generator(self._model, params)

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
            _check_runs(prompt)
            return [*self._bos, *map(int, self._tokenizer.encode(prompt))]
        text = self._tokenizer.apply_chat_template(json.dumps(messages, ensure_ascii=False))
        _check_runs(text)
        return list(map(int, self._tokenizer.encode(text)))

    def _feed(self, ids: list[int]) -> None:
        """Bring the generator to `ids`; what it already holds of them is not computed again."""
        room = self._search["max_length"]
        if not ids or len(ids) >= room:
            raise ConvertError(
                Problem(
                    f"the conversation has {len(ids)} tokens",
                    f"at least one and fewer than {room} tokens, so that an answer fits",
                    f"Start over ({RESET_COMMAND}), or allow more with max_length.",
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
        if not self._goes_back:
            self._generator = self._new_generator()
            return 0
        known = list(map(int, self._generator.get_sequence(0)))
        shared = max(0, min(_common_prefix(known, ids), held - 2, len(ids) - 1))
        self._generator.rewind_to(shared)
        return shared

    def _generate(self) -> Iterator[str]:
        stream = self._tokenizer.create_stream()
        for _ in range(self.options.max_new_tokens):
            if self._generator.is_done():
                return
            self._generator.generate_next_token()
            token = int(self._generator.get_next_tokens()[0])
            if token in self._stops:
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


def _read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    found, problems = [], []
    for name in ("genai_config.json", "tokenizer_config.json"):
        try:
            found.append(json.loads((folder / name).read_text("utf-8")))
        except (OSError, ValueError) as error:
            problems.append(
                Problem(
                    f"{folder / name} cannot be read: {error}",
                    "a folder that `convert` wrote",
                    "Convert the model first: convert recipe=NAME (convert list names them).",
                )
            )
    raise_if(problems)
    return found[0]["model"], found[1]


def _load_model(folder: Path) -> tuple[Any, Any]:
    """The module onnxruntime_genai and its model of `folder`."""
    try:
        import onnxruntime_genai

        return onnxruntime_genai, onnxruntime_genai.Model(str(folder))
    except ImportError:
        problem = Problem(
            "onnxruntime-genai is not installed",
            "the runtime of the converted model",
            'Type: pip install "convert-genai[cpu]" (or [cuda]).',
        )
    except Exception as error:  # onnxruntime-genai raises bare exceptions of several types
        problem = Problem(
            f"onnxruntime-genai cannot load {folder}: {error}",
            "a folder for a provider that this machine has",
            "Convert for this machine, for example with target=cpu.",
        )
    raise ConvertError(problem)


def _providers(config: dict[str, Any]) -> set[str]:
    session_options = config["decoder"].get("session_options", {})
    return {name for entry in session_options.get("provider_options", ()) for name in entry}


def _system_problems(folder: Path, system: str | None, has_template: bool) -> list[Problem]:
    if system is None or has_template:
        return []
    return [
        Problem(
            f"a system prompt was given, but {folder} has no chat template",
            "a chat model",
            "Leave the system prompt out, or convert a chat model.",
        )
    ]


def _check_runs(text: str) -> None:
    """Refuse what ends the process: the runtime matches unbroken text by recursion."""
    longest = max(map(len, _UNBROKEN.findall(text.encode())), default=0)
    if longest > _LONGEST_RUN:
        raise ConvertError(
            Problem(
                f"the text has a run of {longest} bytes without a space, digit or line break",
                f"at most {_LONGEST_RUN}, or onnxruntime-genai's tokenizer overflows its stack",
                "Break the text into lines.",
            )
        )


def _common_prefix(left: list[int], right: list[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))

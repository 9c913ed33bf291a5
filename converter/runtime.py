"""A converted folder in onnxruntime-genai: its model, tokenizer and chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, raise_if

GENAI, ONNXRUNTIME = "onnxruntime_genai", "onnxruntime"
"""Modules that a pass may need; converting itself needs neither."""
_LONGEST_RUN = 8_000
_UNBROKEN = re.compile(rb"[^\t-\r 0-9]+")


def missing_runtime(why: str, without: str, module: str = GENAI) -> Iterator[Problem]:
    """A problem when `module` is not installed; `why` it is needed, and the words `without` it."""
    if find_spec(module) is None:
        yield Problem(
            f"{module.replace('_', '-')} is not installed, and {why}.",
            "a runtime to load the folder with",
            f"pip install 'convert-genai[cpu]', or add {without}",
        )


class Runtime:
    """The model in `folder`, loaded.

    Raises `ConvertError` when the folder is not a converted model, or cannot be loaded here.

    Attributes:
        has_template: whether it is a chat model; a base model continues text.
        context_length: tokens that prompt and answer may have together.
        bos: the ids that begin a text, which the runtime's encoder does not add.
        stops: ids that end an answer.
        goes_back: whether a generator can forget its last tokens.
    """

    def __init__(self, folder: Path) -> None:
        config, tokenizer_config = read_configs(folder)
        self.folder = folder
        self.has_template = "chat_template" in tokenizer_config
        self.context_length: int = config["context_length"]
        self.bos = [config["bos_token_id"]] if tokenizer_config.get("add_bos_token") else []
        self.goes_back = "dml" not in _providers(config)
        self._module, self._model = _load_model(folder)
        self.tokenizer = self._module.Tokenizer(self._model)
        self.stops = frozenset(map(int, self.tokenizer.eos_token_ids))

    def generator(self, search: Mapping[str, Any]) -> Any:
        """A new generator with the `search` options of onnxruntime-genai."""
        params = self._module.GeneratorParams(self._model)
        params.set_search_options(**search)
        return self._module.Generator(self._model, params)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The messages as the chat template writes them, an answer's beginning behind them."""
        text: str = self.tokenizer.apply_chat_template(
            json.dumps(list(messages), ensure_ascii=False), add_generation_prompt=True
        )
        return text

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS; raises `ConvertError` for one that the tokenizer cannot."""
        _check_runs(text)
        return list(map(int, self.tokenizer.encode(text)))


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `model` section of genai_config.json, and tokenizer_config.json."""
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

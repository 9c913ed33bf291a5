"""A converted folder in onnxruntime-genai: its model, tokenizer and chat template."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, first_line, raise_if
from converter.output.published import read_lock
from converter.providers import PROVIDERS
from converter.storage.staging import LOCK
from converter.tokenizer.runtime_tokenizer import template_words

CONFIG = "genai_config.json"
GENAI, ONNXRUNTIME = "onnxruntime_genai", "onnxruntime"
"""Modules that a pass may need; converting itself needs neither."""
LARGEST_SEED = 2**31 - 1
"""The runtime keeps a seed in 32 bits; a negative one would be drawn anew each time."""
_LONGEST_RUN = 8_000
_UNBROKEN = re.compile(rb"[^\t-\r 0-9]+|[\t-\r ]+")


def missing_runtime(why: str, without: str, module: str = GENAI) -> Iterator[Problem]:
    """A problem when `module` is not installed; `why` it is needed, and the words `without` it."""
    if find_spec(module) is None:
        yield Problem(
            f"{module.replace('_', '-')} is not installed, and {why}.",
            "a runtime to load the folder with",
            f"pip install 'convert-genai[cpu]', or add {without}",
        )


def number_problems(
    name: str, value: float, least: float, most: float = math.inf
) -> Iterator[Problem]:
    """A problem when the option `name` is no number from `least` to `most`."""
    if not (math.isfinite(value) and least <= value <= most):
        expected = f"a number of at least {least}" if most == math.inf else f"{least} to {most}"
        yield Problem(f"{name} {value}.", expected, f"leave {name} out for its default")


class Runtime:
    """The model in `folder`, loaded.

    Raises `ConvertError` when the folder is not a converted model, or cannot be loaded here.

    Attributes:
        has_template: whether it is a chat model; a base model continues text.
        context_length: tokens that prompt and answer may have together.
        bos: the ids that begin a text, which the runtime's encoder does not add.
        start: the id after which a text of its own begins; a stop token where there is no bos.
        stops: ids that end an answer.
        goes_back: whether a generator can forget its last tokens.
    """

    def __init__(self, folder: Path) -> None:
        config, tokenizer_config = read_configs(folder)
        self.folder = folder
        self.has_template = "chat_template" in tokenizer_config
        self.context_length: int = config["context_length"]
        bos = config.get("bos_token_id")
        self.bos = [bos] if tokenizer_config.get("add_bos_token") and bos is not None else []
        self._module = _import_runtime()
        with _loading(folder, _OTHER_PROVIDER):
            self._model = self._module.Model(str(folder))
        self.goes_back = all(_rewinds(name) for name in _providers(config))
        with _loading(folder, _BROKEN_TOKENIZER):
            self.tokenizer = self._module.Tokenizer(self._model)
        stops = list(map(int, self.tokenizer.eos_token_ids))
        self.stops = frozenset(stops)
        self.start = stops[0] if bos is None else int(bos)

    def generator(self, search: Mapping[str, Any]) -> Any:
        """A new generator with the `search` options of onnxruntime-genai."""
        params = self._module.GeneratorParams(self._model)
        params.set_search_options(**search)
        return self._module.Generator(self._model, params)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The messages as the chat template writes them, an answer's beginning behind them.

        Raises `ConvertError` for what is no text, and for what the template refuses.
        """
        for message in messages:
            _encoded(message["content"])
        try:
            text: str = self.tokenizer.apply_chat_template(
                json.dumps(list(messages), ensure_ascii=False), add_generation_prompt=True
            )
        except (RuntimeError, UnicodeDecodeError) as error:
            raise ConvertError(_refused(error)) from error
        return text

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS; raises `ConvertError` for one that the tokenizer cannot."""
        _check_runs(text)
        return list(map(int, self.tokenizer.encode(text)))


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `model` section of genai_config.json, and tokenizer_config.json.

    Raises:
        ConvertError: lists what is missing or is not what every conversion writes.
    """
    config, problems = _read_object(folder / CONFIG)
    tokenizer_config, more = _read_object(folder / "tokenizer_config.json")
    if config is not None:
        problems += _config_problems(folder / CONFIG, config)
    raise_if([*problems, *more])
    assert config is not None and tokenizer_config is not None
    return config["model"], tokenizer_config


def _read_object(path: Path) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The JSON object in a file of the folder; None, and why, when there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return None, [_not_converted(f"{path} cannot be read: {first_line(error)}")]
    if not isinstance(content, dict):
        return None, [_not_converted(f"{path} holds a {type(content).__name__}, not an object")]
    return content, []


def _config_problems(path: Path, config: Mapping[str, Any]) -> Iterator[Problem]:
    model = config.get("model")
    if not isinstance(model, dict):
        yield _not_converted(f"{path} has no model section")
        return
    kinds: dict[str, type] = {"context_length": int, "decoder": dict}
    if "bos_token_id" in model:
        kinds["bos_token_id"] = int
    for key, kind in kinds.items():
        if not isinstance(model.get(key), kind):
            found = json.dumps(model[key]) if key in model else "nothing"
            yield _not_converted(f"{path}: model.{key} is {found}")


def _not_converted(found: str) -> Problem:
    return Problem(
        f"{found}.",
        "a folder that `convert` wrote",
        "convert the model first: convert recipe=NAME (convert list names them)",
    )


def _import_runtime() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise ConvertError(
            Problem(
                "onnxruntime-genai is not installed.",
                "the runtime of the converted model",
                'pip install "convert-genai[cpu]" (or [cuda])',
            )
        ) from error
    return onnxruntime_genai


_OTHER_PROVIDER = (
    "a folder for a provider that this machine has",
    "convert for this machine, for example with target=cpu",
)
_BROKEN_TOKENIZER = (
    "the tokenizer files that `convert` wrote",
    "copy the folder again from where it was made, or convert the model again",
)


@contextmanager
def _loading(folder: Path, otherwise: tuple[str, str]) -> Iterator[None]:
    """Give a failure to load as a `ConvertError`: damaged files, or `otherwise`."""
    try:
        yield
    except Exception as error:  # onnxruntime-genai raises bare exceptions of several types
        raise_if(_damage(folder))
        found = f"onnxruntime-genai cannot load {folder}: {str(error).rstrip('.')}."
        raise ConvertError(Problem(found, *otherwise)) from error


def _damage(folder: Path) -> Iterator[Problem]:
    """Files that have not the size that the lock file says; none without a lock file.

    genai_config.json is left out: its options are for its users to set.
    """
    try:
        files = read_lock(folder)["files"]
    except ConvertError:
        return
    for name in sorted(set(files) - {CONFIG}):
        path, size = folder / name, files[name]["size"]
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            has = "is missing" if found is None else f"has {found:,} bytes"
            yield Problem(
                f"{path} {has}, its lock file says {size:,}.",
                f"the file that {LOCK} names",
                "copy the folder again from where it was made, or convert the model again",
            )


def _providers(config: dict[str, Any]) -> set[str]:
    session_options = config["decoder"].get("session_options") or {}
    return {name for entry in session_options.get("provider_options", ()) for name in entry}


def _rewinds(provider: str) -> bool:
    return provider not in PROVIDERS or PROVIDERS[provider].rewinds


def _refused(error: RuntimeError | UnicodeDecodeError) -> Problem:
    return Problem(
        f"The chat template refuses this conversation: {template_words(error)}.",
        "messages as the model's template allows them",
        "leave the system prompt out, or let user and assistant take turns",
    )


def _encoded(text: str) -> bytes:
    """The text as UTF-8; a byte of the terminal that was none is a lone surrogate in it."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConvertError(
            Problem(
                f"Character {error.start + 1} of the text was not read as UTF-8.",
                "UTF-8 text",
                "change its encoding, for example: iconv -f latin1 -t utf-8 FILE",
            )
        ) from error


def _check_runs(text: str) -> None:
    """Refuse what ends the process: the runtime matches unbroken text by recursion."""
    longest = max(map(len, _UNBROKEN.findall(_encoded(text))), default=0)
    if longest > _LONGEST_RUN:
        raise ConvertError(
            Problem(
                f"The text has a run of {longest} bytes without a blank or digit, or of blanks.",
                f"at most {_LONGEST_RUN}, or onnxruntime-genai's tokenizer overflows its stack",
                "break the text into lines, or shorten its blanks",
            )
        )

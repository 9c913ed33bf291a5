"""The tokenizer files of a converted model.

`transformers`, `tokenizers` and onnxruntime-genai all read the written folder to the ids that
SentencePiece gives. What remains different, because the runtime cannot do otherwise:

- NUL (piece 354 of InternLM2): `tokenizers` and `transformers` give 354, as sentencepiece did up to
  0.2.0; sentencepiece 0.2.3 gives the byte piece 3; onnxruntime-genai reads C strings and stops.
- Text that spells a special token, `<s>` or `<|im_end|>`, becomes that token, because chat
  templates write them as text. SentencePiece itself never makes a CONTROL piece out of text.
- onnxruntime-genai overflows its stack on a run of about 20 kB without any space, digit or line
  break (measured with Linux's usual 8 MB of stack).
- A model with a dummy prefix (Llama's, not InternLM2's): onnxruntime-genai keeps the prefix's space
  when it decodes, and the prefix follows a special token where SentencePiece puts it first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, first_line, raise_if
from converter.tokenizer.chat_template import (
    IM_END,
    PUBLISHED_TEMPLATE,
    uses_im_end,
    with_tool_forms,
)
from converter.tokenizer.merges import WHOLE_TEXT_PATTERN
from converter.tokenizer.sentencepiece_model import SentencePieceModel, read_sentencepiece_model
from converter.tokenizer.special_tokens import (
    CHAT_TOKENS,
    Declared,
    chat_token_id,
    declared_tokens,
    resolve_added_tokens,
)
from converter.tokenizer.tokenizer_json import (
    added_token,
    build_tokenizer_json,
    mend_tokenizer_json,
    token_ids,
    tokenizer_json_problems,
)

_JSON_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config.json",
)
_TEMPLATE = "chat_template.jinja"
_READ = (*_JSON_FILES, _TEMPLATE, "tokenizer.model", "tokenizer.json")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """What packaging writes, and what genai_config.json has to say about it.

    `files` are contents by name; `special_tokens` maps texts to ids; `notes` say what was mended.
    `eos_token_ids` are the stop tokens: those of generation_config.json (else config.json, else the
    tokenizer's), and `<|im_end|>` for a chat model.
    """

    files: dict[str, bytes]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    special_tokens: dict[str, int]
    chat_template: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def is_chat(self) -> bool:
        """Whether the folder can render a conversation."""
        return self.chat_template is not None


def prepare_tokenizer(checkpoint_folder: Path, vocab_size: int) -> TokenizerFiles:
    """Make the tokenizer files of the checkpoint in `checkpoint_folder`.

    `vocab_size` is the number of rows of the embedding. tokenizer.model decides where there is one;
    a checkpoint's own tokenizer.json is used only without it. No code of the checkpoint is read.
    Raises `ConvertError` with every problem: a missing or truncated file, a tokenizer that is not
    BPE, ids past the embedding, files that contradict each other.
    """
    paths = (checkpoint_folder / name for name in _READ)
    stamp = tuple((path.name, *_stamp(path)) for path in paths if path.is_file())
    return _prepare(checkpoint_folder, vocab_size, stamp)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and modification time: files are read again when they have changed."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=2)  # a check before the work, and several passes, want the same one
def _prepare(
    checkpoint_folder: Path, vocab_size: int, stamp: tuple[tuple[str, int, int], ...]
) -> TokenizerFiles:
    settings = _read_settings(checkpoint_folder)
    sentencepiece = checkpoint_folder / "tokenizer.model"
    if sentencepiece.is_file():
        return _from_sentencepiece(
            read_sentencepiece_model(sentencepiece), settings, vocab_size, checkpoint_folder
        )
    if (checkpoint_folder / "tokenizer.json").is_file():
        return _from_tokenizer_json(checkpoint_folder / "tokenizer.json", settings, vocab_size)
    raise ConvertError(
        Problem(
            f"{checkpoint_folder} has no tokenizer.model and no tokenizer.json.",
            "one of them",
            "copy tokenizer.model from the model's repository into the folder",
        )
    )


def _read_settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    problems: list[Problem] = []
    for name in _JSON_FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            settings[name] = _read_json(path)
        except ConvertError as error:
            problems += error.problems
    template = folder / _TEMPLATE
    if template.is_file():
        try:
            text = template.read_text("utf-8")
            settings.setdefault("tokenizer_config.json", {})["chat_template"] = text
        except (OSError, ValueError) as error:
            found = f"{template} cannot be read: {first_line(error)}."
            problems.append(Problem(found, "a text file in UTF-8", "fetch the file again"))
    raise_if(problems)
    return settings


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConvertError(
            Problem(
                f"{path} is not JSON: {first_line(error)}.", "a JSON object", "fetch the file again"
            )
        ) from None
    if not isinstance(content, dict):
        raise ConvertError(
            Problem(f"{path} holds a {type(content).__name__}.", "a JSON object", "fetch it again")
        )
    return content


def _from_sentencepiece(
    model: SentencePieceModel, settings: dict[str, Any], vocab_size: int, folder: Path
) -> TokenizerFiles:
    raise_if(_size_problems(folder / "tokenizer.model", len(model.pieces), vocab_size))
    declared = declared_tokens(settings)
    template = _chat_template(settings, IM_END in declared)
    if uses_im_end(template):
        for text in CHAT_TOKENS:
            if chat_token_id(model, text) is not None:
                declared.setdefault(text, Declared(None))
    added = resolve_added_tokens(model, declared, vocab_size)
    raise_if(added.problems)
    given = settings.get("tokenizer_config.json", {})
    add_bos = {"add_bos_token": bool(given.get("add_bos_token", True)) and model.bos_id >= 0}
    content = build_tokenizer_json(model, added, **add_bos)
    notes = added.notes + _whole_text_notes(content)
    if (folder / "tokenizer.json").is_file():
        notes.append("tokenizer.json was made anew from tokenizer.model")
    settings["tokenizer_config.json"] = {**_names_in(model), **given, **add_bos}
    prepared = _assemble(content, settings, template, notes, vocab_size)
    prepared.files["tokenizer.model"] = model.content
    return prepared


def _names_in(model: SentencePieceModel) -> dict[str, str]:
    ids = (model.bos_id, model.eos_id, model.unk_id, model.pad_id)
    return {
        name: model.pieces[index]
        for name, index in zip(_NAMED_TOKENS, ids, strict=True)
        if index >= 0
    }


def _from_tokenizer_json(path: Path, settings: dict[str, Any], vocab_size: int) -> TokenizerFiles:
    content = _read_json(path)
    raise_if(tokenizer_json_problems(content, vocab_size))
    notes: list[str] = []
    content = mend_tokenizer_json(content, notes)
    template = _chat_template(settings, IM_END in token_ids(content))
    return _assemble(content, settings, template, notes, vocab_size)


def _size_problems(path: Path, pieces: int, vocab_size: int) -> list[Problem]:
    if pieces <= vocab_size:
        return []
    return [
        Problem(
            f"{path} has {pieces} pieces, the embedding {vocab_size} rows.",
            "a row for every piece",
            "take tokenizer.model and the weights from the same repository",
        )
    ]


def _whole_text_notes(content: dict[str, Any]) -> list[str]:
    if content["pre_tokenizer"]["pattern"]["Regex"] != WHOLE_TEXT_PATTERN:
        return []
    return [
        "this vocabulary allows no safe split of the text, so onnxruntime-genai tokenizes a prompt "
        "as a whole: it is slow on long prompts and fails above about 20 kB"
    ]


def _chat_template(settings: dict[str, Any], declares_im_end: bool) -> str | None:
    """The template to write; InternLM2's own for a chat checkpoint that was published without."""
    template = settings.get("tokenizer_config.json", {}).get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if template is None and declares_im_end:
        template = PUBLISHED_TEMPLATE
    return None if template is None else with_tool_forms(template)


def _assemble(
    content: dict[str, Any],
    settings: dict[str, Any],
    template: str | None,
    notes: list[str],
    vocab_size: int,
) -> TokenizerFiles:
    ids = token_ids(content)
    names = _token_names(settings, ids)
    stops = _stop_tokens(settings, ids.get(names.get("eos_token", "")), notes)
    if uses_im_end(template) and IM_END in ids and ids[IM_END] not in stops:
        stops = (*stops, ids[IM_END])
        notes.append(f"{IM_END} ({ids[IM_END]}) was added to the stop tokens of a chat model")
    raise_if(_stop_problems(stops, vocab_size))
    if "pad_token" not in names:
        names["pad_token"] = next(text for text, index in ids.items() if index == stops[0])
    special = {
        token["content"]: token["id"] for token in content["added_tokens"] if token["special"]
    }
    additional = [text for text in special if text not in names.values()]
    tokens_map = {**names, "additional_special_tokens": additional}
    config = _tokenizer_config(settings, content, tokens_map, template)
    return TokenizerFiles(
        files={
            "tokenizer.json": _json_bytes(content, indent=None),
            "tokenizer_config.json": _json_bytes(config),
            "special_tokens_map.json": _json_bytes(tokens_map),
        },
        bos_token_id=ids.get(names.get("bos_token", "")),
        eos_token_ids=stops,
        pad_token_id=ids[names["pad_token"]],
        special_tokens=special,
        chat_template=template,
        notes=tuple(notes),
    )


def _token_names(settings: dict[str, Any], ids: dict[str, int]) -> dict[str, str]:
    """Texts of bos, eos, unk and pad, as the checkpoint names them and where they have an id."""
    named: dict[str, str] = {}
    for source in ("special_tokens_map.json", "tokenizer_config.json"):
        for key in _NAMED_TOKENS:
            value = settings.get(source, {}).get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if text in ids:
                named[key] = text
    return named


def _stop_tokens(
    settings: dict[str, Any], eos_token_id: int | None, notes: list[str]
) -> tuple[int, ...]:
    for source in ("generation_config.json", "config.json"):
        value = settings.get(source, {}).get("eos_token_id")
        if value is not None:
            return tuple(dict.fromkeys(value if isinstance(value, list) else [value]))
    if eos_token_id is None:
        return ()
    notes.append("no config names a stop token; the tokenizer's eos token is used")
    return (eos_token_id,)


def _stop_problems(stops: tuple[int, ...], vocab_size: int) -> list[Problem]:
    remedy = 'set "eos_token_id" in generation_config.json'
    if not stops:
        return [Problem("No stop token is named anywhere.", "an eos_token_id", remedy)]
    return [
        Problem(f"The stop token {index} has no row.", f"an id below {vocab_size}", remedy)
        for index in stops
        if not 0 <= index < vocab_size
    ]


def _tokenizer_config(
    settings: dict[str, Any],
    content: dict[str, Any],
    tokens_map: dict[str, Any],
    template: str | None,
) -> dict[str, Any]:
    """tokenizer_config.json for the class that only reads tokenizer.json, in transformers 4 and 5.

    A class name of a model family would make transformers rebuild the tokenizer its own way, and
    `auto_map` would make it ask for the repository's code.
    """
    given = settings.get("tokenizer_config.json", {})
    kept = ("add_bos_token", "add_eos_token", "model_max_length", "padding_side")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{key: given[key] for key in kept if key in given},
        **tokens_map,
        "added_tokens_decoder": {
            str(token["id"]): added_token(token["content"], token["special"])
            for token in content["added_tokens"]
        },
    }
    if template is not None:
        config["chat_template"] = template
    return config


def _json_bytes(content: dict[str, Any], indent: int | None = 2) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=indent).encode("utf-8")

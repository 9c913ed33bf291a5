"""The tokenizer files of a converted model.

`transformers`, `tokenizers` and onnxruntime-genai all read the written folder to the ids that
SentencePiece gives. What remains different, because the runtime cannot do otherwise:

- NUL (piece 354 of InternLM2): `tokenizers` and `transformers` give 354, as sentencepiece did up to
  0.2.0; sentencepiece 0.2.3 gives the byte piece 3; onnxruntime-genai reads C strings and stops.
- Text that spells a special token, `<s>` or `<|im_end|>`, becomes that token, because chat
  templates write them as text. SentencePiece itself never makes a CONTROL piece out of text.
- onnxruntime-genai overflows its stack on a run of about 20 kB without any space, digit or line
  break, or of blanks only (measured with Linux's usual 8 MB of stack).
- A model with a dummy prefix (Llama's, not InternLM2's): onnxruntime-genai keeps the prefix's space
  when it decodes, and the prefix follows a special token where SentencePiece puts it first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from converter.errors import ConvertError, Problem, gathered, raise_if
from converter.tokenizer.chat_template import (
    IM_END,
    PUBLISHED_TEMPLATE,
    uses_im_end,
    with_tool_forms,
)
from converter.tokenizer.comparison import Comparison, Expected
from converter.tokenizer.merges import WHOLE_TEXT_PATTERN
from converter.tokenizer.post_processor import adds_token
from converter.tokenizer.read_texts import read_texts
from converter.tokenizer.remembered import remembered_comparison
from converter.tokenizer.rewritten_template import rewritten_template
from converter.tokenizer.sentencepiece_model import SentencePieceModel, read_sentencepiece_model
from converter.tokenizer.settings import (
    NAMED_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    TOKENS_MAP,
    read_settings,
    settings_files,
    token_text,
)
from converter.tokenizer.special_tokens import (
    CHAT_TOKENS,
    Declared,
    chat_token_id,
    declared_tokens,
    resolve_added_tokens,
)
from converter.tokenizer.stop_tokens import StopTokens, stop_problems, stop_tokens, turn_end
from converter.tokenizer.template_source import TemplateSource, template_source
from converter.tokenizer.tokenizer_json import (
    build_tokenizer_json,
    mend_tokenizer_json,
    read_with_library,
    token_ids,
    tokenizer_json_problems,
)
from converter.tokenizer.tool_tokens import hidden_tool_tokens

_SENTENCEPIECE = "tokenizer.model"
_TOKEN_SETTINGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenizerFiles:
    """What packaging writes, and what genai_config.json has to say about it.

    `files` are contents by name; `special_tokens` maps texts to ids; `notes` say what was mended.
    `eos_token_ids` are the stop tokens: those of generation_config.json, config.json, the
    tokenizer's eos token, and what ends a turn in the chat template. `expected` is what
    transformers makes of the checkpoint's own files.
    """

    files: dict[str, bytes]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    special_tokens: dict[str, int]
    expected: Expected
    chat_template: str | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def is_chat(self) -> bool:
        """Whether the folder can render a conversation."""
        return self.chat_template is not None

    @property
    def hidden_tool_tokens(self) -> list[str]:
        """Tokens of a tool call that decoded text leaves out."""
        if self.chat_template is None:
            return []
        return hidden_tool_tokens(self.chat_template, self.special_tokens, self.expected.names)

    @cached_property
    def comparison(self) -> Comparison:
        """What onnxruntime-genai reads differently, asked once; see `remembered_comparison`."""
        return remembered_comparison(self.files, self.expected)


def prepare_tokenizer(checkpoint_folder: Path, vocab_size: int) -> TokenizerFiles:
    """Make the tokenizer files of the checkpoint in `checkpoint_folder`.

    `vocab_size` is the number of rows of the embedding. tokenizer.model decides where there is one,
    and a tokenizer.json beside it only declares added tokens. No code of the checkpoint is read.
    Raises `ConvertError` with every problem: a missing or truncated file, a tokenizer that is not
    BPE, ids past the embedding, files that contradict each other.
    """
    paths = [*settings_files(checkpoint_folder), checkpoint_folder / _SENTENCEPIECE]
    stamp = tuple((str(path), *_stamp(path)) for path in paths if path.is_file())
    return _prepare(checkpoint_folder, vocab_size, stamp)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and modification time: files are read again when they have changed."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=2)  # a check before the work, and several passes, want the same one
def _prepare(
    checkpoint_folder: Path, vocab_size: int, stamp: tuple[tuple[str, int, int], ...]
) -> TokenizerFiles:
    settings = read_settings(checkpoint_folder)
    sentencepiece = checkpoint_folder / _SENTENCEPIECE
    if sentencepiece.is_file():
        model = read_sentencepiece_model(sentencepiece)
        return _from_sentencepiece(model, settings, vocab_size, checkpoint_folder)
    if TOKENIZER_JSON in settings:
        return _from_tokenizer_json(settings, vocab_size, checkpoint_folder)
    raise ConvertError(
        Problem(
            f"{checkpoint_folder} has no tokenizer.model and no tokenizer.json.",
            "one of them",
            "copy tokenizer.model from the model's repository into the folder",
        )
    )


def _from_sentencepiece(
    model: SentencePieceModel, settings: dict[str, Any], vocab_size: int, folder: Path
) -> TokenizerFiles:
    raise_if(_size_problems(folder / _SENTENCEPIECE, len(model.pieces), vocab_size))
    declared = declared_tokens(settings)
    template = _template_source(settings, IM_END in declared)
    if uses_im_end(template.default):
        declared |= _assumed_chat_tokens(model, declared, vocab_size)
    added = resolve_added_tokens(model, declared, vocab_size)
    raise_if([*gathered(added.problems), *template.problems])
    given = settings.get(TOKENIZER_CONFIG, {})
    add_bos = {"add_bos_token": bool(given.get("add_bos_token", True)) and model.bos_id >= 0}
    content = build_tokenizer_json(model, added, **add_bos)
    notes = [*added.notes, *_whole_text_notes(content)]
    if TOKENIZER_JSON in settings:
        notes.append("tokenizer.json was made anew from tokenizer.model and what both declare")
    settings[TOKENIZER_CONFIG] = {**_names_in(model), **given, **add_bos}
    prepared = _assemble(content, Expected(None), settings, template, notes, vocab_size)
    prepared.files[_SENTENCEPIECE] = model.content
    return prepared


def _assumed_chat_tokens(
    model: SentencePieceModel, declared: Mapping[str, Declared], vocab_size: int
) -> dict[str, Declared]:
    """InternLM2's chat tokens that no file declares; none for a model that has them elsewhere."""
    known = {text: chat_token_id(model, text) for text in CHAT_TOKENS}
    given = {text: declared[text].index for text in CHAT_TOKENS if text in declared}
    if any(
        index is not None and 0 <= index < vocab_size and index != known[text]
        for text, index in given.items()
    ):
        return {}
    return {
        text: Declared(None)
        for text, index in known.items()
        if index is not None and text not in declared
    }


def _names_in(model: SentencePieceModel) -> dict[str, str]:
    ids = (model.bos_id, model.eos_id, model.unk_id, model.pad_id)
    return {
        name: model.pieces[index]
        for name, index in zip(NAMED_TOKENS, ids, strict=True)
        if index >= 0
    }


def _from_tokenizer_json(settings: dict[str, Any], vocab_size: int, folder: Path) -> TokenizerFiles:
    original = settings[TOKENIZER_JSON]
    raise_if(tokenizer_json_problems(original, vocab_size))
    texts = read_texts(read_with_library((folder / TOKENIZER_JSON).read_bytes()))
    notes: list[str] = []
    content = mend_tokenizer_json(original, notes)
    ids = token_ids(content)
    template = _template_source(settings, all(text in ids for text in CHAT_TOKENS))
    raise_if(template.problems)
    given = settings.get(TOKENIZER_CONFIG, {})
    bos = ids.get(_named_texts(settings, ids).get("bos_token", ""))
    if bos is not None:
        add_bos = bool(given.get("add_bos_token", False))
        if original.get("post_processor"):
            add_bos = adds_token(original["post_processor"], bos)
        if given.get("add_bos_token", add_bos) != add_bos:
            notes.append(
                f"add_bos_token of {TOKENIZER_CONFIG} is not what post_processor of "
                f"{TOKENIZER_JSON} does; the latter counts"
            )
        settings[TOKENIZER_CONFIG] = {**given, "add_bos_token": add_bos}
    expected = Expected(texts, content is not original)
    return _assemble(content, expected, settings, template, notes, vocab_size)


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


def _template_source(settings: dict[str, Any], is_internlm2_chat: bool) -> TemplateSource:
    """The checkpoint's template; InternLM2's own for a chat checkpoint that has none."""
    found = template_source(settings)
    if found.default is None and not found.problems and is_internlm2_chat:
        found.default = PUBLISHED_TEMPLATE
        found.notes.append("the source has no chat template; it got InternLM2's published one")
    if found.default is not None:
        found.default = with_tool_forms(found.default)
    return found


def _assemble(
    content: dict[str, Any],
    expected: Expected,
    settings: dict[str, Any],
    template: TemplateSource,
    notes: list[str],
    vocab_size: int,
) -> TokenizerFiles:
    ids = token_ids(content)
    tokens = content.get("added_tokens") or ()
    added = {token["content"]: token["id"] for token in tokens}
    kinds = {token["content"]: bool(token.get("special")) for token in tokens}
    named, names = _named_texts(settings), _named_texts(settings, ids)
    notes += [*template.notes, *_unknown_names(named, ids)]
    written = rewritten_template(template, named, notes)
    stops = _stops(settings, template.default, named, added, ids)
    raise_if(stop_problems(stops, vocab_size))
    notes += stops.notes()
    texts = {index: text for text, index in ids.items()}
    notes += [
        f"the stop token {index} has a row but no text in the tokenizer"
        for index in stops.ids
        if index not in texts
    ]
    if "pad_token" not in names and stops.ids[0] in texts:
        names["pad_token"] = texts[stops.ids[0]]
    special = {text: index for text, index in added.items() if kinds[text]}
    additional = [text for text in special if text not in names.values()]
    tokens_map = {**names, "additional_special_tokens": additional}
    config = _tokenizer_config(settings, content, tokens_map, written)
    return TokenizerFiles(
        files={
            TOKENIZER_JSON: _json_bytes(content, indent=None),
            TOKENIZER_CONFIG: _json_bytes(config),
            TOKENS_MAP: _json_bytes(tokens_map),
        },
        bos_token_id=ids.get(names.get("bos_token", "")),
        eos_token_ids=stops.ids,
        pad_token_id=ids[names["pad_token"]] if "pad_token" in names else stops.ids[0],
        special_tokens=special,
        expected=replace(
            expected, template=template.default, tool_use=template.tool_use, names=named
        ),
        chat_template=written,
        notes=tuple(notes),
    )


def _named_texts(
    settings: Mapping[str, Any], among: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Texts of bos, eos, unk and pad, as the checkpoint names them; only those `among` others."""
    named: dict[str, str] = {}
    for source in (TOKENS_MAP, TOKENIZER_CONFIG):
        for key in NAMED_TOKENS:
            text = token_text(settings.get(source, {}).get(key))
            if text is not None and (among is None or text in among):
                named[key] = text
    return named


def _unknown_names(named: Mapping[str, str], ids: Mapping[str, int]) -> Iterator[str]:
    for key, text in named.items():
        if text not in ids:
            yield f"the {key} {text} has no id in the tokenizer and is left out"


def _stops(
    settings: dict[str, Any],
    template: str | None,
    named: Mapping[str, str],
    added: Mapping[str, int],
    ids: Mapping[str, int],
) -> StopTokens:
    """The stop tokens; a template that writes `<|im_end|>` ends its turns with it."""
    end = None if template is None else turn_end(template, named, added)
    if end is None and uses_im_end(template):
        end = IM_END
    return stop_tokens(settings, end, ids)


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
    given = settings.get(TOKENIZER_CONFIG, {})
    kept = ("add_bos_token", "add_eos_token", "model_max_length", "padding_side")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{key: given[key] for key in kept if key in given},
        **tokens_map,
        "added_tokens_decoder": {
            str(token["id"]): {key: token.get(key, False) for key in _TOKEN_SETTINGS}
            for token in content.get("added_tokens") or ()
        },
    }
    if template is not None:
        config["chat_template"] = template
    return config


def _json_bytes(content: dict[str, Any], indent: int | None = 2) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=indent).encode("utf-8")

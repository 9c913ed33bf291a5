"""Tokenizers of GGUF files: ids against SentencePiece and the library `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_files import GPT2, SIZES, SPECIAL, TEMPLATE, TEXT, add_value, byte_level_keys, trained
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors

from converter.errors import ConvertError
from converter.gguf.header import GgufHeader, read_header
from converter.gguf.pre_tokenizers import PRE_TOKENIZERS
from converter.gguf.tokenizer import tokenizer_files, tokenizer_folder
from converter.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED
from converter.storage.cache import only_reading
from converter.tokenizer.hard_texts import hard_texts
from converter.tokenizer.prepare import TokenizerFiles, prepare_tokenizer
from converter.tokenizer.sentencepiece_model import UNKNOWN, read_sentencepiece_model

DATA = Path(__file__).resolve().parents[2] / "data"
MODEL = DATA / "tokenizer" / "tokenizer.model"


def header_of(path: Path, **keys: Any) -> GgufHeader:
    """A file with a tokenizer and no tensors; `tokenizer.ggml.` stands before the keys."""
    writer = gguf.GGUFWriter(path / "t.gguf", "llama")
    for key, value in SIZES.items():
        add_value(writer, f"llama.{key}", value)
    for key, value in keys.items():
        place = key if key.startswith("tokenizer.") else f"tokenizer.ggml.{key}"
        if value is not None:
            add_value(writer, place, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return read_header(path / "t.gguf")


def prepared(header: GgufHeader, folder: Path, rows: int) -> TokenizerFiles:
    """What a conversion makes of the file's tokenizer."""
    source = folder / "source"
    source.mkdir()
    for name, content in tokenizer_files(header).items():
        (source / name).write_bytes(content)
    return prepare_tokenizer(source, rows)


def texts() -> Iterator[str]:
    return (text for _, text in hard_texts(SPECIAL) if "\0" not in text)


def sentencepiece_keys(**more: Any) -> dict[str, Any]:
    """What llama.cpp's converter stores of the real tokenizer.model: see `_kinds` of the reader."""
    model = read_sentencepiece_model(MODEL)
    types = [
        UNUSED if piece.startswith("[UNUSED") else NORMAL if kind == USER_DEFINED else kind
        for piece, kind in zip(model.pieces, model.types, strict=True)
    ]
    return {
        "model": "llama",
        "pre": "default",
        "tokens": list(model.pieces),
        "scores": list(model.scores),
        "token_type": types,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_space_prefix": False,
        **more,
    }


@pytest.mark.slow
def test_a_real_sentencepiece_vocabulary_gives_sentencepieces_ids(tmp_path: Path) -> None:
    made = prepared(header_of(tmp_path, **sentencepiece_keys()), tmp_path, 92544)
    own = SentencePieceProcessor(model_file=str(MODEL))
    found = Tokenizer.from_str(made.files["tokenizer.json"].decode())
    for text in texts():
        if not any(token in text for token in SPECIAL):
            assert found.encode(text, add_special_tokens=False).ids == own.encode(text), text
    assert made.bos_token_id == 1 and made.eos_token_ids == (2,)
    assert not any("safe split" in note for note in made.notes)
    assert found.encode("a").ids[0] == 1  # add_bos_token is true where the file says nothing


def small_model(**more: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary of a few pieces and all bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    scores = [0.0] * len(pieces)
    for rank, piece in enumerate(("ab", "▁ab", "abab")):
        pieces.append(piece)
        types.append(NORMAL)
        scores.append(-float(rank))
    for piece in ("▁", "a", "b", "[", "X", "]"):
        pieces.append(piece)
        types.append(NORMAL)
        scores.append(-1e9)
    pieces += ["[X]", "<|end|>", "[PAD1]", "[PAD2]"]
    types += [NORMAL, CONTROL, UNUSED, UNUSED]
    scores += [0.0, 0.0, -1e4, -1e4]
    keys = {"model": "llama", "tokens": pieces, "token_type": types, "scores": scores}
    return keys | {"eos_token_id": pieces.index("<|end|>")} | more


def test_a_small_sentencepiece_vocabulary(tmp_path: Path) -> None:
    keys = small_model(add_bos_token=False)
    made = prepared(header_of(tmp_path, **keys), tmp_path, len(keys["tokens"]))
    found = Tokenizer.from_str(made.files["tokenizer.json"].decode())
    own = SentencePieceProcessor(model_proto=(tmp_path / "source/tokenizer.model").read_bytes())
    for text in ("ab abab", "aab abab ba", "ö [X", " a  b"):
        assert found.encode(text).ids == own.encode(text), text
    assert found.encode("ab abab").tokens == ["▁ab", "▁ab", "ab"]
    assert found.encode("[X]ab").tokens == ["[X]", "▁ab"]
    assert found.encode("a<|end|>").tokens[-1] == "<|end|>"
    assert found.token_to_id("[PAD1]") is None
    assert made.eos_token_ids == (keys["eos_token_id"],)


def test_a_space_in_front_is_the_files(tmp_path: Path) -> None:
    keys = small_model(add_space_prefix=False, add_bos_token=False)
    made = prepared(header_of(tmp_path, **keys), tmp_path, len(keys["tokens"]))
    found = Tokenizer.from_str(made.files["tokenizer.json"].decode())
    assert found.encode("ab ab").tokens == ["ab", "▁ab"]


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def isolated(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


WAYS = {
    "gpt-2": GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "llama-bpe": isolated(LLAMA3),
    "qwen2": isolated(LLAMA3.replace("{1,3}", "")),
}
"""Published pre-tokenizers in the library's own steps, by llama.cpp's names."""


@pytest.mark.parametrize("pre", WAYS)
def test_byte_level_ids_are_those_of_the_published_pre_tokenizer(tmp_path: Path, pre: str) -> None:
    original = trained(WAYS[pre], whole=pre == "llama-bpe")
    keys = byte_level_keys(original, pre, add_bos_token=False)
    made = prepared(header_of(tmp_path, **keys), tmp_path, 401)
    found = Tokenizer.from_str(made.files["tokenizer.json"].decode())
    for text in texts():
        assert found.encode(text).ids == original.encode(text).ids, text
    assert found.decode(found.encode("x").ids) == "x"
    assert found.token_to_id("[PAD400]") is None


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_way_is_read_by_the_library_and_loses_no_text(tmp_path: Path, pre: str) -> None:
    keys = byte_level_keys(trained(GPT2), pre, add_bos_token=False)
    content = tokenizer_files(header_of(tmp_path, **keys))["tokenizer.json"].decode()
    found = Tokenizer.from_str(content)
    for text in TEXT:
        assert found.decode(found.encode(text).ids) == text


def test_bos_and_eos_around_a_text(tmp_path: Path) -> None:
    original = trained(isolated(LLAMA3), whole=True)
    ids = {"bos_token_id": 1, "eos_token_id": 2}

    def encoded(**more: Any) -> list[int]:
        header = header_of(tmp_path, **byte_level_keys(original, "llama-bpe", **ids, **more))
        files = tokenizer_files(header)
        config = json.loads(files["tokenizer_config.json"])
        assert config["bos_token"] == SPECIAL[1] and config["eos_token"] == SPECIAL[2]
        return Tokenizer.from_str(files["tokenizer.json"].decode()).encode("x").ids

    (x,) = original.encode("x").ids
    assert encoded() == [1, x]  # as llama.cpp does for this pre-tokenizer
    assert encoded(add_bos_token=False) == [x]
    assert encoded(add_bos_token=False, add_eos_token=True) == [x, 2]
    original.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[1]} $A {SPECIAL[2]}", special_tokens=[(SPECIAL[1], 1), (SPECIAL[2], 2)]
    )
    assert encoded(add_bos_token=True, add_eos_token=True) == original.encode("x").ids


def test_user_defined_tokens_stay_whole_and_visible(tmp_path: Path) -> None:
    keys = byte_level_keys(trained(GPT2), "gpt-2")
    keys["tokens"][-1], keys["token_type"][-1] = "<think>", USER_DEFINED
    content = tokenizer_files(header_of(tmp_path, **keys))["tokenizer.json"].decode()
    found = Tokenizer.from_str(content)
    ids = found.encode("x<think>x").ids
    assert ids[1] == found.token_to_id("<think>") and found.decode(ids) == "x<think>x"


def config_of(tmp_path: Path, **more: Any) -> dict[str, Any]:
    keys = byte_level_keys(trained(GPT2), "gpt-2", **more)
    found: dict[str, Any] = json.loads(
        tokenizer_files(header_of(tmp_path, **keys))["tokenizer_config.json"]
    )
    return found


def test_chat_templates(tmp_path: Path) -> None:
    one = {"tokenizer.chat_template": TEMPLATE}
    assert config_of(tmp_path, **one)["chat_template"] == TEMPLATE
    assert "chat_template" not in config_of(tmp_path)
    several = {
        **one,
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "tools",
    }
    assert config_of(tmp_path, **several)["chat_template"] == [
        {"name": "default", "template": TEMPLATE},
        {"name": "tool_use", "template": "tools"},
    ]


def test_the_turns_end_stops_generation(tmp_path: Path) -> None:
    keys = {"tokenizer.chat_template": TEMPLATE}
    header = header_of(tmp_path, **byte_level_keys(trained(GPT2), "gpt-2", **keys))
    made = prepared(header, tmp_path, 401)
    assert made.is_chat and made.eos_token_ids == (0, 2)


def test_the_folder_is_made_once_and_holds_the_config(tmp_path: Path) -> None:
    header = header_of(tmp_path, **byte_level_keys(trained(GPT2), "gpt-2"))
    folder = tokenizer_folder(header, {"eos_token_id": 0})
    assert folder is not None and folder == tokenizer_folder(header, {"eos_token_id": 0})
    assert json.loads((folder / "config.json").read_text()) == {"eos_token_id": 0}
    assert folder != tokenizer_folder(header, {"eos_token_id": 1})
    assert tokenizer_folder(header_of(tmp_path, model="gpt2"), {}) is None


def test_a_folder_that_is_not_kept_goes_with_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[Any] = []
    monkeypatch.setattr("atexit.register", lambda *call, **named: later.append((call, named)))
    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path / "cache"))
    header = header_of(tmp_path, **byte_level_keys(trained(GPT2), "gpt-2"))
    with only_reading():
        folder = tokenizer_folder(header, {})
    assert folder is not None and (folder / "tokenizer.json").is_file()
    assert not (tmp_path / "cache").exists()
    (((remove, *places), named),) = later
    remove(*places, **named)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pre": "moon"}, r"tokenizer\.ggml\.pre='moon'|moon"),
        ({"pre": None}, r"tokenizer\.ggml\.pre=null|pre=None"),
        ({"model": "rwkv"}, r"tokenizer\.ggml\.model"),
        ({"merges": None}, "without merges"),
        ({"tokens": ["a", "b", "a"]}, "twice"),
        ({"tokens": ["a", "b"]}, "2 tokens with"),
        ({"model": "llama"}, "not as many scores"),
    ],
)
def test_what_cannot_be_read_is_one_problem(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    keys = byte_level_keys(trained(GPT2), "gpt-2") | change
    with pytest.raises(ConvertError, match=said) as caught:
        tokenizer_files(header_of(tmp_path, **keys))
    assert len(caught.value.problems) == 1

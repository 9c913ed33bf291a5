"""A folder's own tokenizer, against SentencePiece and the folder's chat template."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from conftest import DEMO

from converter.errors import ConvertError
from converter.model.decoder import Decoder
from converter.text import folder_tokenizer
from converter.text.folder_tokenizer import FolderTokenizer, source_tokenizer

TEXTS = ["Tell me a story.", "  two  spaces\n\tand a tab", "a", "", "Once upon a time,\n\nthe end"]


@pytest.fixture(scope="module")
def tokenizer(demo_folder: Path) -> FolderTokenizer:
    return FolderTokenizer(demo_folder)


@pytest.fixture
def folder(demo_folder: Path, tmp_path: Path) -> Path:
    """A copy of what a tokenizer needs, to be changed."""
    for path in demo_folder.glob("*.json"):
        shutil.copy(path, tmp_path)
    return tmp_path


def change(path: Path, **values: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **values}), encoding="utf-8")


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_sentencepiece(tokenizer: FolderTokenizer, text: str) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
    assert tokenizer.encode(text) == model.encode(text)  # without BOS


def test_the_checkpoints_tokenizer_is_the_folders(
    tokenizer: FolderTokenizer, demo_decoder: Decoder
) -> None:
    own = source_tokenizer(demo_decoder)
    assert [own.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert own.bos_token_id == tokenizer.bos_token_id == 1
    chat = [{"role": "user", "content": "hello"}]
    assert own.render_chat(chat) == tokenizer.render_chat(chat)


def test_a_chat_is_written_by_the_template(tokenizer: FolderTokenizer) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    text = tokenizer.render_chat(chat)
    assert "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>" in text


def test_without_a_template_a_chat_is_plain_paragraphs(folder: Path) -> None:
    content = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    content.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    text = FolderTokenizer(folder).render_chat([{"role": "user", "content": "Hi there"}])
    assert "Hi there" in text and "<|im_start|>" not in text


def test_a_template_that_refuses_is_an_error_with_its_words(folder: Path) -> None:
    refusing = "{{ raise_exception('roles must take turns') }}"
    change(folder / "tokenizer_config.json", chat_template=refusing)
    with pytest.raises(ValueError, match="roles must take turns"):
        FolderTokenizer(folder).render_chat([{"role": "user", "content": "Hi"}])


def test_the_runtime_renders_where_it_is_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder / "tokenizer_config.json", chat_template="{% if true %}\n{% endif %}x")
    chat = [{"role": "user", "content": "Hi"}]
    assert FolderTokenizer(folder).render_chat(chat) == "\nx"
    monkeypatch.setattr(folder_tokenizer, "runtime_is_installed", lambda: False)
    assert FolderTokenizer(folder).render_chat(chat) == "x"


def test_a_model_that_wants_no_bos_has_none(folder: Path) -> None:
    change(folder / "tokenizer_config.json", add_bos_token=False)
    assert FolderTokenizer(folder).bos_token_id is None


def test_a_folder_or_source_without_a_tokenizer_is_named(
    tmp_path: Path, demo_decoder: Decoder
) -> None:
    with pytest.raises(ConvertError, match=r"has no tokenizer\.json"):
        FolderTokenizer(tmp_path)
    bare = replace(demo_decoder, checkpoint=replace(demo_decoder.checkpoint, folder=None))
    with pytest.raises(ConvertError, match="no tokenizer"):
        source_tokenizer(bare)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "genai_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "5"])
def test_a_damaged_folder_is_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ConvertError, match=r"The tokenizer of .* cannot be read"):
        FolderTokenizer(folder)

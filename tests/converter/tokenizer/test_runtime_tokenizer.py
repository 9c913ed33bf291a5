"""Tokenizer files in onnxruntime-genai, without a model."""

from __future__ import annotations

import json

import pytest
from conftest import DEMO
from tokenizers import Tokenizer

from converter.tokenizer import prepare_tokenizer
from converter.tokenizer.runtime_tokenizer import RuntimeTokenizer, runtime_is_installed

FILES = prepare_tokenizer(DEMO, 1024).files


def test_it_encodes_and_renders_as_the_folder_does() -> None:
    runtime = RuntimeTokenizer(FILES)
    reader = Tokenizer.from_buffer(FILES["tokenizer.json"])
    text = runtime.render([{"role": "user", "content": "Hi"}], None, True)
    assert text == "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert runtime.encode(text) == reader.encode(text, add_special_tokens=False).ids
    assert runtime_is_installed()


def test_files_that_do_not_load_are_refused() -> None:
    content = json.loads(FILES["tokenizer.json"])
    del content["model"]
    with pytest.raises(RuntimeError):
        RuntimeTokenizer({**FILES, "tokenizer.json": json.dumps(content).encode()})


def test_a_refusal_of_the_template_is_an_error() -> None:
    config = json.loads(FILES["tokenizer_config.json"])
    config["chat_template"] = "{{ raise_exception('No!') }}"
    files = {**FILES, "tokenizer_config.json": json.dumps(config).encode()}
    with pytest.raises(RuntimeError, match="No!"):
        RuntimeTokenizer(files).render([], None, False)

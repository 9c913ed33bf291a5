"""What others published and the tests read: see data/README.md for sources and licences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
TOKENIZER_MODEL = DATA / "tokenizer" / "tokenizer.model"
CONFIGS = DATA / "hf_configs"
CHAT_TOKENIZER = CONFIGS / "chat_tokenizer"
VOCAB_SIZE = 92544
"""Pieces of InternLM2's tokenizer."""
CORPORA = (
    "wikitext2_excerpt.txt",
    "debian_handbook_excerpt.en-US.txt",
    "debian_handbook_excerpt.zh-CN.txt",
)


def published_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def published_config(name: str) -> dict[str, Any]:
    """`config.json` of a model, such as `internlm2-7b`."""
    return published_json(CONFIGS / f"{name}.config.json")


def published_names() -> list[str]:
    """The models whose `config.json` is here."""
    paths = CONFIGS.glob("internlm2*.config.json")
    return sorted(path.name.removesuffix(".config.json") for path in paths)


def corpus(name: str) -> str:
    return (DATA / "corpora" / name).read_text(encoding="utf-8")


def copy_tokenizer(folder: Path, *, chat: bool = False) -> Path:
    """The tokenizer's files of a base or a chat model, as its repository holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(TOKENIZER_MODEL, folder)
    if chat:
        shutil.copytree(CHAT_TOKENIZER, folder, dirs_exist_ok=True)
    return folder


def write_genai_config(folder: Path, vocab_size: int = VOCAB_SIZE, **model: Any) -> None:
    """The least that onnxruntime-genai's Tokenizer asks of a folder; it opens no model."""
    names = ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers")
    decoder = {"filename": "model.onnx"} | dict.fromkeys((*names, "num_key_value_heads"), 1)
    least = {"type": "llama", "context_length": 16, "vocab_size": vocab_size, "decoder": decoder}
    (folder / "genai_config.json").write_text(json.dumps({"model": least | model}))

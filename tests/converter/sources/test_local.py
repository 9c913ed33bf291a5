from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.errors import ConvertError
from converter.sources.local import open_local


@pytest.fixture
def sharded(tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    from converter.sources import synthetic

    monkeypatch.setattr(synthetic, "SHARD_BYTES", 60_000)
    folder = tiny_checkpoint()
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def test_reads_shards_as_the_library_does(sharded: Path) -> None:
    checkpoint = open_local(sharded)
    count = 0
    for shard in sharded.glob("*.safetensors"):
        for name, tensor in load_file(shard).items():
            assert torch.equal(checkpoint.tensors[name].read(), tensor)
            count += 1
    assert count == len(checkpoint.tensors)


def test_reads_one_file_without_an_index(sharded: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for shard in list(sharded.glob("*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (sharded / "model.safetensors.index.json").unlink()
    save_file(tensors, sharded / "model.safetensors")
    assert open_local(sharded).tensors.keys() == tensors.keys()


def test_every_damaged_shard_is_listed(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    tensors = load_file(shards[2])
    gone = next(iter(tensors))
    del tensors[gone]
    save_file(tensors, shards[2])
    with pytest.raises(ConvertError) as caught:
        open_local(sharded)
    text = str(caught.value)
    assert f"{shards[0]} is missing" in text
    assert f"{shards[1]} is cut short" in text
    assert f"{shards[2]} lacks the tensor {gone}" in text


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "x" * 30_000,
        "a\0b",
    ],
)
def test_a_shard_is_a_file_of_the_folder(sharded: Path, name: str) -> None:
    index = sharded / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["output.weight"] = name
    index.write_text(json.dumps(values))
    with pytest.raises(ConvertError, match="plain file name"):
        open_local(sharded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds a list"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
            "no weight_map",
        ),
    ],
)
def test_broken_json_is_named(
    sharded: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(sharded)
    with pytest.raises(ConvertError, match=message):
        open_local(sharded)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"source\.path=FOLDER"):
        open_local(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapter_model.safetensors", "holds an adapter"),
        ("adapter_config.json", "holds an adapter"),
        ("genai_config.json", "is a converted folder"),
        ("model.onnx", "ONNX graph"),
        ("model-00001-of-00002.safetensors", "without their index"),
        ("pytorch_model-00001-of-00002.bin", "without their index"),
        ("consolidated.00.pth", "publisher's own format"),
        ("tf_model.h5", "TensorFlow"),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_a_folder_of_another_kind_is_named(
    tmp_path: Path, name: str, said: str, config: bool
) -> None:
    (tmp_path / name).write_bytes(b"content")
    if config:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConvertError, match=said) as caught:
        open_local(tmp_path)
    (problem,) = caught.value.problems
    assert name in problem.found and problem.remedy


@pytest.mark.parametrize("value", [None, 1, [], {"file": "x"}])
def test_a_shard_index_names_files(sharded: Path, value: object) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["output.weight"] = value
    index.write_text(json.dumps(content))
    with pytest.raises(ConvertError, match="weight_map="):
        open_local(sharded)


def test_missing_shards_are_counted(sharded: Path) -> None:
    for shard in sharded.glob("*.safetensors"):
        shard.unlink()
    index = sharded / "model.safetensors.index.json"
    names = {f"{n}.weight": f"model-{n:05}-of-00400.safetensors" for n in range(400)}
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(ConvertError, match="There are 399 more of this kind") as caught:
        open_local(sharded)
    assert len(caught.value.problems) == 1


def test_a_link_to_a_shard_that_is_gone_is_named(sharded: Path) -> None:
    shard = first_shard(sharded)
    shard.unlink()
    shard.symlink_to("../blobs/gone")
    with pytest.raises(ConvertError, match=r"link to \.\./blobs/gone"):
        open_local(sharded)


def test_what_is_no_file_is_neither_read_nor_hashed(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint()
    (folder / "generation_config.json").mkdir()
    os.mkfifo(folder / "added_tokens.json")
    checkpoint = open_local(folder)
    assert {path.name for path in checkpoint.files if path.suffix == ".json"} == {"config.json"}
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(ConvertError, match=r"config\.json is a pipe"):
        open_local(folder)

"""Fetching from a hub, against a real one on 127.0.0.1."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from command import tiny
from hub_server import Hub, serve
from huggingface_hub import constants

from converter.cli.compose import compose_recipe
from converter.engine.execution import check
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.model.checkpoint import Checkpoint
from converter.sources.hub import HubUnreachableError, open_hub, preview_hub
from converter.sources.synthetic import open_synthetic, write_checkpoint
from converter.weights.weight import Weight

REPO = "some-lab/tiny-internlm2"
FIRST, SECOND = "1" * 40, "2" * 40
RECIPE = compose_recipe(tiny("internlm2_1_8b_cpu_fp32"))
SHARD = "model-00001-of-00001.safetensors"


def synthetic() -> Checkpoint:
    return open_synthetic(RECIPE)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one safetensors repository, as this process's hub, and an empty cache."""
    folder = tmp_path / "repository"
    folder.mkdir()
    write_checkpoint(synthetic(), folder)
    (folder / "modeling_internlm2.py").write_text("raise SystemExit('this code was run')\n")
    (folder / "tokenization_internlm2.py").write_text("raise SystemExit('this code was run')\n")
    (folder / "README.md").write_text("# A model\n")
    (folder / "training_args.bin").write_bytes(b"not asked for")
    with serve(Hub(REPO, {FIRST: folder}, {"main": FIRST, "v1.0": FIRST})) as running:
        point_to(running.url, tmp_path / "cache", monkeypatch)
        yield running


def point_to(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def as_torch_files(hub: Hub, state: Mapping[str, object]) -> Path:
    """Replace the repository's weights by .bin files; gives the folder."""
    folder = hub.commits[FIRST]
    for path in folder.glob("model*"):
        path.unlink()
    torch.save(state, folder / "pytorch_model-00001-of-00001.bin")
    weight_map = dict.fromkeys(state, "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def fetch(revision: str | None = None) -> Checkpoint:
    return open_hub(REPO, revision, lambda done, total, name: None)


def same_values(found: dict[str, Weight], expected: dict[str, Weight]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name].read(), expected[name].read()) for name in expected
    )


def test_fetches_what_a_conversion_reads_and_no_code(hub: Hub) -> None:
    reports: list[tuple[int, int, str]] = []
    checkpoint = open_hub(REPO, None, lambda *report: reports.append(report))
    assert same_values(dict(checkpoint.tensors), dict(synthetic().tensors))
    assert hub.fetched() == {"config.json", "model.safetensors.index.json", SHARD}
    assert checkpoint.origin == {"kind": "hub", "repo": REPO, "commit": FIRST}
    assert [path.name for path in checkpoint.files] == ["config.json", SHARD]
    size = (hub.commits[FIRST] / SHARD).stat().st_size
    assert reports[-1] == (size, size, SHARD)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", FIRST])
def test_a_revision_becomes_its_commit(hub: Hub, revision: str | None) -> None:
    assert fetch(revision).origin["commit"] == FIRST


def test_the_commit_is_that_of_the_fetched_files(hub: Hub, tmp_path: Path) -> None:
    fetch()
    newer = tmp_path / "newer"
    newer.mkdir()
    checkpoint = synthetic()
    config = {**checkpoint.config, "rms_norm_eps": 0.5}
    write_checkpoint(Checkpoint(config, checkpoint.tensors, {}), newer)
    hub.commits[SECOND], hub.branches["main"] = newer, SECOND
    moved = fetch()
    assert moved.origin["commit"] == SECOND
    assert moved.config["rms_norm_eps"] == 0.5
    assert fetch("v1.0").config["rms_norm_eps"] != 0.5


def test_a_broken_transfer_goes_on_where_it_stopped(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # what arrives in whole is kept
    hub.broken.add(SHARD)
    assert same_values(dict(fetch().tensors), dict(synthetic().tensors))
    half = (hub.commits[FIRST] / SHARD).stat().st_size // 2
    assert hub.ranges(SHARD) == [None, f"bytes={half - half % 1024}-"]


def test_a_changed_file_is_an_error_and_leaves_the_cache(hub: Hub) -> None:
    content = bytearray((hub.commits[FIRST] / SHARD).read_bytes())
    content[-1] ^= 1
    hub.changed[SHARD] = bytes(content)
    with pytest.raises(ConvertError, match=r"sha256 .* changed or damaged") as error:
        fetch()
    assert SHARD in str(error.value)
    hub.changed.clear()
    assert same_values(dict(fetch().tensors), dict(synthetic().tensors))


def test_a_damaged_file_in_the_cache_is_noticed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(path for path in fetch().files if path.name == SHARD).resolve()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConvertError, match="changed or damaged"):
        fetch()


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_how_to_get_access(hub: Hub, status: int) -> None:
    hub.gated = status
    with pytest.raises(ConvertError, match="gated or private") as error:
        fetch()
    assert "hf auth login" in str(error.value) and "HF_TOKEN" in str(error.value)


def test_what_does_not_exist_is_named(hub: Hub) -> None:
    with pytest.raises(ConvertError, match="no repository some-lab/other"):
        open_hub("some-lab/other", None, lambda *_: None)
    with pytest.raises(ConvertError, match="no revision 'v9'"):
        fetch("v9")
    with pytest.raises(ConvertError, match="not the name of a repository"):
        open_hub("/models/internlm2-7b", None, lambda *_: None)
    (hub.commits[FIRST] / "config.json").unlink()
    with pytest.raises(ConvertError, match=r"has no config\.json"):
        fetch()


def test_a_repository_without_weights_is_named(hub: Hub) -> None:
    for path in hub.commits[FIRST].glob("model*"):
        path.unlink()
    with pytest.raises(ConvertError, match="holds no weights"):
        fetch()


def test_works_offline_from_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubUnreachableError, match="not in the cache"):
            fetch()
    fetch()
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in (None, "main", FIRST):
        assert same_values(dict(fetch(revision).tensors), dict(synthetic().tensors))
    assert len(hub.requests) == asked


def test_works_without_a_network_from_the_cache(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch()
    nowhere = "http://127.0.0.1:9"  # the discard port: nothing listens
    point_to(nowhere, tmp_path / "cache", monkeypatch)
    assert fetch().origin["commit"] == FIRST
    point_to(nowhere, tmp_path / "empty", monkeypatch)
    with pytest.raises(HubUnreachableError, match="cannot be reached") as error:
        fetch()
    assert "HF_ENDPOINT" in str(error.value) and "source.path" in str(error.value)


def test_a_disk_too_small_is_found_before_the_download(hub: Hub) -> None:
    hub.sizes[SHARD] = 10**18
    with pytest.raises(ConvertError, match="too little room") as error:
        preview_hub(REPO, None, RECIPE)
    assert "HF_HOME" in str(error.value)
    assert SHARD not in hub.fetched()


def test_a_disk_that_fills_up_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(ConvertError, match="too little room: the disk is full"):
        fetch()


def test_a_preview_reads_headers_only(hub: Hub) -> None:
    preview = preview_hub(REPO, None, RECIPE)
    expected = synthetic().tensors
    assert {name: (w.shape, w.dtype) for name, w in preview.tensors.items()} == {
        name: (w.shape, w.dtype) for name, w in expected.items()
    }
    ranges = hub.ranges(SHARD)
    assert ranges and None not in ranges
    with pytest.raises(ConvertError, match="was not fetched"):
        preview.tensors["output.weight"].read()


def test_problems_are_found_before_the_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    config = hub.commits[FIRST] / "config.json"
    config.write_text(json.dumps({**synthetic().config, "num_hidden_layers": 3}))
    recipe = compose_recipe(["recipe=internlm2_1_8b_cpu_fp32", f"source.repo={REPO}"])
    with pytest.raises(ConvertError, match=r"num_hidden_layers=3, and the weights are those of 2"):
        check(recipe, make_passes(recipe.passes), tmp_path / "out")
    assert not any(
        path.startswith(str(tmp_path / "cache")) and path.endswith(SHARD)
        for path in map(str, (tmp_path / "cache").rglob("*"))
    )


def test_torch_files_are_fetched_where_there_are_no_safetensors(hub: Hub) -> None:
    state = {name: weight.read() for name, weight in synthetic().tensors.items()}
    as_torch_files(hub, state)
    preview = preview_hub(REPO, None, RECIPE)
    assert {name: w.shape for name, w in preview.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    assert "pytorch_model-00001-of-00001.bin" not in hub.fetched()
    found = fetch().tensors
    assert all(torch.equal(found[name].read(), tensor) for name, tensor in state.items())
    assert "training_args.bin" not in hub.fetched()


class Attack:
    """Runs a command when a careless reader unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.mark}",))


def test_an_attack_in_a_torch_file_is_refused_and_not_run(hub: Hub, tmp_path: Path) -> None:
    mark = tmp_path / "attacked"
    as_torch_files(hub, {"model.norm.weight": torch.ones(64), "output.weight": Attack(mark)})
    with pytest.raises(ConvertError, match="asks to run code"):
        fetch()
    assert not mark.exists()
    # The attack is a real one: what torch.load does without weights_only runs it.
    torch.load(hub.commits[FIRST] / "pytorch_model-00001-of-00001.bin", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("name", ["../../outside.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_a_shard_outside_the_repository_is_refused(hub: Hub, name: str) -> None:
    index = hub.commits[FIRST] / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ConvertError, match="plain file name"):
        fetch()
    assert not any("outside" in path or "passwd" in path for _, path, _ in hub.requests)


@pytest.mark.slow
def test_the_command_converts_from_a_mirror_and_locks_the_commit(hub: Hub, tmp_path: Path) -> None:
    words = [
        "recipe=internlm2_1_8b_cpu_fp32",
        f"source.repo={REPO}",
        "source.revision=v1.0",
        f"output={tmp_path / 'out'}",
        "verify=none",
    ]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment["HF_HUB_OFFLINE"] = "0"
    run = subprocess.run(
        [sys.executable, "-m", "converter.cli.main", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lock = json.loads((tmp_path / "out" / "convert.lock.json").read_text())
    assert lock["source"]["commit"] == FIRST and lock["source"]["repo"] == REPO
    assert set(lock["source"]["files"]) == {"config.json", SHARD}

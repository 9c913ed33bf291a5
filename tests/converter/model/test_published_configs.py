"""Every published config converts, at reduced width and depth and otherwise untouched."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from descriptions import architecture
from oracle import feeds, llama_of
from published import published_config, published_names
from transformers import LlamaConfig

from converter.cli.compose import compose_recipe
from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.model.checkpoint import Checkpoint
from converter.model.rope import Rope
from converter.sources.local import open_local
from converter.sources.synthetic import open_synthetic, write_checkpoint

POSITIONS, PAST = 64, 96
"""max_position_embeddings scaled down, and a length past it."""
TOLERANCE = 1e-4
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

PRESETS = {
    "internlm2_7b": "internlm2-7b",
    "internlm2_20b": "internlm2-20b",
    "internlm2_1_8b_chat": "internlm2-chat-1_8b",
    "internlm2_1_8b_chat_sft": "internlm2-chat-1_8b-sft.first_release_bc3937e",
    "internlm2_7b_chat_sft": "internlm2-chat-7b-sft",
    "internlm2_20b_chat": "internlm2-chat-20b",
    "internlm2_5_1_8b_chat": "internlm2_5-1_8b-chat",
    "internlm2_5_7b": "internlm2_5-7b",
    "internlm2_5_7b_chat": "internlm2_5-7b-chat",
    "internlm2_5_7b_chat_1m": "internlm2_5-7b-chat-1m",
    "internlm2_5_20b": "internlm2_5-20b",
    "internlm2_5_20b_chat": "internlm2_5-20b-chat",
}
"""A preset's model to the published config that it states."""


def reduced(config: Mapping[str, Any]) -> dict[str, Any]:
    """Two narrow layers with the published number of query heads per KV head."""
    group = config["num_attention_heads"] // config["num_key_value_heads"]
    return {
        **config,
        "hidden_size": 2 * group * 16,
        "intermediate_size": 96,
        "max_position_embeddings": POSITIONS,
        "num_attention_heads": 2 * group,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 160,
    }


def rope_of(config: Mapping[str, Any]) -> Rope:
    """The rotation that a config.json states, whatever its sizes are."""
    sizes = published_config("internlm2-7b")
    others = {k: v for k, v in sizes.items() if k not in ("rope_theta", "rope_scaling")}
    stated = {k: v for k, v in config.items() if k.startswith(("rope", "rotary"))}
    return architecture(others | stated).rope


def as_transformers_says_it(config: Mapping[str, Any]) -> dict[str, Any]:
    """The first release's `rotary` in the keys that came after it."""
    if "rotary" not in config:
        return dict(config)
    assert config["rotary"] == {"base": 1000000, "type": "dynamic"}
    return {**config, "rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 1.0}}


def convert(config: Mapping[str, Any], folder: Path, *words: str) -> tuple[Checkpoint, Path]:
    """Write a checkpoint of this config with random weights and convert it."""
    recipe = compose_recipe(["recipe=internlm2_1_8b_cpu_fp32", "source=synthetic"])
    recipe.model.config, recipe.source.dtype = dict(config), "float32"
    checkpoint = open_synthetic(recipe)
    (folder / "checkpoint").mkdir(exist_ok=True)
    write_checkpoint(checkpoint, folder / "checkpoint")
    output = folder / "-".join(["out", *(word.replace(".", "_") for word in words)])
    recipe = compose_recipe(
        [
            "recipe=internlm2_1_8b_cpu_fp32",
            "graph.last_token_logits=false",
            "verify=none",
            f"source.path={folder / 'checkpoint'}",
            f"output='{output}'",
            *words,
        ]
    )
    run_recipe(recipe, make_passes(recipe.passes))
    return checkpoint, output


def folder_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(["logits"], feeds(session, ids.numpy()))
    return torch.from_numpy(logits)


def some_ids(length: int) -> torch.Tensor:
    return torch.randint(160, (1, length), generator=torch.Generator().manual_seed(length))


def internlm2_logits(config: Mapping[str, Any], checkpoint: Checkpoint, ids: Any) -> Any:
    """InternLM2 in float64, written from its description alone: (tokens, vocab_size).

    Each KV head owns a block of wqkv's rows: its query heads, its key, its value. A rotary pair is
    (i, i + d/2), turned as one complex number. Dynamic scaling changes the base for a sequence
    longer than max_position_embeddings (arXiv 2403.17297; NTK-aware scaled RoPE).
    """
    w = {name: weight.read().double().numpy() for name, weight in checkpoint.tensors.items()}
    kv_heads, heads = config["num_key_value_heads"], config["num_attention_heads"]
    d, count = config["hidden_size"] // heads, len(ids)
    theta, scaling, steps = config["rope_theta"], config["rope_scaling"], np.arange(count)
    if scaling and scaling["type"] == "dynamic" and count > POSITIONS:
        theta *= (scaling["factor"] * count / POSITIONS - (scaling["factor"] - 1)) ** (d / (d - 2))
    if scaling and scaling["type"] == "linear":
        steps = steps / scaling["factor"]
    turn = np.exp(1j * np.outer(steps, theta ** (-np.arange(d // 2) / (d // 2))))

    def norm(x: Any, name: str) -> Any:
        mean = (x**2).mean(-1, keepdims=True)
        return x / np.sqrt(mean + config["rms_norm_eps"]) * w[name]

    def rotate(x: Any) -> Any:
        turned = (x[:, : d // 2] + 1j * x[:, d // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], axis=1)

    x = w["model.tok_embeddings.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        blocks = np.split(
            norm(x, p + "attention_norm.weight") @ w[p + "attention.wqkv.weight"].T,
            kv_heads,
            axis=1,
        )
        outputs = []
        for block in blocks:
            *queries, key, value = np.split(block, heads // kv_heads + 2, axis=1)
            for query in queries:
                scores = rotate(query) @ rotate(key).T / np.sqrt(d)
                scores[np.triu_indices(count, 1)] = -np.inf
                share = np.exp(scores - scores.max(1, keepdims=True))
                outputs.append(share / share.sum(1, keepdims=True) @ value)
        x = x + np.concatenate(outputs, axis=1) @ w[p + "attention.wo.weight"].T
        h = norm(x, p + "ffn_norm.weight")
        gate = h @ w[p + "feed_forward.w1.weight"].T
        inner = gate / (1 + np.exp(-gate)) * (h @ w[p + "feed_forward.w3.weight"].T)
        x = x + inner @ w[p + "feed_forward.w2.weight"].T
    return norm(x, "model.norm.weight") @ w["output.weight"].T


@pytest.mark.slow
@pytest.mark.parametrize("name", published_names())
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    config = reduced(published_config(name))
    checkpoint, short = convert(config, tmp_path)
    _, long = convert(config, tmp_path, f"graph.context_length={PAST}")
    said = as_transformers_says_it(config)
    model = llama_of(dataclasses.replace(checkpoint, config=said))
    for folder, length in ((short, 7), (short, POSITIONS), (long, PAST)):
        ids = some_ids(length)
        with torch.no_grad():
            expected = model(ids).logits
        found = folder_logits(folder, ids)
        assert (found - expected).abs().max() < TOLERANCE, (folder.name, length)
        own = torch.from_numpy(internlm2_logits(said, checkpoint, ids[0].numpy()))
        assert (found[0] - own).abs().max() < TOLERANCE, (folder.name, length)


@pytest.mark.parametrize("model", PRESETS)
def test_a_preset_states_what_was_published_config(model: str) -> None:
    recipe = compose_recipe([f"recipe={model}_cpu_int4"])
    said, config = recipe.model.config, published_config(PRESETS[model])
    assert architecture(said) == architecture(config)
    assert {key: said[key] for key in TOKEN_IDS} == {key: config[key] for key in TOKEN_IDS}
    assert recipe.source.repo == recipe.model.repo
    assert recipe.model.repo == "internlm/" + PRESETS[model].partition(".")[0]


@pytest.mark.parametrize("scaling", [None, ("linear", 2.0), ("dynamic", 2.0), ("dynamic", 3.0)])
def test_positions_past_the_maximum(scaling: tuple[str, float] | None, tmp_path: Path) -> None:
    config = {
        "model_type": "internlm2",
        "bias": False,
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": POSITIONS,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000.0,
        "vocab_size": 160,
        "rope_scaling": {"type": scaling[0], "factor": scaling[1]} if scaling else None,
    }
    checkpoint, folder = convert(config, tmp_path, f"graph.context_length={PAST}")
    ids = some_ids(PAST)
    found = folder_logits(folder, ids)
    with torch.no_grad():
        assert (found - llama_of(checkpoint)(ids).logits).abs().max() < TOLERANCE
    own = torch.from_numpy(internlm2_logits(config, checkpoint, ids[0].numpy()))
    assert (found[0] - own).abs().max() < TOLERANCE
    # The scaling is felt at this length, so that a wrong one would be.
    other = {**config, "rope_theta": 1100.0}
    felt = torch.from_numpy(internlm2_logits(other, checkpoint, ids[0].numpy()))
    assert (felt - own).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize("name", published_names())
def test_a_config_that_transformers_5_saved_reads_the_same(name: str, tmp_path: Path) -> None:
    config = as_transformers_says_it(published_config(name))
    kept = ("hidden_size", "num_attention_heads", "max_position_embeddings", "rope_theta")
    scaling = config["rope_scaling"]
    LlamaConfig(
        **{key: config[key] for key in kept},
        rope_scaling=scaling and {"rope_type": scaling["type"], "factor": scaling["factor"]},
    ).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "rope_theta" not in saved  # it moved into rope_parameters
    assert rope_of(saved) == rope_of(published_config(name))


def test_every_form_of_rope_reads_the_same() -> None:
    forms: list[dict[str, Any]] = [
        {"rope_theta": 5e7, "rope_scaling": {"type": "dynamic", "factor": 2.5}},
        {
            "rope_theta": 5e7,
            "rope_scaling": {"rope_type": "dynamic", "type": "dynamic", "factor": 2.5},
        },
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.5, "rope_theta": 5e7}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.5, "rope_theta": 5e7}},
        {"rotary": {"base": 5e7, "type": "dynamic", "scaling_factor": 2.5}},
    ]
    assert len({rope_of(form) for form in forms}) == 1
    plain: list[dict[str, Any]] = [
        {"rope_theta": 1e6, "rope_scaling": None},
        {"rope_theta": 1e6},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 1e6}},
        {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ]
    assert len({rope_of(form) for form in plain}) == 1
    assert rope_of(plain[0]).theta == 1e6


def test_bin_shards_convert_to_the_same_files(tmp_path: Path) -> None:
    config = {
        "model_type": "internlm2",
        "bias": False,
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": POSITIONS,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "rope_scaling": None,
        "vocab_size": 160,
    }
    checkpoint, folder = convert(config, tmp_path)
    state = {name: weight.read() for name, weight in checkpoint.tensors.items()}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_text(json.dumps(config))
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    assert open_local(tmp_path / "bin").tensors.keys() == checkpoint.tensors.keys()
    recipe = compose_recipe(
        [
            "recipe=internlm2_1_8b_cpu_fp32",
            "graph.last_token_logits=false",
            "verify=none",
            f"source.path={tmp_path / 'bin'}",
            f"output={tmp_path / 'from_bin'}",
        ]
    )
    run_recipe(recipe, make_passes(recipe.passes))
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "from_bin" / name).read_bytes() == (folder / name).read_bytes()

"""What the tests share: tiny checkpoints in published form and recipes for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import TINY_SIZES

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

DEMO = Path(__file__).resolve().parents[1] / "converter" / "data" / "demo"
TINY_CONFIG = {
    "architectures": ["InternLM2ForCausalLM"],
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "model_type": "internlm2",
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    **TINY_SIZES,
}


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's cache is read, and nothing is left in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVERT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def demo_decoder() -> Any:
    """The demo model in canonical terms: trained weights, and a tokenizer."""
    from converter.cli.compose import compose_recipe
    from converter.model.architecture import read_architecture
    from converter.model.decoder import build_decoder
    from converter.sources.local import open_local

    checkpoint = open_local(DEMO)
    recipe = compose_recipe(["recipe=demo"])
    return build_decoder(checkpoint, recipe.layout, read_architecture(checkpoint.config, recipe))


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as int4, converted once. Do not write into it."""
    from converter.cli.compose import compose_recipe
    from converter.engine.execution import run_recipe
    from converter.engine.registry import make_passes

    output = tmp_path_factory.mktemp("demo") / "model"
    recipe = compose_recipe(["recipe=demo", "verify=none", f"output='{output}'"])
    return run_recipe(recipe, make_passes(recipe.passes))


@pytest.fixture
def make_recipe() -> Callable[..., Any]:
    """A recipe with tiny synthetic weights: `make_recipe("quant=rtn", num_hidden_layers=1)`."""
    from converter.cli.compose import compose_values
    from converter.recipe.validation import parse_recipe

    def make(*words: str, **config: Any) -> Any:
        base = ["recipe=internlm2_1_8b_cpu_fp32", "source=synthetic", "source.dtype=float32"]
        base += ["graph.last_token_logits=false", "verify=none"]
        values = compose_values([*base, *words])
        values["model"]["config"] = TINY_CONFIG | config
        return parse_recipe(values)

    return make


@pytest.fixture
def build(make_recipe: Callable[..., Any]) -> Callable[..., Any]:
    """Run the passes up to `until` on a tiny recipe and give the last artifact."""
    from converter.engine.contract import Run
    from converter.engine.registry import make_passes
    from converter.storage.staging import Staging

    def run(*words: str, until: str = "graph", **config: Any) -> Any:
        recipe = make_recipe(*words, **config)
        artifact: Any = None
        for item in make_passes(["load", "layout", "graph", "quantize"]):
            if item.enabled(recipe):
                artifact = item.run(artifact, Run(recipe, Staging.nowhere())).artifact
            if item.name == until:
                break
        return artifact

    return run


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, make_recipe: Callable[..., Any]) -> Callable[..., Path]:
    """Write a tiny checkpoint folder in published form."""
    from converter.sources.synthetic import open_synthetic, write_checkpoint

    def write(name: str = "checkpoint", dtype: str = "float32", **config: Any) -> Path:
        recipe = make_recipe(f"source.dtype={dtype}", **config)
        folder = tmp_path / name
        folder.mkdir()
        write_checkpoint(open_synthetic(recipe), folder)
        return folder

    return write


@pytest.fixture
def synthetic_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let synthetic checkpoints hold the biases of wqkv and wo; for configs with bias=True."""
    from converter.model.decoder import published_shapes
    from converter.sources import synthetic

    def with_biases(layout: Any, arch: Any) -> dict[str, tuple[int, ...]]:
        found = published_shapes(layout, arch)
        rows = {n: s[0] for n, s in found.items() if n.endswith(("wqkv.weight", "wo.weight"))}
        return found | {n.replace("weight", "bias"): (r,) for n, r in rows.items()}

    monkeypatch.setattr(synthetic, "published_shapes", with_biases)

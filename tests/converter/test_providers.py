"""The table of providers: what a recipe can name, what is found to be there, one row more."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from converter.providers import PROVIDERS, float_types, is_available

ANOTHER = r"""
from converter.providers import PROVIDERS, Provider

cuda = PROVIDERS["cuda"].kernels
PROVIDERS["npu"] = Provider("npu", "NpuExecutionProvider", "gpu", cuda, graph_capture="record")

from converter.cli.compose import compose_recipe
from converter.output.genai_config import provider_options
from converter.recipe.tree import trial
from converter.engine.contract import Run
from converter.engine.registry import make_passes
from converter.storage.staging import Staging

files = {
    "target/npu.yaml": b"execution_provider: npu\nfloat_type: fp16\ngraph_capture: true\n",
    "export/npu_int4.yaml": b"defaults: [override /target: npu, override /quant: rtn]\n",
}
with trial("acme", files):
    words = ["recipe=acme/internlm2_1_8b_npu_int4", "source=synthetic", "verify=none"]
    words += ["model.config.hidden_size=64", "model.config.intermediate_size=64"]
    words += ["model.config.num_attention_heads=4", "model.config.num_key_value_heads=2"]
    words += ["model.config.num_hidden_layers=1", "model.config.vocab_size=128"]
    recipe = compose_recipe(words)
artifact = None
for item in make_passes(["load", "layout", "graph", "quantize"]):
    done = item.run(artifact, Run(recipe, Staging.nowhere()))
    artifact = done.artifact
    assert not list(item.ensures(artifact, Run(recipe, Staging.nowhere()))), item.name
print(provider_options(recipe.target), done.summary)
"""


@pytest.mark.slow
def test_one_row_and_one_file_are_a_provider() -> None:
    done = subprocess.run([sys.executable, "-c", ANOTHER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = "[{'npu': {'record': '1'}}] 6 MatMulNBits, 1 GatherBlockQuantized"
    assert done.stdout.strip() == said


def test_the_names_of_rows_are_their_keys_and_gpus_state_their_kernels() -> None:
    for name, row in PROVIDERS.items():
        assert row.name == name and row.onnxruntime_name.endswith("ExecutionProvider")
        assert (row.kernels is None) == (name == "cpu") == (row.device == "cpu")
        assert float_types(name)


@pytest.mark.parametrize("found", [True, False])
def test_every_provider_is_looked_for(found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {row.availability: lambda: found for row in PROVIDERS.values() if row.availability}
    names = [row.onnxruntime_name for row in PROVIDERS.values()] if found else []
    runtime = SimpleNamespace(get_available_providers=lambda: names)
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", SimpleNamespace(**functions))
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    assert {name for name in PROVIDERS if is_available(name)} == (
        set(PROVIDERS) if found else {"cpu"}
    )

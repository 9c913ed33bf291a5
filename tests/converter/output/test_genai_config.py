from __future__ import annotations

import pytest

from converter.cli.compose import compose_recipe
from converter.machine.cores import physical_cores
from converter.output.genai_config import session_options
from converter.recipe.schema import Recipe, TargetConfig


@pytest.mark.parametrize(("capture", "value"), [(False, "0"), (True, "1")])
@pytest.mark.parametrize(
    ("target", "option"),
    [
        ("cuda", "enable_cuda_graph"),
        ("dml", "enable_graph_capture"),
        ("webgpu", "enableGraphCapture"),
        ("nvtensorrtrtx", "enable_cuda_graph"),
    ],
)
def test_graph_capture_is_the_providers_own_option(
    target: str, option: str, capture: bool, value: str
) -> None:
    words = [f"target={target}", f"target.graph_capture={capture}".lower()]
    recipe: Recipe = compose_recipe(["recipe=internlm2_1_8b_cpu_fp32", *words])
    ((provider, options),) = session_options(recipe.target)["provider_options"][0].items()
    assert provider == recipe.target.execution_provider
    assert options[option] == value


def test_threads_are_written_only_when_asked() -> None:
    assert "intra_op_num_threads" not in session_options(TargetConfig(threads=0))
    assert session_options(TargetConfig(threads=3))["intra_op_num_threads"] == 3
    assert session_options(TargetConfig(threads=None))["intra_op_num_threads"] == physical_cores()

"""A checkpoint's names as those of transformers' class, against what transformers loads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from expert_models import decoder_of, saved
from transformers import AutoConfig, AutoModelForCausalLM

from converter.errors import ConvertError
from converter.model.class_names import ExpertStack, class_weights
from converter.weights.weight import TensorWeight


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "granite_moe", "gpt_oss", "qwen3"])
def test_every_parameter_is_the_one_that_transformers_loads(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved(name), dtype=torch.float32)
    tensors = decoder_of(name).checkpoint.tensors
    found = class_weights(AutoConfig.from_pretrained(saved(name)), tensors)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == found.keys()
    for key, parameter in parameters.items():
        assert found[key].shape == tuple(parameter.shape)
        assert torch.equal(found[key].read(), parameter.data), key


def test_an_expert_is_read_alone() -> None:
    gate, up = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    stack = ExpertStack([[TensorWeight(item) for item in part] for part in (gate, up)])
    assert stack.shape == (3, 8, 5)
    assert torch.equal(stack.rows(1, 2), torch.cat([gate, up], dim=1)[1:2])


def test_another_conversion_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import conversion_mapping
    from transformers.core_model_loading import MergeModulelist, Transpose, WeightConverter

    operations = [MergeModulelist(dim=0), Transpose(1, 2)]
    converter = WeightConverter("experts.*.w.weight", "experts.w", operations=operations)
    monkeypatch.setattr(
        conversion_mapping, "get_checkpoint_conversion_mapping", lambda _: [converter]
    )
    weights = {f"experts.{n}.w.weight": TensorWeight(torch.zeros(2, 3)) for n in range(2)}
    with pytest.raises(ConvertError, match="transformers' MergeModulelist, Transpose"):
        class_weights(SimpleNamespace(model_type="x"), dict(weights))

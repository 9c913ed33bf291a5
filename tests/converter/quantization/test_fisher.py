"""Gradients gathered layer by layer against autograd through transformers' whole model."""

from __future__ import annotations

import pytest
import torch

from converter.quantization.fisher import (
    expected_divergence,
    head_gradient,
    layer_gradient,
    token_weights,
    weighted_gram,
)
from converter.quantization.gptq import hessian_error

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _model():  # type: ignore[no-untyped-def]
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def test_streamed_gradients_equal_those_of_the_whole_model() -> None:
    model = _model()
    ids = torch.randint(0, 64, (1, 12))
    outputs: dict[str, torch.Tensor] = {}
    inputs: list[torch.Tensor] = []
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda _m, args: inputs.append(args[0].detach()))
        for name, module in layer.named_modules():
            if name.endswith(LINEARS):
                module.register_forward_hook(
                    lambda _m, _a, out, key=f"{number}.{name}": outputs.__setitem__(key, out)
                )
    hidden: list[torch.Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _m, args: hidden.append(args[0]))
    logits = model(ids).logits
    drawn = torch.multinomial(logits[0].softmax(-1), 1, generator=torch.Generator().manual_seed(5))
    loss = torch.nn.functional.cross_entropy(logits[0], drawn[:, 0], reduction="sum")
    expected = torch.autograd.grad(loss, [hidden[0], *outputs.values()])
    by_name = dict(zip(outputs, expected[1:], strict=True))
    layer_inputs = inputs[:3]

    head = model.lm_head.weight.detach()
    generator = torch.Generator().manual_seed(5)
    gradient, weights = head_gradient(hidden[0][0], model.model.norm, head, generator)
    torch.testing.assert_close(gradient, expected[0][0])
    assert bool(((weights > 0) & (weights < 1)).all())

    positions = torch.arange(12)[None]
    rotary = model.model.rotary_emb(layer_inputs[0], positions)
    gradient = gradient[None]
    for number in (2, 1, 0):
        layer = model.model.layers[number]
        linears = {name: m for name, m in layer.named_modules() if name.endswith(LINEARS)}
        gradient, squares = layer_gradient(
            lambda x, layer=layer: layer(x, position_embeddings=rotary),
            linears,
            layer_inputs[number],
            gradient,
        )
        assert set(squares) == set(linears)
        for name, square in squares.items():
            wanted = by_name[f"{number}.{name}"].square().sum(-1)
            torch.testing.assert_close(square, wanted, rtol=1e-3, atol=1e-9)


def test_weights_count_each_linear_alike_and_have_a_mean_of_one() -> None:
    first, second = torch.tensor([1.0, 3.0]), torch.tensor([300.0, 100.0])
    torch.testing.assert_close(token_weights([first, second]), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(token_weights([first]), torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(token_weights([first, first * 0]), torch.tensor([0.5, 1.5]))
    assert torch.equal(token_weights([first * 0]), torch.ones(2))


def test_weighted_gram_counts_a_token_as_often_as_its_weight() -> None:
    inputs = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 1.0]])
    repeated = inputs.flatten(0, 1).repeat_interleave(weights.flatten().long(), 0)
    torch.testing.assert_close(weighted_gram(inputs, weights), repeated.t() @ repeated)


def test_expected_divergence_is_that_of_random_errors() -> None:
    model = _model()
    for parameter in model.parameters():
        parameter.requires_grad_(False).mul_(3)
    ids = torch.randint(0, 64, (64, 12))
    layer = model.model.layers[1]
    linear, seen = layer.mlp.up_proj, {}
    linear.register_forward_hook(lambda _m, args, out: seen.update(inputs=args[0], output=out))
    linear.weight.requires_grad_()
    log_p = model(ids).logits.log_softmax(-1)
    squares, inputs = torch.zeros(64, 12), seen["inputs"].detach()
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(log_p.exp().flatten(0, 1), 1, generator=generator)
        loss = -log_p.flatten(0, 1).gather(-1, drawn).sum()
        gradient = torch.autograd.grad(loss, seen["output"], retain_graph=True)[0]
        squares += gradient.square().sum(-1) / 4
    linear.weight.requires_grad_(False)
    hessian = weighted_gram(inputs, token_weights([squares]))
    log_p, weight = log_p.detach(), linear.weight.clone()
    measured = expected = 0.0
    for seed in range(20):
        error = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.01
        linear.weight.copy_(weight + error)
        log_q = model(ids).logits.log_softmax(-1)
        measured += float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        output_error = hessian_error(weight, weight + error, hessian)
        expected += expected_divergence(output_error, float(squares.mean()), 48, ids.numel())
    assert expected == pytest.approx(measured, rel=0.25)

"""How much each token's error in a linear's output matters for the model's next-token distribution.

To second order the KL divergence caused by small output errors e_t of a linear is
½ Σ_t e_tᵀ F_t e_t with the Fisher information F_t = E[g_t g_tᵀ], g_t the gradient of
-log p(y | x) with respect to that output, y drawn from the model itself. With F_t taken as a
multiple of the identity, ‖g_t‖² is a weight of token t, and H = Σ_t ‖g_t‖² x_t x_tᵀ puts GPTQ,
the scale search and the choice of formats on the divergence that is evaluated, where XᵀX only
knows the sizes of the inputs.

The gradients are those of the float model, so they are gathered once, layer by layer from the
last to the first, from the stored inputs of the layers: memory is that of one layer and a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


def head_gradient(
    hidden: Tensor, norm: Callable[[Tensor], Tensor], head: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Gradient of -log p(y), y drawn from the model, with respect to the last layer's output.

    Args:
        hidden: the last layer's output, [T, hidden_size].
        norm: the final norm, as a differentiable function.
        head: lm_head's weight [vocab_size, hidden_size].
        generator: draws y.

    Returns:
        The gradients float32 [T, hidden_size], and lm_head's token weights float32 [T]:
        E ‖p - y‖² = 1 - Σ p².
    """
    start = hidden.detach().requires_grad_()
    normed = norm(start)
    with torch.no_grad():
        probabilities = (normed @ head.t()).float().softmax(-1)
        weights = 1 - probabilities.square().sum(-1)
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        probabilities.scatter_add_(-1, drawn, torch.full(drawn.shape, -1.0))
        upstream = probabilities.to(head.dtype) @ head
    (gradient,) = torch.autograd.grad(normed, start, upstream.to(normed.dtype))
    return gradient.float(), weights


def layer_gradient(
    forward: Callable[[Tensor], Tensor],
    linears: Mapping[str, nn.Module],
    hidden: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take the gradient back through one decoder layer.

    Args:
        forward: the layer, differentiable; calls each of `linears` once.
        linears: the layer's linears by name.
        hidden: the layer's input [batch, T, hidden_size].
        gradient: of the loss with respect to its output, of the same shape.

    Returns:
        The gradient with respect to the input, in the gradient's type, and for each linear
        ‖g_t‖² of its output, float32 [batch, T].
    """
    outputs: dict[str, Tensor] = {}
    hooks = [
        linear.register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.__setitem__(name, output)
        )
        for name, linear in linears.items()
    ]
    start = hidden.detach().requires_grad_()
    try:
        with torch.enable_grad():
            result = forward(start)
    finally:
        for hook in hooks:
            hook.remove()
    wanted = [start, *outputs.values()]
    found = torch.autograd.grad(result, wanted, gradient.to(result.dtype))
    squares = {
        name: value.float().square().sum(-1) for name, value in zip(outputs, found[1:], strict=True)
    }
    return found[0].to(gradient.dtype), squares


def token_weights(squares: Sequence[Tensor]) -> Tensor:
    """One weight per token for linears that share their inputs, and so H: mean 1, any shape.

    Each linear's ‖g_t‖² counts relative to its mean. Measured: as good as an H for each of q, k, v
    and of gate, up. Tokens all weigh 1 where there is no gradient at all.
    """
    parts = [square / square.mean() for square in squares if bool(square.any())]
    if not parts:
        return torch.ones_like(squares[0])
    return torch.stack(parts).mean(0)


def weighted_gram(inputs: Tensor, weights: Tensor) -> Tensor:
    """H = Σ_t weights_t x_t x_tᵀ, float32 [K, K], of inputs [..., K] and weights [...]."""
    rows = inputs.flatten(0, -2).float() * weights.flatten().sqrt()[:, None]
    return rows.t() @ rows


def expected_divergence(
    output_error: float, gradient_square: float, rows: int, tokens: int
) -> float:
    """KL divergence in nats per token that rounding one linear is expected to cause.

    ½ · mean ‖g_t‖² / N · tr(ΔW H ΔWᵀ) / T, the errors spread evenly over the N outputs. It ranks
    linears and formats (what `choose_formats` needs); it is no forecast: for a whole 4-bit model
    the measured divergence was about twice the sum.

    Args:
        output_error: tr(ΔW H ΔWᵀ), with H from token weights of mean 1; scaled up by N over their
            number where only a sample of the rows was rounded.
        gradient_square: mean over the tokens of ‖g_t‖² of this linear.
        rows: N, its outputs.
        tokens: T, from which H was gathered.
    """
    return 0.5 * gradient_square / rows * output_error / tokens

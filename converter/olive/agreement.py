"""Whether a model that Olive returned is still the same one: two folders on the same tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from converter.errors import ConvertError, Problem
from converter.output.package import Package
from converter.recipe.schema import Recipe
from converter.runtime.cpu_folder import cpu_copy, forced_logits, generate, prompt_tokens


@dataclass(frozen=True)
class Agreement:
    """How a model's next-token distributions compare with another's on the same tokens."""

    mean_kld: float
    """Mean KL divergence of the second from the first, in nats."""
    same_tokens: int
    """Steps whose most likely token is the same."""
    steps: int

    def __str__(self) -> str:
        return f"{self.same_tokens} of {self.steps} tokens the same, KL {self.mean_kld:.1e}"


def compare(package: Package, candidate: Path, recipe: Recipe) -> Agreement:
    """The candidate's next-token distributions against the package's, on the package's tokens.

    Raises:
        ConvertError: onnxruntime-genai cannot load or run the candidate.
    """
    with TemporaryDirectory(dir=candidate.parent) as name:
        places = [Path(name) / part for part in ("before", "after")]
        for place in places:
            place.mkdir()
        before = cpu_copy(package.folder, places[0])
        vocab_size = package.graph.decoder.architecture.vocab_size
        prompt = prompt_tokens(before, recipe.verify.prompt, vocab_size)
        tokens, expected = generate(before, prompt, recipe.verify.new_tokens)
        after = cpu_copy(candidate, places[1])
        try:
            found = forced_logits(after, tokens[:-1], len(prompt))
        except Exception as error:  # onnxruntime-genai raises its own kinds
            reason = " ".join(str(error).split())[:400].rstrip(".")
            raise ConvertError(
                Problem(
                    f"onnxruntime-genai cannot run what Olive returned: {reason}.",
                    "a folder that loads and generates",
                    "remove the pass that breaks it from the slot olive, or add olive=none",
                )
            ) from error
    return agreement(expected, found)


def agreement(expected: torch.Tensor, found: torch.Tensor) -> Agreement:
    """Compare logits of shape (steps, vocab_size)."""
    ours, theirs = (logits.double().log_softmax(-1) for logits in (expected, found))
    kld = (ours.exp() * (ours - theirs)).sum(-1).mean()
    same = int((expected.argmax(-1) == found.argmax(-1)).sum())
    return Agreement(float(kld), same, len(expected))


def raise_if_different(found: Agreement, recipe: Recipe) -> None:
    """Refuse a model further from the one before than `olive.max_kld`.

    Raises:
        ConvertError: says how far it is.
    """
    if not found.mean_kld <= recipe.olive.max_kld:  # NaN is a failure
        remedy = "choose milder settings, or add olive=none"
        if math.isfinite(found.mean_kld):
            remedy = f"choose milder settings, or accept it: olive.max_kld={2 * found.mean_kld:.1g}"
        raise ConvertError(
            Problem(
                f"After Olive the model differs: {found}.",
                f"a mean KL divergence of at most {recipe.olive.max_kld:g} nats",
                remedy,
            )
        )

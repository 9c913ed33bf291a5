"""The command as the tests run it, and a model that converts in an instant."""

from __future__ import annotations

import sys

CONVERT = [sys.executable, "-m", "converter.cli.main"]
TINY_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 160,
    "max_position_embeddings": 128,
}


def tiny(recipe: str = "internlm2_1_8b_cpu_int4") -> list[str]:
    """The words that make a recipe one of tiny synthetic weights."""
    sizes = [f"model.config.{name}={size}" for name, size in TINY_SIZES.items()]
    return [f"recipe={recipe}", "source=synthetic", "verify=none", *sizes]


TINY = tiny()

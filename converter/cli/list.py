"""`convert list [WORD …]`: what there is to convert, and to what.

Without words, it prints the models and the exports, whose names joined by `_` are recipes, and the
recipes that have a file. With words, it prints every recipe that has them all, one line each.
`list passes`, `list SLOT` and `list export` print only names.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.errors import ConvertError, Problem
from converter.recipe.tree import (
    EXPORT,
    MODEL,
    RECIPE,
    SWEEP,
    Piece,
    Tree,
    built_in_models,
    choices,
    folders,
    is_foreign,
)

WIDTH = 96


@dataclass(frozen=True)
class Line:
    """What one line says of a recipe."""

    name: str
    source: str
    size: str
    precision: str
    target: str

    def __str__(self) -> str:
        first = f"{self.name:<43} {self.source:<35} {self.size:>8}"
        return f"{first}  {self.precision:<17} {self.target}".rstrip()


HEAD = Line("recipe", "source", "size", "precision", "target")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    parser.add_argument("words", nargs="*", metavar="WORD", help="what a recipe's line must have")


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    words = [word.lower() for word in parsed.words]
    if words and words[0].removesuffix("s") in folders():  # `list architectures` says the same
        words[0] = words[0].removesuffix("s")
    if words[:1] == ["passes"]:
        print("\n".join(_passes()))
    elif words and words[0] in folders() and words[0] != RECIPE:
        print("\n".join(choices(words[0])))
    elif words:
        _print_recipes([word for word in words if word != RECIPE])
    else:
        print("\n".join(overview()))
    return 0


def overview() -> list[str]:
    """Two short tables, of the models and of the exports, then the recipes with files."""
    tree = Tree()
    files = [name for name in choices(RECIPE) if tree.pair(name) is None]
    own = [name for name in choices(MODEL) if is_foreign(name)]
    return [
        f"{'model':<28}{'repository':<36}{'size':>8}",
        *(_model_line(name, tree) for name in [*built_in_models(), *own]),
        "",
        f"{'export':<22}{'precision':<16} for",
        *(_export_line(name, tree) for name in choices(EXPORT)),
        "",
        "A recipe is MODEL_EXPORT: convert recipe=internlm2_7b_chat_cuda_int4",
        *_listed("Recipes with a file:", files),
        *_listed("Sweeps (convert -m sweep=NAME):", choices(SWEEP)),
        "`convert list 7b cuda` prints the recipes that have both words.",
    ]


def _listed(title: str, names: Sequence[str]) -> list[str]:
    return textwrap.wrap(f"{title} {', '.join(names)}", WIDTH, subsequent_indent="  ")


def _model_line(name: str, tree: Tree) -> str:
    model = tree.piece(MODEL, name).merged()
    size = parameters(model.get("config") or {})
    return f"{name:<27} {model.get('repo') or '':<36}{size:>8}".rstrip()


def _export_line(name: str, tree: Tree) -> str:
    recipe = tree.recipe({MODEL: "none", EXPORT: name})
    provider = recipe.merged()["target"].get("execution_provider", "cpu")
    return f"{name:<21} {precision(recipe):<16} {provider}"


def recipe_line(name: str, tree: Tree) -> Line:
    """What a recipe is for, from its files alone."""
    recipe = tree.recipe({RECIPE: name})
    values = recipe.merged()
    source, model = values["source"], values["model"]
    kind = source.get("kind", "checkpoint")
    repo = source.get("repo") or ""
    place = model.get("repo") if "${model.repo}" in repo else repo
    where = (place or "source.path") if kind == "checkpoint" else kind
    return Line(
        name,
        str(where),
        parameters(model.get("config") or {}),
        precision(recipe),
        str(values["target"].get("execution_provider", "cpu")),
    )


def precision(recipe: Piece) -> str:
    """Bits and scheme, such as `int4 awq`, or the float type."""
    values = recipe.merged()
    quant, target = values["quant"], values["target"]
    if quant.get("round", "none") == "none":
        return str(target.get("float_type", "fp32"))
    return f"int{quant.get('bits', 4)} {recipe.choices['quant'].rpartition('/')[2]}"


def parameters(config: Mapping[str, Any]) -> str:
    """The number of a decoder's weights, such as `7.7 B`; empty without a config."""
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or hidden / heads
        attention = 2 * hidden * head_dim * (heads + config.get("num_key_value_heads", heads))
        layer = attention + _feed_forward(config) + 2 * hidden
        tables = 1 if config.get("tie_word_embeddings") else 2
        count = config["num_hidden_layers"] * layer + tables * config["vocab_size"] * hidden
    except (KeyError, TypeError, ZeroDivisionError):
        return ""
    return f"{count / 1e9:.1f} B" if count >= 1e8 else f"{count / 1e6:.1f} M"


def _feed_forward(config: Mapping[str, Any]) -> float:
    """Weights of a layer's feed-forward block, or of its router and experts."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    experts = config.get("num_local_experts") or config.get("num_experts")
    if not experts:
        return float(3 * hidden * inner)
    each = config.get("moe_intermediate_size") or inner
    shared = config.get("shared_expert_intermediate_size") or 0
    return float(experts * (3 * each + 1) * hidden + 3 * shared * hidden)


def _print_recipes(words: Sequence[str]) -> None:
    tree = Tree()
    lines = [recipe_line(name, tree) for name in choices(RECIPE)]
    found = [line for line in lines if all(word in str(line).lower() for word in words)]
    if not found:
        raise ConvertError(
            Problem(
                f"No recipe has {' and '.join(words)}.",
                f"words of the {len(lines)} recipes' names, sources, precisions or targets",
                "convert list",
            )
        )
    print("\n".join(map(str, [HEAD, *found])))


def _passes() -> list[str]:
    from converter.engine.registry import package_of, pass_entries

    return [f"{entry.name:<12} {package_of(entry)}" for entry in pass_entries()]

"""Every family, as transformers saves it: found by itself, and each logit transformers' own.

The expected logits come from transformers' model with its own weights; nothing of ours has a part
in them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from descriptions import described
from families import FAMILIES, TOKENS, random_model, save, token_ids
from parity import all_logits, logit_error, relative, run, session_of

from converter.errors import ConvertError
from converter.graph.template import build_graph
from converter.model.architecture import read_architecture
from converter.model.decoder import build_decoder
from converter.model.reference import Reference
from converter.sources.local import open_local

TOLERANCE = 1e-4
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_transformers(name: str, tmp_path: Path) -> None:
    assert logit_error(name, tmp_path) < TOLERANCE


def test_the_readme_counts_the_families() -> None:
    text = (Path(__file__).resolve().parents[3] / "README.md").read_text(encoding="utf-8")
    architectures = {family.architecture for family in FAMILIES.values()}
    said = f"{len(FAMILIES)} variants of {len(architectures)} architectures"
    print(said)
    assert said in " ".join(text.split())


PARENTS = {
    "qwen3": "qwen2",
    "granite": "llama",
    "glm": "llama",
    "helium": "llama",
    "gemma2": "gemma",
    "gemma3": "gemma2",
    "cohere2": "cohere",
    "smollm3": "llama",
    "olmo2": "llama",
    "stablelm": "llama",
    "nemotron": "llama",
    "phi3_longrope": "llama",
    "mistral_window": "llama",
    "qwen2_window": "llama",
    "hunyuan": "llama",
    "exaone4": "olmo2",
    "jais2": "arcee",
    "gpt_neox": "phi",
    "hyperclovax": "granite",
    "vaultgemma": "gemma",
    "ernie4_5": "llama",
    "llama_gelu": "mistral",
}
"""Families and descriptions that fit them almost."""
FINDS_NOTHING = {"llama_gelu"}
"""Where the other description is as right as its own: Mistral without a window is Llama."""


@pytest.mark.parametrize("name", PARENTS)
def test_a_wrong_description_is_refused_or_felt(name: str, tmp_path: Path) -> None:
    """Forced by hand, with every check of names switched off: the reference does not follow."""
    model = random_model(FAMILIES[name])
    folder = save(model, tmp_path / "checkpoint")
    right, wrong = described(FAMILIES[name].architecture), described(PARENTS[name])
    named = "q_norm" in wrong.layout.layer_tensors
    unseen = [] if named else ["*q_norm*", "*k_norm*", "*post_norm*"]
    layout = replace(
        wrong.layout, model_types=right.layout.model_types, without_effect=["*"], ignored=unseen
    )
    recipe = all_logits(replace(wrong, layout=layout))
    checkpoint, ids = open_local(folder), token_ids()
    try:
        decoder = build_decoder(checkpoint, layout, read_architecture(checkpoint.config, recipe))
        reference = Reference(decoder)
    except ConvertError:
        return
    found = run(session_of(build_graph(decoder, recipe), tmp_path), ids, {}, TOKENS)[0]
    error = relative(found, reference.logits(reference.hidden_states(ids))[0])
    assert (error < TOLERANCE) == (name in FINDS_NOTHING), error

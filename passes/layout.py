"""layout: bring names and rows of the checkpoint into canonical form."""

from __future__ import annotations

from typing import Any

from converter.engine.contract import Done, Pass, Run
from converter.errors import together_with
from converter.graph.source_codes import source_notes
from converter.model.architecture import read_architecture
from converter.model.checkpoint import Checkpoint
from converter.model.config_view import TEXT_SECTION
from converter.model.decoder import Decoder, build_decoder
from converter.model.experts import Experts
from converter.model.kind import kind_problems


class Layout(Pass[Checkpoint, Decoder]):
    """Maps tensor names, compiles row orders, checks that every tensor is used and fits."""

    name = "layout"
    slot = "layout"
    guarantees = (
        "config.json is of a kind of model that the layout reads",
        "every tensor of the checkpoint is used, or listed as ignored",
        "every tensor has the shape that config.json implies",
        "rows stand in canonical order, whatever their order in the checkpoint",
    )
    headers_only = True

    def run(self, artifact: Checkpoint, run: Run) -> Done[Decoder]:
        decoder = self.preview(artifact, run)
        arch = decoder.architecture
        if artifact.config.get("tie_word_embeddings") and not arch.tie_word_embeddings:
            run.progress.message(
                "config.json ties the head to the embedding, and the weights hold another head: "
                "both are kept, as transformers 5 does."
            )
        if artifact.config.get(TEXT_SECTION) and decoder.ignored:
            run.progress.message(
                f"Left out {len(decoder.ignored)} tensors beside the language model, such as "
                f"{decoder.ignored[0]}: the folder reads text alone."
            )
        for note in (*source_notes(run.recipe, decoder), *decoder.notes):
            run.progress.message(note)
        experts = f", {arch.experts.said}" if arch.experts else ""
        facts = _expert_facts(arch.experts) if arch.experts else {}
        if decoder.stored:
            facts["quantized_source"] = dict(decoder.stored)
        return Done(
            decoder,
            facts,
            summary=f"{arch.num_hidden_layers} layers, hidden size {arch.hidden_size}, "
            f"{arch.num_attention_heads} heads, {arch.num_key_value_heads} KV heads{experts}",
        )

    def preview(self, artifact: Checkpoint, run: Run) -> Decoder:
        layout = run.recipe.layout
        with together_with(kind_problems(artifact.config, layout)):
            arch = read_architecture(artifact.config, run.recipe)
        return build_decoder(artifact, layout, arch)


def _expert_facts(experts: Experts) -> dict[str, Any]:
    """What the lock file says of experts, and `convert explain` after it."""
    return {
        "experts": experts.count,
        "experts_per_token": experts.per_token,
        "layers_with_experts": sum(experts.layers),
        "shared_expert": experts.shared_intermediate_size > 0,
    }

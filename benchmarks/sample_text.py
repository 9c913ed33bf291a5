"""Calibration text for benchmarks/quality.py: what the model itself writes, and part of a book.

    python benchmarks/sample_text.py CHECKPOINT FOLDER --excerpt book.txt

Sequences of 512 tokens are drawn from the float model, each from a random capitalised word, without
temperature or cut-off, so that they are what the model expects to read. Writes generated.txt and
excerpt.txt, which `calibration.text=FOLDER` takes together.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from conversion import llama_name
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from converter.cli.compose import compose_recipe
from converter.model.architecture import read_architecture
from converter.model.decoder import build_decoder
from converter.model.reference import llama_config
from converter.sources.local import open_local

EXCERPT = 62_000  # characters, about 14,000 tokens


def load(folder: Path) -> Any:
    """The checkpoint as transformers' model."""
    layout = compose_recipe(["recipe=internlm2_1_8b_cpu_fp32"]).layout
    checkpoint = open_local(folder)
    arch = read_architecture(checkpoint.config)
    decoder = build_decoder(checkpoint, layout, arch)
    model = LlamaForCausalLM(llama_config(arch))
    model.load_state_dict({llama_name(n): w.read().float() for n, w in decoder.weights.items()})
    return model.eval()


def main() -> None:
    """Write both texts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--excerpt", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=40)
    parser.add_argument("--length", type=int, default=512)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.checkpoint)
    model = load(arguments.checkpoint)
    words = [i for i in range(model.config.vocab_size) if _starts_a_sentence(tokenizer.decode([i]))]
    first = torch.tensor(words)[torch.randint(len(words), (arguments.sequences, 1))]
    ids = model.generate(
        first,
        attention_mask=torch.ones_like(first),
        do_sample=True,
        top_k=0,
        min_new_tokens=arguments.length - 1,
        max_new_tokens=arguments.length - 1,
        pad_token_id=0,
    )
    arguments.folder.mkdir(parents=True, exist_ok=True)
    texts = [tokenizer.decode(row) for row in ids.tolist()]
    (arguments.folder / "generated.txt").write_text("\n\n".join(texts), encoding="utf-8")
    book = arguments.excerpt.read_text(encoding="utf-8")
    middle = book[len(book) // 2 :][:EXCERPT]
    (arguments.folder / "excerpt.txt").write_text(middle, encoding="utf-8")


def _starts_a_sentence(text: str) -> bool:
    return text[:1] == " " and text[1:2].isupper()


if __name__ == "__main__":
    main()

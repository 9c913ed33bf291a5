"""Compares what `convert` makes of GGUF files with llama.cpp, which wrote and runs them.

    python benchmarks/gguf_sources.py runtime FILE.gguf --llama PYTHON [--work FOLDER]
    python benchmarks/gguf_sources.py architectures LLAMA_CPP
    python benchmarks/gguf_sources.py tokenizers LLAMA_CPP FOLDER …

runtime        llama.cpp brings the file into each of `KINDS`, and that into float32 by its own
               arithmetic. Its tokens of hard texts and its logits of a text, of both files, against
               those of the folder that `convert` makes of the first. PYTHON is that of an
               environment with llama-cpp-python and numpy.
architectures  llama.cpp's own converter writes tiny random models of all families of the tests as
               GGUF; config.json and every tensor that are read back, against those it read.
               LLAMA_CPP is its source tree.
tokenizers     llama.cpp's own converter writes the tokenizer of each folder into a file; what is
               read back of it, against the folder's own on 2,000 hard texts.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizer_texts import many_texts

HERE = Path(__file__).resolve().parent
KINDS = ("Q8_0", "Q4_0", "Q4_K_M")
"""llama.cpp's mixtures of types."""
TABLE = ["quant.lm_head.bits=8", "quant.embedding.bits=8"]
KEPT = {"Q8_0": ["quant.bits=8", *TABLE], "Q4_0": ["quant.bits=4", *TABLE]}
"""Mixtures whose codes stand in the folder as they are, and what the recipe asks for."""
ROWS = 300_000
"""Rows of an embedding that every tokenizer fits."""
TOKENS, FIRST = 512, 256
"""Tokens of the text, and the first position whose logits count."""


def runtime(arguments: argparse.Namespace) -> None:
    worker = [arguments.llama, str(HERE / "llama_worker.py")]
    with TemporaryDirectory() as name:
        work = Path(arguments.work or name)
        texts_alike = False
        for kind in KINDS:
            path, wide = work / f"model-{kind}.gguf", work / f"model-{kind}-F32.gguf"
            run([*worker, "quantize", str(arguments.file), str(path), kind])
            run([*worker, "quantize", str(path), str(wide), "F32"])
            folder = work / kind
            convert(path, folder, ["quant=none"])
            if not texts_alike:
                print(tokens_alike(path, folder, worker, work), flush=True)
                texts_alike = True
            found = logits(folder, work)
            show(f"{kind}, float32 on both sides", their_logits(wide, worker, work), found)
            theirs = their_logits(path, worker, work)
            show(f"{kind}, llama.cpp's kernels", theirs, found)
            if kind in KEPT:
                convert(path, folder, KEPT[kind])
                show(f"{kind}, codes kept, kernels of both", theirs, logits(folder, work))


def show(label: str, one: NDArray[np.float32], other: NDArray[np.float32]) -> None:
    print(f"{label:34}", *divergence(one, other), flush=True)


def convert(path: Path, folder: Path, words: list[str]) -> None:
    command = [sys.executable, "-m", "converter.cli.main", f"source.path={path}"]
    run([*command, f"output={folder}", "overwrite=true", *words])


def tokens_alike(path: Path, folder: Path, worker: list[str], work: Path) -> str:
    """How many texts llama.cpp and the folder's tokenizer read alike; writes the ids of a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prose = (HERE.parent / "docs" / "architecture.md").read_text("utf-8")
    np.save(work / "ids.npy", np.array([tokenizer.encode(prose)[:TOKENS]], np.int64))
    texts = [text for _, text in many_texts(list(tokenizer.get_added_vocab()))]
    (work / "texts.json").write_text(json.dumps(texts))
    run([*worker, "tokens", str(path), str(work / "texts.json"), str(work / "ids.json")])
    theirs = json.loads((work / "ids.json").read_text())
    ours = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    alike = sum(one == other for one, other in zip(ours, theirs, strict=True))
    return f"{alike} of {len(texts)} texts have the same tokens"


def their_logits(path: Path, worker: list[str], work: Path) -> NDArray[np.float32]:
    output = work / "logits.npy"
    ends = [str(FIRST), str(TOKENS)]
    run([*worker, "logits", str(path), str(work / "ids.npy"), *ends, str(output)])
    found: NDArray[np.float32] = np.load(output)[0]
    return found


def logits(folder: Path, work: Path) -> NDArray[np.float32]:
    from converter.evaluation.runtime_logits import folder_logits

    (found,) = folder_logits(folder, np.load(work / "ids.npy"), slice(FIRST, TOKENS))
    return found


def divergence(one: NDArray[np.float32], other: NDArray[np.float32]) -> Iterator[str]:
    """Mean and largest divergence of the distributions, and how often they have one first token."""
    wide = (one.astype(np.float64), other.astype(np.float64))
    p, q = (values - np.logaddexp.reduce(values, -1, keepdims=True) for values in wide)
    each = (np.exp(p) * (p - q)).sum(-1)
    first = (one.argmax(-1) == other.argmax(-1)).mean()
    yield f"KL {each.mean():.2e} (at most {each.max():.2e}), first token alike {first:.1%}"


def architectures(arguments: argparse.Namespace) -> None:
    take_llama_cpp(arguments.tree)
    from families import FAMILIES

    for name, family in FAMILIES.items():
        with TemporaryDirectory() as folder:
            print(f"{name:22} {round_trip(Path(folder), family)}", flush=True)


def take_llama_cpp(tree: Path) -> None:
    """Let llama.cpp's converter and the tests' models be imported."""
    sys.path[:0] = [str(tree / "gguf-py"), str(HERE.parent / "tests"), str(tree)]
    logging.disable(logging.CRITICAL)


def tokenizers(arguments: argparse.Namespace) -> None:
    take_llama_cpp(arguments.tree)
    for source in arguments.folders:
        with TemporaryDirectory() as folder:
            print(f"{source}: {tokenizer_round_trip(source, Path(folder))}", flush=True)


def tokenizer_round_trip(source: Path, folder: Path) -> str:
    """How many texts a tokenizer reads alike before and after it was in a file."""
    from families import FAMILIES, Family, random_model, save

    from converter.gguf.header import read_header
    from converter.gguf.tokenizer import tokenizer_folder
    from converter.tokenizer.prepare import prepare_tokenizer
    from converter.tokenizer.tokenizer_json import read_with_library

    own = prepare_tokenizer(source, ROWS).files["tokenizer.json"]
    if (source / "tokenizer.json").is_file() and not (source / "tokenizer.model").is_file():
        own = (source / "tokenizer.json").read_bytes()
    rows = len(json.loads(own)["model"]["vocab"]) + len(json.loads(own)["added_tokens"])
    settings = FAMILIES["llama"].settings | {"vocab_size": rows}
    save(random_model(Family("llama", "llama", settings)), folder)
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    write_gguf(folder, folder / "model.gguf", with_vocabulary=True)
    made = tokenizer_folder(read_header(folder / "model.gguf"), {"eos_token_id": 0})
    assert made is not None
    found = prepare_tokenizer(made, rows).files["tokenizer.json"]
    one, other = read_with_library(own), read_with_library(found)
    added = [token.content for token in one.get_added_tokens_decoder().values()]
    texts = [text for _, text in many_texts(added)]
    alike = sum(
        one.encode(text, add_special_tokens=False).ids
        == other.encode(text, add_special_tokens=False).ids
        for text in texts
    )
    return f"{alike} of {len(texts)} texts have the same tokens"


def round_trip(folder: Path, family: Any) -> str:
    """What is lost between a checkpoint and what is read of llama.cpp's file of it."""
    from descriptions import described
    from families import random_model, save

    from converter.errors import ConvertError, shortened
    from converter.gguf.source import find_gguf, open_gguf
    from converter.model.config_view import view_config
    from converter.recipe.architectures import architecture_of
    from converter.sources.local import open_local

    save(random_model(family), folder)
    config = complete_config(folder)
    try:
        write_gguf(folder, folder / "model.gguf")
    except (NotImplementedError, KeyError, FileNotFoundError, ValueError) as error:
        return f"not written: {shortened(str(error))[:80]}"
    given = open_local(folder)
    try:
        model = find_gguf(folder / "model.gguf")
        assert model is not None
        recipe = described(str(architecture_of(model.config)))
        found = open_gguf(model, recipe)
    except ConvertError as error:
        return f"refused: {error.problems[0].found}"
    lost = [
        name
        for name, weight in given.tensors.items()
        if name not in found.tensors
        or not np.allclose(found.tensors[name].read().float(), weight.read().float(), atol=1e-6)
    ]
    layouts = described(family.architecture).layout, recipe.layout
    one, other = (
        view_config(held, layout).values
        for held, layout in zip((config, found.config), layouts, strict=True)
    )
    return f"{len(lost)} of {len(given.tensors)} tensors differ; {', '.join(changed(one, other))}"


UNREAD = {"architectures", "transformers_version", "dtype", "_name_or_path", "initializer_range"}
"""Keys that llama.cpp has no use for, besides ids of tokens."""


def changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*one, *other} - UNREAD):
        if one.get(key) != other.get(key) and not key.endswith("_token_id"):
            yield f"{key} {one.get(key)} → {other.get(key)}"


def complete_config(folder: Path) -> dict[str, Any]:
    """config.json as it was; then with what llama.cpp's converter asks for, and a vocabulary."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    if "text_config" in config:  # of a model with images, whose file llama.cpp writes apart
        return config
    rotary = {"rotary_pct": (config.get("head_dim") or 1) * config["num_attention_heads"]}
    rotary["rotary_pct"] /= config["hidden_size"]  # Cohere2's heads are not hidden_size / heads
    path.write_text(json.dumps({**rotary, **config}))
    vocabulary = {str(number): number for number in range(config["vocab_size"])}
    tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return config


def write_gguf(folder: Path, output: Path, with_vocabulary: bool = False) -> None:
    """llama.cpp's converter on a folder, in float32."""
    import gguf

    conversion: Any = import_module("conversion")
    base: Any = import_module("conversion.base")
    config = base.ModelBase.load_hparams(folder, False)
    name = base.get_model_architecture(config, base.ModelType.TEXT)
    kind = gguf.LlamaFileType.ALL_F32
    made = conversion.get_model_class(name, False)(folder, kind, output, eager=True)
    if not with_vocabulary:
        made.set_vocab = lambda: None
    made.write()


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("runtime")
    one.add_argument("file", type=Path)
    one.add_argument("--llama", required=True, help="python of llama.cpp's environment")
    one.add_argument("--work", help="folder that keeps what is made")
    one.set_defaults(run=runtime)
    other = verbs.add_parser("architectures")
    other.add_argument("tree", type=Path)
    other.set_defaults(run=architectures)
    last = verbs.add_parser("tokenizers")
    last.add_argument("tree", type=Path)
    last.add_argument("folders", type=Path, nargs="+")
    last.set_defaults(run=tokenizers)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()

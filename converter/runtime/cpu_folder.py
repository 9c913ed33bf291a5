"""A folder of any target on the CPU: a copy of links that runs there, and what it generates."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import torch

from converter.graph.cpu_model import float_activations, widen
from converter.graph.names import DATA_FILE, LOGITS, MODEL_FILE
from converter.output.genai_config import CONFIG_FILE

ONE_SEQUENCE = {"num_beams": 1, "num_return_sequences": 1, "batch_size": 1}
"""Search options of one plain sequence, whatever the folder's own say."""


def cpu_copy(folder: Path, target: Path, exact: bool = False) -> Path:
    """A folder of links to `folder` that runs on the CPU whatever its provider and type are.

    An `exact` one multiplies with float activations, also where the folder rounds them to int8.
    """
    model = ir.load(folder / MODEL_FILE)
    own = {CONFIG_FILE}
    changed = widen(model)
    if (exact and float_activations(model)) or changed:
        own |= {MODEL_FILE, DATA_FILE}
        ir.save(model, target / MODEL_FILE)
        # onnxruntime refuses a data file that is a link out of the model's folder.
        os.link(folder / DATA_FILE, target / DATA_FILE)
    for path in folder.iterdir():
        if path.name not in own and path.is_file():
            os.symlink(path, target / path.name)
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    options = config["model"]["decoder"]["session_options"]
    options["provider_options"] = []
    if options.get("intra_op_num_threads", 0) > (cores := os.cpu_count() or 1):
        options["intra_op_num_threads"] = cores  # another machine's number
    (target / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    return target


def generate(folder: Path, prompt: Sequence[int], count: int) -> tuple[list[int], torch.Tensor]:
    """Greedy generation: all tokens, and the float32 logits (count, vocab_size) of each step."""
    import numpy as np
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    length = len(prompt) + count
    parameters.set_search_options(max_length=length, do_sample=False, **ONE_SEQUENCE)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.asarray(prompt, dtype=np.int32))
    tokens, steps = list(prompt), []
    for _ in range(count):
        last = np.asarray(generator.get_output(LOGITS))[0, -1]
        steps.append(torch.from_numpy(last.astype(np.float32)))
        tokens.append(int(steps[-1].argmax()))
        if len(steps) < count:
            generator.append_tokens(np.asarray(tokens[-1:], dtype=np.int32))
    return tokens, torch.stack(steps)


def forced_logits(folder: Path, tokens: Sequence[int], prompt: int) -> torch.Tensor:
    """float32 logits (steps, vocab_size) after `prompt` tokens and after each later one."""
    import numpy as np
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    length = len(tokens) + 1
    parameters.set_search_options(max_length=length, do_sample=False, **ONE_SEQUENCE)
    generator = og.Generator(model, parameters)
    steps = []
    for part in (tokens[:prompt], *([token] for token in tokens[prompt:])):
        generator.append_tokens(np.asarray(part, dtype=np.int32))
        last = np.asarray(generator.get_output(LOGITS))[0, -1]
        steps.append(torch.from_numpy(last.astype(np.float32)))
    return torch.stack(steps)


def prompt_tokens(folder: Path, text: str, vocab_size: int) -> list[int]:
    """Token ids of a text, after BOS, without loading the model of `folder`.

    Without a tokenizer they are ids from all over the vocabulary.
    """
    if not (folder / "tokenizer.json").is_file():
        return spread_ids(vocab_size, 8)
    import onnxruntime_genai as og

    tokenizer = og.Tokenizer(str(folder))
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    bos = config["model"].get("bos_token_id")
    return [*([] if bos is None else [bos]), *tokenizer.encode(text).tolist()]


def spread_ids(vocab_size: int, count: int) -> list[int]:
    """Token ids from all over the vocabulary."""
    return [number * vocab_size // count for number in range(count)]

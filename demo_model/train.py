"""Makes the demo model: trains its tokenizer and its weights and writes the published form.

    python -m demo_model.train [--output FOLDER] [--resume]

One thread, fully seeded. README.md states how long it takes and how closely it reproduces.
"""

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_model.corpus import HELD_OUT_START, documents
from demo_model.publish import CONFIG, llama_tensors, write_checkpoint
from demo_model.stories import KEY_WORDS
from demo_model.tokenizer import BOS_ID, Encoder, train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

SEED = 2
BATCH_TOKENS = 2048
"""Most tokens in a batch, padding included."""
DOCUMENTS_SORTED = 512
"""Documents that are sorted by length at a time, to keep the padding small."""
MAX_LENGTH = CONFIG["max_position_embeddings"]
IGNORED = -100
"""Padding, at the ends of rows: causal attention does not see it, the loss leaves it out."""
DRILL_ROWS, DRILL_WORDS = 14, 16
WEIGHT_DECAY = 0.05
WITHOUT_BOS_EVERY = 8
"""Each eighth document comes without `<s>`: some programs encode a prompt without it."""
HELD_OUT_BATCHES = 20
DEFAULT_OUTPUT = Path(__file__).parents[1] / "converter" / "data" / "demo"


@dataclass(frozen=True)
class Stage:
    """A part of the training, with an optimizer of its own.

    The learning rate rises linearly over `warmup` steps, stays, and falls linearly to zero over the
    last `cooldown` steps; a cooldown over all steps is a cosine. `first_document` is None where
    a stage does not read the corpus.
    """

    steps: int
    peak_learning_rate: float
    warmup: int
    cooldown: int
    first_document: int | None
    with_drill: bool


FIRST_STAGES = (
    Stage(300, 1e-3, warmup=0, cooldown=0, first_document=None, with_drill=True),
    Stage(1200, 2e-3, warmup=50, cooldown=1200, first_document=0, with_drill=False),
)
LAST_STAGE = Stage(800, 1e-3, 20, 300, first_document=100_000, with_drill=True)
"""Words said twice and the corpus, one after the other and then together.

Stories keep their names only once attention has learned to copy ("induction heads", Olsson et al.,
2022). The corpus alone does not teach that to a model of this size in any reasonable time.
"""


def encoded(encoder: Encoder, start: int) -> Iterator[list[int]]:
    """Token ids of the documents from `start` on, without an end."""
    for number, document in enumerate(documents(SEED, start)):
        ids = encoder.encode(document)[:MAX_LENGTH]
        yield ids if (number + 1) % WITHOUT_BOS_EVERY else ids[1:]


def grouped(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    """Cuts rows, shortest first, into groups that padded hold at most BATCH_TOKENS tokens."""
    group: list[list[int]] = []
    for row in sorted(rows, key=len):
        if group and len(row) * (len(group) + 1) > BATCH_TOKENS:
            yield group
            group = []
        group.append(row)
    yield group


def batches(encoder: Encoder, start: int) -> "Iterator[torch.Tensor]":
    """Batches of token ids, int64 [rows, tokens], from document `start` on, without an end.

    A row is one document, padded with IGNORED at its end; the rows of a batch are of like length.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    stream = encoded(encoder, start)
    rng = random.Random(f"{SEED}/{start}")
    while True:
        groups = list(grouped(list(itertools.islice(stream, DOCUMENTS_SORTED))))
        rng.shuffle(groups)
        for group in groups:
            rows = [torch.tensor(row) for row in group]
            yield pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def new_model() -> "LlamaForCausalLM":
    """An untrained Llama in float32 with the demo's sizes; its maths are InternLM2's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    shared = (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
        "num_hidden_layers", "max_position_embeddings", "rms_norm_eps", "vocab_size",
        "bos_token_id", "eos_token_id", "tie_word_embeddings", "initializer_range",
    )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            **{key: CONFIG[key] for key in shared},
            rope_parameters={"rope_type": "default", "rope_theta": CONFIG["rope_theta"]},
        )
    )


def mean_loss(model: "LlamaForCausalLM", batch: "torch.Tensor") -> "torch.Tensor":
    """Mean cross entropy per token, in nats, of one batch as `batches` gives it."""
    from torch.nn.functional import cross_entropy

    logits = model(batch[:, :-1].clamp(min=0), use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=IGNORED)


def learning_rate(stage: Stage, step: int) -> float:
    """The stage's learning rate at `step`, counted from 0."""
    warm = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    if stage.cooldown == stage.steps:
        return stage.peak_learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
    left = (stage.steps - step) / stage.cooldown if stage.cooldown else 1.0
    return stage.peak_learning_rate * min(warm, left)


def optimizer(model: "LlamaForCausalLM") -> "torch.optim.Optimizer":
    """AdamW, with weight decay on the matrices only."""
    import torch

    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def drill_batches(encoder: Encoder) -> "Iterator[torch.Tensor]":
    """Batches, int64 [DRILL_ROWS, 2 DRILL_WORDS + 1], of `<s>` and random words said twice."""
    import torch

    words = torch.tensor([encoder.processor.encode(f" {word}")[0] for word in KEY_WORDS])
    while True:
        said = words[torch.randint(len(words), (DRILL_ROWS, DRILL_WORDS))]
        yield torch.cat([torch.full((DRILL_ROWS, 1), BOS_ID), said, said], dim=1)


def stage_batches(stage: Stage, encoder: Encoder) -> "Iterator[list[torch.Tensor]]":
    """The batches of each step of a stage; a step's loss is the sum of their losses."""
    streams = []
    if stage.first_document is not None:
        streams.append(batches(encoder, stage.first_document))
    if stage.with_drill:
        streams.append(drill_batches(encoder))
    while True:
        yield [next(stream) for stream in streams]


def run_stage(model: "LlamaForCausalLM", encoder: Encoder, stage: Stage) -> None:
    """Trains `model` in place and prints the losses now and then."""
    import torch

    print(stage, flush=True)
    adamw = optimizer(model)
    stream = stage_batches(stage, encoder)
    began = time.monotonic()
    for step in range(stage.steps):
        for group in adamw.param_groups:
            group["lr"] = learning_rate(stage, step)
        losses = [mean_loss(model, batch) for batch in next(stream)]
        adamw.zero_grad(set_to_none=True)
        torch.autograd.backward(losses)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        if step % 50 == 49:
            shown = "  ".join(f"{loss.item():.4f}" for loss in losses)
            seconds = time.monotonic() - began
            print(f"step {step + 1:5d}  loss {shown}  {seconds:6.0f} s", flush=True)


def held_out_loss(model: "LlamaForCausalLM", encoder: Encoder) -> float:
    """Mean loss, in nats per token, over documents that training does not see."""
    import torch

    stream = batches(encoder, HELD_OUT_START)
    with torch.inference_mode():
        losses = [mean_loss(model, next(stream)).item() for _ in range(HELD_OUT_BATCHES)]
    return sum(losses) / len(losses)


def sample(model: Any, encoder: Encoder, prompt: str) -> str:
    """The model's greedy continuation of `prompt`."""
    import torch

    ids = torch.tensor([[BOS_ID, *encoder.processor.encode(prompt)]])
    given = model.generate(ids, max_new_tokens=300, do_sample=False, pad_token_id=2)
    return str(encoder.processor.decode(given[0].tolist()))


def train(output: Path, resume: bool) -> None:
    """Runs all stages and writes the checkpoint to `output`, before the last stage and after it.

    The last stage begins from the checkpoint as written, in bfloat16; with `resume` training
    begins there.
    """
    import torch
    from safetensors.torch import load_file

    tokenizer_model = train_tokenizer(SEED)
    encoder = Encoder(tokenizer_model)
    model = new_model()
    print(f"{model.num_parameters():,} parameters")
    if not resume:
        for stage in FIRST_STAGES:
            run_stage(model, encoder, stage)
        write_checkpoint(output, model.state_dict(), tokenizer_model)
    model.load_state_dict(llama_tensors(load_file(output / "model.safetensors")))
    torch.manual_seed(SEED)
    run_stage(model, encoder, LAST_STAGE)
    write_checkpoint(output, model.state_dict(), tokenizer_model)
    print(f"held-out loss {held_out_loss(model, encoder):.4f} nats per token")
    print(sample(model, encoder, "Once upon a time"))


def main() -> None:
    """Reads the command line and trains on one thread."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--resume", action="store_true", help="run only the last stage")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train(arguments.output, arguments.resume)


if __name__ == "__main__":
    main()

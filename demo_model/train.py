"""Makes the demo model: trains its tokenizer and its weights and writes the published form.

    python -m demo_model.train [--output FOLDER] [--steps N]

One thread, fully seeded. README.md states how long it takes and how closely it reproduces.
"""

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_model.corpus import HELD_OUT_START, documents
from demo_model.publish import CONFIG, write_checkpoint
from demo_model.tokenizer import BOS_ID, Encoder, train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

SEED = 2
STEPS = 2400
BATCH_TOKENS = 3072
"""Most tokens in a batch, padding included."""
DOCUMENTS_SORTED = 512
"""Documents that are sorted by length at a time, to keep the padding small."""
MAX_LENGTH = CONFIG["max_position_embeddings"]
IGNORED = -100
"""Padding, at the ends of rows: causal attention does not see it, the loss leaves it out."""
PEAK_LEARNING_RATE = 4e-3
WARMUP_STEPS = 50
WEIGHT_DECAY = 0.05
WITHOUT_BOS_EVERY = 8
"""Each eighth document comes without `<s>`: some programs encode a prompt without it."""
HELD_OUT_BATCHES = 20
DEFAULT_OUTPUT = Path(__file__).parents[1] / "converter" / "data" / "demo"


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

    A row is one document, padded with IGNORED at its end; a batch holds documents of like length.
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
    """A Llama in float32 with the demo's sizes, seeded; its maths are InternLM2's."""
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


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_LEARNING_RATE * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def optimizer(model: "LlamaForCausalLM") -> "torch.optim.Optimizer":
    """AdamW, with weight decay on the matrices only."""
    import torch

    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98))


def train(model: "LlamaForCausalLM", encoder: Encoder, steps: int) -> None:
    """Trains `model` in place and prints the loss now and then."""
    import torch

    adamw = optimizer(model)
    began = time.monotonic()
    for step, batch in zip(range(steps), batches(encoder, 0), strict=False):
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = mean_loss(model, batch)
        adamw.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - began
            print(f"step {step:5d}  loss {loss.item():.4f}  {seconds:6.0f} s", flush=True)


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


def main() -> None:
    """Runs all steps and writes the checkpoint."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer_model = train_tokenizer(SEED)
    encoder = Encoder(tokenizer_model)
    model = new_model()
    print(f"{model.num_parameters():,} parameters")
    train(model, encoder, arguments.steps)
    print(f"held-out loss {held_out_loss(model, encoder):.4f} nats per token")
    print(sample(model, encoder, "Once upon a time"))
    write_checkpoint(arguments.output, model.state_dict(), tokenizer_model)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()

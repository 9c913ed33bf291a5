"""The shipped demo model: published form, what it writes, and the generator behind it."""

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from published import CONFIGS

REPOSITORY = Path(__file__).parents[2]
if str(REPOSITORY) not in sys.path:
    sys.path.append(str(REPOSITORY))

from demo_model.corpus import HELD_OUT_START, Document, document  # noqa: E402
from demo_model.tokenizer import CHAT_TOKEN_IDS, Encoder  # noqa: E402
from demo_model.train import SEED  # noqa: E402

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

DEMO = REPOSITORY / "converter" / "data" / "demo"
CORPUS_SHA256 = "e0ef420e9902adce6d97a25d8650ec59de917a0f077fc232fdc91d055e5c8990"
TOKENIZER_SHA256 = "d3113b17b0b8ecec18c61e1f91f79cc671e77287e5e9c6435d050e64acc771fb"
MOST_BYTES = 4 * 2**20
MOST_HELD_OUT_LOSS = 0.33
"""Nats per token; training ended at the figure in demo_model/README.md."""
NUM_HELD_OUT = 60
IM_START, IM_END = 1023, 1022


def load_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def llama_state(tensors: "dict[str, torch.Tensor]", dims: dict[str, Any]) -> dict[str, Any]:
    """InternLM2 tensors under Llama's names, wqkv split by (KV head, query|key|value, row)."""
    kv_heads, hidden = dims["num_key_value_heads"], dims["hidden_size"]
    head_dim = hidden // dims["num_attention_heads"]
    renamed = {
        "tok_embeddings": "embed_tokens", "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "output.": "lm_head.",
    }  # fmt: skip
    state = {}
    for name, tensor in tensors.items():
        if "wqkv" in name:
            rows = tensor.reshape(kv_heads, -1, head_dim, hidden)
            parts = {"q": rows[:, :-2], "k": rows[:, -2], "v": rows[:, -1]}
            for axis, part in parts.items():
                new = name.replace("attention.wqkv", f"self_attn.{axis}_proj")
                state[new] = part.reshape(-1, hidden)
            continue
        for old, new in renamed.items():
            name = name.replace(old, new)
        state[name] = tensor
    return state


@pytest.fixture(scope="module")
def model() -> "LlamaForCausalLM":
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    dims = load_json(DEMO / "config.json")
    for key in ("architectures", "auto_map", "model_type", "rope_scaling", "torch_dtype"):
        dims.pop(key)
    llama = LlamaForCausalLM(LlamaConfig(**dims))
    state = llama_state(load_file(DEMO / "model.safetensors"), dims)
    llama.load_state_dict(state, strict=True)
    return llama.float().eval()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder((DEMO / "tokenizer.model").read_bytes())


def greedy(model: Any, ids: list[int], max_new_tokens: int = 320) -> list[int]:
    import torch

    stops = load_json(DEMO / "generation_config.json")["eos_token_id"]
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=2,
    )
    new: list[int] = out[0, len(ids) :].tolist()
    return new


def answer(model: Any, encoder: Encoder, question: str) -> tuple[str, int]:
    """The greedy answer to one question and the id that ended it."""
    processor = encoder.processor
    asked = [IM_START, *processor.encode(f"user\n{question}"), IM_END, *processor.encode("\n")]
    new = greedy(model, [1, *asked, IM_START, *processor.encode("assistant\n")])
    return processor.decode(new[:-1]), new[-1]


def as_text(item: Document) -> str:
    return "".join((item.text, *(f"{m.role}:{m.content}" for m in item.messages)))


def test_the_corpus_is_the_one_that_the_model_was_trained_on() -> None:
    digest = hashlib.sha256()
    for index in range(2000):
        digest.update(as_text(document(SEED, index)).encode())
    assert digest.hexdigest() == CORPUS_SHA256


def test_a_document_depends_on_its_seed_and_index_only() -> None:
    backwards = [document(SEED, index) for index in (9, 5, 0)]
    assert backwards == [document(SEED, index) for index in (0, 5, 9)][::-1]
    assert document(SEED, 0) != document(SEED + 1, 0)


def test_no_name_belongs_to_both_hero_and_friend() -> None:
    from demo_model import stories

    for seed in range(500):
        who = stories.cast(random.Random(seed))
        assert who.hero.name != who.friend.name
        assert who.hero.kind != who.friend.kind


def test_the_tokenizer_is_unchanged() -> None:
    data = (DEMO / "tokenizer.model").read_bytes()
    assert hashlib.sha256(data).hexdigest() == TOKENIZER_SHA256


def test_the_folder_is_small_and_has_no_code() -> None:
    files = {path.name: path.stat().st_size for path in DEMO.iterdir()}
    assert sorted(files) == [
        "config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json",
        "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip
    assert sum(files.values()) <= MOST_BYTES


def test_the_tokenizer_has_internlm2s_options_and_pieces() -> None:
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    parsed: Any = protobuf.ModelProto.FromString((DEMO / "tokenizer.model").read_bytes())
    trainer, normalizer = parsed.trainer_spec, parsed.normalizer_spec
    assert trainer.model_type == trainer.BPE
    assert (trainer.byte_fallback, trainer.split_digits) == (True, True)
    assert (trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id) == (0, 1, 2, -1)
    assert normalizer.name == "identity"
    assert (normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces) == (False, False)
    assert len(parsed.pieces) == load_json(DEMO / "config.json")["vocab_size"]
    unused = parsed.pieces[-32:]
    assert [piece.piece for piece in unused] == [f"[UNUSED_TOKEN_{n}]" for n in range(32)]
    assert {piece.type for piece in unused} == {unused[0].USER_DEFINED}


@pytest.mark.parametrize("text", ["  two  spaces", "a\n\nb", "2026", "Grüße, 你好 🦊", " x ", ""])
def test_the_tokenizer_gives_every_text_back(encoder: Encoder, text: str) -> None:
    assert encoder.processor.decode(encoder.processor.encode(text)) == text


def test_configs_have_the_keys_of_the_published_ones() -> None:
    pairs = {
        "config.json": CONFIGS / "internlm2-chat-1_8b.config.json",
        "generation_config.json": CONFIGS / "chat.generation_config.json",
        "special_tokens_map.json": CONFIGS / "chat_tokenizer" / "special_tokens_map.json",
        "tokenizer_config.json": CONFIGS / "chat_tokenizer" / "tokenizer_config.json",
    }
    sizes = {"added_tokens_decoder", "eos_token_id", "hidden_size", "initializer_range",
             "intermediate_size", "max_position_embeddings", "num_attention_heads",
             "num_hidden_layers", "num_key_value_heads", "rope_theta", "torch_dtype",
             "vocab_size"}  # fmt: skip
    for name, published in pairs.items():
        ours, theirs = load_json(DEMO / name), load_json(published)
        assert list(ours) == list(theirs)
        assert {key for key in ours if ours[key] != theirs[key]} <= sizes
    assert load_json(DEMO / "generation_config.json")["eos_token_id"] == [2, IM_END]


def test_added_tokens_name_the_last_rows_of_the_embedding() -> None:
    added = load_json(DEMO / "tokenizer_config.json")["added_tokens_decoder"]
    names = {int(token_id): entry["content"] for token_id, entry in added.items()}
    assert names == {0: "<unk>", 1: "<s>", 2: "</s>"} | {
        token_id: token for token, token_id in CHAT_TOKEN_IDS.items()
    }
    assert (names[IM_START], names[IM_END], max(names)) == ("<|im_start|>", "<|im_end|>", IM_START)


def test_the_chat_template_encodes_as_the_training_chats(encoder: Encoder) -> None:
    import jinja2

    chat = next(item for n in range(99) if (item := document(SEED, n)).messages)
    template = load_json(DEMO / "tokenizer_config.json")["chat_template"]
    messages = [{"role": m.role, "content": m.content} for m in chat.messages]
    text = jinja2.Template(template, keep_trailing_newline=True).render(
        messages=messages, bos_token="<s>"
    )
    pieces = text.replace("<|im_end|>", "<|im_start|>").split("<|im_start|>")
    assert pieces[0] == "<s>"
    marks = [IM_START, IM_END] * len(messages)
    ids = [1]
    for mark, piece in zip(marks, pieces[1:], strict=True):
        ids += [mark, *encoder.processor.encode(piece)]
    assert ids == encoder.encode(chat)


@pytest.mark.slow
def test_the_held_out_loss_is_low(model: Any, encoder: Encoder) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    total, count = 0.0, 0
    for index in range(HELD_OUT_START, HELD_OUT_START + NUM_HELD_OUT):
        ids = torch.tensor(encoder.encode(document(SEED, index)))
        with torch.inference_mode():
            logits = model(ids[None, :-1]).logits[0]
        total += cross_entropy(logits, ids[1:], reduction="sum").item()
        count += len(ids) - 1
    assert total / count < MOST_HELD_OUT_LOSS


@pytest.mark.slow
def test_a_greedy_story_has_an_end(model: Any, encoder: Encoder) -> None:
    new = greedy(model, [1, *encoder.processor.encode("Once upon a time")])
    assert 80 < len(new) < 320
    assert new[-1] == 2
    assert encoder.processor.decode(new[:-1]).endswith((".", '"'))


@pytest.mark.slow
def test_a_chat_story_is_about_the_animal_asked_for(model: Any, encoder: Encoder) -> None:
    told, last = answer(model, encoder, "Tell me a story about a fox.")
    assert last == IM_END
    assert "fox" in told.split("\n")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What colour is the sky?", "The sky is blue."),
        ("What does a cow say?", "A cow says moo."),
        ("What is your name?", "My name is Demo. I am a tiny model that tells stories."),
    ],
)
def test_small_questions_are_answered(
    model: Any, encoder: Encoder, question: str, expected: str
) -> None:
    assert answer(model, encoder, question) == (expected, IM_END)

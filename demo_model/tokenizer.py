"""The demo model's SentencePiece tokenizer, with InternLM2's options and placing of pieces."""

import io
import itertools
from collections.abc import Iterator
from typing import Any

from demo_model.corpus import Document, documents
from demo_model.stories import KEY_WORDS

VOCAB_SIZE = 1024
NUM_UNUSED = 32
"""Pieces `[UNUSED_TOKEN_n]` at the end; InternLM2's own tokenizer has 147 of them."""
NUM_TRAINED = VOCAB_SIZE - NUM_UNUSED - 1
"""Pieces that SentencePiece trains; the one piece behind them is the line feed."""
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
CHAT_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|action_start|>", "<|action_end|>", "<|interpreter|>",
    "<|plugin|>",
)  # fmt: skip
CHAT_TOKEN_IDS = {token: VOCAB_SIZE - 1 - n for n, token in enumerate(CHAT_TOKENS)}
"""The chat tokens rename the last unused pieces, the first one the last piece, as InternLM2's."""
NUM_DOCUMENTS = 20_000
"""Documents that the tokenizer is trained on."""
KEY_WORD_COUNT = 5_000
"""How often each key word is added: the words that a story repeats become one piece each, which
so small a model copies more surely than two."""


def lines(seed: int, count: int) -> Iterator[str]:
    """The lines of the first `count` documents' texts, and the key words; none has a line feed."""
    for document in itertools.islice(documents(seed), count):
        for text in (document.text, *(message.content for message in document.messages)):
            yield from text.split("\n")
    for word in KEY_WORDS:
        yield from [f" {word}"] * KEY_WORD_COUNT


def train_tokenizer(seed: int) -> bytes:
    """Trains the tokenizer on the corpus of `seed` and gives the bytes of tokenizer.model.

    Line feeds are no part of the training text, so the line feed's piece never merges with text
    behind it, and a prompt that ends in one is cut as in the training data.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for line in lines(seed, NUM_DOCUMENTS) if line),
        model_writer=trained,
        model_type="bpe",
        vocab_size=NUM_TRAINED,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=-1,
        num_threads=1,
        minloglevel=1,
    )
    model: Any = protobuf.ModelProto.FromString(trained.getvalue())
    model.pieces.add(piece="\n", score=model.pieces[-1].score - 1, type=model.SentencePiece.NORMAL)
    for n in range(NUM_UNUSED):
        kind = model.SentencePiece.USER_DEFINED
        model.pieces.add(piece=f"[UNUSED_TOKEN_{n}]", score=0.0, type=kind)
    return bytes(model.SerializeToString(deterministic=True))


class Encoder:
    """Turns documents into token ids with one tokenizer.model."""

    def __init__(self, tokenizer_model: bytes) -> None:
        """Takes the bytes of tokenizer.model."""
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)

    def encode(self, document: Document) -> list[int]:
        """Ids of a document: `<s>` story `</s>`, or a chat as the chat template writes it."""
        if not document.messages:
            return [BOS_ID, *self.processor.encode(document.text), EOS_ID]
        ids = [BOS_ID]
        for message in document.messages:
            ids.append(CHAT_TOKEN_IDS["<|im_start|>"])
            ids += self.processor.encode(f"{message.role}\n{message.content}")
            ids.append(CHAT_TOKEN_IDS["<|im_end|>"])
            ids += self.processor.encode("\n")
        return ids

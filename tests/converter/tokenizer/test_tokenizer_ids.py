"""The written tokenizer, read by every runtime, against SentencePiece itself, on real text."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from published import (
    CONFIGS,
    CORPORA,
    TOKENIZER_MODEL,
    VOCAB_SIZE,
    copy_tokenizer,
    corpus,
    write_genai_config,
)

from converter.tokenizer import TokenizerFiles, prepare_tokenizer

pytestmark = pytest.mark.slow  # 92544 pieces are read by every runtime

CHAT_TOKENS = {
    "<|plugin|>": 92538,
    "<|interpreter|>": 92539,
    "<|action_end|>": 92540,
    "<|action_start|>": 92541,
    "<|im_end|>": 92542,
    "<|im_start|>": 92543,
}
BUILTIN_TEXT = Path(__file__).parents[3] / "converter" / "data" / "text"
KNOWN_TEXT = "<s><|im_start|>user\nHello! What's your name?<|im_end|>\n"
KNOWN_IDS = [1, 92543, 1008, 364, 9843, 346, 3716, 725, 829, 963, 345, 92542, 364]

Encode = Callable[[Sequence[str]], list[list[int]]]


@dataclass
class Readers:
    """One written folder and everything that reads it, besides SentencePiece as the reference."""

    files: TokenizerFiles
    sentencepiece: Any
    genai: Any
    tokenizers: Any
    transformers: Any

    def encoders(self) -> dict[str, Encode]:
        return {
            "onnxruntime-genai": lambda texts: [self.genai.encode(t).tolist() for t in texts],
            "tokenizers": lambda texts: [
                encoding.ids
                for encoding in self.tokenizers.encode_batch(texts, add_special_tokens=False)
            ],
            "transformers": lambda texts: (
                self.transformers(list(texts), add_special_tokens=False).input_ids
            ),
        }

    def assert_same_ids(self, texts: Sequence[str]) -> None:
        expected = self.sentencepiece.encode(list(texts))
        for name, encode in self.encoders().items():
            got = encode(texts)
            wrong = [t for t, a, b in zip(texts, expected, got, strict=True) if a != b]
            assert not wrong, f"{name}: {len(wrong)} of {len(texts)} differ, first {wrong[0]!r}"


def renamed_sentencepiece() -> Any:
    """InternLM2's model with the chat tokens in the pieces' places: what its authors meant."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(TOKENIZER_MODEL.read_bytes())
    for text, index in CHAT_TOKENS.items():
        proto.pieces[index].piece = text
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def read_back(files: TokenizerFiles, folder: Path, sentencepiece: Any) -> Readers:
    import onnxruntime_genai
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    for name, content in files.files.items():
        (folder / name).write_bytes(content)
    write_genai_config(folder, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    return Readers(
        files,
        sentencepiece,
        onnxruntime_genai.Tokenizer(str(folder)),
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        AutoTokenizer.from_pretrained(folder),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Readers:
    import sentencepiece

    checkpoint = copy_tokenizer(tmp_path_factory.mktemp("base"))
    files = prepare_tokenizer(checkpoint, VOCAB_SIZE)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER_MODEL))
    return read_back(files, tmp_path_factory.mktemp("base_out"), reference)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Readers:
    checkpoint = copy_tokenizer(tmp_path_factory.mktemp("chat"), chat=True)
    generation = CONFIGS / "chat.generation_config.json"
    shutil.copy(generation, checkpoint / "generation_config.json")
    files = prepare_tokenizer(checkpoint, VOCAB_SIZE)
    return read_back(files, tmp_path_factory.mktemp("chat_out"), renamed_sentencepiece())


def corpus_lines() -> list[str]:
    """Lines of the excerpts, and of the text that the project brings with it."""
    own = sorted(BUILTIN_TEXT.glob("*/*"))
    texts = [*map(corpus, CORPORA), *(path.read_text("utf-8") for path in own)]
    return [line for text in texts for line in text.splitlines(keepends=True)]


HARD = [
    *" \t\n\r\v\f\u2581'\"=.-_#<>|[]{}\\/:;,!?&0123456789athenTHE\x01\x1b\x7f\x85",
    "  ", "    ", "\n\n", "\r\n", "\u00a0", "\u2028", "\u3000", "\u200b", "\u200d", "\ufeff",
    "\ufffd", "\u0301", "\u00e9", "\u00b2", "\u2163", "\u0661", "\u4e2d", "\u56fd", "\u7684",
    "\uff0c", "\u3002", "\u201c", "\u2014", "\u2014\u2014", "\u2026\u2026", "\uff25", "\uff41",
    "\u9f98", "\U00020000", "\U0001f917", "\U0001f468\u200d\U0001f469", "\U0010ffff", "\ue000",
    "<0x0A>", "[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_", "\u0e01\u0e33", "\u0628", "\ud55c", "\u3042",
]  # fmt: skip


def hard_strings(pieces: Sequence[str], count: int = 20_000) -> list[str]:
    """Strings of few distinct hard parts, of glued pieces, of runs, of anything in Unicode."""
    rng = random.Random(20_000)
    plain = [piece.replace("\u2581", " ") for piece in pieces if "\0" not in piece]
    planes = [(1, 0x80), (0x80, 0x3000), (0x4E00, 0x9FFF), (0xE000, 0x11000), (0x1F000, 0x1FA00)]

    def glued() -> str:
        left, right = rng.choices(plain, k=2)
        return "".join(rng.choices([left, right, *left, *right], k=rng.randint(2, 30)))

    makers: list[Callable[[], str]] = [
        lambda: "".join(rng.choices(rng.sample(HARD, rng.randint(2, 6)), k=rng.randint(1, 40))),
        lambda: "".join(rng.choices(HARD, k=rng.randint(1, 40))),
        lambda: "".join(rng.choices(plain, k=rng.randint(1, 10))),
        glued,
        lambda: rng.choice(HARD) * rng.randint(1, 70) + rng.choice(plain),
        lambda: "".join(chr(rng.randrange(*rng.choice(planes))) for _ in range(rng.randint(1, 30))),
    ]
    made = (makers[number % len(makers)]() for number in range(count))
    # These two spell special tokens: by design they are not text, see test_special_tokens.
    return [text.replace("<s>", "<").replace("</s>", "<").replace("<unk>", "<") for text in made]


def pieces_of(readers: Readers) -> list[str]:
    processor = readers.sentencepiece
    return [processor.id_to_piece(index) for index in range(259, 92352)]


def test_every_line_of_the_corpora_has_the_ids_of_sentencepiece(base: Readers) -> None:
    lines = corpus_lines()
    assert len(lines) > 2000
    base.assert_same_ids(lines)


def test_every_piece_alone_is_itself(base: Readers) -> None:
    """A piece that BPE cannot reach would tell the runtimes apart: one looks it up as a whole."""
    pieces = pieces_of(base)
    assert len([piece for piece in pieces if piece != "\0"]) == len(pieces) - 1
    base.assert_same_ids([piece for piece in pieces if piece != "\0"])


def test_hard_strings_have_the_ids_of_sentencepiece(base: Readers) -> None:
    base.assert_same_ids(hard_strings(pieces_of(base)))


def test_chat_checkpoint_has_the_ids_of_the_renamed_model(chat: Readers) -> None:
    parts = [*CHAT_TOKENS, "user\n", " ", "\n", "\u4f60\u597d", "[UNUSED_TOKEN_145]", "name=", "|>"]
    rng = random.Random(0)
    chat.assert_same_ids(["".join(rng.choices(parts, k=rng.randint(1, 9))) for _ in range(2000)])
    chat.assert_same_ids(corpus_lines()[::3])


def test_known_answer(chat: Readers) -> None:
    for name, encode in chat.encoders().items():
        assert encode([KNOWN_TEXT]) == [KNOWN_IDS], name
        assert encode(["<|im_start|>assistant\n"]) == [[92543, 525, 11353, 364]], name


def test_special_tokens_are_at_their_places(chat: Readers, base: Readers) -> None:
    assert {text: chat.files.special_tokens[text] for text in CHAT_TOKENS} == CHAT_TOKENS
    assert chat.transformers.convert_tokens_to_ids(list(CHAT_TOKENS)) == [*CHAT_TOKENS.values()]
    assert len(chat.transformers) == VOCAB_SIZE
    assert base.files.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    for encode in base.encoders().values():
        assert encode(["<s></s><unk>", "<|im_end|>"]) == [
            [1, 2, 0],
            base.sentencepiece.encode("<|im_end|>"),
        ]


def test_prompts_longer_than_the_stack_of_std_regex_allows(base: Readers) -> None:
    """The pattern that splits nothing ends the process at 30 kB; these have 400 kB."""
    names = (CORPORA[0], CORPORA[-1])
    base.assert_same_ids([(corpus(name) * 20)[:400_000] for name in names])


def test_nul_is_what_each_runtime_can_do(base: Readers) -> None:
    """`\\0` is piece 354. Newer sentencepiece demotes it to the byte; C strings end at it."""
    assert base.sentencepiece.encode("a\0b") in ([264, 354, 260], [264, 3, 260])
    encoders = base.encoders()
    assert encoders["tokenizers"](["a\0b"]) == [[264, 354, 260]]
    assert encoders["transformers"](["a\0b"]) == [[264, 354, 260]]
    assert encoders["onnxruntime-genai"](["a\0b"]) == [[264]]


def test_bos_is_added_only_on_request(base: Readers) -> None:
    text = "Hello"
    assert base.genai.encode(text).tolist() == base.sentencepiece.encode(text)
    assert base.transformers(text).input_ids == [1, *base.sentencepiece.encode(text)]
    assert base.tokenizers.encode(text).ids == [1, *base.sentencepiece.encode(text)]


def test_decoding_gives_the_text_back(base: Readers) -> None:
    texts = corpus_lines()[::3] + [
        text for text in hard_strings(pieces_of(base), 6000) if "\u2581" not in text
    ]
    ids = base.sentencepiece.encode(texts)
    kept = [(text, row) for text, row in zip(texts, ids, strict=True) if row]
    for text, row in kept:
        assert base.genai.decode(row) == text
        assert base.tokenizers.decode(row) == text
    assert base.transformers.batch_decode([row for _, row in kept]) == [text for text, _ in kept]


def test_streaming_gives_the_text_back_piece_by_piece(chat: Readers) -> None:
    texts = corpus_lines()[::3] + [
        text for text in hard_strings(pieces_of(chat), 3000) if "\u2581" not in text
    ]
    for text in texts:
        stream = chat.genai.create_stream()
        assert "".join(map(stream.decode, chat.sentencepiece.encode(text))) == text


def test_stream_holds_a_character_back_until_its_last_byte(chat: Readers) -> None:
    stream = chat.genai.create_stream()
    ids = chat.sentencepiece.encode("  \U0001f917")
    assert ids == [387, 243, 162, 167, 154]
    assert [stream.decode(index) for index in ids] == ["  ", "", "", "", "\U0001f917"]


def test_transformers_saves_what_it_loaded(chat: Readers, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    chat.transformers.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    lines = corpus_lines()[::9]
    assert again(lines).input_ids == chat.transformers(lines).input_ids

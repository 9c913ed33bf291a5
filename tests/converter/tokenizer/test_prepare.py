"""What `prepare_tokenizer` decides from a checkpoint's files, on small models trained here."""

from __future__ import annotations

import io
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from converter.errors import ConvertError
from converter.tokenizer import TokenizerFiles, prepare_tokenizer
from converter.tokenizer.chat_template import PUBLISHED_TEMPLATE, TOOL_TEMPLATE
from converter.tokenizer.merges import SAFE_SPLIT_PATTERN, WHOLE_TEXT_PATTERN
from converter.tokenizer.special_tokens import CHAT_TOKENS
from converter.tokenizer.tokenizer_json import added_token

VOCAB_SIZE = 500
FIRST_PLACEHOLDER = 490
IM_START, IM_END = VOCAB_SIZE - 1, VOCAB_SIZE - 2
WORDS = ["the", "then", "there", "hello", "held", "help", "world", "word", "12", "123", "4.5"]
WORDS += ["a-b", "---", "\u4f60\u597d", "\u597d"]


def sentences() -> list[str]:
    rng = random.Random(0)
    return [
        "  ".join(rng.choices(WORDS, k=8)) + ", ".join(rng.choices(WORDS, k=8)) for _ in range(400)
    ]


def train(**options: Any) -> bytes:
    """A SentencePiece model as InternLM2's, with `options` of the trainer in place of its own."""
    import sentencepiece

    writer = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": FIRST_PLACEHOLDER,
        "byte_fallback": True,
        "split_digits": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "minloglevel": 2,
    }
    every: dict[str, Any] = settings | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=writer, **every
    )
    return writer.getvalue()


def with_placeholders(model: bytes, size: int = VOCAB_SIZE) -> bytes:
    """Fill the vocabulary up with user-defined `[UNUSED_TOKEN_n]`, as InternLM2's ends."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for number in itertools.count():
        if len(proto.pieces) == size:
            return bytes(proto.SerializeToString())
        proto.pieces.add(piece=f"[UNUSED_TOKEN_{number}]", score=0.0, type=4)
    raise AssertionError


@pytest.fixture(scope="module")
def model() -> bytes:
    return with_placeholders(train())


def checkpoint(folder: Path, model: bytes | None, **files: Any) -> Path:
    """A checkpoint folder; a keyword `a` gives the content of `a.json`."""
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder


def parsed(prepared: TokenizerFiles, name: str) -> Any:
    return json.loads(prepared.files[name])


def problems_of(folder: Path, vocab_size: int = VOCAB_SIZE) -> list[str]:
    with pytest.raises(ConvertError) as caught:
        prepare_tokenizer(folder, vocab_size)
    assert all(
        problem.found and problem.expected and problem.remedy for problem in caught.value.problems
    )
    return [problem.found for problem in caught.value.problems]


def encodings(prepared: TokenizerFiles, texts: list[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(prepared.files["tokenizer.json"])
    return [row.ids for row in tokenizer.encode_batch(texts, add_special_tokens=False)]


# --- ids ---


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({}, SAFE_SPLIT_PATTERN),
        ({"add_dummy_prefix": True}, SAFE_SPLIT_PATTERN),
        ({"split_digits": False}, WHOLE_TEXT_PATTERN),
        ({"split_by_whitespace": False}, WHOLE_TEXT_PATTERN),
        ({"user_defined_symbols": ["##", "<|x|>"]}, SAFE_SPLIT_PATTERN),
    ],
)
def test_trained_models_keep_their_ids(
    tmp_path: Path, options: dict[str, Any], pattern: str
) -> None:
    import sentencepiece

    content = train(**options)
    prepared = prepare_tokenizer(checkpoint(tmp_path, content), VOCAB_SIZE)
    assert parsed(prepared, "tokenizer.json")["pre_tokenizer"]["pattern"]["Regex"] == pattern
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    rng = random.Random(1)
    parts = [*WORDS, *"the\n\t \u2581#<|x>0123\u4e2d\U0001f917", "##", "<|x|>"]
    texts = sentences() + ["".join(rng.choices(parts, k=rng.randint(1, 30))) for _ in range(3000)]
    assert encodings(prepared, texts) == processor.encode(texts)
    assert prepared.files["tokenizer.model"] == content


# --- special tokens, stops, templates ---


def test_base_checkpoint(tmp_path: Path, model: bytes) -> None:
    generation = {"eos_token_id": 2, "pad_token_id": 2}
    folder = checkpoint(tmp_path, model, generation_config=generation)
    prepared = prepare_tokenizer(folder, VOCAB_SIZE)
    assert (prepared.bos_token_id, prepared.eos_token_ids, prepared.pad_token_id) == (1, (2,), 2)
    assert prepared.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert not prepared.is_chat
    assert prepared.notes == ()
    assert encodings(prepared, ["[UNUSED_TOKEN_0]"]) == [[FIRST_PLACEHOLDER]]


REST = {text: IM_START - number for number, text in enumerate(CHAT_TOKENS) if number > 1}
"""Ids of the chat tokens beside those of a turn."""


def chat_config(**more: Any) -> dict[str, Any]:
    return {"chat_template": PUBLISHED_TEMPLATE, "tokenizer_class": "InternLM2Tokenizer", **more}


@pytest.mark.parametrize(
    "declaration",
    [
        {"added_tokens": {"<|im_start|>": VOCAB_SIZE, "<|im_end|>": VOCAB_SIZE + 1}},
        {"special_tokens_map": {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}},
        {"added_tokens": {"<|im_start|>": IM_START, "<|im_end|>": IM_END}},
        {},
    ],
)
def test_chat_tokens_take_their_places_however_they_are_declared(
    tmp_path: Path, model: bytes, declaration: dict[str, Any]
) -> None:
    folder = checkpoint(
        tmp_path,
        model,
        tokenizer_config=chat_config(auto_map={"AutoTokenizer": ["code.py"]}),
        generation_config={"eos_token_id": 2},
        **declaration,
    )
    prepared = prepare_tokenizer(folder, VOCAB_SIZE)
    assert prepared.special_tokens["<|im_start|>"] == IM_START
    assert prepared.eos_token_ids == (2, IM_END)
    assert any("stop tokens" in note for note in prepared.notes)
    past = [note for note in prepared.notes if f"declared with id {VOCAB_SIZE}" in note]
    assert len(past) == (declaration.get("added_tokens", {}).get("<|im_start|>") == VOCAB_SIZE)
    assert encodings(prepared, ["<|im_start|><|im_end|>"]) == [[IM_START, IM_END]]
    config = parsed(prepared, "tokenizer_config.json")
    assert "auto_map" not in config
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["chat_template"] == prepared.chat_template == TOOL_TEMPLATE


def test_stop_tokens_of_good_configs_stay_as_they_are(tmp_path: Path, model: bytes) -> None:
    folder = checkpoint(
        tmp_path,
        model,
        tokenizer_config=chat_config(),
        generation_config={"eos_token_id": [2, IM_END]},
        config={"eos_token_id": 2},
        added_tokens={"<|im_start|>": IM_START, "<|im_end|>": IM_END, **REST},
    )
    prepared = prepare_tokenizer(folder, VOCAB_SIZE)
    assert prepared.eos_token_ids == (2, IM_END)
    assert prepared.notes == ()


def test_stop_tokens_of_all_files_are_united(tmp_path: Path, model: bytes) -> None:
    folder = checkpoint(
        tmp_path,
        model,
        tokenizer_config={
            "eos_token": "<eot>",
            "chat_template": "{% for m in messages %}{{ m.content }}<turn>{% endfor %}",
        },
        generation_config={"eos_token_id": 2},
        config={"eos_token_id": 7},
        added_tokens={"<eot>": VOCAB_SIZE, "<turn>": VOCAB_SIZE + 1},
    )
    prepared = prepare_tokenizer(folder, VOCAB_SIZE + 2)
    assert prepared.eos_token_ids == (2, 7, VOCAB_SIZE, VOCAB_SIZE + 1)
    assert any("7 from config.json" in note for note in prepared.notes)


def test_a_stop_token_without_a_text(tmp_path: Path, model: bytes) -> None:
    folder = checkpoint(tmp_path, model, generation_config={"eos_token_id": VOCAB_SIZE + 5})
    prepared = prepare_tokenizer(folder, VOCAB_SIZE + 8)
    assert prepared.eos_token_ids == (VOCAB_SIZE + 5, 2)
    assert prepared.pad_token_id == VOCAB_SIZE + 5
    assert any("no text" in note for note in prepared.notes)


def test_chat_tokens_at_new_rows_keep_them(tmp_path: Path, model: bytes) -> None:
    ids = {"<|im_start|>": VOCAB_SIZE, "<|im_end|>": VOCAB_SIZE + 1}
    folder = checkpoint(tmp_path, model, tokenizer_config=chat_config(), added_tokens=ids)
    prepared = prepare_tokenizer(folder, VOCAB_SIZE + 8)
    assert encodings(prepared, ["<|im_start|>a<|im_end|>"])[0][::2] == list(ids.values())
    assert VOCAB_SIZE + 1 in prepared.eos_token_ids
    assert "<|plugin|>" not in prepared.special_tokens
    assert encodings(prepared, ["[UNUSED_TOKEN_9]"]) == [[IM_START]]


def test_tokens_that_only_tokenizer_json_adds(tmp_path: Path, model: bytes) -> None:
    tokens = [
        {"content": "<think>", "id": VOCAB_SIZE, "special": False},
        {"content": "<vul>", "id": VOCAB_SIZE + 1, "special": True},
    ]
    folder = checkpoint(tmp_path, model, tokenizer={"added_tokens": tokens})
    prepared = prepare_tokenizer(folder, VOCAB_SIZE + 2)
    assert encodings(prepared, ["a<think>a<vul>"])[0][1::2] == [VOCAB_SIZE, VOCAB_SIZE + 1]
    assert "<vul>" in prepared.special_tokens and "<think>" not in prepared.special_tokens


def test_a_token_keeps_how_it_takes_blanks(tmp_path: Path, model: bytes) -> None:
    token = {"content": "<x>", "id": VOCAB_SIZE, "rstrip": True}
    folder = checkpoint(tmp_path, model, tokenizer={"added_tokens": [token]})
    prepared = prepare_tokenizer(folder, VOCAB_SIZE + 1)
    entry = parsed(prepared, "tokenizer.json")["added_tokens"][-1]
    assert entry["id"] == VOCAB_SIZE
    assert entry["rstrip"] and not entry["lstrip"]
    decoder = parsed(prepared, "tokenizer_config.json")["added_tokens_decoder"]
    assert decoder[str(VOCAB_SIZE)]["rstrip"]


def test_a_name_without_an_id_is_said(tmp_path: Path, model: bytes) -> None:
    folder = checkpoint(tmp_path, model, tokenizer_config={"pad_token": "<nowhere>"})
    assert any("<nowhere>" in note for note in prepare_tokenizer(folder, VOCAB_SIZE).notes)


def test_internlm2s_template_is_not_given_without_a_word(tmp_path: Path, model: bytes) -> None:
    folder = checkpoint(tmp_path, model, added_tokens={"<|im_end|>": IM_END})
    prepared = prepare_tokenizer(folder, VOCAB_SIZE)
    assert prepared.chat_template == TOOL_TEMPLATE
    assert any("no chat template" in note for note in prepared.notes)
    assert any("<|plugin|>" in note for note in prepared.notes)


def test_declared_placeholder_is_renamed_and_own_template_kept(
    tmp_path: Path, model: bytes
) -> None:
    token = {"content": "<tool>", "special": False}
    config = {
        "added_tokens_decoder": {str(FIRST_PLACEHOLDER): token},
        "chat_template": "{{ messages }}",
    }
    folder = checkpoint(tmp_path, model, tokenizer_config=config, config={"eos_token_id": 2})
    prepared = prepare_tokenizer(folder, VOCAB_SIZE)
    assert encodings(prepared, ["<tool>"]) == [[FIRST_PLACEHOLDER]]
    assert FIRST_PLACEHOLDER not in encodings(prepared, ["[UNUSED_TOKEN_0]"])[0]
    assert "<tool>" not in prepared.special_tokens
    assert prepared.chat_template == "{{ messages }}"
    assert prepared.eos_token_ids == (2,)


def test_added_token_in_a_free_row_of_the_embedding_is_kept(tmp_path: Path, model: bytes) -> None:
    folder = checkpoint(tmp_path, model, added_tokens={"<extra>": VOCAB_SIZE + 3})
    prepared = prepare_tokenizer(folder, VOCAB_SIZE + 8)
    assert encodings(prepared, ["a<extra>a"])[0][1] == VOCAB_SIZE + 3


# --- what is refused ---


def test_unknown_token_past_the_embedding_is_refused(tmp_path: Path, model: bytes) -> None:
    folder = checkpoint(
        tmp_path, model, added_tokens={"<a>": VOCAB_SIZE, "<b>": 400, "<|im_end|>": VOCAB_SIZE + 1}
    )
    found = problems_of(folder)
    assert len(found) == 2
    assert "<a>" in found[0]
    assert "<b>" in found[1]


def test_missing_files(tmp_path: Path) -> None:
    assert "no tokenizer.model and no tokenizer.json" in problems_of(tmp_path)[0]


@pytest.mark.parametrize("kept", [0.2, 0.97, 0.9999])
def test_truncated_model(tmp_path: Path, model: bytes, kept: float) -> None:
    folder = checkpoint(tmp_path, model[: int(len(model) * kept)])
    assert "truncated" in problems_of(folder)[0]


def test_model_cut_between_two_pieces(tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.pieces.add(piece="a", score=0.0, type=1)
    assert "truncated" in problems_of(checkpoint(tmp_path, proto.SerializeToString()))[0]


def test_git_lfs_pointer(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "Git LFS pointer" in problems_of(folder)[0]


def test_tokenizer_larger_than_the_embedding(tmp_path: Path, model: bytes) -> None:
    found = problems_of(checkpoint(tmp_path, model), vocab_size=VOCAB_SIZE - 1)
    assert found[0].endswith(f"has {VOCAB_SIZE} pieces, the embedding {VOCAB_SIZE - 1} rows.")


def test_unigram_model(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, train(model_type="unigram", vocab_size=300))
    assert "holds a Unigram model" in problems_of(folder)[0]


def test_every_unsupported_option_is_named_at_once(tmp_path: Path) -> None:
    content = train(
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
        byte_fallback=False,
        vocab_size=100,
    )
    text = "\n".join(problems_of(checkpoint(tmp_path, content)))
    for part in ("nmt_nfkc", "remove_extra_whitespaces", "0 byte pieces"):
        assert part in text


def test_all_broken_json_files_are_named_at_once(tmp_path: Path, model: bytes) -> None:
    folder = checkpoint(tmp_path, model, generation_config=[])
    (folder / "tokenizer_config.json").write_text("{")
    assert len(problems_of(folder)) == 2


def test_stop_token_past_the_embedding(tmp_path: Path, model: bytes) -> None:
    folder = checkpoint(tmp_path, model, generation_config={"eos_token_id": [2, 92542]})
    assert "stop token 92542" in problems_of(folder)[0]


# --- a checkpoint that has only a tokenizer.json ---


@pytest.fixture
def fast_only(tmp_path: Path, model: bytes) -> dict[str, Any]:
    """The tokenizer.json of a checkpoint without tokenizer.model, as others often write it."""
    content = parsed(prepare_tokenizer(checkpoint(tmp_path, model), VOCAB_SIZE), "tokenizer.json")
    (tmp_path / "tokenizer.model").unlink()
    content["pre_tokenizer"] = None
    return dict(content)


def test_good_tokenizer_json_gets_a_pre_tokenizer(
    tmp_path: Path, fast_only: dict[str, Any]
) -> None:
    config = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    folder = checkpoint(tmp_path, None, tokenizer=fast_only, tokenizer_config=config)
    prepared = prepare_tokenizer(folder, VOCAB_SIZE)
    written = parsed(prepared, "tokenizer.json")
    assert written["pre_tokenizer"]["pattern"] == {"Regex": SAFE_SPLIT_PATTERN}
    assert {**written, "pre_tokenizer": None} == fast_only
    assert (prepared.bos_token_id, prepared.eos_token_ids) == (1, (2,))
    assert "tokenizer.model" not in prepared.files


def test_post_processor_decides_on_bos(tmp_path: Path, fast_only: dict[str, Any]) -> None:
    config = {"eos_token": "</s>", "bos_token": "<s>"}
    assert fast_only["post_processor"] is not None
    for content, given, adds in (
        (fast_only, {}, True),
        (fast_only, {"add_bos_token": False}, True),
        ({**fast_only, "post_processor": None}, {}, False),
        ({**fast_only, "post_processor": None}, {"add_bos_token": True}, True),
    ):
        folder = checkpoint(tmp_path, None, tokenizer=content, tokenizer_config=config | given)
        prepared = prepare_tokenizer(folder, VOCAB_SIZE)
        assert parsed(prepared, "tokenizer_config.json").get("add_bos_token") is adds
        said = any("add_bos_token" in note for note in prepared.notes)
        assert said == (given == {"add_bos_token": False})


def test_a_base_model_with_im_end_gets_no_template(
    tmp_path: Path, fast_only: dict[str, Any]
) -> None:
    token = {"id": VOCAB_SIZE, **added_token("<|im_end|>", special=True)}
    fast_only["added_tokens"].append(token)
    config = {"eos_token": "</s>"}
    folder = checkpoint(tmp_path, None, tokenizer=fast_only, tokenizer_config=config)
    prepared = prepare_tokenizer(folder, VOCAB_SIZE + 1)
    assert not prepared.is_chat and prepared.eos_token_ids == (2,)


def test_a_template_that_does_not_soon_end_is_refused(
    tmp_path: Path, fast_only: dict[str, Any]
) -> None:
    loops = "".join(f"{{% for {name} in range(9999) %}}" for name in "abc") + "{% endfor %}" * 3
    config = {"eos_token": "</s>", "chat_template": loops}
    folder = checkpoint(tmp_path, None, tokenizer=fast_only, tokenizer_config=config)
    with pytest.raises(ConvertError, match="more than 100,000 steps"):
        prepare_tokenizer(folder, VOCAB_SIZE)


def test_metaspace_becomes_what_both_runtimes_read(
    tmp_path: Path, fast_only: dict[str, Any], model: bytes
) -> None:
    import sentencepiece

    metaspace = {"replacement": "\u2581", "prepend_scheme": "never", "split": False}
    fast_only["normalizer"] = None
    fast_only["pre_tokenizer"] = {"type": "Metaspace", **metaspace}
    config = {"eos_token": "</s>"}
    folder = checkpoint(tmp_path, None, tokenizer=fast_only, tokenizer_config=config)
    prepared = prepare_tokenizer(folder, VOCAB_SIZE)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert encodings(prepared, sentences()) == processor.encode(sentences())


def test_bad_tokenizer_json_is_refused(tmp_path: Path, fast_only: dict[str, Any]) -> None:
    del fast_only["model"]["vocab"]["<0x0A>"]
    fast_only["added_tokens"].append({"id": VOCAB_SIZE + 1, "content": "<|im_end|>"})
    fast_only["pre_tokenizer"] = {"type": "Metaspace", "split": True}
    assert len(problems_of(checkpoint(tmp_path, None, tokenizer=fast_only))) == 3


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"type": "Unigram", "vocab": []}},
        {"version": "1.0"},
        [],
        {"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}},
        {"model": {"type": "BPE", "vocab": [], "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": "a"}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "normalizer": 5},
    ],
)
def test_other_tokenizer_json_is_refused(tmp_path: Path, content: Any) -> None:
    assert len(problems_of(checkpoint(tmp_path, None, tokenizer=content))) == 1


def test_chat_template_file_wins(tmp_path: Path, model: bytes) -> None:
    folder = checkpoint(tmp_path, model, tokenizer_config={"chat_template": "old"})
    (folder / "chat_template.jinja").write_text("new")
    assert prepare_tokenizer(folder, VOCAB_SIZE).chat_template == "new"

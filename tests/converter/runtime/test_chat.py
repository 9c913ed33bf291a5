"""Conversations over onnxruntime-genai, with a tiny model whose answer depends on all history."""

from __future__ import annotations

import functools
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import VOCAB_SIZE, copy_tokenizer

from converter.errors import ConvertError
from converter.runtime.chat import ChatOptions, ChatSession, run_chat
from converter.tokenizer import prepare_tokenizer

IM_END = 92542
LIMIT = 24
OPTIONS = ChatOptions(max_new_tokens=LIMIT)


def write_history_model(path: Path) -> None:
    """A decoder whose next token is a table entry at (sum of all ids so far) mod 97.

    The ids are kept as the key/value cache, so a cache that lost or doubled a token answers
    differently. Every twelfth entry of the table is `<|im_end|>`.
    """
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    table = rng.integers(1000, 90000, 97)
    table[::12] = IM_END
    constants: dict[str, np.ndarray] = {
        "table": table.astype(np.int64),
        "depth": np.array(VOCAB_SIZE, np.int64),
        "values": np.array([0, 1], np.float32),
        "modulus": np.array(97, np.int64),
        "axis": np.array(2, np.int64),
        "axes": np.array([2], np.int64),
        "end": np.array([2**31], np.int64),
        "flat": np.array([0, -1], np.int64),
        "cache": np.array([0, 1, -1, 1], np.int64),
    }
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", ["input_ids"], "ids", {"to": TensorProto.FLOAT}),
        ("Reshape", ["ids", "cache"], "new", {}),
        ("Concat", ["past_key_values.0.key", "new"], "present.0.key", {"axis": 2}),
        ("Concat", ["past_key_values.0.value", "new"], "present.0.value", {"axis": 2}),
        ("Cast", ["present.0.key"], "history", {"to": TensorProto.INT64}),
        ("CumSum", ["history", "axis"], "sums", {}),
        ("Shape", ["input_ids"], "count", {"start": 1, "end": 2}),
        ("Neg", ["count"], "begin", {}),
        ("Slice", ["sums", "begin", "end", "axes"], "last", {}),
        ("Reshape", ["last", "flat"], "rows", {}),
        ("Mod", ["rows", "modulus"], "index", {}),
        ("Gather", ["table", "index"], "next", {}),
        ("OneHot", ["next", "depth", "values"], "logits", {"axis": -1}),
    ]

    def tensor(name: str, kind: int, shape: list[str | int]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    cache: tuple[list[str | int], ...] = ["batch", 1, "past", 1], ["batch", 1, "total", 1]
    graph = helper.make_graph(
        [helper.make_node(kind, ins, [out], **attrs) for kind, ins, out, attrs in nodes],
        "history",
        [
            tensor("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            tensor("attention_mask", TensorProto.INT64, ["batch", "total"]),
            tensor("past_key_values.0.key", TensorProto.FLOAT, cache[0]),
            tensor("past_key_values.0.value", TensorProto.FLOAT, cache[0]),
        ],
        [
            tensor("logits", TensorProto.FLOAT, ["batch", "sequence", VOCAB_SIZE]),
            tensor("present.0.key", TensorProto.FLOAT, cache[1]),
            tensor("present.0.value", TensorProto.FLOAT, cache[1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_folder(folder: Path, checkpoint: Path) -> Path:
    folder.mkdir()
    prepared = prepare_tokenizer(checkpoint, VOCAB_SIZE)
    for name, content in prepared.files.items():
        (folder / name).write_bytes(content)
    write_history_model(folder / "model.onnx")
    decoder = {
        "session_options": {"provider_options": []},
        "filename": "model.onnx",
        "head_size": 1,
        "hidden_size": 1,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model = {
        "type": "llama",
        "context_length": 32768,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": prepared.bos_token_id,
        "eos_token_id": list(prepared.eos_token_ids),
        "pad_token_id": prepared.pad_token_id,
        "decoder": decoder,
    }
    search = {"past_present_share_buffer": False}
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": search}))
    return folder


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chat")
    return write_folder(root / "converted", copy_tokenizer(root / "checkpoint", chat=True))


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    return write_folder(root / "converted", copy_tokenizer(root / "checkpoint"))


@functools.cache
def load(folder: Path) -> tuple[Any, Any]:
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(folder))
    return model, onnxruntime_genai.Tokenizer(model)


def generate(folder: Path, text: str, bos: bool = False) -> list[int]:
    """What onnxruntime-genai answers to `text` from nothing: `LIMIT` tokens, or to the stop."""
    import onnxruntime_genai

    model, tokenizer = load(folder)
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(max_length=1024)
    generator = onnxruntime_genai.Generator(model, params)
    ids = [1] * bos + tokenizer.encode(text).tolist()
    generator.append_tokens(ids)
    for _ in range(LIMIT):
        if not generator.is_done():
            generator.generate_next_token()
    answer: list[int] = generator.get_sequence(0).tolist()[len(ids) :]
    assert generator.is_done() == (len(answer) < LIMIT)
    return answer


def decode(folder: Path, ids: list[int]) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return str(tokenizer.decode(ids, skip_special_tokens=False))


@pytest.mark.slow
def test_every_turn_answers_as_a_fresh_generator_on_the_whole_conversation(
    chat_folder: Path,
) -> None:
    session = ChatSession(chat_folder, "Be brief.", OPTIONS)
    text = "<s><|im_start|>system\nBe brief.<|im_end|>\n"
    for prompt in ("Hello!", "\u4f60\u597d", "And  then?\n", "1 + 1"):
        answer = "".join(session.ask(prompt))
        text += f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        assert answer == decode(chat_folder, generate(chat_folder, text))
        text += f"{answer}<|im_end|>\n"
    assert [message["role"] for message in session.messages] == [
        "system",
        *["user", "assistant"] * 4,
    ]


def test_an_interrupted_answer_stays_in_the_conversation(chat_folder: Path) -> None:
    session = ChatSession(chat_folder, options=OPTIONS)
    answer = session.ask("Tell me a long story")
    begun = next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert session.messages[-1] == {"role": "assistant", "content": begun}
    text = f"<s><|im_start|>user\nTell me a long story<|im_end|>\n<|im_start|>assistant\n{begun}"
    text += "<|im_end|>\n<|im_start|>user\nGo on<|im_end|>\n<|im_start|>assistant\n"
    expected = decode(chat_folder, generate(chat_folder, text))
    assert "".join(session.ask("Go on")) == expected


@pytest.mark.slow
def test_a_base_model_continues_each_text_after_its_bos(base_folder: Path) -> None:
    session = ChatSession(base_folder, options=OPTIONS)
    for prompt in ("Once upon a time", "Once upon a time", "Es war"):
        expected = decode(base_folder, generate(base_folder, prompt, bos=True))
        assert "".join(session.ask(prompt)) == expected


def test_bos_that_is_typed_is_not_fed_twice(base_folder: Path) -> None:
    session = ChatSession(base_folder, options=OPTIONS)
    answer = "".join(session.ask("Once upon a time"))
    assert "".join(session.ask("<s>Once upon a time")) == answer


def test_reset_forgets_all_but_the_system_prompt(chat_folder: Path) -> None:
    session = ChatSession(chat_folder, "S", OPTIONS)
    first = "".join(session.ask("Hello"))
    "".join(session.ask("again"))
    session.reset()
    assert session.messages == [{"role": "system", "content": "S"}]
    assert "".join(session.ask("Hello")) == first


def test_max_new_tokens_ends_an_answer(chat_folder: Path) -> None:
    full = "".join(ChatSession(chat_folder, options=OPTIONS).ask("Tell me a long story"))
    two = "".join(
        ChatSession(chat_folder, options=ChatOptions(max_new_tokens=2)).ask("Tell me a long story")
    )
    assert full.startswith(two)
    assert len(two) < len(full)


def test_run_chat_answers_a_prompt_once(
    chat_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_chat(chat_folder, prompt="Hello", options=OPTIONS) == 0
    assert (
        capsys.readouterr().out
        == "".join(ChatSession(chat_folder, options=OPTIONS).ask("Hello")) + "\n"
    )


def test_run_chat_reads_turns_until_the_end_of_input(
    chat_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["Hello", "", "again", "/new", "Hello"])

    def read(_: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert run_chat(chat_folder, "S", options=OPTIONS) == 0
    session = ChatSession(chat_folder, "S", OPTIONS)
    answers = ["".join(session.ask(prompt)) for prompt in ("Hello", "again")]
    out = capsys.readouterr().out
    assert out.split("\n", 1)[1] == f"{answers[0]}\n{answers[1]}\n{answers[0]}\n\n"


def test_a_line_that_is_not_utf8_is_refused_and_the_next_one_answered(
    chat_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = io.TextIOWrapper(io.BytesIO(b"h\xe9llo\nHello\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", piped)
    assert run_chat(chat_folder, options=OPTIONS) == 0
    out, err = capsys.readouterr()
    assert "UTF-8" in err
    assert "".join(ChatSession(chat_folder, options=OPTIONS).ask("Hello")) in out


def test_a_conversation_that_does_not_fit_is_refused_and_can_go_on(
    chat_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = ChatSession(chat_folder, options=ChatOptions(max_length=40, max_new_tokens=4))
    with pytest.raises(ConvertError, match="fewer than 40 tokens"):
        list(session.ask("word " * 50))
    assert "".join(session.ask("Hello"))


def test_a_runtime_that_cannot_go_back_answers_alike(chat_folder: Path) -> None:
    session = ChatSession(chat_folder, options=OPTIONS)
    again = ChatSession(chat_folder, options=OPTIONS)
    assert session._runtime.goes_back
    again._runtime.goes_back = False  # as on DirectML
    for prompt in ("Hello", "again", "Hello"):
        assert "".join(session.ask(prompt)) == "".join(again.ask(prompt))


def test_a_model_that_does_not_load_is_named(chat_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(chat_folder, tmp_path / "broken")
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ConvertError, match="cannot load"):
        ChatSession(folder)


@pytest.mark.parametrize("unit", ["a", "\u4e2d", "\u201c", " ", "\n"])
def test_text_that_would_overflow_the_runtime_is_refused(chat_folder: Path, unit: str) -> None:
    session = ChatSession(chat_folder, options=OPTIONS)
    with pytest.raises(ConvertError, match="without a blank"):
        list(session.ask(unit * 40_000))
    longest = unit * (7_900 // len(unit.encode()))
    assert session._ids([{"role": "user", "content": longest}], longest)


def test_a_folder_that_is_no_converted_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvertError) as caught:
        ChatSession(tmp_path)
    assert len(caught.value.problems) == 2
    assert "convert recipe=NAME" in str(caught.value)


@pytest.mark.slow
def test_a_system_prompt_needs_a_chat_template(base_folder: Path) -> None:
    with pytest.raises(ConvertError, match="no chat template"):
        run_chat(base_folder, system="Be brief.", prompt="Hello")

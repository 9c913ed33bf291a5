"""Sources of text, their errors, and the cutting into chunks."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from published import TOKENIZER_MODEL, VOCAB_SIZE

from converter.cli.compose import compose_recipe
from converter.errors import ConvertError
from converter.text.texts import (
    Message,
    TextKind,
    calibration_chunks,
    evaluation_chunks,
    interleaved,
    load_text,
)

KINDS = ["chat.en", "chat.zh", "code", "maths.en", "maths.zh", "prose.en", "prose.zh"]


def utf8(text: str) -> list[int]:
    """A tokenizer whose tokens are bytes, so that what a chunk holds can be read."""
    return list(text.encode())


def words(letter: str, count: int) -> TextKind:
    return TextKind(letter, tuple(letter * 10 for _ in range(count)))


def tagged(messages: Sequence[Message]) -> str:
    return "".join(f"<{m['role']}>{m['content']}</>" for m in messages)


def problems_of(source: Path) -> list[str]:
    with pytest.raises(ConvertError) as caught:
        load_text(str(source))
    return [problem.found for problem in caught.value.problems]


@pytest.mark.parametrize("half", ["calibration", "evaluation"])
def test_builtin_text_has_every_kind_and_its_chats_alternate(half: str) -> None:
    chats: list[Sequence[Message]] = []

    def collect(messages: Sequence[Message]) -> str:
        chats.append(messages)
        return tagged(messages)

    assert [kind.name for kind in load_text("builtin", half=half, render_chat=collect)] == KINDS
    for messages in chats:
        roles = [message["role"] for message in messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_builtin_halves_share_no_sentence() -> None:
    def sentences(half: str) -> set[str]:
        text = "\n".join(interleaved([kind]) for kind in load_text("builtin", half=half))
        parts = re.split(r"(?<=[.!?])\s|[。！？\n]", text)
        # Shorter ones are braces, `return;` and table rules, which any two programs share.
        return {part.strip() for part in parts if len(part.strip()) >= 16}

    calibration, evaluation = sentences("calibration"), sentences("evaluation")
    assert len(calibration) > 500 and len(evaluation) > 400
    assert calibration & evaluation == set()


def test_builtin_text_is_long_enough_for_internlm2() -> None:
    import sentencepiece

    encode = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER_MODEL)).encode
    calibration = load_text("builtin", half="calibration")
    for choice in ("standard", "long", "shared"):
        tokens = compose_recipe(["recipe=demo", f"calibration={choice}"]).calibration.tokens
        chunks = calibration_chunks(
            calibration, encode, n_tokens=tokens, sequence_length=512, seed=0, bos_token_id=1
        )
        assert chunks.shape == (tokens // 512, 512)
    evaluation = evaluation_chunks(load_text("builtin", half="evaluation"), encode, bos_token_id=1)
    assert len(evaluation.input_ids) >= 24
    assert evaluation.input_ids.max() < VOCAB_SIZE


def test_calibration_chunks_depend_on_the_seed_alone() -> None:
    kinds = load_text("builtin")

    def draw(seed: int) -> np.ndarray:
        return calibration_chunks(kinds, utf8, n_tokens=4096, sequence_length=256, seed=seed)

    assert draw(3).dtype == np.int64
    assert draw(3).shape == (16, 256)
    np.testing.assert_array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))


def test_a_small_budget_still_holds_every_kind() -> None:
    kinds = [words(letter, 500) for letter in "abcdefg"]
    chunks = calibration_chunks(kinds, utf8, n_tokens=280, sequence_length=140, seed=0)
    found = {chr(token): int((chunks == token).sum()) for token in np.unique(chunks)}
    assert found == dict.fromkeys("abcdefg", 40)


def test_a_large_budget_keeps_a_sequence_within_one_kind() -> None:
    kinds = [words(letter, 500) for letter in "ab"]
    chunks = calibration_chunks(
        kinds, utf8, n_tokens=1000, sequence_length=100, seed=0, bos_token_id=1
    )
    assert (chunks[:, 0] == 1).all()
    assert all(len(set(row[1:])) == 1 for row in chunks)


def test_kinds_that_run_out_are_made_up_for_by_the_others() -> None:
    kinds = [words("a", 1), words("b", 100)]
    chunks = calibration_chunks(kinds, utf8, n_tokens=500, sequence_length=50, seed=0)
    assert (chunks == ord("a")).sum() == 10
    assert (chunks == ord("b")).sum() == 490


def test_a_running_text_loses_no_token_and_may_be_used_up() -> None:
    numbers = [TextKind("counted", ("",))]
    for count in (60, 64, 1024):
        found = calibration_chunks(
            numbers, lambda _: range(1024), n_tokens=count, sequence_length=count // 2, seed=0
        )
        assert found.flatten().tolist() == list(range(count))


def test_too_little_text_is_an_error_with_both_figures() -> None:
    with pytest.raises(ConvertError, match=r"has 30 tokens(.|\n)*at least 96"):
        calibration_chunks([words("a", 3)], utf8, n_tokens=100, sequence_length=32, seed=0)
    with pytest.raises(ConvertError, match=r"has 1000 tokens(.|\n)*at least 1024"):
        evaluation_chunks([words("a", 100)], utf8)


def test_a_budget_below_one_sequence_is_an_error() -> None:
    with pytest.raises(ConvertError, match="at least one whole sequence"):
        calibration_chunks([words("a", 30)], utf8, n_tokens=31, sequence_length=32, seed=0)


def test_evaluation_chunks_are_cut_as_llama_cpp_does(tmp_path: Path) -> None:
    text = "".join(chr(33 + i % 90) for i in range(2100))
    (tmp_path / "w.raw").write_text(text)
    chunks = evaluation_chunks(load_text(str(tmp_path / "w.raw")), utf8, bos_token_id=1)
    # llama.cpp: tokens = [BOS] + text; chunk i is tokens[512 i : 512 (i + 1)], its first token
    # replaced by BOS; position j in 256…510 is scored on the token that follows it.
    tokens = [1, *text.encode()]
    assert chunks.input_ids.shape == (4, 512)
    for index in range(4):
        start = 512 * index
        assert chunks.input_ids[index].tolist() == [1, *tokens[start + 1 : start + 512]]
        following = [tokens[start + j + 1] for j in range(256, 511)]
        assert chunks.next_tokens[index].tolist() == following
    assert (chunks.scored.start, chunks.scored.stop) == (256, 511)


def test_evaluation_without_bos_and_with_a_limit() -> None:
    chunks = evaluation_chunks([words("a", 1000)], utf8, n_ctx=64, max_chunks=3)
    assert chunks.input_ids.shape == (3, 64)
    assert (chunks.input_ids == ord("a")).all()
    assert chunks.next_tokens.shape == (3, 31)


def test_the_first_chunks_of_builtin_text_hold_every_kind() -> None:
    text = interleaved(load_text("builtin", half="evaluation", render_chat=tagged))
    start = text[: len(text) // 2]
    for kind in load_text("builtin", half="evaluation", render_chat=tagged):
        assert kind.documents[0].strip("\n") in start, kind.name


def test_a_text_file_comes_back_as_it_was(tmp_path: Path) -> None:
    text = " = Title = \r\n\n" + "\n".join(f"line {i} \u2028 x" for i in range(5000)) + "\n\n  "
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (kind,) = load_text(str(tmp_path / "a.txt"))
    assert len(kind.documents) > 5
    assert interleaved([kind]) == text


def test_chat_forms_are_rendered_by_the_given_template(tmp_path: Path) -> None:
    lines = [
        {
            "messages": [
                {"role": "user", "content": "a\u2028b"},
                {"role": "assistant", "content": "c"},
            ]
        },
        {"conversations": [{"from": "human", "value": "d"}, {"from": "gpt", "value": "e"}]},
        {"text": "plain"},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    (kind,) = load_text(str(path), render_chat=tagged)
    assert kind.documents == (
        "<user>a\u2028b</><assistant>c</>",
        "<user>d</><assistant>e</>",
        "plain\n",
    )
    (plain,) = load_text(str(path))
    assert plain.documents[1] == "d\n\ne"


def test_malformed_lines_are_listed_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "fine"}]}\n'
        '{"messages": [\n'
        "[1, 2]\n"
        "\n"
        '{"dialogue": []}\n'
        '{"messages": [{"role": "narrator", "content": "x"}]}\n'
        '{"messages": [{"role": "user", "content": 5}]}\n'
        '{"messages": []}\n'
        '{"messages": "hello"}\n'
    )
    found = problems_of(path)
    numbers = [int(re.search(r"line (\d+)", text)[1]) for text in found]  # type: ignore[index]
    assert numbers == [2, 3, 5, 6, 7, 8, 9]
    assert "'messages' is missing" in found[2]
    assert "narrator" in found[3]


def test_problems_of_all_files_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\t\n")
    (tmp_path / "gbk.txt").write_bytes("first\n第二行".encode("gb18030"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 ")
    (tmp_path / "wide.txt").write_bytes("hello".encode("utf-16"))
    (tmp_path / "good.txt").write_text("text")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    with pytest.raises(ConvertError) as caught:
        load_text(str(tmp_path))
    empty, gbk, latin, wide = caught.value.problems
    assert "empty.txt is empty" in empty.found
    assert "byte 0xb5 at offset 6, in line 2" in gbk.found
    assert "GB18030" in gbk.remedy
    assert "byte 0xe9 at offset 3, in line 1" in latin.found
    assert "LATIN1" in latin.remedy
    assert "offset 0" in wide.found and "UTF-16" in wide.remedy


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "nowhere.txt") == [f"There is no text at {tmp_path}/nowhere.txt."]
    assert problems_of(tmp_path) == [f"The folder {tmp_path} holds no text."]
    with pytest.raises(ValueError, match="half"):
        load_text("builtin", half="third")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (r'{"text": "a \ud83d"}', "text holds half of a character"),
        (r'{"messages": [{"role": "user", "content": "\ud83d"}]}', "content holds half"),
        ('{"text": ' + "[" * 99_999, "recursion"),
    ],
)
def test_a_line_that_no_tokenizer_takes_is_named(tmp_path: Path, line: str, part: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line}\n" * 3)
    with pytest.raises(ConvertError, match=part) as caught:
        load_text(str(path))
    assert len(caught.value.problems) == 1 and "line 1 and 2 more" in str(caught.value)


def test_lines_that_are_wrong_in_many_ways_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    roles = (f'{{"messages": [{{"role": "r{n}", "content": "x"}}]}}' for n in range(500))
    path.write_text("\n".join(roles))
    with pytest.raises(ConvertError, match="There are 499 more") as caught:
        load_text(str(path))
    assert len(caught.value.problems) == 1

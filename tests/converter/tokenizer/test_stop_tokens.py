"""Stop tokens from every file that names one."""

from __future__ import annotations

from typing import Any

import pytest

from converter.tokenizer.stop_tokens import stop_problems, stop_tokens, turn_end

IDS = {"<s>": 1, "</s>": 2, "<|eot|>": 7, "<|end|>": 8}


@pytest.mark.parametrize(
    ("settings", "turn", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": 2}}, None, (2,)),
        ({"generation_config.json": {"eos_token_id": [2, 7]}}, None, (2, 7)),
        ({"config.json": {"eos_token_id": [5]}}, None, (5,)),
        ({"generation_config.json": {"eos_token_id": 2}, "config.json": {"eos_token_id": 5}},
         None, (2, 5)),
        ({"generation_config.json": {"eos_token_id": None}, "config.json": {"eos_token_id": 2.0}},
         None, (2,)),
        ({"generation_config.json": {"eos_token_id": 2},
          "tokenizer_config.json": {"eos_token": "<|eot|>"}}, None, (2, 7)),
        ({"tokenizer_config.json": {"eos_token": {"content": "<|eot|>"}}}, None, (7,)),
        ({"special_tokens_map.json": {"eos_token": "<|eot|>"},
          "tokenizer_config.json": {"eos_token": "</s>"}}, None, (2, 7)),
        ({"tokenizer_config.json": {"eos_token": "unknown"}}, "<|end|>", (8,)),
        ({"generation_config.json": {"eos_token_id": [2, 8, 2]}}, "<|end|>", (2, 8)),
    ],
)  # fmt: skip
def test_they_are_united_in_order(
    settings: dict[str, Any], turn: str | None, expected: tuple[int, ...]
) -> None:
    found = stop_tokens(settings, turn, IDS)
    assert found.ids == expected and found.problems == []
    assert list(stop_problems(found, 10)) == []


def test_a_note_says_where_each_comes_from() -> None:
    settings = {"generation_config.json": {"eos_token_id": 2}}
    (note,) = stop_tokens(settings, "<|end|>", IDS).notes()
    assert "2 from generation_config.json" in note and "8 from the chat template" in note
    assert stop_tokens(settings, None, IDS).notes() == []


@pytest.mark.parametrize("value", ["2", [[2]], [None], True, [2, "x"], 2.5, float("nan"), {}])
def test_what_is_no_id_is_named(value: Any) -> None:
    for name in ("generation_config.json", "config.json"):
        problems = list(stop_problems(stop_tokens({name: {"eos_token_id": value}}, None, IDS), 10))
        assert problems and name in problems[0].found and "eos_token_id" in problems[0].found


def test_there_must_be_one_with_a_row() -> None:
    (none,) = stop_problems(stop_tokens({}, None, IDS), 10)
    assert "No stop token" in none.found
    far = stop_tokens({"config.json": {"eos_token_id": [2, 10, -1]}}, None, IDS)
    assert [problem.found.split()[3] for problem in stop_problems(far, 10)] == ["10", "-1"]


@pytest.mark.parametrize(
    ("behind", "end"),
    [("<|end|>\n", "<|end|>"), ("\n <|eot|>", "<|eot|>"), ("{{ eos_token }}", "</s>"),
     ("", None), ("\nUser:", None), (" and <|end|>", None)],
)  # fmt: skip
def test_a_templates_turn_end(behind: str, end: str | None) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + behind + "{% endfor %}"
    assert turn_end(template, {"eos_token": "</s>"}, IDS) == end


def test_a_template_that_refuses_has_no_turn_end() -> None:
    assert turn_end("{{ raise_exception('no') }}", {}, IDS) is None
    assert turn_end("{{ messages[0].content }}", {}, IDS) is None

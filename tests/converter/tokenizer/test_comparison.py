"""What is said where onnxruntime-genai reads the written files differently."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from conftest import DEMO
from tokenizers import Tokenizer, normalizers

from converter.tokenizer import comparison, prepare_tokenizer
from converter.tokenizer.comparison import Comparison, Expected, compare_with_runtime
from converter.tokenizer.conversations import SAMPLES
from converter.tokenizer.jinja import render
from converter.tokenizer.read_texts import read_texts
from converter.tokenizer.runtime_tokenizer import RuntimeTokenizer
from converter.tokenizer.tokenizer_json import read_with_library


@cache
def demo_files() -> dict[str, bytes]:
    return prepare_tokenizer(DEMO, 1024).files


def compared(template: str | None, written: str | None = None, **names: str) -> Comparison:
    config = json.loads(demo_files()["tokenizer_config.json"])
    config["chat_template"] = template if written is None else written
    files = {**demo_files(), "tokenizer_config.json": json.dumps(config).encode()}
    return compare_with_runtime(files, Expected(None, template=template, names=names))


PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"


def test_nothing_differs_in_the_demo() -> None:
    found = prepare_tokenizer(DEMO, 1024).comparison
    assert (found.notes, found.problems, found.differing) == ((), (), 0)
    assert found.texts > 200


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "a refusal"),
        ("{% for m in messages %}\n{{ m.content }}{% endfor %}", "'\\nHello"),
    ],
)
def test_another_text_of_a_plain_conversation_is_refused(template: str, part: str) -> None:
    (problem,) = compared(template).problems
    assert "a question" in problem.found and part in problem.found
    assert "HELLO" in problem.found or "'Hello" in problem.found


def test_another_text_of_other_conversations_is_noted() -> None:
    template = PLAIN.replace("{{ m.content }}", "{% if m.role == 'system' %}{{ m.content | upper }}"
                             "{% else %}{{ m.content }}{% endif %}.")  # fmt: skip
    found = compared(template)
    assert found.problems == ()
    (note,) = found.notes
    assert "a system message," in note and "BE KIND" in note and "tools and a system" in note


def test_what_both_refuse_is_no_difference() -> None:
    refused = "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"
    found = compared(refused + PLAIN.replace("{{ m.content }}", "{{ m.content | string }}"))
    assert found.problems == () and not any("system" in note for note in found.notes)


def test_a_template_that_transformers_refuses_in_plain_is_noted_only() -> None:
    refused = "{% if messages | length > 1 %}{{ raise_exception('Once only') }}{% endif %}"
    found = compared(refused + PLAIN, written=PLAIN)
    assert found.problems == () and "Once only" in found.notes[0]


def test_other_ids_are_counted_by_kind() -> None:
    reader = Tokenizer.from_buffer(demo_files()["tokenizer.json"])
    reader.normalizer = normalizers.Sequence([normalizers.NFC(), reader.normalizer])
    found = compare_with_runtime(demo_files(), Expected(read_texts(reader), mended=True))
    (note,) = found.notes
    assert "of decomposed letters" in note and 0 < found.differing < 10
    assert list(found.text_problems(0.1)) == []
    (problem,) = found.text_problems(found.differing / found.texts / 2)
    assert "verify.max_text_differences" in problem.remedy and found.example in problem.found


def test_a_reader_that_lowers_letters_is_past_the_bound() -> None:
    reader = Tokenizer.from_buffer(demo_files()["tokenizer.json"])
    reader.normalizer = normalizers.Sequence([normalizers.Lowercase(), reader.normalizer])
    found = compare_with_runtime(demo_files(), Expected(read_texts(reader), mended=True))
    assert len(list(found.text_problems(0.1))) == 1 and not list(found.text_problems(1.0))


def test_a_tokenizer_that_cannot_be_loaded_is_refused() -> None:
    content = json.loads(demo_files()["tokenizer.json"])
    content["pre_tokenizer"]["pattern"]["Regex"] = r"\p{L}+|\s+"
    files = {**demo_files(), "tokenizer.json": json.dumps(content).encode()}
    (problem,) = compare_with_runtime(files, Expected(None)).problems
    assert "cannot load the tokenizer" in problem.found


def test_without_the_runtime_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "runtime_is_installed", lambda: False)
    found = compare_with_runtime(demo_files(), Expected(None, template=PLAIN))
    assert "not installed" in found.notes[0] and found.problems == ()
    assert list(found.text_problems(0.0)) == []


def test_the_template_for_tools_is_what_is_expected_with_tools() -> None:
    expected = Expected(None, template="plain", tool_use="tools")
    texts: dict[bool, Any] = {
        bool(sample.tools): expected.render(sample, True) for sample in SAMPLES
    }
    assert texts == {False: "plain", True: "tools"}
    assert render("plain", [], None, True, {}) == "plain"


def test_a_template_that_refuses_a_question_is_noted() -> None:
    (note,) = compared("{{ raise_exception('Not this one') }}").notes
    assert "refuses a question" in note and "Not this one" in note
    (note,) = compared("{{ who.name.first }}").notes
    assert "'who' is undefined" in note


def test_a_template_that_calls_itself_without_end_is_refused() -> None:
    (problem,) = compared("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").problems
    assert "without end" in problem.found


def test_cutting_and_padding_that_a_trainer_left_are_no_difference() -> None:
    content = json.loads(demo_files()["tokenizer.json"])
    left = Tokenizer.from_str(json.dumps(content))
    left.enable_truncation(4)
    left.enable_padding(length=8)
    reader = read_with_library(left.to_str().encode())
    files = {**demo_files(), "tokenizer.json": left.to_str().encode()}
    for mended in (True, False):
        assert compare_with_runtime(files, Expected(read_texts(reader), mended)).differing == 0
    assert compare_with_runtime(files, Expected(None)).differing == 0


def test_the_runtime_is_not_asked_what_no_template_means(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(RuntimeTokenizer, "render", lambda *args: asked.append(args))
    (note,) = compared("{{ 'a'.rsplit('', 1)[0] }}").notes
    assert "refuses a question: empty separator" in note and not asked


def test_a_character_that_is_cut_is_a_refusal() -> None:
    template = "{% for m in messages %}{{ (m.content ~ 'é')[-1:] }}{% endfor %}"
    found = compared(template, written=template)
    assert "cuts a character" in str(found.problems[0])

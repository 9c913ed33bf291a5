"""Templates written anew: for Jinja the same text, and for onnxruntime-genai too."""

# ruff: noqa: E501 (a template stands in one line)

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from conftest import DEMO
from jinja2 import nodes

from converter.tokenizer import prepare_tokenizer
from converter.tokenizer.chat_template import PUBLISHED_TEMPLATE, TOOL_TEMPLATE
from converter.tokenizer.conversations import TOOLS
from converter.tokenizer.jinja import environment, render
from converter.tokenizer.runtime_tokenizer import RuntimeTokenizer
from converter.tokenizer.template_expressions import UnwritableError
from converter.tokenizer.template_writer import RAW_TOOLS, runtime_template

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": " Be kind "},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes-yes\n"},
    {"role": "user", "content": "a, b, c"},
]


@cache
def demo_files() -> dict[str, bytes]:
    return prepare_tokenizer(DEMO, 1024).files


def runtime_text(template: str, tools: Any = None) -> str:
    config = json.loads(demo_files()["tokenizer_config.json"]) | {"chat_template": template}
    files = {**demo_files(), "tokenizer_config.json": json.dumps(config).encode()}
    return RuntimeTokenizer(files).render(MESSAGES, tools, True)


def check(source: str, tools: Any = None) -> str:
    """The template as written; both engines must make of it what Jinja makes of `source`."""
    expected = render(source, MESSAGES, tools, True, NAMES)
    written, _ = runtime_template(source, {"pad_token": "<pad>"})
    assert render(written, MESSAGES, tools, True, NAMES) == expected
    assert runtime_text(written, tools) == expected
    return written


FOR = "{% for m in messages %}"
REWRITTEN = {
    "trimmed block lines": FOR + "\n{% if m.role == 'user' %}\n{{ m.content }}\n{% endif %}\n{% endfor %}\n",
    "stripped indents": FOR + "\n    {% if m.role == 'user' %}\nQ: {{ m.content }}\n    {% endif %}\n{% endfor %}\nA:",
    "lines after comments": "{# by a tool #}\n\n{{ messages[1].content }}\n",
    "blanks that are meant": "a\n\n  {%+ if true +%}\n x {% endif %}\n\nb",
    "text in text": "{{ 'ell' in messages[1].content }}{{ 'x' in messages[1].content }}",
    "text not in text": "{% if '</think>' not in messages[2].content %}A{% else %}B{% endif %}",
    "key not in mapping": FOR + "{% if 'name' not in m %}A{% endif %}{% if 'role' not in m %}B{% endif %}{% endfor %}",
    "first and last character": "{{ messages[0].content[0] }}|{{ messages[1].content[-1] }}",
    "replace": FOR + "{{ m.content.replace('e', 'x') }}{{ m.content | replace('l', '') }}{% endfor %}",
    "lower, join, count": "{{ 'AB'.lower() }}{{ ', '.join(['a', 'b']) }}{{ 'abab'.count('a') }}",
    "prefix and suffix": "{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}{{ 'abc'.removeprefix('x') }}",
    "one of several prefixes": "{{ messages[1].content.startswith(('x', 'He')) }}{{ 'a'.endswith(('b', 'c')) }}",
    "split once": "{{ 'a,b,c'.split(',', 1)[0] }}|{{ 'a,b,c'.split(',', 1)[1] }}|{{ 'abc'.split(',', maxsplit=1)[-1] }}",
    "split once from the right": "{{ 'a,b,c'.rsplit(',', 1)[0] }}|{{ 'a,b,c'.rsplit(',', 1)[-1] }}",
    "short filter names": "{{ x | d('y') }}{{ ['a', 'b'] | first }}{{ 'ab' | first }}{{ 'xax' | trim('x') }}",
    "reversed": "{% for m in messages | reverse %}{{ m.role }}{% endfor %}",
    "capitals": "{{ 'ab cd' | title }}{{ 'ab cd' | capitalize }}{{ -3 | abs }}",
    "join an attribute": "{{ messages | join(', ', attribute='role') }}",
    "keys and values": "{% for k in messages[0].keys() %}{{ k }}{% endfor %}{% for v in messages[0].values() %}{{ v }}{% endfor %}",
    "tests on numbers": FOR + "{{ loop.index is odd }}{{ loop.index is even }}{{ loop.index is divisibleby(2) }}{% endfor %}",
    "tests that compare": "{{ 1 is eq 1 }}{{ 1 is equalto(2) }}{{ 1 is lt 2 }}{{ 'a' is in ['a'] }}{{ 'a' is in 'bab' }}",
    "a text is a sequence": "{{ messages is sequence }}{{ 'a' is sequence }}{{ messages[0] is sequence }}{{ 1 is sequence }}",
    "no tools are None": "{{ tools is none }}{{ tools is defined }}{{ tools is not none }}{{ documents is undefined }}",
    "what and gives": "{{ 'a' and 'b' }}|{{ '' and 'b' }}|{{ (1 == 1) and (2 == 2) }}",
    "compared in a chain": "{{ 1 < 2 < 3 }}{{ 1 < 2 > 3 }}",
    "two names at once": "{% set a, b = 'x', 'y' %}{{ a }}{{ b }}",
    "with": "{% with a = 'x', b = 'y' %}{{ a }}{{ b }}{% endwith %}",
    "a filtered block": "{% filter trim %}  a {% endfilter %}|{% set x | trim %} b {% endset %}{{ x }}",
    "a named block": "{% block body %}a{% endblock %}",
    "raw text": "{% raw %}{{ x }}{% endraw %}",
    "escapes": r"{{ '\u00e9\x41\n\\' }}",
    "a comma at the end": "{{ [1, 2,] | length }}",
    "a part of a call": "{{ strftime_now('%Y')[:2] }}",
    "dict": "{% set d = dict(a=1, b='x') %}{{ d.b }}",
    "other special tokens": "{{ bos_token }}{{ pad_token }}",
    "tojson's default": "{{ messages[0] | tojson(ensure_ascii=False) }}{{ {'a': 1} | tojson(indent=2) }}{{ 'a' in 'ab' }}",
}  # fmt: skip
KEPT = {
    "minus signs": "a\n  {%- if true -%}\n x \n{%- endif %}\n {{- 1 -}} \nb",
    "plain": FOR + "{{ m['role'] + ':' + m.content }}{{ eos_token }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}" + FOR + "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "macro": "{% macro f(a, b='z') %}[{{ a }}{{ b }}]{% endmacro %}{{ f('x') }}{{ f('x', b='q') }}",
    "loops": FOR + "{% if loop.first %}{% continue %}{% endif %}{{ loop.index0 }}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
    "filtered loop": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}",
    "generation": "{% generation %}a{% endgeneration %}",
    "key in mapping": FOR + "{% if 'content' in m %}A{% endif %}{% if m.role in ['user', 'x'] %}B{% endif %}{% endfor %}",
    "methods": "{{ messages[0].content.strip() }}{{ 'xa'.lstrip('x') }}{{ 'a,b'.split(',')[-1] }}{{ messages[0].get('x', 'd') }}",
    "items": "{% for k, v in messages[0].items() %}{{ k }}={{ v }}{% endfor %}",
    "selectattr": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}",
    "slices": "{{ messages[1:] | length }}{{ messages[::-1][0].role }}{{ 'abc'[1:] }}{{ messages[-1].role }}",
    "set block": "{% set x %}a{{ 1 }}{% endset %}{{ x }}",
}  # fmt: skip


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_form_that_the_runtime_misreads_is_replaced(name: str) -> None:
    assert check(REWRITTEN[name]) != REWRITTEN[name]


@pytest.mark.parametrize("name", KEPT)
def test_what_both_read_alike_stays_as_it_is(name: str) -> None:
    assert check(KEPT[name]) == KEPT[name]


def test_the_written_template_needs_no_writing() -> None:
    for source in REWRITTEN.values():
        written, _ = runtime_template(source, {"pad_token": "<pad>"})
        again, _ = runtime_template(written, {"pad_token": "<pad>"})
        assert render(again, MESSAGES, None, True, NAMES) == render(
            written, MESSAGES, None, True, NAMES
        )


def test_internlm2s_templates_stay_as_they_are() -> None:
    for template in (PUBLISHED_TEMPLATE, TOOL_TEMPLATE):
        assert runtime_template(template, {}) == (template, False)


def test_tools_reach_the_template_as_they_are_given() -> None:
    source = "{% for t in tools %}{{ t | tojson }}{{ t.function.name }}{% endfor %}"
    assert check(source, TOOLS) == RAW_TOOLS + source


def test_the_template_for_tools_is_taken_with_tools() -> None:
    written, changed = runtime_template("\nplain", {}, "\ntools: {{ tools | length }}")
    assert changed
    assert runtime_text(written) == render("\nplain", MESSAGES, None, True, NAMES)
    assert runtime_text(written, TOOLS) == "\ntools: 1"


@pytest.mark.parametrize("source", ["{% import 'x' as y %}", "{% call f() %}a{% endcall %}"])
def test_what_has_no_form_here_is_said(source: str) -> None:
    with pytest.raises(UnwritableError):
        runtime_template(source, {})
    assert isinstance(environment().parse(source), nodes.Template)

"""Damaged checkpoints: a short error or a plan, never a traceback, a hang or something left behind.

The demo is damaged at random: values of each JSON file at any depth, and bytes of every kind of
file. What is checked is all that comes before the work (`read_headers` and every pass's
`requires`); some are converted whole. More examples by hand:

    DAMAGED_EXAMPLES=5000 python -m pytest tests/test_damaged_checkpoints.py -n 2
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.cli.compose import compose_recipe
from converter.engine.execution import check, run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError

STATED = os.environ.get("DAMAGED_EXAMPLES")
FEW = settings(
    max_examples=int(STATED or 80),
    derandomize=STATED is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SCREEN = 40
"""Lines of an error that fit on a screen."""
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
BINARY_FILES = (*JSON_FILES, "tokenizer.model", "model.safetensors", "chat_template.jinja")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
ODD: Any = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**400, 1.5, -0.0, 1e300),
        *(float("nan"), float("inf"), "", "null", "x" * 5000, "é\ud83d\ude00\u0000", "</s>"),
        *([], [[]], ["a"], [None], [1, -1], {}, {"a": {"b": []}}, {"content": "<s>"}),
        *("llama", "sliding_attention", ["sliding_attention"] * 5, {"rope_type": "yarn"}),
        *({"rope_type": "dynamic", "factor": "2"}, {"rope_theta": -1}, {"type": []}),
    ]
)
NAMES = st.sampled_from(
    [
        *("rope_scaling", "rope_parameters", "quantization_config", "layer_types", "head_dim"),
        *("sliding_window", "added_tokens_decoder", "chat_template", "eos_token_id", "extra"),
        *("additional_special_tokens", "extra_special_tokens", "max_length", "top_k"),
        *("do_sample", "bias"),
    ]
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each container of a JSON value with each of its keys."""
    found: list[tuple[Any, Any]] = []
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        found.append((value, key))
        found += places(value[key])
    return found


def damaged_json(folder: Path, data: st.DataObject) -> None:
    """Replace, remove or add values of one JSON file."""
    path = folder / data.draw(st.sampled_from(JSON_FILES))
    content = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(data.draw(st.integers(1, 3))):
        owner, key = data.draw(st.sampled_from([*places(content), (content, data.draw(NAMES))]))
        if data.draw(st.booleans()) or (isinstance(owner, dict) and key not in owner):
            owner[key] = copy.deepcopy(data.draw(ODD))
        elif isinstance(owner, dict):
            owner.pop(key, None)
    path.write_text(json.dumps(content), encoding="utf-8")


def damaged_bytes(folder: Path, data: st.DataObject) -> None:
    """Cut a file, or flip some of its bytes; most of them near its start, where headers are."""
    path = folder / data.draw(st.sampled_from(BINARY_FILES))
    if not path.exists():
        path.write_text(TEMPLATE, encoding="utf-8")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    near = min(len(content), data.draw(st.sampled_from([16, 3000, len(content) or 1])))
    for _ in range(data.draw(st.integers(0, 6)) if near else 0):
        content[data.draw(st.integers(0, near - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)


def copied(root: Path) -> Path:
    """A fresh copy of the demo in an empty place."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(DEMO, root / "checkpoint")
    return root / "checkpoint"


def short_error_or_none(error: ConvertError | None) -> None:
    if error is not None:
        text = str(error)
        assert text and len(text.splitlines()) <= SCREEN and "Traceback" not in text, text


def planned(folder: Path) -> ConvertError | None:
    """What a conversion says before it begins."""
    try:
        recipe = compose_recipe(["recipe=internlm2_1_8b_chat_cpu_int4", f"source.path='{folder}'"])
        check(recipe, make_passes(recipe.passes), None)
    except ConvertError as error:
        return error
    return None


@FEW
@given(st.data())
def test_damaged_json_gives_a_short_error_or_a_plan(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = copied(tmp_path_factory.getbasetemp() / "damaged_json")
    damaged_json(folder, data)
    short_error_or_none(planned(folder))


@FEW
@given(st.data())
def test_damaged_bytes_give_a_short_error_or_a_plan(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = copied(tmp_path_factory.getbasetemp() / "damaged_bytes")
    damaged_bytes(folder, data)
    short_error_or_none(planned(folder))


@pytest.mark.slow
@settings(FEW, max_examples=int(STATED or 240) // 12)
@given(st.data())
def test_a_damaged_checkpoint_leaves_nothing_behind(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Converted whole: it fails with a short error and leaves nothing, or the folder is there."""
    root = tmp_path_factory.getbasetemp() / "damaged_whole"
    folder = copied(root)
    data.draw(st.sampled_from([damaged_json, damaged_bytes]))(folder, data)
    words = ["recipe=internlm2_1_8b_chat_cpu_int4", f"source.path='{folder}'"]
    failed: ConvertError | None = None
    try:
        recipe = compose_recipe([*words, f"output='{root / 'out'}'", "verify=none"])
        run_recipe(recipe, make_passes(recipe.passes))
    except ConvertError as error:
        failed = error
    short_error_or_none(failed)
    assert (root / "out").exists() == (failed is None)
    assert {path.name for path in root.iterdir()} <= {"checkpoint", "out"}

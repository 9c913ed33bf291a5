"""The worked example of docs/guide/own_pass.md, installed into an environment of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest
from command import tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "own_pass"
TINY = tiny("internlm2_1_8b_cpu_fp32")
WITH_CARD = "passes=[load,layout,graph,quantize,package,card]"


class Environment:
    """A virtual environment that also sees the packages of the one that runs the tests."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        packages = next(folder.glob("lib/python*/site-packages"))
        # addsitedir, not a bare path: editable installations are themselves .pth files.
        here = sysconfig.get_paths()["purelib"]
        (packages / "outer.pth").write_text(f"import site; site.addsitedir({here!r})\n")

    def install(self, package: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        offline = ["--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*pip, *offline, str(package)], check=True, capture_output=True, text=True)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), *words],
            capture_output=True,
            text=True,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            timeout=300,
        )

    def convert(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "converter.cli.main", *words)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    for tool in ("pip", "setuptools"):
        if find_spec(tool) is None:
            pytest.skip(f"no {tool} to install the example with")
    folder = tmp_path_factory.mktemp("own_pass")
    found = Environment(folder / "venv")
    source = shutil.copytree(EXAMPLE, folder / "source")  # building writes beside the source
    found.install(source)
    return found


def test_the_pass_runs_and_its_result_is_recorded(environment: Environment, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = environment.convert(
        *TINY, WITH_CARD, "card.title=Small talk", "card.license=mit", f"output={output}"
    )
    assert done.returncode == 0, done.stderr
    card = (output / "README.md").read_text()
    assert "# Small talk" in card and "license: mit" in card
    lock = json.loads((output / "convert.lock.json").read_text())
    assert lock["files"]["README.md"]["size"] == len(card.encode())
    assert lock["facts"]["card"] == {"license": "mit"} and "card" in lock["seconds"]
    assert "card:\n  title: Small talk\n  license: mit\n" in (output / "recipe.yaml").read_text()


def test_the_slot_is_checked_like_a_built_in_one(environment: Environment, tmp_path: Path) -> None:
    wrong = environment.convert(*TINY, WITH_CARD, "card.titel=x", f"output={tmp_path / 'out'}")
    assert wrong.returncode == 1
    assert "Unknown key 'card.titel'" in wrong.stderr and "write card.title=" in wrong.stderr
    wrong = environment.convert(*TINY, WITH_CARD, "card.license=gpl", f"output={tmp_path / 'out'}")
    assert "one of apache-2.0, mit, other" in wrong.stderr
    assert not (tmp_path / "out").exists()


def test_what_the_pass_requires_is_said_before_any_work(
    environment: Environment, tmp_path: Path
) -> None:
    words = [*TINY, WITH_CARD, "quant=rtn", "quant.block_size=256", f"output={tmp_path / 'out'}"]
    wrong = environment.convert(*words)
    assert "card.title is empty." in wrong.stderr
    assert "which blocks of 256 do not divide" in wrong.stderr  # with the other passes' problems
    assert "package " not in wrong.stderr and not (tmp_path / "out").exists()


def test_the_order_is_checked(environment: Environment, tmp_path: Path) -> None:
    early = "passes=[load,layout,card,graph,quantize,package]"
    wrong = environment.convert(*TINY, early, "card.title=x", f"output={tmp_path / 'out'}")
    assert "The pass card follows layout, which gives Decoder." in wrong.stderr


def test_it_is_listed_with_its_package(environment: Environment) -> None:
    lines = environment.convert("list", "passes").stdout.splitlines()
    assert ["card", "convert-card"] in [line.split() for line in lines]
    assert ["tune", "convert-genai"] in [line.split() for line in lines]


def test_the_plan_does_not_run_it(environment: Environment) -> None:
    plan = environment.convert("plan", *TINY, WITH_CARD, "card.title=x")
    assert plan.returncode == 0 and "package → card" in plan.stdout, plan.stderr


BROKEN = {
    "cannot be imported": ("import nothing_of_this_name\n", "No module named"),
    "not a dataclass": ("class CardConfig:\n    title = ''\n", "is not a dataclass"),
    "no default": (
        "import dataclasses\n@dataclasses.dataclass\nclass CardConfig:\n    title: str\n",
        "a field without a default",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_package_stops_only_recipes_that_use_it(
    environment: Environment, tmp_path: Path, kind: str
) -> None:
    settings = next(environment.python.parents[1].glob("lib/**/convert_card/settings.py"))
    sound = settings.read_text()
    content, reason = BROKEN[kind]
    settings.write_text(content)
    try:
        wrong = environment.convert(*TINY, WITH_CARD, "card.title=x", f"output={tmp_path / 'a'}")
        assert wrong.returncode == 1 and reason in wrong.stderr, wrong.stderr
        assert "Traceback" not in wrong.stderr
        other = environment.convert(*TINY, "quant.bitts=4", f"output={tmp_path / 'b'}")
        assert "Unknown key 'quant.bitts'" in other.stderr and "card" not in other.stderr
    finally:
        settings.write_text(sound)


def test_the_documentation_shows_the_files_as_they_are() -> None:
    text = (ROOT / "docs" / "guide" / "own_pass.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"`(examples/own_pass/\S+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL))
    assert len(shown) == 3
    for name, content in shown.items():
        assert content == (ROOT / "docs" / name).read_text(encoding="utf-8"), name

"""Hostile recipes: each is refused before composing, and nothing outside is made, read or run."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.cli.compose import compose_recipe
from converter.errors import ConvertError
from converter.recipe import tree
from converter.recipe.schema import Recipe
from converter.recipe.trust import (
    MAX_FILE_BYTES,
    NAME,
    USER_KEYS,
    name_problems,
    parse_foreign,
    parse_trusted,
)
from converter.recipe.validation import schema_paths

SLOTS = ("model", "quant", "recipe", "source", "sweep", "target")
BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)
HOSTILE_RECIPES = {
    "hydra key": "hydra:\n  run:\n    dir: /tmp/evil\n",
    "hydra callback": "hydra:\n  callbacks:\n    x:\n      _target_: os.system\n",
    "hydra searchpath": "hydra:\n  searchpath: [file:///etc]\n",
    "target": "quant:\n  _target_: os.system\n",
    "target with a command": "model:\n  config:\n    _target_: subprocess.run\n    args: [id]\n",
    "partial": "quant:\n  _partial_: true\n",
    "recursive": "quant:\n  _recursive_: true\n",
    "environment": "model:\n  name: ${oc.env:HOME}\n",
    "environment with a default": "source:\n  repo: a/${oc.env:TOKEN,none}\n",
    "decode resolver": "model:\n  name: ${oc.decode:'1'}\n",
    "create resolver": "model:\n  name: ${oc.create:{a:1}}\n",
    "nested interpolation": "model:\n  name: ${model.${oc.env:HOME}}\n",
    "hydra interpolation": "model:\n  name: ${hydra.runtime.cwd}\n",
    "relative interpolation": "model:\n  name: ${..output}\n",
    "escaped interpolation": "model:\n  name: \\${oc.env:HOME}\n",
    "interpolation in the prompt": "verify:\n  prompt: ${oc.env:HOME}\n",
    "absolute output": "output: /tmp/evil\n",
    "relative output": "output: ../evil\n",
    "overwriting": "overwrite: true\n",
    "source path": "source:\n  path: models/secret\n",
    "absolute model path": "source:\n  repo: /etc\n",
    "home": "source:\n  repo: ~/secret\n",
    "parent folder": "source:\n  repo: org/../../etc\n",
    "windows path": "source:\n  repo: 'C:\\\\Windows'\n",
    "network path": "source:\n  repo: '\\\\\\\\host\\\\share'\n",
    "url": "source:\n  repo: file:///etc\n",
    "evaluation text": "evaluate:\n  text: secrets.txt\n",
    "calibration text": "calibration:\n  text: secrets.txt\n",
    "olive workflow": "olive:\n  workflow: evil.json\n",
    "olive script": "olive:\n  passes:\n  - type: X\n    config:\n      user_script: evil.py\n",
    "custom operators": "target:\n  session_options:\n    custom_ops_library: evil.so\n",
    "profile file": "target:\n  session_options:\n    enable_profiling: out\n",
    "provider library": "target:\n  provider_options:\n    backend_path: evil.so\n",
    "engine cache": "target:\n  provider_options:\n    nv_runtime_cache_path: x\n",
    "python tag": "name: !!python/object/apply:os.system [id]\n",
    "local tag": "name: !include /etc/passwd\n",
    "tag directive": "%TAG ! tag:yaml.org,2002:python/\n---\nname: !object x\n",
    "anchor bomb": BOMB,
    "alias": "model: &m {name: x}\nsource: *m\n",
    "merge key": "model: &m {name: x}\nsource:\n  <<: *m\n",
    "deep nesting": "a: " + "[" * 200 + "]" * 200 + "\n",
    "two documents": "name: x\n---\nname: y\n",
    "huge": "# " + "x" * MAX_FILE_BYTES + "\n",
    "key twice": "name: x\nname: y\n",
    "key that is no text": "on: 1\n",
    "dotted key": "quant.bits: 4\n",
    "control characters": "name: \x1b[2J\n",
    "not text": "name: \udcff\n",
    "not a mapping": "- a\n- b\n",
    "broken": "name: [\n",
    "package": "# @package hydra\nname: x\n",
    "package of a slot": "# @package hydra.launcher\nname: x\n",
    "defaults hydra": "defaults:\n  - override /hydra/launcher: submitit_local\n",
    "defaults hydra plain": "defaults:\n  - /hydra/callbacks: evil\n",
    "defaults package": "defaults:\n  - override /quant@hydra: rtn\n",
    "defaults path": "defaults:\n  - ../../etc/passwd\n",
    "defaults absolute": "defaults:\n  - /etc/passwd\n",
    "defaults option path": "defaults:\n  - override /quant: ../secret\n",
    "defaults interpolation": "defaults:\n  - override /quant: ${oc.env:HOME}\n",
    "defaults newline": 'defaults:\n  - "demo\\nhydra"\n',
    "defaults optional": "defaults:\n  - optional /quant: rtn\n",
    "defaults mapping": "defaults: {hydra: x}\n",
}
HOSTILE_SWEEPS = {
    "hydra word": "grid:\n  hydra.launcher: [a]\n",
    "output": "set:\n  output: evil\n",
    "injected words": "grid:\n  quant: ['rtn hydra.run.dir=x']\n",
    "injected values": "grid:\n  quant: ['rtn,${oc.env:HOME}']\n",
    "source path": "grid:\n  source.path: [secret]\n",
    "other keys": "recipe: demo\nhydra: {a: 1}\n",
    "recipe path": "recipe: ../x\ngrid: {quant: [rtn]}\n",
}


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("text", HOSTILE_RECIPES.values(), ids=HOSTILE_RECIPES.keys())
def test_hostile_recipe_is_refused(text: str) -> None:
    with pytest.raises(ConvertError) as error:
        parse_foreign("acme: recipe/evil.yaml", encoded(text), "recipe", SLOTS)
    assert all("evil.yaml" in problem.where for problem in error.value.problems)


@pytest.mark.parametrize("text", HOSTILE_SWEEPS.values(), ids=HOSTILE_SWEEPS.keys())
def test_hostile_sweep_is_refused(text: str) -> None:
    with pytest.raises(ConvertError):
        parse_foreign("acme: sweep/evil.yaml", encoded(text), "sweep", SLOTS)


def test_slot_file_reaches_its_own_slot_only() -> None:
    for text in ("# @package _global_\nbits: 4\n", "defaults:\n  - override /source: demo\n"):
        with pytest.raises(ConvertError):
            parse_foreign("quant/evil.yaml", text.encode(), "quant", SLOTS)


def test_a_plain_recipe_passes_unchanged() -> None:
    text = (
        "# @package _global_\ndefaults:\n  - demo\n  - override /quant: rtn\n"
        "quant:\n  bits: 8\nsource:\n  repo: ${model.repo}\nverify:\n  prompt: /etc is a folder\n"
    )
    values = parse_foreign("recipe/good.yaml", text.encode(), "recipe", SLOTS)
    assert values["quant"] == {"bits": 8} and values["source"] == {"repo": "${model.repo}"}


@pytest.mark.parametrize("folder", [name for name in tree.folders() if name != "convert"])
def test_built_in_files_would_pass_as_foreign_ones(folder: str) -> None:
    for name in tree.built_in_files(folder):
        path = tree.recipes_folder() / folder / f"{name}.yaml"
        parse_foreign(str(path), path.read_bytes(), folder, tree.folders())


def test_every_key_that_names_a_place_is_the_users_alone() -> None:
    suspicious = ("path", "file", "folder", "workflow", "output", "text", "script", "dir")
    found = {path for path in schema_paths(Recipe) if path.rpartition(".")[2] in suspicious}
    assert found == set(USER_KEYS) - {"overwrite"}


@pytest.mark.parametrize("name", ["a b", "é", "../x", "-x", "", "x" * 101, "__x"])
def test_a_bad_name_comes_with_one_that_can_be_taken(name: str) -> None:
    (problem,) = name_problems("The recipe", name)
    assert NAME.fullmatch(problem.remedy.rpartition(" ")[2])


def test_numbers_are_read_as_hydra_reads_them() -> None:
    assert parse_trusted("x", b"a: 1e-5\nb: 1.0e-05\nc: 1e5\n") == {"a": 1e-5, "b": 1e-5, "c": 1e5}


@pytest.mark.parametrize("text", HOSTILE_RECIPES.values(), ids=HOSTILE_RECIPES.keys())
def test_no_hostile_recipe_touches_anything(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Composed as a team's recipe, in an empty folder: an error, and the folder stays empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(tree, "_trial", {"acme": {"recipe/evil.yaml": encoded(text)}})
    with pytest.raises(ConvertError):
        compose_recipe(["recipe=acme/evil"])
    assert list(tmp_path.iterdir()) == []

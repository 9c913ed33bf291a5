"""Recipe repositories: pinned, read without a checkout, and hostile ones."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from converter.cli.compose import compose_recipe
from converter.cli.main import main
from converter.cli.verbs import run_verb
from converter.errors import ConvertError
from converter.recipe import repositories, tree
from converter.recipe.repositories import LOCK_FILE, Repository, fetch, read_files, read_pins

RECIPE = "# @package _global_\ndefaults:\n  - demo\n  - override /quant: wide\n"
WIDE = "defaults:\n  - rtn\nbits: 8\n"


def git(folder: Path, *words: str, stdin: str | None = None) -> str:
    identity = {
        f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    result = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", *words],
        cwd=folder,
        env={**os.environ, **identity},
        input=stdin,
        check=True,
        capture_output=True,
        text=True,
    )
    return result.stdout.strip()


def commit(folder: Path, files: dict[str, str]) -> str:
    folder.mkdir(exist_ok=True)
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    commit(tmp_path / "acme", {"recipe/tiny.yaml": RECIPE, "quant/wide.yaml": WIDE, "README": "x"})
    return tmp_path / "acme"


def test_added_recipes_compose_with_their_own_choices(acme: Path) -> None:
    run_verb("repo", ["add", "team", str(acme)])
    recipe = compose_recipe(["recipe=team/tiny"])
    assert (recipe.name, recipe.quant.bits, recipe.source.kind) == ("team_tiny", 8, "demo")
    assert compose_recipe(["recipe=demo", "quant=team/wide"]).quant.bits == 8
    assert "team/tiny" in tree.choices("recipe")


EXPORT = """# @package _global_
defaults:
  - override /target: cpu
  - override /quant: wide
"""
MODEL = "defaults: [internlm2_1_8b]\nname: ours\nrepo: us/ours\n"


@pytest.mark.slow
def test_a_model_and_an_export_of_a_team_compose_with_all_others(acme: Path) -> None:
    files = {"export/cpu_wide.yaml": EXPORT, "model/ours.yaml": MODEL}
    commit(acme, files | {"recipe/built.yaml": "defaults: [ours_cpu_wide]\nthreads: 1\n"})
    run_verb("repo", ["add", "team", str(acme)])
    for name, model, bits in (
        ("team/ours_cpu_wide", "us/ours", 8),
        ("team/ours_cuda_int4", "us/ours", 4),
        ("team/internlm2_7b_cpu_wide", "internlm/internlm2-7b", 8),
        ("team/built", "us/ours", 8),
    ):
        recipe = compose_recipe([f"recipe={name}"])
        assert (recipe.model.repo, recipe.quant.bits) == (model, bits)
        assert recipe.name == name.replace("/", "_")
        assert name in tree.choices("recipe")
    words = ["model=internlm2_7b", "export=team/cpu_wide"]
    assert compose_recipe(words).name == "team_internlm2_7b_cpu_wide"
    # Nothing of the team is in this one, so it has one name alone.
    with pytest.raises(ConvertError, match="Unknown recipe 'team/internlm2_7b_cuda_int4'"):
        compose_recipe(["recipe=team/internlm2_7b_cuda_int4"])


@pytest.mark.slow
def test_a_name_with_two_readings_names_both(acme: Path) -> None:
    commit(acme, {"export/b_c.yaml": EXPORT, "export/c.yaml": EXPORT})
    commit(acme, {"model/a.yaml": MODEL, "model/a_b.yaml": MODEL})
    with pytest.raises(ConvertError, match="model=team/a export=team/b_c or as model=team/a_b"):
        run_verb("repo", ["add", "team", str(acme)])


def test_pinned_commit_stays_until_update(acme: Path) -> None:
    run_verb("repo", ["add", "team", str(acme)])
    commit(acme, {"quant/wide.yaml": WIDE.replace("8", "4")})
    assert compose_recipe(["recipe=team/tiny"]).quant.bits == 8
    run_verb("repo", ["update", "team"])
    assert compose_recipe(["recipe=team/tiny"]).quant.bits == 4


def test_fetched_repository_is_read_offline_and_a_lock_file_alone_is_enough(
    acme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_verb("repo", ["add", "team", str(acme)])
    commit(acme, {"quant/wide.yaml": WIDE.replace("8", "4")})  # the lock names an older commit
    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path / "elsewhere"))
    tree._pinned_tree.cache_clear()
    assert compose_recipe(["recipe=team/tiny"]).quant.bits == 8
    acme.rename(tmp_path / "gone")
    tree._pinned_tree.cache_clear()
    assert compose_recipe(["recipe=team/tiny"]).quant.bits == 8


def test_project_lock_beats_the_users_and_is_found_from_below(
    acme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_verb("repo", ["add", "team", str(acme), "--user"])
    first = repositories.repositories()["team"].commit
    second = commit(acme, {"quant/wide.yaml": WIDE.replace("8", "4")})
    run_verb("repo", ["add", "team", str(acme)])
    (tmp_path / "project" / "below").mkdir()
    monkeypatch.chdir(tmp_path / "project" / "below")
    assert repositories.repositories()["team"].commit == second != first
    run_verb("repo", ["remove", "team"])
    assert repositories.repositories()["team"].commit == first


def test_a_tag_can_be_pinned(acme: Path) -> None:
    git(acme, "tag", "v1")
    first = git(acme, "rev-parse", "HEAD")
    commit(acme, {"README": "y"})
    assert fetch("team", str(acme), "v1").commit == first


@pytest.mark.parametrize("path", ["quant/rtn.yaml", "recipe/demo.yaml"])
def test_built_in_names_are_never_shadowed(acme: Path, path: str) -> None:
    commit(acme, {path: "# other\nbits: 8\n" if "quant" in path else "passes: [load]\n"})
    with pytest.raises(ConvertError, match="built-in"):
        run_verb("repo", ["add", "team", str(acme)])
    assert not Path(LOCK_FILE).exists()


def test_broken_recipes_are_not_pinned(acme: Path) -> None:
    commit(acme, {"recipe/bad.yaml": "quant:\n  blocksize: 64\n"})
    with pytest.raises(ConvertError, match=r"quant\.block_size"):
        run_verb("repo", ["add", "team", str(acme)])
    assert not Path(LOCK_FILE).exists()


HOSTILE_URLS = [
    "ext::sh -c touch% evil",
    "fd::7",
    "--upload-pack=touch evil",
    "-u./evil",
    "ssh://-oProxyCommand=touch evil/x",
    "ssh://host/x\n--upload-pack=evil",
    "-oProxyCommand=evil:x",
    "git@-oProxyCommand=evil:x",
    "git://host/x",
    "http://host/x",
    "transport::https://host/x",
    "https://",
    "relative/path",
    "file://host/share\0x",
]


@pytest.mark.parametrize("url", HOSTILE_URLS)
def test_hostile_url_never_reaches_git(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repositories, "_git", lambda *_: pytest.fail("git was called"))
    with pytest.raises(ConvertError):
        fetch("team", url)
    lock = {"repositories": {"team": {"url": url, "rev": None, "commit": "0" * 40}}}
    Path(LOCK_FILE).write_text(json.dumps(lock))
    with pytest.raises(ConvertError):
        repositories.repositories()


@pytest.mark.parametrize(
    ("name", "rev"),
    [
        ("../x", None),
        ("a/b", None),
        ("local", None),
        ("-x", None),
        ("a\nb", None),
        ("", None),
        ("team", "--upload-pack=evil"),
        ("team", "a..b"),
        ("team", "a b"),
        ("team", "a:b"),
    ],
)
def test_hostile_name_or_revision_is_refused(acme: Path, name: str, rev: str | None) -> None:
    with pytest.raises(ConvertError):
        fetch(name, str(acme), rev)


def test_hostile_commit_in_a_lock_file_is_refused(acme: Path) -> None:
    for commit_id in ("--output=evil", "HEAD", "0" * 39, 7):
        entry = {"url": str(acme), "rev": None, "commit": commit_id}
        Path(LOCK_FILE).write_text(json.dumps({"repositories": {"team": entry}}))
        with pytest.raises(ConvertError):
            read_pins(Path(LOCK_FILE))


def tree_entry(folder: Path, mode: str, path: str, content: str) -> None:
    """Commit an entry that git's own commands would not make from files."""
    found = (
        git(folder, "hash-object", "-w", "--stdin", stdin=content)
        if mode != "160000"
        else (git(folder, "rev-parse", "HEAD"))
    )
    git(folder, "update-index", "--add", "--cacheinfo", f"{mode},{found},{path}")
    git(folder, "commit", "--quiet", "-m", "x")


@pytest.mark.parametrize(
    ("mode", "path", "content"),
    [
        ("120000", "recipe/link.yaml", "/etc/passwd"),
        ("120000", "recipe2", "../.."),
        ("120000", "quant/out.yaml", "../../outside.yaml"),
        ("160000", "quant/module", ""),
        ("160000", "module", ""),
        ("100644", "quant/deep/x.yaml", "bits: 4"),
        ("100644", "quant/x.py", "import os"),
        ("100644", "quant/a b.yaml", "bits: 4"),
        ("100644", "quant/a\nb.yaml", "bits: 4"),
        ("100644", "quant/-x.yaml", "bits: 4"),
        ("100644", "quant/huge.yaml", "#" * 70_000),
    ],
)
def test_hostile_tree_is_refused(acme: Path, mode: str, path: str, content: str) -> None:
    tree_entry(acme, mode, path, content)
    with pytest.raises(ConvertError):
        read_files(fetch("team", str(acme)), tree.folders())


def test_too_many_files_are_refused(acme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repositories, "MAX_FILES", 2)
    with pytest.raises(ConvertError, match="3 files"):
        read_files(fetch("team", str(acme)), tree.folders())


def test_hooks_filters_and_submodules_of_a_repository_never_run(acme: Path, tmp_path: Path) -> None:
    evil = f"#!/bin/sh\ntouch {tmp_path / 'evil'}\n"
    hooks = acme / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-checkout", "post-merge", "reference-transaction", "pre-auto-gc"):
        (hooks / name).write_text(evil)
        (hooks / name).chmod(0o755)
    commit(
        acme,
        {
            ".gitattributes": "* filter=evil\n",
            ".gitmodules": f'[submodule "x"]\n path = x\n url = {tmp_path}\n',
            ".gitconfig": f"[core]\n fsmonitor = touch {tmp_path / 'evil'}\n",
        },
    )
    (tmp_path / "evil").unlink(missing_ok=True)  # the commit above ran the author's own hooks
    before = {path.name for path in tmp_path.iterdir()}
    run_verb("repo", ["add", "team", str(acme)])
    compose_recipe(["recipe=team/tiny"])
    assert {path.name for path in tmp_path.iterdir()} - before <= {"cache"}
    store = next((tmp_path / "cache" / "repositories").iterdir())
    assert (store / "HEAD").is_file() and not any(store.rglob("*.yaml"))  # bare: no checkout


def test_template_repository_is_valid_and_can_be_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["repo", "init", str(tmp_path / "ours")]) == 0
    assert main(["check", str(tmp_path / "ours")]) == 0
    assert "convert check ." in (tmp_path / "ours/.github/workflows/check.yaml").read_text()
    commit(tmp_path / "ours", {})
    assert main(["repo", "add", "ours", str(tmp_path / "ours")]) == 0
    assert main(["repo", "list"]) == 0
    assert "1 recipes" in capsys.readouterr().out
    assert isinstance(repositories.repositories()["ours"], Repository)


def test_check_refuses_a_hostile_folder(acme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (acme / "recipe" / "link.yaml").symlink_to("/etc/passwd")
    assert main(["check", str(acme)]) == 1
    assert "is a link" in capsys.readouterr().err
    (acme / "recipe" / "link.yaml").unlink()
    (acme / "quant" / "evil.yaml").write_text("_target_: os.system\n")
    assert main(["check", str(acme)]) == 1
    assert "_target_" in capsys.readouterr().err


def test_a_repository_named_by_a_relative_path_is_the_same_one(
    acme: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(acme, "tag", "v1")
    monkeypatch.chdir(acme.parent)
    assert main(["repo", "add", "team", "acme"]) == 0
    assert main(["repo", "add", "team", "acme", "--rev", "v1"]) == 0
    assert read_pins(acme.parent / LOCK_FILE)["team"].rev == "v1"


def test_a_place_that_cannot_be_written_is_said_without_a_recipes_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert main(["repo", "init", str(tmp_path / "ours")]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path} is not writable" in error
    assert "output=" not in error


DENIED = """git@host: Permission denied (publickey).
fatal: Could not read from remote repository.

Please make sure you have the correct access rights
and the repository exists.
"""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            DENIED,
            "git@host: Permission denied (publickey); fatal: Could not read from remote repository",
        ),
        ("fatal: couldn't find remote ref v9\n", "fatal: couldn't find remote ref v9"),
        ("error: a\nhint: b\n", "error: a"),
        ("1\n2\n3\n4.\n", "2; 3; 4"),
        ("", "no message"),
    ],
)
def test_git_says_why(said: str, reason: str) -> None:
    error = subprocess.CalledProcessError(128, ["git"], stderr=said.encode())
    assert repositories._git_problem(["fetch"], error).found == f"git fetch failed: {reason}."

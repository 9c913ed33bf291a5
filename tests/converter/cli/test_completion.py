"""TAB as a user presses it: what the command answers, and what bash, zsh and fish make of it."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from converter.cli import completion
from converter.cli.main import SWEEPS, main
from converter.cli.verbs import VERBS
from converter.recipe.tree import folders

PATIENCE = 60.0
"""Seconds that a line may take; on an idle machine it is a fraction of one."""
PROGRAM = """#!/bin/sh
[ "$1" = completion ] && exec "{python}" -m converter.cli.main "$@"
printf '<%s>' "$@" >> "{log}"; echo >> "{log}"
"""
"""A `convert` that completes as ours does, and otherwise notes what it was called with."""
START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'source "{script}"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -u -D; source "{script}"'),
}
LINES = [
    ("convert sho\tdemo_olive_qd\t", "<show><demo_olive_qdq>"),
    ("convert rec\tdemo quant.ro\trt\t", "<recipe=demo><quant.round=rtn>"),
    ("convert x=1 target=cud\t quant.lm\tbi\t4", "<x=1><target=cuda><quant.lm_head.bits=4>"),
    ("convert -m recipe=demo quant=rtn,aw\t", "<-m><recipe=demo><quant=rtn,awq>"),
    ("convert x=1 verify.enabled=t\tthreads=1", "<x=1><verify.enabled=true><threads=1>"),
    ("convert new mine --from demo_olive_qd\t", "<new><mine><--from><demo_olive_qdq>"),
    ("convert chat my\\ mo\tma\t", "<chat><my models/made one>"),
    ("convert recipe=demo source.path=my\\ mo\t", "<recipe=demo><source.path=my models>"),
    ("convert recipe=./mi\t", "<recipe=./mine.yaml>"),
    ("NAME=1 bin/convert sho\tx", "<show><x>"),
]
"""What is typed, and the words that the program then gets."""
FISH = {
    "convert sho": {"show"},
    "convert recipe=demo_olive_qd": {"recipe=demo_olive_qdq"},
    "convert recipe=demo target=c": {"target=cpu", "target=cuda"},
    "convert recipe=demo quant.round=r": {"quant.round=rtn"},
    "convert recipe=demo quant.lm": {"quant.lm_head."},
    "convert -m recipe=demo quant=rtn,aw": {"quant=rtn,awq"},
    "convert --m": {"--multirun"},
    "convert chat m": {"my models/"},
    "convert chat my\\ models/": {"my models/made one/"},
    "convert recipe=demo source.path=m": {"source.path=mine.yaml", "source.path=my models/"},
    "convert completion z": {"zsh"},
    "bin/convert sho": {"show"},
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with what paths can complete to, and `convert` in front of PATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "my models" / "made one").mkdir(parents=True)
    (tmp_path / "mine.yaml").touch()
    program = tmp_path / "bin" / "convert"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable, log=tmp_path / "log"))
    program.chmod(0o755)


def script_of(shell: str, capsys: pytest.CaptureFixture[str]) -> Path:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    Path("script").write_text(capsys.readouterr().out)
    return Path("script").resolve()


def test_candidates() -> None:
    def of(*words: str) -> list[str]:
        return completion.candidates(words)

    assert set(of("")) >= {*VERBS, *SWEEPS, "recipe="}
    assert of("sho") == ["show"] and of("repo", "up") == ["update"]
    assert "demo" in of("show", "de") and "recipe=demo" in of("recipe=dem")
    assert of("recipe=demo", "quant.round=rt") == ["quant.round=rtn"]
    assert of("recipe=demo", "verify.enabled=t") == ["verify.enabled=true"]
    assert all(f"{name}=" in of("x=", "") for name in folders() if name != "sweep")
    assert of("chat", "my") == [completion.FOLDER] and of("recipe=demo", "source.path=") == []
    assert of("new", "mine", "--from", "demo_olive_qd") == ["demo_olive_qdq"]


def test_candidates_of_keys() -> None:
    def of(word: str) -> list[str]:
        return completion.candidates(["recipe=demo", word])

    assert of("quant.b") == ["quant.bits=", "quant.bits_per_weight=", "quant.block_size="]
    assert of("quan") == ["quant.", "quant="]  # the choice, or the keys inside
    assert of("quant.lm_head.s") == ["quant.lm_head.symmetric="]
    assert [word.partition("=")[2] for word in of("quant.lm_head.symmetric=")] == [
        "true",
        "false",
        "null",
    ]
    assert of("nothing.at.all") == of("name.x") == of("nothing=") == []


def test_values_of_a_sweep_are_a_list_without_repetition() -> None:
    assert completion.candidates(["-m", "quant.round=rtn,"]) == [
        f"quant.round=rtn,{name}" for name in ("none", "search", "gptq")
    ]
    assert completion.candidates(["recipe=demo", "quant.round=rtn,"]) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_parse(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    checked = subprocess.run(
        [shell, "-n", str(script_of(shell, capsys))], text=True, capture_output=True
    )
    assert checked.returncode == 0 and checked.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completes_what_is_typed(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    words, start = START[shell]
    start = start.format(script=script_of(shell, capsys))
    got = typed(words, [f"{start}; convert ready", *(line for line, _ in LINES)])
    assert got[0] == "<ready>"
    # zsh takes a folder's last slash back when the line ends there.
    assert [words.replace("/>", ">") for words in got[1:]] == [words for _, words in LINES]


def typed(shell: list[str], lines: list[str]) -> list[str]:
    """The words that `convert` got for each line, all typed into one interactive shell."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(shell[0], shell)
    try:
        return [answer(terminal, line, number) for number, line in enumerate(lines, 1)]
    finally:
        os.close(terminal)  # hangs up
        os.waitpid(child, 0)


def answer(terminal: int, line: str, number: int) -> str:
    os.write(terminal, f"{line}\n".encode())
    log, shown, end = Path("log"), b"", time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.02)[0]:  # a shell that nobody reads stands still
            shown += os.read(terminal, 65536)
        if log.exists() and len(noted := log.read_text().splitlines()) >= number:
            return noted[number - 1]
    raise AssertionError(f"{line!r} called nothing: {shown.decode(errors='replace')}")


def test_fish_completes_what_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    script = script_of("fish", capsys)
    ask = f'source "{script}"; for line in $argv; echo "> $line"; complete -C $line; end'
    command = ["fish", "--no-config", "-c", ask, *FISH]
    result = subprocess.run(command, text=True, capture_output=True, timeout=PATIENCE)
    assert result.stderr == ""
    answers = [part.splitlines()[1:] for part in f"\n{result.stdout}".split("\n> ")[1:]]
    found = [{line.partition("\t")[0] for line in lines} for lines in answers]
    assert dict(zip(FISH, found, strict=True)) == FISH


def test_zsh_autoloads_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    script = script_of("zsh", capsys)
    assert script.read_text().startswith("#compdef convert\n")
    Path("functions").mkdir()
    script.rename("functions/_convert")
    start = "fpath=($PWD/functions $fpath); autoload -Uz compinit; compinit -u -D; convert ready"
    assert typed(["zsh", "-f", "-i"], [start, "convert sho\tx"])[1] == "<show><x>"

"""The command as its users type it, in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import CONVERT, TINY

from converter.cli.verbs import VERBS


def run(*words: str, cwd: Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CONVERT, *words], cwd=cwd, capture_output=True, text=True, timeout=300, **kwargs
    )


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_fits_on_a_screen_and_names_the_first_commands(
    tmp_path: Path, words: list[str]
) -> None:
    result = run(*words, cwd=tmp_path)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    for part in ("convert recipe=demo", "convert list", "export=NAME", "source.path="):
        assert part in result.stdout
    assert all(f"  {verb} " in result.stdout for verb in VERBS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from converter.cli.main import main; main([]);"
        "print([m for m in ('torch', 'hydra', 'onnx_ir', 'transformers', 'numpy', 'pydantic')"
        " if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == "[]"


@pytest.mark.slow
def test_a_run_from_any_folder_leaves_its_output_and_nothing_else(tmp_path: Path) -> None:
    result = run(*TINY, "output=my model", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "my model")
    assert [path.name for path in tmp_path.iterdir()] == ["my model"]
    assert (tmp_path / "my model" / "genai_config.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["recipe=internlm2_7b_cuda_int"], ["Unknown recipe", "internlm2_7b_cuda_int4"]),
        (["internlm2_7b_cuda_int4"], ["not a verb", "recipe=internlm2_7b_cuda_int4"]),
        ([*TINY, "quant.blocksize=64"], ["'quant.blocksize'", "quant.block_size"]),
        ([*TINY, "+quant.blocksize=64"], ["'quant.blocksize'", "quant.block_size"]),
        ([*TINY, "quant=rnt"], ["Unknown quant 'rnt'", "rtn"]),
        ([*TINY, "source.revision=12e4567"], ["read as the number", "'12e4567'"]),
        ([*TINY, "quant.bits=[4"], ["cannot be read", "quant.bits='[4'"]),
        ([*TINY, "~quant"], ["removes a key"]),
        ([*TINY, "hydra.run.dir=/tmp/x"], ["hydra.run.dir"]),
        ([*TINY, "quant.block_size=48"], ["power of two"]),
        ([*TINY, "quant.bits=4,8"], ["several values"]),
        ([*TINY, "passes=[load,layuot]"], ["Unknown pass 'layuot'", "layout"]),
        ([*TINY, "passes=[load,graph]"], ["graph follows load, which gives Checkpoint"]),
        (["quant=rtn"], ["No recipe is given"]),
    ],
    ids=str,
)
def test_every_mistake_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    result = run(*words, cwd=tmp_path)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "next:" in result.stderr
    for part in parts:
        assert part in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_listed_together(tmp_path: Path) -> None:
    result = run("recipe=demoo", "qant=rtn", "+quant.bit=4", "foo", cwd=tmp_path)
    assert "4 problems" in result.stderr


@pytest.mark.slow
def test_an_existing_output_is_refused_then_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    for words, expected in (([], "overwrite=true"), (["overwrite=true"], "holds mine, but no")):
        refused = run(*TINY, "output=out", *words, cwd=tmp_path)
        assert refused.returncode == 1
        assert expected in refused.stderr
        assert (tmp_path / "out" / "mine").exists()
    assert run(*TINY, "output=made", cwd=tmp_path).returncode == 0
    (tmp_path / "made" / "mine").write_text("mine")
    assert run(*TINY, "output=made", "overwrite=true", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "made" / "mine").exists()


@pytest.mark.slow
def test_a_checkpoint_written_by_synth_converts(tmp_path: Path) -> None:
    assert run("synth", "checkpoint", *TINY, cwd=tmp_path).returncode == 0
    words = [word for word in TINY if word != "source=synthetic"]
    result = run(*words, "source.path=checkpoint", "output=out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lazy = run(*TINY, "output=lazy", cwd=tmp_path)
    assert lazy.returncode == 0
    data = "model.onnx.data"
    assert (tmp_path / "out" / data).read_bytes() == (tmp_path / "lazy" / data).read_bytes()


def hear_interrupts() -> None:
    """A shell's background jobs ignore SIGINT, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def slow_run(tmp_path: Path) -> subprocess.Popen[str]:
    """A conversion long enough to be stopped, once its temporary folder is there."""
    words = [*TINY, "model.config.vocab_size=400000", "model.config.hidden_size=512", "output=out"]
    process = subprocess.Popen(
        [*CONVERT, *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.tmp-*/model.onnx.data")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = slow_run(tmp_path)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted; no result was published" in stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_run_leaves_no_output_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    process = slow_run(tmp_path)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out").exists()
    assert run(*TINY, "output=out", cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small disk with the given options."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        if os.geteuid() != 0:
            pytest.skip("mounting a small disk needs root")
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(disk)]
        if subprocess.run(command).returncode:
            pytest.skip("a small disk cannot be mounted here")
        return disk

    yield mount
    subprocess.run(["umount", str(disk)], capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "message"), [("ro", "is not writable"), ("size=40k", "free")])
def test_a_read_only_or_full_disk_is_refused(
    small_disk: Callable[[str], Path], tmp_path: Path, options: str, message: str
) -> None:
    disk = small_disk(options)
    result = run(*TINY, f"output={disk}/out", cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from converter.cli.main import main

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert main([*TINY, f"output={tmp_path}/out"]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_failing_source_is_listed_with_the_other_problems(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint()
    next(folder.glob("*.safetensors")).unlink()
    words = ["recipe=internlm2_1_8b_cpu_int4", f"source.path='{folder}'", "verify=none"]
    result = run(*words, "output=checkpoint", cwd=tmp_path)
    assert "2 problems" in result.stderr
    assert "is missing" in result.stderr
    assert "exists already" in result.stderr


@pytest.mark.parametrize("words", [[], ["--help"], ["list"], ["chat", "--help"]])
def test_a_reader_that_leaves_is_no_problem(words: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        result = subprocess.run(
            [*CONVERT, *words], cwd=tmp_path, stdout=closed, stderr=subprocess.PIPE, text=True
        )
    assert result.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["list"]])
def test_output_that_cannot_be_written_is_said(
    words: list[str], unbuffered: str, tmp_path: Path
) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [*CONVERT, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 1
    assert "Cannot write the command's output: No space left" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["-m", "--help"], "convert recipe=NAME"),
        (["recipe=demo", "--help"], "convert recipe=NAME"),
        (["recipe=demo", "-h"], "convert recipe=NAME"),
        (["help"], "convert recipe=NAME"),
        (["completion", "--help"], "bash|zsh|fish"),
        (["list", "--help"], "convert list [WORD"),
        (["list", "7b", "-h"], "convert list [WORD"),
        (["help", "list"], "convert list [WORD"),
    ],
    ids=str,
)
def test_help_is_given_wherever_it_is_asked_for(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from converter.cli.main import main

    assert main(words) == 0
    out, err = capsys.readouterr()
    assert part in out
    assert err == ""


def test_help_on_a_verb_is_the_verbs_own(capsys: pytest.CaptureFixture[str]) -> None:
    from converter.cli.main import main

    assert main(["help", "chat"]) == 0
    assert "usage: convert chat" in capsys.readouterr().out


def test_a_word_to_complete_asks_for_no_help(capsys: pytest.CaptureFixture[str]) -> None:
    from converter.cli.main import main

    assert main(["completion", "--", "lis", "--help"]) == 0
    assert "convert" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["lst"], "convert list"),
        (["evaluate", "a b", "--chunks", "1"], "convert eval 'a b' --chunks 1"),
        (["help", "lst"], "convert list --help"),
        (["demo"], "write recipe=demo"),
        (["dmo"], "write recipe=demo"),
    ],
    ids=str,
)
def test_a_misspelt_verb_is_named(
    words: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from converter.cli.main import main

    assert main(words) == 1
    error = capsys.readouterr().err
    assert "is not a verb" in error
    assert error.rstrip().endswith(remedy)


def test_a_file_that_cannot_be_opened_is_said_with_its_pass(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import errno

    from converter.cli.main import _guarded

    def fail(_: object) -> int:
        error = OSError(errno.EACCES, "Permission denied", "/some/file")
        error.add_note("in the pass load")
        raise error

    assert _guarded(fail, []) == 1
    error = capsys.readouterr().err
    assert "/some/file: Permission denied; in the pass load." in error
    assert "next:" in error


def test_an_error_of_no_file_keeps_its_traceback() -> None:
    from converter.cli.main import _guarded

    def fail(_: object) -> int:
        raise OSError("something inside")

    with pytest.raises(OSError, match="something inside"):
        _guarded(fail, [])


def test_synth_says_what_cannot_be_written_with_the_other_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from converter.cli.main import main

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert main(["synth", str(tmp_path / "out"), *TINY, "quant=rnt"]) == 1
    error = capsys.readouterr().err
    assert "2 problems" in error
    assert f"{tmp_path} is not writable" in error
    assert "output=" not in error


@pytest.mark.parametrize("words", [["recipe=demo"], ["-m", "recipe=demo"], ["plan", "recipe=demo"]])
def test_a_system_without_reads_by_position_is_refused_in_one_sentence(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from converter.cli.main import main

    monkeypatch.delattr(os, "preadv")
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "1 problem\n" in error and "(win32) lacks os.preadv." in error and "WSL" in error
    assert main(["list", "export"]) == 0

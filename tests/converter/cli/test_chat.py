"""Options of `convert chat` that the runtime could not take."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.cli.main import main


@pytest.mark.parametrize(
    "option",
    [
        "--max-length=0",
        "--max-length=-1",
        "--max-new-tokens=-3",
        "--temperature=-1",
        "--temperature=nan",
        "--temperature=inf",
        "--top-p=7",
        "--seed=-1",
        "--seed=99999999999999999999",
    ],
)
def test_a_number_out_of_range_is_one_problem(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "genai_config.json").write_text(
        '{"model": {"context_length": 8, "bos_token_id": 1, "decoder": {}}}'
    )
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert main(["chat", str(tmp_path), option]) == 1
    error = capsys.readouterr().err
    assert "1 problem\n" in error
    assert option.partition("=")[0] in error


def test_numbers_and_folder_are_listed_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(tmp_path), "--max-length=0", "--top-p=7"]) == 1
    assert "4 problems" in capsys.readouterr().err

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from converter.cli.compose import compose_recipe
from converter.engine.execution import find_problems, run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.recipe.schema import Recipe
from converter.sources.config import demo_folder
from converter.storage.hashing import hash_file
from converter.tokenizer import TokenizerFiles
from converter.tokenizer.comparison import Comparison
from converter.weights.weight import ComputedWeight


def convert(recipe: Recipe, output: Path) -> Path:
    recipe.output = str(output)
    return run_recipe(recipe, make_passes(recipe.passes))


def test_bytes_do_not_depend_on_threads(make_recipe: Callable[..., Any], tmp_path: Path) -> None:
    folders = []
    for threads in (1, 2, 5):
        recipe = make_recipe("quant=rtn", "quant.embedding.block_size=32", f"threads={threads}")
        folders.append(convert(recipe, tmp_path / str(threads)))
    names = sorted(path.name for path in folders[0].iterdir())
    for name in set(names) - {"convert.lock.json"}:
        assert len({(folder / name).read_bytes() for folder in folders}) == 1, name
    locks = [json.loads((folder / "convert.lock.json").read_text()) for folder in folders]
    assert locks[0]["files"] == locks[1]["files"] == locks[2]["files"]


def test_lock_file_states_sizes_hashes_versions_and_seconds(
    tiny_checkpoint: Callable[..., Path], make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    source = tiny_checkpoint()
    recipe = make_recipe("source=checkpoint", f"source.path='{source}'")
    folder = convert(recipe, tmp_path / "out")
    lock = json.loads((folder / "convert.lock.json").read_text())
    for path in folder.iterdir():
        if path.name != "convert.lock.json":
            entry = lock["files"][path.name]
            assert entry == {"size": path.stat().st_size, "blake3": hash_file(path)}
    assert lock["source"]["files"]["config.json"]["blake3"] == hash_file(source / "config.json")
    assert "torch" in lock["versions"]
    assert lock["seconds"].keys() >= {"load", "layout", "graph", "package"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.model", b"\x0a\x07"),
        ("tokenizer_config.json", b"[]"),
        ("generation_config.json", b"[]"),
    ],
)
def test_a_tokenizer_that_cannot_be_packaged_is_found_before_the_work(
    tmp_path: Path, name: str, content: bytes
) -> None:
    source = shutil.copytree(demo_folder(), tmp_path / "source")
    (source / name).write_bytes(content)
    words = ["recipe=internlm2_1_8b_cpu_int4", f"source.path='{source}'"]
    recipe = compose_recipe([*words, f"output='{tmp_path / 'out'}'"])
    for again in range(2):  # a file that was mended meanwhile is read again
        if again:
            (source / name).write_bytes((demo_folder() / name).read_bytes())
        problems = find_problems(recipe, make_passes(recipe.passes), None)[1]
        assert bool(problems) == (not again)
        assert all(name in str(problem) for problem in problems)


def check_source(source: Path, *more: str) -> list[str]:
    words = ["recipe=internlm2_1_8b_chat_cpu_int4", "quant=rtn", "evaluate=none", *more]
    recipe = compose_recipe([*words, f"source.path='{source}'"])
    passes = [item for item in make_passes(recipe.passes) if item.enabled(recipe)]
    return list(map(str, find_problems(recipe, passes, None)[1]))


@pytest.mark.parametrize("link", [True, False])
def test_a_chat_recipe_needs_a_tokenizer(tmp_path: Path, link: bool) -> None:
    source = shutil.copytree(demo_folder(), tmp_path / "source")
    (source / "tokenizer.model").unlink()
    if link:
        (source / "tokenizer.model").symlink_to(tmp_path / "gone")
    (said,) = check_source(source)
    assert ("is a link to" if link else "has no tokenizer") in said


def test_what_the_runtime_reads_otherwise_is_found_before_the_work(tmp_path: Path) -> None:
    source = shutil.copytree(demo_folder(), tmp_path / "source")
    (source / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content.upper() }}{% endfor %}"
    )
    (said,) = check_source(source)
    assert "renders a question" in said and "HELLO" in said


def test_the_share_of_texts_with_other_ids_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Comparison(texts=100, differing=11, example="'a'")
    monkeypatch.setattr(TokenizerFiles, "comparison", found)
    (said,) = check_source(demo_folder())
    assert "11 of 100" in said
    assert check_source(demo_folder(), "verify.max_text_differences=0.11") == []


def test_the_lock_file_names_the_chat_template(tmp_path: Path) -> None:
    source = shutil.copytree(demo_folder(), tmp_path / "source")
    (source / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    words = ["recipe=internlm2_1_8b_cpu_int4", f"source.path='{source}'", "verify=none"]
    folder = convert(compose_recipe(words), tmp_path / "out")
    lock = json.loads((folder / "convert.lock.json").read_text())
    read = {path.name for path in source.iterdir()}
    assert lock["source"]["files"].keys() == read


def test_external_data_is_aligned_and_complete(
    make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make_recipe(vocab_size=4800)
    folder = convert(recipe, tmp_path / "out")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    size = (folder / "model.onnx.data").stat().st_size
    spans = []
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries:
            continue
        offset, length = int(entries["offset"]), int(entries["length"])
        assert offset % (65536 if length >= 1 << 20 else 64) == 0
        spans.append((offset, offset + length))
    spans.sort()
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    assert spans[-1][1] == size


def test_float_weights_are_written_transposed(
    make_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make_recipe()
    folder = convert(recipe, tmp_path / "out")
    model = onnx.load(folder / "model.onnx")
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    from converter.sources.synthetic import open_synthetic

    checkpoint = open_synthetic(recipe)
    expected = checkpoint.tensors["model.layers.1.feed_forward.w2.weight"].read().numpy().T
    assert np.array_equal(arrays["model.layers.1.mlp.down_proj.MatMul.weight"], expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("words", [[], ["quant=rtn"], ["quant=rtn", "quant.symmetric=false"]])
def test_values_that_are_not_finite_name_their_tensor(
    make_recipe: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: float,
    words: list[str],
) -> None:
    from converter.sources import synthetic

    made = synthetic.random_weight

    def with_one_bad(seed: int, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        weight = made(seed, name, shape, dtype)
        if name != "model.layers.1.feed_forward.w3.weight":
            return weight

        def rows(start: int, stop: int) -> torch.Tensor:
            tile = weight.rows(start, stop)
            if start <= 5 < stop:
                tile[5 - start, 3] = bad
            return tile

        return ComputedWeight(shape, dtype, rows, name)

    monkeypatch.setattr(synthetic, "random_weight", with_one_bad)
    recipe = make_recipe("quant.embedding.block_size=32", *words)
    with pytest.raises(ConvertError, match=r"layers\.1\.feed_forward\.w3\.weight.*NaN"):
        convert(recipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_values_past_the_range_of_fp16_are_an_error(
    make_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converter.sources import synthetic

    made = synthetic.random_weight
    monkeypatch.setattr(
        synthetic, "random_weight", lambda *args: made(*args).scale_rows(torch.full((999,), 1e6))
    )
    with pytest.raises(ConvertError, match=r"target\.float_type=fp32"):
        convert(make_recipe("target=cuda"), tmp_path / "out")

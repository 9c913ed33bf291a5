"""The pictures show every name and figure, and the same data gives the same bytes."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from converter.evaluation.charts import Panel, compare_folders, kld_distribution, layer_errors
from converter.quantization.linear_error import LinearError


def divergences(count: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {f"quant=q{i}": np.exp(generator.normal(-3 - i, 1.5, 700)) for i in range(count)}


def errors() -> list[LinearError]:
    linears = ("attention.wqkv", "feed_forward.w2")
    rows = [LinearError(i, linear, 0.02, 0.01 / (i + 1)) for i in range(40) for linear in linears]
    return [*rows, LinearError(None, "output", 0.01, 0.002)]


def folders(path: Path) -> None:
    panel = Panel("KL divergence (nats)", [0.2981, None], [0.004, None], digits=4)
    compare_folders(path, ["rtn", "gptq"], [panel, Panel("size (MB)", [86.3, 1234.5], digits=1)])


def texts(path: Path) -> str:
    """All text of an SVG; matplotlib draws text as paths and keeps it as comments."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.parse(path, parser).getroot()
    return "\n".join(node.text or "" for node in root.iter())


def size_of_png(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.parametrize("count", [1, 4])
def test_kld_distribution_names_folders_means_and_units(tmp_path: Path, count: int) -> None:
    klds = divergences(count)
    kld_distribution(tmp_path / "kld.svg", klds)
    shown = texts(tmp_path / "kld.svg")
    for name, values in klds.items():
        assert f"{name} (mean {values.mean():.4f})" in shown
    assert "KL divergence of a token (nats)" in shown


def test_a_divergence_of_zero_or_below_can_be_drawn(tmp_path: Path) -> None:
    kld_distribution(tmp_path / "kld.png", {"same": np.array([0.0, -1e-12, 0.0])})
    assert size_of_png(tmp_path / "kld.png") == (1500, 630)


def test_layer_errors_shows_linears_and_what_is_outside_the_layers(tmp_path: Path) -> None:
    layer_errors(tmp_path / "layers.svg", errors())
    shown = texts(tmp_path / "layers.svg")
    for name in ("attention.wqkv", "feed_forward.w2", "output", "layer"):
        assert name in shown
    with pytest.raises(ValueError, match="no errors"):
        layer_errors(tmp_path / "none.png", [])


def test_folders_are_compared_with_their_figures(tmp_path: Path) -> None:
    folders(tmp_path / "bars.svg")
    shown = texts(tmp_path / "bars.svg")
    for text in ("rtn", "gptq", "0.2981", "not measured", "1,234.5", "size (MB)"):
        assert text in shown
    with pytest.raises(ValueError, match="size: 1 values for 2 folders"):
        compare_folders(tmp_path / "x.png", ["a", "b"], [Panel("size", [1.0])])


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        for name in ("first", "second"):
            folders(tmp_path / f"{name}.{suffix}")
        first, second = (tmp_path / f"{name}.{suffix}" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        layer_errors(tmp_path / "layers.gif", errors())
    assert list(tmp_path.iterdir()) == []

"""model.onnx and its data file, read back by onnx and by numpy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from converter.errors import ConvertError
from converter.graph.names import DATA_FILE, MODEL_FILE
from converter.graph.tensors import WeightTensor
from converter.output.model_writer import write_model
from converter.quantization.quantized_matrix import QuantizedMatrix
from converter.quantization.rtn import BlockFormat
from converter.weights.placement import LARGE_BYTES, PAGE_ALIGNMENT
from converter.weights.weight import TensorWeight, Weight


def model_of(weights: dict[str, Weight]) -> ir.Model:
    """A model whose initializers are lazy weights, each read by an Identity."""
    values, nodes = [], []
    for name, weight in weights.items():
        tensor = WeightTensor(name, weight)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        values.append(value)
        nodes.append(ir.node("Identity", [value]))
        nodes[-1].outputs[0].name = f"{name}.out"
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([], outputs, nodes=nodes, initializers=values, opset_imports={"": 21})
    return ir.Model(graph, ir_version=10)


def random_weights() -> dict[str, Weight]:
    generator = torch.Generator().manual_seed(0)
    form = BlockFormat(4, 32, False)
    source = TensorWeight(torch.randn(40, 64, generator=generator), "matrix")
    group = QuantizedMatrix(source, form, torch.float32)
    large = torch.randn(LARGE_BYTES // 4 // 64 + 1, 64, generator=generator)
    return {
        "norm": TensorWeight(torch.randn(64, generator=generator)),
        "large": TensorWeight(large),
        "half": TensorWeight(torch.randn(6, 5, generator=generator).half()),
        **{f"matrix.{name}": group.part(name) for name in group.specs},
    }


def contents(folder: Path) -> dict[str, np.ndarray]:
    """Every initializer as the onnx library reads it, data file included."""
    model = onnx.load(folder / MODEL_FILE)
    return {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}


def test_the_onnx_library_reads_the_same_values(tmp_path: Path) -> None:
    weights = random_weights()
    total = write_model(model_of(weights), tmp_path)
    assert (tmp_path / DATA_FILE).stat().st_size == total
    found = contents(tmp_path)
    assert set(found) == set(weights)
    for name, weight in weights.items():
        assert found[name].tobytes() == weight.read().numpy().tobytes(), name
        assert found[name].shape == weight.shape


def test_large_tensors_can_be_mapped_on_every_system(tmp_path: Path) -> None:
    write_model(model_of(random_weights()), tmp_path)
    model = onnx.load(tmp_path / MODEL_FILE, load_external_data=False)
    places = {
        item.name: {entry.key: entry.value for entry in item.external_data}
        for item in model.graph.initializer
    }
    assert {place["location"] for place in places.values()} == {DATA_FILE}
    assert int(places["large"]["offset"]) % PAGE_ALIGNMENT == 0


def test_bytes_do_not_depend_on_threads(tmp_path: Path) -> None:
    found = []
    for threads in (1, 4):
        folder = tmp_path / str(threads)
        folder.mkdir()
        write_model(model_of(random_weights()), folder, threads=threads)
        found.append([(folder / name).read_bytes() for name in (MODEL_FILE, DATA_FILE)])
    assert found[0] == found[1]


def test_a_tied_weight_is_written_once(tmp_path: Path) -> None:
    shared = TensorWeight(torch.randn(100, 8))
    total = write_model(model_of({"embed": shared, "head": shared}), tmp_path)
    assert total == shared.nbytes
    found = contents(tmp_path)
    assert np.array_equal(found["embed"], found["head"])


def test_progress_ends_at_the_last_byte(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    weights = random_weights()
    total = write_model(model_of(weights), tmp_path, advance=lambda *told: seen.append(told))
    done = [count for count, _, _ in seen]
    assert done == sorted(done) and done[-1] == sum(weight.nbytes for weight in weights.values())
    assert {all_bytes for _, all_bytes, _ in seen} == {total}
    assert {"norm", "large", "matrix"} <= {detail for _, _, detail in seen}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_their_tensor(tmp_path: Path, bad: float) -> None:
    values = torch.ones(7, 3)
    values[6, 2] = bad
    weights: dict[str, Weight] = {"x": TensorWeight(values, "wo in shard 3")}
    with pytest.raises(ConvertError, match="wo in shard 3 has NaN"):
        write_model(model_of(weights), tmp_path)
    assert not (tmp_path / MODEL_FILE).exists()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no posix_fallocate here")
def test_a_full_disk_is_found_before_a_value_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Unread(TensorWeight):
        def rows(self, start: int, stop: int) -> torch.Tensor:
            raise AssertionError("read")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        write_model(model_of({"x": Unread(torch.ones(3, 3))}), tmp_path)


def test_the_model_in_memory_stays_lazy(tmp_path: Path) -> None:
    model = model_of(random_weights())
    write_model(model, tmp_path)
    for value in model.graph.initializers.values():
        assert isinstance(value.const_value, WeightTensor)
    (tmp_path / "again").mkdir()
    write_model(model, tmp_path / "again")
    assert (tmp_path / "again" / DATA_FILE).read_bytes() == (tmp_path / DATA_FILE).read_bytes()

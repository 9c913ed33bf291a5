"""Streams an ONNX model to disk: the graph as protobuf, the weights as external data.

Every tensor's place is known from shapes before a value is read, so tiles are computed by several
threads and written at their offsets; the bytes do not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from converter.errors import ConvertError
from converter.graph.names import DATA_FILE, MODEL_FILE
from converter.graph.tensors import WeightTensor, model_weights
from converter.progress import Advance
from converter.quantization.quantized_matrix import not_finite
from converter.weights.placement import Place, data_size, place_tensors, storage_key
from converter.weights.weight import GroupPart, RowGroup, Weight, write_at


def write_model(
    model: ir.Model,
    folder: Path,
    threads: int | None = None,
    advance: Advance = lambda done, total, detail: None,
) -> int:
    """Write model.onnx and its data file into `folder`.

    Args:
        model: its lazy initializers become external data.
        folder: an existing folder.
        threads: worker threads; None means one per core.
        advance: told bytes done, bytes in all, and the tensor at work.

    Returns:
        Bytes of the data file.

    Raises:
        ConvertError: a tensor holds NaN or infinite values, or its file cannot be read.
        OSError: the disk is full (found before the work) or not writable.
    """
    weights = model_weights(model)
    places = place_tensors(weights)
    total = data_size(places)
    descriptor = os.open(folder / DATA_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        if total:
            _reserve(descriptor, total)
        tasks = list(_tasks(weights, places, descriptor))
        _run_tasks(tasks, threads or os.cpu_count() or 1, total, advance)
    finally:
        os.close(descriptor)
    write_graph(model, folder, places)
    return total


def _reserve(descriptor: int, nbytes: int) -> None:
    """Take the room on the disk now, so that a full one is found before the work."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, nbytes)
    else:
        os.ftruncate(descriptor, nbytes)


@dataclass(frozen=True)
class _Task:
    label: str
    nbytes: int
    run: Callable[[], None]


def _tasks(
    weights: Mapping[str, Weight], places: Mapping[str, Place], descriptor: int
) -> Iterator[_Task]:
    grouped: dict[int, tuple[RowGroup, dict[str, int]]] = {}
    seen: set[Hashable] = set()
    for name, weight in weights.items():
        if storage_key(weight) in seen:
            continue
        seen.add(storage_key(weight))
        if isinstance(weight, GroupPart):
            grouped.setdefault(id(weight.group), (weight.group, {}))[1][weight.name] = places[
                name
            ].offset
        else:
            yield from _weight_tasks(name, weight, places[name].offset, descriptor)
    for group, offsets in grouped.values():
        yield from _group_tasks(group, offsets, descriptor)


def _weight_tasks(name: str, weight: Weight, offset: int, descriptor: int) -> Iterator[_Task]:
    row = weight.nbytes // weight.shape[0]
    for start, stop in weight.tiles():

        def run(start: int = start, stop: int = stop) -> None:
            tile = weight.rows(start, stop)
            if tile.is_floating_point() and not bool(torch.isfinite(tile).all()):
                raise ConvertError(not_finite(weight.label, tile.dtype))
            write_at(descriptor, tile, offset + start * row)

        yield _Task(name, (stop - start) * row, run)


def _group_tasks(group: RowGroup, offsets: Mapping[str, int], descriptor: int) -> Iterator[_Task]:
    rows = {name: group.part(name).nbytes // spec.shape[0] for name, spec in group.specs.items()}
    for start, stop in group.tiles():

        def run(start: int = start, stop: int = stop) -> None:
            for name, tile in group.rows(start, stop).items():
                write_at(descriptor, tile, offsets[name] + start * rows[name])

        yield _Task(group.label, (stop - start) * sum(rows.values()), run)


def _run_tasks(tasks: Sequence[_Task], threads: int, total: int, advance: Advance) -> None:
    # Each worker computes on one core: tiles are independent, and PyTorch's own threads would
    # only wait for each other.
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1))
    try:
        futures: list[Future[None]] = [pool.submit(task.run) for task in tasks]
        done = 0
        for task, future in zip(tasks, futures, strict=True):
            future.result()
            done += task.nbytes
            advance(done, total, task.label)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)  # a worker's setting reaches later work of other threads


def write_graph(model: ir.Model, folder: Path, places: Mapping[str, Place]) -> None:
    """Save model.onnx with references into the data file; the given model stays lazy."""
    lazy = {}
    for name, place in places.items():
        value = model.graph.initializers[name]
        tensor = value.const_value
        assert isinstance(tensor, WeightTensor)
        lazy[name] = tensor
        value.const_value = ir.ExternalTensor(
            DATA_FILE,
            place.offset,
            place.nbytes,
            tensor.dtype,
            shape=tensor.shape,
            name=name,
            base_dir=folder,
        )
    try:
        ir.save(model, folder / MODEL_FILE)
    finally:
        for name, tensor in lazy.items():
            model.graph.initializers[name].const_value = tensor

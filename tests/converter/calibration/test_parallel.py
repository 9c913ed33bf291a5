"""Work on all cores: in order, without gradients, and PyTorch's threads as they were."""

from __future__ import annotations

import threading

import pytest
import torch

from converter.calibration.parallel import on_cores


def test_results_are_in_the_order_of_the_items() -> None:
    assert on_cores(lambda number: number * number, range(50)) == [n * n for n in range(50)]
    assert on_cores(lambda number: number, []) == []


def test_every_item_has_one_core_and_the_threads_come_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inside = on_cores(lambda _: (torch.get_num_threads(), threading.get_ident()), range(20))
        assert {threads for threads, _ in inside} == {1}
        assert threading.get_ident() not in {ident for _, ident in inside}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_no_gradient_is_kept_in_the_workers() -> None:
    weight = torch.ones(3, requires_grad=True)
    assert [found.requires_grad for found in on_cores(lambda n: weight * n, [1, 2])] == [False] * 2


def test_an_error_arrives_and_the_threads_come_back_too() -> None:
    before = torch.get_num_threads()

    def fail(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    with pytest.raises(ValueError, match="three"):
        on_cores(fail, range(10))
    assert torch.get_num_threads() == before

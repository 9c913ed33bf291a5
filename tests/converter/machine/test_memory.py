"""The memory of this process, against what the kernel says."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from converter.machine.memory import process_memory, return_memory

STATUS = Path("/proc/self/status")


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc/self/status here")
def test_the_peak_is_the_kernels() -> None:
    found = process_memory()
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    # What the parent held at the fork counts too, so it may be more.
    assert found >= 0.95 * int(line.split()[1]) * 1024


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc/self/status here")
def test_the_peak_grows_with_what_is_held_and_stays_when_it_is_given_back() -> None:
    before = process_memory()
    held = bytearray(before // 2)
    held[::4096] = b"1" * len(held[::4096])  # a page counts once it is written
    grown = process_memory()
    del held
    assert grown >= before and process_memory() >= grown
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    assert grown >= 0.95 * int(line.split()[1]) * 1024


def resident() -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc/self/status here")
def test_freed_memory_below_a_block_in_use_is_given_back() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("another C library than glibc")
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [libc.malloc(65536) for _ in range(3000)]  # below the size that is mapped apart
    for block in blocks:
        ctypes.memset(block, 1, 65536)
    for block in blocks[:-1]:
        libc.free(block)
    before = resident()
    return_memory()
    assert before - resident() > 100_000_000
    libc.free(blocks[-1])

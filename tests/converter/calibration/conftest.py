"""What the tests of calibration share: a tiny decoder with biases, and few tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from converter.model.decoder import Decoder
from converter.model.reference import Reference


@pytest.fixture
def decoder(build: Callable[..., Any], synthetic_biases: None) -> Decoder:
    found: Decoder = build(until="layout", bias=True)
    return found


@pytest.fixture
def reference(decoder: Decoder) -> Reference:
    return Reference(decoder)

"""Tests run on one thread each; pytest-xdist gives every core a process of its own."""

import gc
import sys
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Figures of pyplot are closed after each test."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported and collected stays: later garbage collections, which would otherwise take
    a twentieth of the time, do not look at it.
    """
    gc.collect()
    gc.freeze()

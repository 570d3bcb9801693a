"""Tests run on one thread each; pytest-xdist gives every core a process of its own."""

import gc
import multiprocessing
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


@pytest.fixture(scope="session")
def context() -> multiprocessing.context.ForkServerContext:
    """Processes that need not import again what takes long: torch._dynamo, which the first
    optimizer of a process imports, as long as all else.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(
        [
            "sdekit_diffusion.__main__",
            "torch._dynamo",
            "pytest",
            "PIL.Image",
            "sklearn.datasets",
            "tyro",
        ]
    )
    return found


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported and collected stays: later garbage collections, which would otherwise take
    a twentieth of the time, do not look at it.
    """
    gc.collect()
    gc.freeze()

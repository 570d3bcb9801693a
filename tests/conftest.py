"""Tests run on one thread each; pytest-xdist gives every core a process of its own."""

import functools
import gc
import multiprocessing
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Figures of pyplot are closed after each test."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session", autouse=True)
def _versions_are_read_once() -> Iterator[None]:
    """Those of packages, which every checkpoint has in it: a quarter of the time of short runs."""
    from sdekit_diffusion._models import checkpoint

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "version", functools.cache(checkpoint.version))
        yield


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


@pytest.fixture(scope="session")
def one_classifier() -> Iterator[None]:
    """A classifier of the same images and seed is trained once in this process."""
    from sdekit_diffusion._app import classified

    train = classified.classifier_features
    known: dict[tuple[Any, ...], Any] = {}

    def trained(x: Any, labels: Any, *, seed: int) -> Any:
        key = (x.tobytes(), x.shape, labels.tobytes(), seed)
        if key not in known:
            known[key] = train(x, labels, seed=seed)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classified, "classifier_features", trained)
        yield


@pytest.fixture
def quick_reports(monkeypatch: pytest.MonkeyPatch, one_classifier: None) -> None:
    """Reports of which a test reads the numbers and the words: their figures are made, and saved
    as blank pictures of their size without being drawn.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    def save(figure: Figure, file: Any, **_settings: Any) -> None:
        width, height = figure.get_size_inches() * figure.dpi
        Image.new("1", (int(width), int(height))).save(file, format="png")

    monkeypatch.setattr(Figure, "savefig", save)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported and collected stays: later garbage collections, which would otherwise take
    a twentieth of the time, do not look at it.
    """
    gc.collect()
    gc.freeze()

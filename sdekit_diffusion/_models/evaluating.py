"""Evaluation mode of models during a call, also if threads share a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

from sdekit_diffusion._models.model import AbstractModel

_LOCK = Lock()  # held while flags change, never during a call
# The number of calls during which a module is in evaluation mode.
_ACTIVE_CALLS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@contextmanager
def evaluating(model: AbstractModel, n: int) -> Iterator[None]:
    """The model without dropout, and afterwards as it was; what it was given by sample must be for
    n samples.

    Threads may share a model: the first call that finds a module in training mode changes that, and
    the last one to end restores it. So a thread that trains the model meanwhile finds it in
    evaluation mode; let it train a copy.

    Raises:
        ValueError: where it was given for another number.
    """
    for name, value in model.entries().items():
        if len(value) != n:
            raise ValueError(
                f"{name} has {len(value)} entries for {n} samples; give one entry per sample"
            )
    modules = _enter([module for network in model.networks() for module in network.modules()])
    try:
        yield
    finally:
        _leave(modules)


def _enter(modules: list[nn.Module]) -> list[nn.Module]:
    """Puts modules into evaluation mode and returns those that the call must restore.

    The wrapper that torch.compile makes has no flag of its own: it shows, and sets, that of the
    module within.
    """
    flagged = [module for module in modules if not hasattr(module, "_orig_mod")]
    with _LOCK:
        entered = [module for module in flagged if module.training or module in _ACTIVE_CALLS]
        for module in entered:
            module.training = False
            _ACTIVE_CALLS[module] = _ACTIVE_CALLS.get(module, 0) + 1
    return entered


def _leave(modules: list[nn.Module]) -> None:
    """Restores training mode of modules that no other call uses."""
    with _LOCK:
        for module in modules:
            _ACTIVE_CALLS[module] -= 1
            if not _ACTIVE_CALLS[module]:
                del _ACTIVE_CALLS[module]
                module.training = True

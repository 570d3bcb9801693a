"""Models in evaluation mode for the time of a call, whatever other threads do with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

from sdekit_diffusion._models.model import AbstractModel

_LOCK = Lock()  # held while flags change, never during a call
# How many calls hold a module in evaluation mode.
_CALLS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


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
                f"{name} has {len(value)} entries for {n} samples; give one entry a sample"
            )
    modules = _entered([module for network in model.networks() for module in network.modules()])
    try:
        yield
    finally:
        _left(modules)


def _entered(modules: list[nn.Module]) -> list[nn.Module]:
    """Puts modules into evaluation mode and returns those that a call has to hold there.

    The wrapper that torch.compile makes has no flag of its own: it shows, and sets, that of the
    module within.
    """
    own = [module for module in modules if not hasattr(module, "_orig_mod")]
    with _LOCK:
        held = [module for module in own if module.training or module in _CALLS]
        for module in held:
            module.training = False
            _CALLS[module] = _CALLS.get(module, 0) + 1
    return held


def _left(held: list[nn.Module]) -> None:
    """Restores those that no other call holds."""
    with _LOCK:
        for module in held:
            _CALLS[module] -= 1
            if not _CALLS[module]:
                del _CALLS[module]
                module.training = True

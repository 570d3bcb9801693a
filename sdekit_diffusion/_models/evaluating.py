"""Evaluation mode of models during a call, also if threads share a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from torch import nn

from sdekit_diffusion._models.condition_values import require_entries
from sdekit_diffusion._models.model import AbstractModel

_LOCK = Lock()  # held while flags change, never during a call
# For each module that the calls must restore, the number of calls that use it.
_ACTIVE_CALLS: dict[nn.Module, int] = {}


@contextmanager
def evaluating(model: AbstractModel, n: int) -> Iterator[None]:
    """Puts the networks of a model into evaluation mode, and restores their mode afterwards.

    Threads may share a model: the first call changes the mode of modules in training mode, and the
    last call to end restores it. A thread that trains the model meanwhile would find it in
    evaluation mode, and its `.train()` would put the networks of the calls into training mode: it
    should train a copy.

    Raises:
        ValueError: where values per sample of the model are not for n samples.
    """
    for name, value in model.entries().items():
        require_entries(name, value, n)
    modules = _enter([module for network in model.networks() for module in network.modules()])
    try:
        yield
    finally:
        _leave(modules)


def _enter(modules: list[nn.Module]) -> list[nn.Module]:
    """Puts modules into evaluation mode and returns those that the call must restore.

    Wrappers of torch.compile are left out: they have no flag of their own, but that of the module
    inside.
    """
    with _LOCK:
        active = [module for module in modules if module.training or module in _ACTIVE_CALLS]
        # hasattr is slow where the answer is no.
        entered = [module for module in active if "_orig_mod" not in vars(module)["_modules"]]
        for module in entered:
            _set_mode(module, training=False)
            _ACTIVE_CALLS[module] = _ACTIVE_CALLS.get(module, 0) + 1
    return entered


def _leave(modules: list[nn.Module]) -> None:
    """Restores training mode of modules that no other call uses."""
    with _LOCK:
        for module in modules:
            _ACTIVE_CALLS[module] -= 1
            if not _ACTIVE_CALLS[module]:
                del _ACTIVE_CALLS[module]
                _set_mode(module, training=True)


def _set_mode(module: nn.Module, *, training: bool) -> None:
    """module.training = training, without torch's search for parameters and buffers of that name
    where the class does not replace it.
    """
    attributes = vars(module)
    if type(module).__setattr__ is nn.Module.__setattr__ and "training" in attributes:
        attributes["training"] = training
    else:
        module.training = training

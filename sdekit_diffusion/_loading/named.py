"""Networks that a user names: a folder of diffusers, or a function of the user's own.

Code is imported only by names that the user gives, in an argument or an option, and never by those
in a checkpoint.
"""

from importlib import import_module
from operator import attrgetter
from pathlib import Path

from torch import nn

from sdekit import did_you_mean
from sdekit_diffusion import nets
from sdekit_diffusion._loading.diffusers import from_diffusers, network_in
from sdekit_diffusion._models.score_model import ScoreModel


def named_network(name: str | Path) -> nn.Module:
    """The network in a folder of diffusers, without its scheduler, or of `package.module:factory`.

    Raises:
        ValueError: for a name of neither kind, a damaged folder, or a module without that factory.
        ImportError: when the module, or diffusers, cannot be imported.
        TypeError: when the factory returns no network.
    """
    if Path(name).is_dir():
        return network_in(Path(name))
    if name in nets.registry:
        raise ValueError(
            f"a run that is of the library's {name} names it itself: leave net, or --network, out; "
            "or give the folder of a network of diffusers, or package.module:factory, a function "
            "without arguments that makes the network"
        )
    network = _make(str(name))
    return network_of(network) if isinstance(network, ScoreModel) else network


def named_model(name: str) -> ScoreModel | nn.Module:
    """The model of a folder of diffusers with its scheduler, or what `package.module:factory`
    returns; errors as those of `named_network`.
    """
    return from_diffusers(name) if Path(name).is_dir() else _make(name)


def network_of(model: ScoreModel) -> nn.Module:
    """The network of a model.

    Raises:
        TypeError: when it is a plain function.
    """
    if not isinstance(model.net, nn.Module):
        raise TypeError(
            "this model's network is a plain function and takes no weights; give a torch.nn.Module"
        )
    return model.net


def _make(name: str) -> ScoreModel | nn.Module:
    module, _, factory = name.partition(":")
    if not (module and factory):
        raise ValueError(
            f"unknown network {name!r}; choose one of {', '.join(nets.registry)}, the folder of a "
            "network of diffusers, or package.module:factory, a function without arguments that "
            f"makes the network{did_you_mean(name, nets.registry)}"
        )
    try:
        imported = import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name!r} names a module that cannot be imported: {error}; put its folder on "
            "PYTHONPATH"
        ) from error
    try:
        make = attrgetter(factory)(imported)
    except AttributeError as error:
        raise ValueError(
            f"{name!r}: {error}; name a function of {module} that makes the network"
        ) from error
    result = make() if callable(make) and not isinstance(make, nn.Module) else make
    if not isinstance(result, nn.Module):
        raise TypeError(
            f"{name!r} gives a {type(result).__name__}; it must make a torch.nn.Module or a "
            "ScoreModel"
        )
    return result

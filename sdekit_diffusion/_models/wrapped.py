"""Models in wrappers of torch: unwrapped if that is safe, else refused with advice."""

import functools
import inspect
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrapped(model: object, kind: type) -> object:
    """The model, an instance of `kind`, in a wrapper of torch, with its network wrapped instead;
    anything else unchanged.

    `torch.compile(model)` becomes a model with a compiled network, and `DataParallel(model)` one
    whose network runs on the same devices. `DistributedDataParallel` only averages gradients, which
    are not computed here: its model is returned unchanged.
    """
    if not isinstance(model, nn.Module) or isinstance(model, kind):
        return model
    inner = _wrapped_module(model)
    model_inside = None if inner is None else unwrapped(inner, kind)
    if not isinstance(model_inside, kind):
        return model
    net = getattr(model_inside, "net", None)
    with_network = getattr(model_inside, "with_network", None)
    if with_network is None or not isinstance(net, nn.Module):
        return model_inside
    if isinstance(model, DataParallel) and model.device_ids:
        return with_network(DataParallel(net, model.device_ids, model.output_device, model.dim))
    compiler = getattr(model, "dynamo_ctx", None)
    return model_inside if compiler is None else with_network(compiler(net))


def _wrapped_module(model: nn.Module) -> nn.Module | None:
    """The module in a wrapper of torch; None if the module is not a wrapper."""
    if isinstance(model, DataParallel | DistributedDataParallel):
        return model.module
    return getattr(model, COMPILED, None)


COMPILED = "_orig_mod"  # the attribute of a module of torch.compile that holds the network


def bare(net: nn.Module) -> nn.Module:
    """The network in wrappers of torch: of torch.compile and of parallel modules."""
    inner = _wrapped_module(net)
    return net if inner is None else bare(inner)


def unwrapped_net(net: object) -> object:
    """A network in wrappers of torch; a function as it is."""
    return bare(net) if isinstance(net, nn.Module) else net


def plain_name(name: str) -> str:
    """The name of a tensor of a network, without those of compiled modules in it."""
    return ".".join(part for part in name.split(".") if part != COMPILED)


def require_plain(score: object, kind: type) -> None:
    """Refuses a score function that calls a model, an instance of `kind`: its output is not a
    score, and the model has its own diffusion.

    Raises:
        TypeError: for a module that contains a model, for a method of a model, and for a partial of
            either.
    """
    inner = score
    while isinstance(inner, functools.partial):
        inner = inner.func
    if isinstance(inner, kind):
        raise TypeError(
            f"this is a functools.partial of a {type(inner).__name__}, whose output is not a "
            "score; pass the model itself, or with more arguments of its network "
            "model.given(y=...)"
        )
    name = type(inner).__name__
    if isinstance(inner, nn.Module):
        # torch.jit keeps only the names of classes.
        scripted = {sub.__name__ for sub in kind.__subclasses__()}
        places = [
            place
            for place, module in inner.named_modules()
            if isinstance(module, kind) or getattr(module, "original_name", None) in scripted
        ]
        if places:
            location = places[0] and f", its .{places[0]},"
            raise TypeError(
                f"this {name} wraps a model{location} and its output is not a score; pass the "
                "model "
                f"itself, or wrap the network instead: ScoreModel({name}(net), ...). model(x, t) "
                "is its network's output, in the model's own parametrisation; only a module that "
                "returns model.score(t, x), or a score made of it, may go as a function that "
                "calls it"
            )
    elif isinstance(owner := _owner(score), kind):
        method = getattr(score, "__name__", "method")
        raise TypeError(
            f"this is the method {method} of a {type(owner).__name__}, not a score (x, t) of its "
            f"own; pass the {type(owner).__name__} itself, without sde= and shape="
        )


def _owner(function: object) -> object:
    """The object that a method belongs to, through `functools.partial` and `functools.wraps`; None
    for a plain function.
    """
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        function = (
            function.func
            if isinstance(function, functools.partial)
            else getattr(function, "__wrapped__")  # noqa: B009
        )
    return getattr(function, "__self__", None)


def modules_of(function: object) -> list[nn.Module]:
    """The modules that a function calls, as far as they can be found: as the owner of a method,
    among the attributes of this owner or of a callable object, or among the variables that it uses;
    also through lists, tuples, dicts, `functools.partial` and other functions among these, such as
    the one that a decorator was given.
    """
    modules: list[nn.Module] = []
    visited: dict[int, object] = {}  # with the objects, so that no other can have their id
    waiting = [function]
    while waiting:
        value = waiting.pop()
        if id(value) in visited:
            continue
        visited[id(value)] = value
        if isinstance(value, nn.Module):
            modules.append(value)
        else:
            waiting += [
                part for part in _parts(value) if callable(part) or isinstance(part, _CONTAINERS)
            ]
    return modules


def has_parameters(function: object) -> bool:
    """Whether a module that a function calls has parameters, or a function that such a module
    holds calls one that has.
    """
    visited: list[nn.Module] = []
    waiting = modules_of(function)
    while waiting:
        module = waiting.pop()
        if any(module is other for other in visited):
            continue
        visited.append(module)
        if next(module.parameters(), None) is not None:
            return True
        for value in vars(module).values():
            waiting += modules_of(value) if callable(value) else []
    return False


_CONTAINERS = (dict, list, tuple)
_LIBRARIES = ("torch", "sdekit", "sdekit_diffusion")  # no global variable has the user's network


def _parts(value: Any) -> list[object]:  # noqa: ANN401
    """What a function or a container refers to."""
    if isinstance(value, _CONTAINERS):
        return list(value.values() if isinstance(value, dict) else value)
    owner = getattr(value, "__self__", None)
    parts: list[object] = [owner]
    if isinstance(value, functools.partial):
        parts += [value.func, *value.args, *value.keywords.values()]
    elif inspect.ismethod(value):
        parts.append(value.__func__)
    elif inspect.isfunction(value):
        parts += _variables(value)
    for holder in (value, owner):
        if not isinstance(holder, nn.Module | ModuleType | type):
            parts += getattr(holder, "__dict__", {}).values()
    return parts


def _variables(function: FunctionType) -> list[object]:
    """The values of the variables of a function that are not its own."""
    values: list[object] = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            values.append(cell.cell_contents)
    variables = function.__globals__
    if str(variables.get("__name__")).partition(".")[0] not in _LIBRARIES:
        values += [variables[name] for name in function.__code__.co_names if name in variables]
    return values


def require_own(model: object, kind: type, remedy: str) -> None:
    """Refuses a wrapper of a model, or a model made from one, where the model itself is needed.

    Raises:
        TypeError: with what to do instead.
    """
    if not isinstance(model, kind):
        if isinstance(getattr(model, "model", None), kind):
            remedy = "pass the model that it was made from, its attribute model"
        elif not isinstance(model, nn.Module) or not any(
            isinstance(part, kind) for part in model.modules()
        ):
            remedy = f"make one of a network, as in {kind.__name__}(net, 'vp', 'velocity')"
        raise TypeError(
            f"the model must be a {kind.__name__}, not {type(model).__name__}; {remedy}"
        )

"""The methods of torchdiffeq that sdekit's solvers support, and their arguments."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit import _solvers
from sdekit._arguments.names import did_you_mean, require_mapping
from sdekit._solve.control import PIDController
from sdekit._solvers import (
    AbstractEmbeddedRungeKutta,
    AbstractRungeKutta,
    AbstractSolver,
    EulerMaruyama,
    Heun,
    Midpoint,
    Order,
    Tableau,
    all_solvers,
)
from sdekit.calling import checked_call, warn_caller
from sdekit.elementary import Time
from sdekit.interop._odeint_steps import Callback, Control
from sdekit.interop._originals import torchdiffeq_methods
from sdekit.interop._system import System


@dataclass(frozen=True, eq=False)
class _Heun3(AbstractRungeKutta):
    """Heun's method of order three (1900)."""

    order = {"none": Order(3, 3)}
    tableau = Tableau(a=((), (1 / 3,), (0, 2 / 3)), b=(1 / 4, 0, 3 / 4), c=(0, 1 / 3, 2 / 3))


@dataclass(frozen=True, eq=False)
class _ThreeEighths(AbstractRungeKutta):
    """Kutta's other method of order four (1901), which is torchdiffeq's "rk4"."""

    order = {"none": Order(4, 4)}
    tableau = Tableau(
        a=((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)),
        b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
        c=(0, 1 / 3, 2 / 3, 1),
    )


_NAMES = {"HeunEuler": "adaptive_heun"}
# torchdiffeq's names; every embedded pair of sdekit has one, also "tsit5", which torchdiffeq lacks.
# Other names are passed to torchdiffeq, which solves or refuses them.
ADAPTIVE: dict[str, AbstractSolver] = {
    _NAMES.get(type(pair).__name__, type(pair).__name__.lower()): pair
    for pair in all_solvers(AbstractEmbeddedRungeKutta)
}
FIXED: dict[str, AbstractSolver] = {
    "euler": EulerMaruyama(),
    "midpoint": Midpoint(),
    "heun2": Heun(),
    "heun3": _Heun3(),
    "rk4": _ThreeEighths(),
}
# Names in SciPy and in other libraries.
_ALIASES = {
    "rk45": "dopri5",
    "rk23": "bosh3",
    "dop853": "dopri8",
    "heun": "heun2",
    "runge_kutta": "rk4",
}

CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")

# Options of adaptive methods that are numbers: their names in PIDController, and what they are.
_LIMITS: dict[str, tuple[str, type]] = {
    "first_step": ("first", float),
    "safety": ("safety", float),
    "ifactor": ("largest", float),
    "dfactor": ("smallest", float),
    "max_num_steps": ("max_steps", int),
}
_OF_ADAPTIVE = (*_LIMITS, "min_step", "max_step", "step_t", "jump_t", "norm", "dtype")
_OF_FIXED = ("step_size", "grid_constructor", "interp", "perturb", "norm")
_INTERPOLATIONS = ("linear", "cubic")
_MAX_STEPS = 2**31 - 1  # steps, as in torchdiffeq


def require_arguments(y0: object, t: object) -> None:
    """Refuses values that are not a state or not times.

    Raises:
        TypeError: for a y0 that is not a floating or complex tensor or a tuple of them, or a t that
            holds no numbers.
    """
    parts = y0 if isinstance(y0, tuple) else (y0,)
    if not parts or not all(isinstance(part, Tensor) and _continuous(part) for part in parts):
        kinds = [
            str(part.dtype) if isinstance(part, Tensor) else type(part).__name__ for part in parts
        ]
        raise TypeError(
            "y0 must be a floating tensor or a tuple of them, not "
            f"{', '.join(kinds) or 'an empty tuple'}; convert integers with .float(), and a list "
            "with tuple()"
        )
    if not isinstance(t, Tensor | Sequence | np.ndarray) or isinstance(t, str):
        raise TypeError(
            f"t must be a tensor or a sequence of numbers, not {t!r:.60}; give [0.0, 1.0], for "
            "example"
        )


def require_method(method: str | None, options: object) -> None:
    """Refuses an unknown method, and options that are not a dictionary.

    Raises:
        TypeError: with the options.
        ValueError: with the names of sdekit and torchdiffeq, and the nearest of them.
    """
    require_mapping(options)
    if method is None or method in ADAPTIVE or method in FIXED:
        return
    names = dict.fromkeys((*ADAPTIVE, *FIXED, *torchdiffeq_methods()))
    if method not in names:
        solver = {name.lower(): name for name in _solvers.__all__}.get(str(method).lower())
        other = f"; solve(..., solver={solver}(...)) has it" if solver else ""
        raise ValueError(
            f"method = {method!r} is not one of "
            f"{', '.join(names)}{other or did_you_mean(method, names, _ALIASES)}"
        )


def _continuous(part: Tensor) -> bool:
    return part.is_floating_point() or part.is_complex()


def is_supported(method: str | None) -> bool:
    """Whether a method is one of sdekit's solvers."""
    return method is None or method in ADAPTIVE or method in FIXED


@dataclass(frozen=True, eq=False)
class Options:
    """The options of a method.

    Raises:
        ValueError, TypeError: in its attributes and in `control`, for values that are not allowed.
    """

    values: Mapping[str, Any]

    @property
    def step_size(self) -> float | None:
        """The width of fixed steps."""
        size = self.values.get("step_size")
        if size is not None and not 0 < size < math.inf:
            raise ValueError(
                f"step_size is the width of a step, positive, not {size}; give a finite one, or "
                "none for one step between two times; decreasing t reverse the time"
            )
        return None if size is None else float(size)

    @property
    def constructor(self) -> Callable[..., Any] | None:
        """The function that makes the grid of fixed steps."""
        constructor = self.values.get("grid_constructor")
        if constructor is not None and self.values.get("step_size") is not None:
            raise ValueError("step_size and grid_constructor both say what the steps are: give one")
        return constructor

    @property
    def perturb(self) -> bool:
        """Whether func is called at times strictly within fixed steps."""
        return bool(self.values.get("perturb", False))

    @property
    def cubic(self) -> bool:
        """Whether states within fixed steps are on a cubic instead of a line."""
        interp = self.values.get("interp", "linear")
        if interp not in _INTERPOLATIONS:
            raise ValueError(
                f"interp is 'linear' or 'cubic', not {interp!r}"
                f"{did_you_mean(interp, _INTERPOLATIONS)}"
            )
        return interp == "cubic"

    def control(
        self, system: System, rtol: object, atol: object, x0: Tensor, intervals: int
    ) -> Control:
        """How adaptive steps are chosen; the limit of steps is multiplied by `intervals`, the
        number of intervals between outputs.
        """
        relative, absolute = (
            tolerances(name, value, system, x0) for name, value in (("rtol", rtol), ("atol", atol))
        )
        stops, jumps = (self._times(name) for name in ("step_t", "jump_t"))
        if len({*stops, *jumps}) < len(stops) + len(jumps):
            raise ValueError("step_t and jump_t must not have any time twice, nor share one")
        shortest = float(self.values.get("min_step") or 0.0)
        given = self.values.get("max_step")
        longest = math.inf if given is None else float(given)
        if not 0 <= shortest <= longest or not longest > 0:
            raise ValueError(
                f"min_step and max_step are lengths, 0 <= min_step <= max_step and max_step > 0; "
                f"not {shortest:g} and {longest:g}"
            )
        norm = self.values.get("norm")
        if norm is not None and not callable(norm):
            raise TypeError(f"options['norm'] is a function of a state, not {norm!r:.60}")
        return Control(
            system,
            relative,
            absolute,
            self._limits(relative, absolute, x0.dtype, intervals),
            norm=norm,
            shortest=shortest,
            longest=longest,
            stops=[*stops, *jumps],
            jumps=jumps,
        )

    def _times(self, name: str) -> list[float]:
        value = self.values.get(name)
        if not isinstance(value, Tensor):
            value = torch.as_tensor(() if value is None else value, dtype=torch.float64)
        return value.double().reshape(-1).tolist()

    def _limits(
        self,
        rtol: Sequence[float | Tensor],
        atol: Sequence[float | Tensor],
        dtype: torch.dtype,
        intervals: int,
    ) -> PIDController:
        settings: dict[str, Any] = {"max_steps": _MAX_STEPS}
        for option, (name, kind) in _LIMITS.items():
            value = self.values.get(option)
            settings |= {} if value is None else {name: kind(value)}
            if value is not None and not value > 0:
                raise ValueError(f"options[{option!r}] must be positive, not {value}")
        settings["max_steps"] *= intervals
        largest = [max(float(torch.as_tensor(v).max()) for v in values) for values in (rtol, atol)]
        control = PIDController(rtol=largest[0], atol=largest[1], **settings)
        resolution = torch.finfo(dtype).eps
        if max(largest) < resolution / 2:
            raise ValueError(
                f"rtol = {largest[0]:g} and atol = {largest[1]:g} are below the rounding of "
                f"{dtype}; ask for {resolution:.1g} or more, or use a wider dtype"
            )
        return control


def options_of(method: str, options: Mapping[str, Any]) -> Options:
    """The options of a method; warns of those that it does not have."""
    known = _OF_ADAPTIVE if method in ADAPTIVE else _OF_FIXED
    for name in set(options) - set(known):
        warn_caller(
            f"odeint: the method {method!r} has no option {name!r}, which has no effect; it has "
            f"{', '.join(known)}{did_you_mean(name, known)}",
        )
    return Options({name: value for name, value in options.items() if name in known})


def tolerances(
    name: str,
    value: Any,  # noqa: ANN401
    system: System,
    x0: Tensor,
) -> list[float | Tensor]:
    """A tolerance for each part of a state: numbers, or tensors of its shape.

    Raises:
        TypeError: for values that are not numbers or tensors.
        ValueError: for negative values, or another number of them.
    """
    shapes = system.shapes
    several = isinstance(value, tuple | list) or (
        not system.single and isinstance(value, Tensor) and value.numel() > 1
    )
    values = list(value) if several and not system.single else [value] * len(shapes)
    if len(values) != len(shapes):
        raise ValueError(
            f"{name} of a tuple y0 is a number, or one value for each of its {len(shapes)} parts, "
            f"not {len(values)}"
        )
    tolerances: list[float | Tensor] = []
    for one, shape in zip(values, shapes, strict=True):
        try:
            tensor = torch.as_tensor(one, dtype=torch.float64)
        except (TypeError, RuntimeError):
            message = f"{name} is a number, or a tensor shaped like y0, not {one!r:.60}"
            raise TypeError(message) from None
        if not bool((tensor >= 0).all()):
            raise ValueError(f"{name} has tolerances, from 0 on, not {float(tensor.min())}")
        number = tensor.numel() == 1
        tolerances.append(float(tensor) if number else tensor.to(x0).expand(shape))
    return tolerances


def callback_of(func: object, system: System, method: str, suffix: str = "") -> Callback | None:
    """A function that calls the callbacks of func, by their names; None if it has none.

    Arguments:
        suffix: of the names of func's attributes, such as "_adjoint".
    """
    callbacks = {
        name: getattr(func, name + suffix) for name in CALLBACKS if hasattr(func, name + suffix)
    }
    unknown = [name for name in callbacks if method in FIXED and name != "callback_step"]
    if unknown:
        warn_caller(
            f"odeint: the method {method!r} has fixed steps and does not call {', '.join(unknown)}",
        )
    if not callbacks:
        return None

    def callback(name: str, t0: Time, x: Tensor, dt: Time) -> None:
        if name not in callbacks:
            return

        def call(t0: Tensor, dt: Tensor, *parts: Tensor) -> None:
            callbacks[name](t0, parts[0] if system.single else parts, dt)

        dtype = torch.float64 if method in ADAPTIVE else x.dtype
        numbers = [
            torch.as_tensor(value, dtype=dtype, device=x.device).reshape(()) for value in (t0, dt)
        ]
        checked_call(f"{name}(t0, y0, dt)", call, *numbers, *system.parts(x[0]))

    return callback

"""The methods of torchdiffeq that sdekit's solvers support, and their arguments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sdekit._names import did_you_mean
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
from sdekit.interop._originals import torchdiffeq_methods


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


# torchdiffeq's names; every embedded pair of sdekit has one, also "tsit5", which torchdiffeq lacks.
# Other names are passed to torchdiffeq, which solves or refuses them.
ADAPTIVE: dict[str, AbstractSolver] = {
    type(pair).__name__.lower(): pair for pair in all_solvers(AbstractEmbeddedRungeKutta)
}
FIXED: dict[str, AbstractSolver] = {
    "euler": EulerMaruyama(),
    "midpoint": Midpoint(),
    "heun2": Heun(),
    "heun3": _Heun3(),
    "rk4": _ThreeEighths(),
}
# SciPy's and others' names.
_ALIASES = {
    "rk45": "dopri5",
    "rk23": "bosh3",
    "dop853": "dopri8",
    "heun": "heun2",
    "runge_kutta": "rk4",
}

# The options of adaptive methods, their names in PIDController, and what they are.
CONTROL: dict[str, tuple[str, type]] = {
    "first_step": ("first", float),
    "safety": ("safety", float),
    "ifactor": ("largest", float),
    "dfactor": ("smallest", float),
    "max_num_steps": ("max_steps", int),
}
_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


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


def require_method(method: str | None) -> None:
    """Refuses an unknown method.

    Raises:
        ValueError: with the names of sdekit and torchdiffeq, and the nearest of them.
    """
    if method is None or method in ADAPTIVE or method in FIXED:
        return
    names = dict.fromkeys((*ADAPTIVE, *FIXED, *torchdiffeq_methods()))
    if method not in names:
        raise ValueError(
            f"method = {method!r} is not one of "
            f"{', '.join(names)}{did_you_mean(method, names, _ALIASES)}"
        )


def _continuous(part: Tensor) -> bool:
    return part.is_floating_point() or part.is_complex()


def is_supported(
    func: object,
    y0: object,
    t: Tensor | Sequence[float],
    event_fn: object,
    *,
    rtol: object,
    atol: object,
    method: str | None,
    options: dict[str, Any] | None,
) -> bool:
    """Whether sdekit's solvers support the arguments of odeint."""
    parts = y0 if isinstance(y0, tuple) else (y0,)
    unsupported = (
        event_fn is not None,
        isinstance(t, Tensor) and t.requires_grad,
        any(hasattr(func, name + suffix) for name in _CALLBACKS for suffix in ("", "_adjoint")),
        any(isinstance(part, Tensor) and part.is_complex() for part in parts),
        any(
            isinstance(tolerance, tuple | list)
            or (isinstance(tolerance, Tensor) and tolerance.numel() != 1)
            for tolerance in (rtol, atol)
        ),
    )
    if method is None or method in ADAPTIVE:
        return not any(unsupported) and set(options or ()) <= set(CONTROL)
    return not any(unsupported) and method in FIXED and set(options or ()) <= {"step_size"}

"""torchsde's sdeint: by sdekit's solvers for supported methods, else by torchsde itself."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE, NoiseType
from sdekit._names import did_you_mean
from sdekit._solvers import (
    SRA1,
    SRID2,
    AbstractSolver,
    EulerHeun,
    EulerMaruyama,
    Heun,
    Midpoint,
    Milstein,
    ReversibleHeun,
)
from sdekit.interop._from_torchsde import from_torchsde, prepare_solve, signature_errors
from sdekit.interop._guarded import DifferentiableDiffusion, GuardedSDE
from sdekit.interop._originals import torchsde_methods, torchsde_sdeint
from sdekit.interop._to_torchsde import to_torchsde
from sdekit.interop._torchsde_grid import states
from sdekit.interop._torchsde_noise import Brownian, brownian

_NOISE_TYPES: tuple[NoiseType, ...] = ("additive", "diagonal", "scalar", "general")

# torchsde's names, and solvers by noise type. Other names, and methods of the other calculus, are
# passed to torchsde, which solves or refuses them.
SOLVERS: dict[str, dict[NoiseType, AbstractSolver]] = {
    "euler": dict.fromkeys(_NOISE_TYPES, EulerMaruyama()),
    # For additive noise Milstein's method is Euler's.
    "milstein": {"additive": EulerMaruyama(), "diagonal": Milstein(), "scalar": Milstein()},
    "srk": {"additive": SRA1(), "diagonal": SRID2(), "scalar": SRID2()},
    "heun": dict.fromkeys(_NOISE_TYPES, Heun()),
    "euler_heun": dict.fromkeys(_NOISE_TYPES, EulerHeun()),
    "midpoint": dict.fromkeys(_NOISE_TYPES, Midpoint()),
    "reversible_heun": dict.fromkeys(_NOISE_TYPES, ReversibleHeun()),
}
_ALIASES = {"euler_maruyama": "euler", "em": "euler"}
# torchsde's names for the methods of an equation.
_METHODS = ("f", "g", "h", "f_and_g", "g_prod", "f_and_g_prod")
# torchsde's methods that use the derivative of g.
_DIFFERENTIATE = ("milstein", "log_ode")


def sdeint(
    sde: object,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Brownian | None = None,
    method: str | None = None,
    dt: float = 1e-3,
    adaptive: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-4,
    dt_min: float = 1e-5,
    options: dict[str, Any] | None = None,
    names: dict[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: tuple[Tensor, ...] | None = None,
    **unused_kwargs: object,
) -> Any:  # noqa: ANN401 - a tensor, or the tuple that logqp and extra ask for
    """Solves an equation as `torchsde.sdeint` does: its arguments, defaults, names of methods and
    steps, ts[0] + k dt.

    sdekit's own solvers are used for fixed steps; `adaptive`, `logqp`, `extra`,
    `extra_solver_state`, `options`, and methods that sdekit does not have are passed to torchsde
    with the same arguments. With sdekit's solvers these differences are intended:

    - a state between two steps is (1 - r) x_0 + r x_1 + g(t_0, x_0) times the bridge of the path,
      which has the variance of the solution, not half of it;
    - with bm=None torch's default generator seeds the noise, so that `torch.manual_seed` repeats
      a result;
    - steps are counted, not accumulated, to avoid a tiny last step;
    - a state that is not finite is an error;
    - ts may decrease: then the equation is solved as `sdekit.solve` does in reverse time;
    - sde may be an `AbstractSDE`, with events of any shape.

    Arguments:
        sde: a torchsde equation, or an `AbstractSDE`.
        y0: the initial states, `(batch, d)`.
        ts: the times of the result, strictly monotone; the first is y0's.
        bm: a Brownian motion of torchsde, a callable like one, or an `AbstractNoise`.
        method: "euler", "milstein", "srk", "heun", "euler_heun", "midpoint", "reversible_heun",
            "log_ode"; None is "srk" for Ito equations, "euler" for those with general noise, and
            "midpoint" for Stratonovich ones.
        dt: the step, positive.
        names: other names for the methods of sde, as for `from_torchsde`.
        adaptive, rtol, atol, dt_min, options, logqp, extra, extra_solver_state: as torchsde's.

    Returns:
        the states at ts, `(len(ts), batch, d)`; with logqp or extra the tuples that torchsde
        returns.

    Raises:
        NotFiniteError: when a state is not finite.
        TypeError: for ts that are not numbers, or methods that take other arguments than (t, y).
        ValueError: as torchsde, for arguments that do not fit together.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 0.1 * x)
        >>> ts = torch.tensor([0.0, 0.5, 1.0])
        >>> ys = sdekit.sdeint(sde, torch.ones(4, 2), ts, method="euler", dt=0.1)
        >>> ys.shape
        torch.Size([3, 4, 2])
    """
    _require(sde, y0, ts, dt)
    problem = _equation(sde, names, bm)
    method = _default_method(problem) if method is None else method
    solver = _solver(method, problem)
    needs_torchsde = adaptive or logqp or extra or options or extra_solver_state is not None
    if needs_torchsde or solver is None:
        settings: dict[str, Any] = {
            "dt": dt,
            "adaptive": adaptive,
            "rtol": rtol,
            "atol": atol,
            "dt_min": dt_min,
            "options": options,
            "names": names,
            "logqp": logqp,
            "extra": extra,
            "extra_solver_state": extra_solver_state,
        }
        return _solve_by_torchsde(sde, problem, y0, ts, bm, method, {**settings, **unused_kwargs})
    if unused_kwargs:
        warnings.warn(
            f"sdeint does not know the arguments {', '.join(unused_kwargs)}", stacklevel=2
        )
    if len(ts) == 1:
        return y0.unsqueeze(0)
    with signature_errors(problem, y0):
        y0 = y0.clone(memory_format=torch.contiguous_format)
        problem = prepare_solve(problem, y0, ts)
        return torch.stack(list(states(problem, y0, ts, solver=solver, bm=bm, dt=float(dt))))


def _equation(sde: object, names: dict[str, str] | None, bm: Brownian | None) -> AbstractSDE:
    """sde as an equation of sdekit, with the number of Brownian motions of bm if it is known."""
    if isinstance(sde, AbstractSDE):
        return sde
    shape = getattr(bm, "shape", None)
    return from_torchsde(sde, names=names, noise_size=None if shape is None else shape[-1])


def _solve_by_torchsde(
    sde: object,
    problem: AbstractSDE,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Brownian | None,
    method: str,
    settings: dict[str, Any],
) -> Any:  # noqa: ANN401 - as sdeint
    """The result of torchsde, with states shaped as y0; problem is sde as an equation of sdekit."""
    equation = (
        to_torchsde(problem, y0.shape[1:])
        if problem is sde
        else GuardedSDE(sde, {*_METHODS, *(settings["names"] or {}).values()})
    )
    if method in _DIFFERENTIATE:
        name = "g" if problem is sde else (settings["names"] or {}).get("diffusion", "g")
        if callable(getattr(equation, name, None)):  # else torchsde names what is missing
            setattr(equation, name, DifferentiableDiffusion(getattr(equation, name)))
    ts = ts if isinstance(ts, Tensor) else torch.tensor(ts, dtype=y0.dtype, device=y0.device)
    dt = None if settings["adaptive"] else float(settings["dt"])
    motion = brownian(bm, problem, y0, ts, method=method, dt=dt, logqp=settings["logqp"])
    with signature_errors(problem, y0):
        flat = y0.flatten(1).clone()
        out = torchsde_sdeint(equation, flat, ts, bm=motion, method=method, **settings)
    if isinstance(out, Tensor):
        return out.reshape(-1, *y0.shape)
    return (out[0].reshape(-1, *y0.shape), *out[1:])


def _require(sde: object, y0: Tensor, ts: Tensor | Sequence[float], dt: float) -> None:
    if not isinstance(y0, Tensor) or (y0.ndim != 2 and not isinstance(sde, AbstractSDE)):
        description = tuple(y0.shape) if isinstance(y0, Tensor) else type(y0).__name__
        raise ValueError(
            f"y0 must be a tensor of shape (batch, d), not {description}; an sdekit equation takes "
            "events of any shape"
        )
    if not isinstance(ts, Tensor | Sequence | np.ndarray) or isinstance(ts, str):
        raise TypeError(
            f"ts must be a tensor or a sequence of numbers, not {ts!r:.60}; give [0.0, 1.0], for "
            "example"
        )
    for name, value in (("ts", ts), ("dt", dt)):
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(f"{name} must not require a gradient; detach it")
    if not dt > 0:
        raise ValueError(
            f"dt is the width of a step, positive, not {dt}; decreasing ts reverse the time"
        )


def _solver(method: str, problem: AbstractSDE) -> AbstractSolver | None:
    """sdekit's solver for a method and an equation; None if there is none.

    Raises:
        ValueError: for a name that is not a method of torchsde's either.
    """
    if method not in SOLVERS:
        _require_method(method)
    solver = SOLVERS.get(method, {}).get(problem.noise_type)
    return None if solver is None or solver.sde_type != problem.sde_type else solver


def _require_method(method: str) -> None:
    methods = torchsde_methods()
    if method not in methods:
        raise ValueError(
            f"method = {method!r} is not one of "
            f"{', '.join(methods)}{did_you_mean(method, methods, _ALIASES)}"
        )


def _default_method(problem: AbstractSDE) -> str:
    if problem.sde_type == "stratonovich":
        return "midpoint"
    return "euler" if problem.noise_type == "general" else "srk"

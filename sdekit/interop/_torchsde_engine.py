"""torchsde's solvers for equations of sdekit."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._grid import fixed_times
from sdekit._noise.brownian import BrownianPath
from sdekit._solve.arguments import require_save
from sdekit._solve.counted import Counted
from sdekit._solve.solution import (
    NotFiniteError,
    Point,
    Solution,
    not_finite,
    require_state,
    solution_of_equal_steps,
)
from sdekit.interop._originals import original
from sdekit.interop._to_torchsde import to_torchsde


def solve_sde(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    dt: float,
    method: str | None = None,
    noise: BrownianPath | None = None,
    adaptive: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-4,
    adjoint: bool = False,
    adjoint_method: str | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    save: Literal["last", "all"] = "last",
) -> Solution:
    """Solves dx = f(t, x) dt + g(t, x) dW with one of torchsde's methods.

    It is for comparisons: `sdekit.sdeint` has all of these methods without torchsde.

    Arguments:
        problem: an equation with noise, in the calculus of the method.
        x0: the initial states, floating-point, `(batch, *event)`.
        ts: the times of output, increasing.
        dt: the length of a step, or of the first one with adaptive=True.
        adaptive, rtol, atol: whether an error estimate, which the batch shares, chooses the steps,
            and its tolerances.
        method: a method of torchsde, such as "euler", "milstein", "srk" or "reversible_heun"; None
            is torchsde's default for the equation.
        noise: a path with space-time areas, which has no areas between coordinates ("log_ode" needs
            them); None means torchsde's own Brownian motion, which depends on numpy.random.seed.
        adjoint: whether gradients are by torchsde.sdeint_adjoint.
        adjoint_method: the method of the adjoint equation; None is torchsde's default.
        adjoint_params: the tensors that get gradients by the adjoint besides x0; None means the
            parameters of the equation: those in its fields, and those that its functions close over
            or use as globals.
        save: "all" keeps the states at all ts, "last" only those at the last.

    Returns:
        a `Solution`, whose accepted and rejected are None.

    Raises:
        NotFiniteError: when a state at one of the ts is not finite; `step` is then its index in ts.
        RuntimeError: when the drift or the diffusion changes its input or an earlier result in
            place.
        TypeError: when x0 is not a floating-point tensor with a batch dimension, ts are not
            numbers, or the noise is `WhiteNoise`.
        ValueError: for a problem without noise or not defined at all times of the solve, times that
            do not increase strictly, a dt that is not positive, adjoint_method or adjoint_params
            without adjoint=True, and a method that is unknown or does not fit the equation.

    Example:
        >>> sde = sdekit.SDE(lambda t, x: -x, lambda t, x: 0.1 * x)
        >>> x0 = torch.ones(4, 1)
        >>> sdekit.interop.solve_sde(sde, x0, [0.0, 1.0], dt=0.125, method="srk").x.shape
        torch.Size([4, 1])

    References:
        Li et al. 2020, "Scalable gradients for stochastic differential equations", arXiv
        2001.01328.
    """
    require_save(save)
    require_state(x0)
    grid = fixed_times(ts)
    if grid[-1] < grid[0]:
        raise ValueError("torchsde needs times that increase; sdekit.sdeint takes both directions")
    if not adjoint and not (adjoint_method is None and adjoint_params is None):
        raise ValueError("adjoint_method and adjoint_params are for adjoint=True")
    if not dt > 0:
        raise ValueError(f"dt must be positive, not {dt}")
    counted = Counted.of(problem.within(grid[0], grid[-1]), x0)
    module = to_torchsde(counted, x0.shape[1:])
    points = torch.tensor(grid, dtype=torch.float64, device=x0.device)
    xs = x0.expand(len(grid), *x0.shape)
    if len(x0):
        function = original("torchsde._core.sdeint", "sdeint")
        settings: dict[str, Any] = {"adaptive": adaptive, "rtol": rtol, "atol": atol}
        if adjoint:
            function = original("torchsde._core.adjoint", "sdeint_adjoint")
            settings |= {"adjoint_method": adjoint_method, "adjoint_params": adjoint_params}
        bm = None if noise is None else _brownian(noise, counted, x0)
        start = x0.reshape(len(x0), -1)
        xs = function(module, start, points, bm=bm, method=method, dt=dt, **settings)
        xs = xs.reshape(len(grid), *x0.shape)
    for i, x in enumerate(xs):
        if error := not_finite(Point(i, grid[i], x)):
            raise NotFiniteError(i, grid[i], error.samples, len(x), "output") if i else error
    counted.require_unchanged()
    states = xs if save == "all" else None
    times = torch.tensor(grid, dtype=torch.float64)
    return solution_of_equal_steps(
        xs[-1], times, states, None, evaluations=counted.evaluations, steps=None
    )


def _brownian(noise: BrownianPath, problem: AbstractSDE, x: Tensor) -> Any:  # noqa: ANN401
    """A path as a Brownian motion of torchsde for states such as x."""
    from sdekit.interop._torchsde_brownian import TorchsdeBrownian  # which imports torchsde

    size = (len(x), math.prod(problem.noise_shape(x) or ()))
    return TorchsdeBrownian(noise, size, dtype=x.dtype, device=x.device)

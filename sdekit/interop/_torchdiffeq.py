"""torchdiffeq's solvers as an engine: adaptive steps, shared by the batch."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torchdiffeq
from torch import Tensor

from sdekit._grid import times
from sdekit._sde import AbstractSDE
from sdekit._solution import Counted, NotFiniteError, Point, Solution, not_finite, require_state, shared

State = tuple[Tensor, ...]

_METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


def odeint(
    f: Callable[[float, State], State],
    state: State,
    ts: Tensor | Sequence[float],
    *,
    rtol: float,
    atol: float,
    method: str,
) -> tuple[State, int]:
    """The state at the last time of d state / dt = f(t, state), and the number of evaluations.

    Two things that torchdiffeq leaves to its caller are done here: f is never asked for a time outside the interval, and a
    value that is not finite is reported instead of shrinking the step for ever.
    """
    grid, finest = times(ts), 4 * torch.finfo(state[0].dtype).eps
    if method not in _METHODS:
        raise ValueError(f"method {method!r} is not one of torchdiffeq's adaptive ones: {', '.join(_METHODS)}")
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"rtol and atol are tolerances, from 0 on; not {rtol} and {atol}")
    if max(rtol, atol) < finest:
        raise ValueError(
            f"rtol = {rtol:g} and atol = {atol:g} are below what {state[0].dtype} resolves; ask for {finest:.1g} or more, or "
            "use a wider dtype"
        )
    low, high = min(grid), max(grid)
    calls = 0

    def checked(t: Tensor, state: State) -> State:
        nonlocal calls
        calls += 1
        now = min(max(float(t), low), high)
        slopes = f(now, state)
        for slope in slopes:
            rows = slope if slope.shape == state[0].shape else slope.transpose(0, 1)
            if error := not_finite(Point(calls, now, rows)):
                raise NotFiniteError(calls, now, error.samples, len(rows), "evaluation")
        return slopes

    points = torch.tensor(grid, dtype=torch.float64, device=state[0].device)
    try:
        solution = torchdiffeq.odeint(
            checked, state, points, rtol=rtol, atol=atol, method=method, options={"step_t": points[1:]}
        )
    except AssertionError as error:
        if "dt" not in str(error):  # not torchdiffeq's
            raise
        raise ValueError(
            f"torchdiffeq's {method} stopped ({error}); ask for a larger rtol or atol than {rtol:g} and {atol:g}"
        ) from error
    return tuple(part[-1] for part in cast(Any, solution)), calls


def solve_ode(
    problem: AbstractSDE,
    x0: Tensor,
    ts: Tensor | Sequence[float],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
) -> Solution:
    """Solves dx = f(t, x) dt with one of torchdiffeq's adaptive methods, whose steps the whole batch shares.

    Arguments:
        problem: an equation without noise.
        x0: the initial states, floating, `(batch, *event)`.
        ts: the times, strictly monotone; the steps are chosen between them.
        rtol, atol: the tolerances.
        method: "dopri5", "dopri8", "bosh3", "fehlberg2" or "adaptive_heun".

    Raises:
        NotFiniteError: when the drift is; `step` is then the number of the evaluation.
        ValueError: for a problem with noise, or tolerances that cannot be met.
    """
    if problem.noise_type != "none":
        raise ValueError(f"this equation has {problem.noise_type} noise; adaptive steps through torchdiffeq are for ODEs")
    require_state(x0)
    counted, grid = Counted(problem), torch.tensor(times(ts), dtype=torch.float64)
    if not len(x0):
        return shared(x0, grid, None, None, evaluations=0, steps=None)

    def drift(t: float, state: State) -> State:
        return (counted.drift(t, state[0]),)

    (x,), evaluations = odeint(drift, (x0,), grid, rtol=rtol, atol=atol, method=method)
    return shared(x, grid, None, None, evaluations=evaluations, steps=None)

"""The grid that is adapted to a model: a pilot solve, its local errors, and steps that share them out."""

import math
from collections import deque
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

from sdekit import AbstractClocked, NotFiniteError, Solution, did_you_mean, normal
from sdekit.elementary import axpy, broadcast
from sdekit_diffusion._counters import PILOT
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.evaluating import evaluating
from sdekit_diffusion._models.model import AbstractModel, as_model
from sdekit_diffusion._sampling.clock import on_clock
from sdekit_diffusion._sampling.grids import (
    AbstractGrid,
    Equidistributed,
    Focused,
    GeometricInSigma,
    Given,
    Karras,
    Native,
    Quadratic,
    Span,
    UniformInLogSNR,
    UniformInTime,
    smoothed,
)
from sdekit_diffusion._sampling.method import AbstractMethod, Descent, OnClock
from sdekit_diffusion._sampling.probability_flow import span_of
from sdekit_diffusion._sampling.refined import distance, refined

_HALVINGS = 5  # of the angle between two pilots
_PARTING = 0.1  # what a pilot where modes part weighs, one drawn 1
_FAR = 0.3  # deviations of the data: errors beyond are no longer told apart
_WIDTHS = (0.5, 1.0)  # of the smoothing in mean steps: the pilots choose where steps are moved, else it is the latter


@dataclass(frozen=True, eq=False)
class Adapted(AbstractGrid):
    """Steps that share out the error of a multistep rule on the probability flow of one model.

    A rule through k values, a polynomial in v = `AbstractModel.clock(l)`, makes the error C h^{k+1} F^{(k)}(v) v'(l)^k A'(l)
    in y in a step of length h, for dy = F dA of `on_clock` with the velocity, F along the trajectory. Of N steps with errors
    h^{k+1} w(l) those have the least sum whose density is

        1/h ~ w^{1/(k+1)},  w(l)^2 = E |Phi(l) F^{(k)}(v) v'(l)^k A'(l)|^2,

    Phi(l) the change of the end of the trajectory with its y at l. A pilot solve of a few samples on a fine grid shows F^{(k)}
    by differences, and p = Phi^T u, for a random u, by dp/dA = -(dF/dy)^T p from the end backwards.

    Phi is large for the few samples that pass close to where modes part, and a wrong mode is the largest of errors. Half of the
    pilots are such samples: of the x_T = a cos(phi) + b sin(phi) between two that are drawn, all of the same law, those whose
    end turns from that of a to that of b.

    The density is smoothed: F^{(k)} changes sign along a trajectory, and the errors of neighbouring steps cancel as long as
    their lengths change slowly. A part of the steps is spread evenly, for what few samples do not show, and because the next
    order of the error is not small in long steps.

    What arrives at the end is a sum of local errors with signs. Where an `OnClock` without noise takes few steps, they are then
    moved so that more of it cancels, by solves of every other pilot with that method; all of them judge by how much. That
    grid is for that method and that number of steps.

    The grid is a function of the weights, the method and its steps, and of nothing else: it is found anew in each call of
    `sample`, which tells the evaluations in `Solution.pilot`. `fitted` finds it once, to be used again and again until the
    weights change. The density is for the velocity and, with order 4, for three values, corrected; it serves four as well.
    Where there is noise, shorter steps towards the data are better.

    Arguments:
        order: k, 1 to 4: the larger, the more the rounding of float32 shows in F^{(k)}, as it does with more pilot_steps.
        pilots: how many samples, all in one batch, with gradients in x, which the network must have; unless given 64, or as
            many more, up to 512, as have 65,536 coordinates together: the fewer a sample has the less it shows.
        pilot_steps: how many steps they take; each is about two evaluations, one of them with a gradient. Some 70 evaluations
            a pilot go before.
        seed: what the pilots depend on.
        width: the deviation of the Gaussian that smooths the density, in units of l; that of a mean step comes on top.
        even: the density of the steps spread evenly over that of the others.
        moved: up to how many steps N are moved, by at most some 5 N / 2 + 50 solves of each pilot with the method and one with
            2 pilot_steps or 4 N steps, and with memory for N times the pilots; 0 is never.

    References:
        Hochbruck and Ostermann 2010, "Exponential integrators", for the errors; de Boor 1974, "Good approximation by splines
        with variable knots II", for equidistribution; Xue et al. 2024, arXiv 2402.17376, for grids from bounds of the error.
    """

    follows = True

    order: int = 4
    pilots: int | None = None
    pilot_steps: int = 64
    seed: int = 0
    width: float = 0.4
    even: float = 0.35
    moved: int = 32

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order is the number of values of a multistep rule, 1 to 4, not {self.order}")
        counts = (2 if self.pilots is None else self.pilots, self.pilot_steps, self.moved)
        if not all(isinstance(count, Integral) for count in counts):
            raise TypeError(
                f"pilots, pilot_steps and moved are whole numbers, not {self.pilots}, {counts[1]!r} and {counts[2]!r}"
            )
        if any(count < least for count, least in zip(counts, (2, 10, 0), strict=True)):
            raise ValueError(
                "a pilot solve needs 2 samples and 10 steps or more, and moves 0 or more; "
                f"not {self.pilots}, {self.pilot_steps} and {self.moved}"
            )
        if not (0 < self.width < math.inf and 0 < self.even < math.inf):
            raise ValueError(f"width and even must be positive numbers, not {self.width} and {self.even}")

    def points(self, sde: AbstractDiffusion, span: Span, steps: int) -> Tensor:
        raise ValueError("an adapted grid comes from a model: ask Adapted().fitted(model, sde) for its points")

    def fitted(
        self,
        model: AbstractModel,
        sde: AbstractDiffusion | str | None = None,
        span: Span | None = None,
        method: object = None,
    ) -> Equidistributed | Given:
        """The grid of a model, for the weights that it has now.

        Arguments:
            model: what it is given by sample must be for as many samples as there are pilots, in no order: where steps are
                moved, they are by every other pilot.
            sde: the diffusion; the model's own unless given.
            span: the range of l; down to sigma / alpha = 1e-3 unless given.
            method: whose steps it is for, such as `OnClock(integrand="velocity", steps=20)`; unless given it is for any
                number, and none are moved.

        Raises:
            TypeError: for a method that is no object of one, such as its name.
        """
        if not isinstance(method, AbstractMethod | None):
            raise TypeError(f"method is an object with steps, such as replace(METHODS['default'], steps=20), not {method!r}")
        model, sde = as_model(model, sde)
        down = self._drawn(model, sde, span or span_of(model, sde, 1e-3))
        with torch.inference_mode(mode=False), torch.no_grad(), evaluating(model, len(down.x)):
            start, evaluations = self._parting(down)
            pilot = OnClock(steps=self.pilot_steps, grid=UniformInLogSNR()).run(replace(start, save="all"))
            errors = self._errors(model, sde, pilot, (start.span[1] - start.span[0]) / self.pilot_steps)
            grid = self._shared(errors, start.span, evaluations + int(pilot.evaluations.sum()) + len(pilot.x) * len(pilot.ts))
            if isinstance(method, OnClock) and method.eta == 0 and not method.rule.normals and 1 < method.steps <= self.moved:
                return _moved(grid, method, start, max(2 * self.pilot_steps, 4 * method.steps))
            return grid

    def _drawn(self, model: AbstractModel, sde: AbstractDiffusion, span: Span) -> Descent:
        """Pilots from the prior."""
        if model.shape is None:
            raise ValueError("the shape of one sample is not known: a model for an adapted grid needs its shape=")
        n = self.pilots or max(64, min(512, 65536 // math.prod(model.shape)))
        for name, value in model.conditions.items():
            if isinstance(value, Tensor) and value.ndim and len(value) != n:
                raise ValueError(
                    f"{name} has {len(value)} entries for {n} pilots: fit the grid beforehand, by "
                    f"Adapted(pilots={n}).fitted(model.given({name}=...), method=...) with {n} entries, and pass it as grid="
                )
        dtype, device = model.place()
        dtype, start = torch.promote_types(dtype, torch.float32), float(sde.time(span[0]))
        return Descent(model, sde, sde.prior((n, *model.shape), seed=self.seed, t=start, dtype=dtype, device=device), span)

    def _parting(self, down: Descent) -> tuple[Descent, int]:
        """The latter half of the pilots moved to where ends part, by bisection of phi; and the evaluations that this took."""
        half, method = len(down.x) // 2, OnClock(integrand="velocity", steps=20)
        index = torch.arange(len(down.x) - half, len(down.x), device=down.x.device)
        a, b, low = down.x[:half], down.x[index], torch.zeros(half, dtype=torch.float64)
        these, high = replace(down, model=down.model.rows(index), x=b), torch.full_like(low, 0.5 * math.pi)
        of_a, of_b = (method.run(replace(these, x=one)).x for one in (a, b))
        for _ in range(_HALVINGS):
            phi = 0.5 * (low + high)
            x = method.run(replace(these, x=_between(a, b, phi))).x
            near_a = ((x - of_a).square() - (x - of_b).square()).reshape(half, -1).sum(dim=1).cpu() < 0
            low, high = torch.where(near_a, phi, low), torch.where(near_a, high, phi)
        moved = torch.cat([down.x[: len(down.x) - half], _between(a, b, 0.5 * (low + high))])
        return replace(down, x=moved), half * method.steps * (2 + _HALVINGS)

    def _errors(self, model: AbstractModel, sde: AbstractDiffusion, pilot: Solution, h: float) -> Tensor:
        """w in the middle of each k + 1 neighbouring points, `(pilot_steps + 1 - k,)`, found from the end backwards."""
        assert pilot.xs is not None
        problem = on_clock(model, sde, integrand="velocity")
        dual = normal(self.seed, torch.arange(len(pilot.x), device=pilot.x.device), tuple(pilot.x.shape[1:]), counter=PILOT)
        dual, errors = dual.to(pilot.x.dtype), []
        recent = deque[tuple[float, Tensor]](maxlen=self.order + 1)
        weights = deque[tuple[Tensor, float]](maxlen=self.order // 2 + 1)
        for t, x in zip(pilot.ts.flip(0).tolist(), pilot.xs.flip(0), strict=True):
            l = float(sde.log_snr(t))
            angle, before = float(problem.time(l)), float(problem.time(l - h))
            slope, pulled = _pulled(problem, angle, x / float(problem.scale(l)), dual)
            recent.append((float(model.clock(l)), slope.to(torch.float64)))
            weights.append((dual, -0.5 * math.sin(2 * angle)))  # dA/dl
            if len(recent) == self.order + 1:
                (adjoint, rate), derivative = weights[0], _derivative(*zip(*recent, strict=True), h)
                errors.append(rate * (adjoint * derivative).reshape(len(dual), -1).sum(dim=1).square().mean().sqrt())
            dual = axpy(angle - before, pulled, dual)
        return torch.stack(errors).flip(0).cpu()

    def _shared(self, errors: Tensor, span: Span, evaluations: int) -> Equidistributed:
        """The grid from errors w at points spread evenly over the span, but for half of k steps at its ends."""
        edge = 0.5 * self.order / self.pilot_steps * (span[1] - span[0])
        l = torch.linspace(span[0] + edge, span[1] - edge, len(errors), dtype=torch.float64)
        fine = torch.linspace(*span, 1001, dtype=torch.float64)
        density = smoothed(errors ** (1 / (self.order + 1)), l, fine, self.width)
        return Equidistributed(fine, density / density.mean() + self.even, evaluations, width=_WIDTHS[-1])


def _moved(grid: Equidistributed, method: OnClock, down: Descent, exact_steps: int) -> Given:
    """The points of a method's steps: those of the grid, moved until the errors of the pilots at the end cancel."""
    n, far = len(down.x), _FAR * down.model.data_std
    exact = OnClock(integrand="velocity", steps=exact_steps, grid=grid).run(down)
    evaluations = grid.evaluations + int(exact.evaluations.sum())
    weights = torch.cat([torch.ones(n - n // 2), torch.full((n // 2,), _PARTING)]).to(down.x)
    everyone = torch.arange(n, device=down.x.device)
    learn = everyone[::2]

    def errors(points: Tensor, index: Tensor) -> Tensor:
        nonlocal evaluations
        start = replace(down, x=down.x[index], model=down.model.rows(index))
        try:
            solution = replace(method, grid=Given(points)).run(start)
        except NotFiniteError:  # steps that do not do; what the solve took is not told
            evaluations += len(index) * method.steps
            return torch.full_like(start.x, math.inf)
        evaluations += int(solution.evaluations.sum())
        return solution.x - exact.x[index]

    def judged(points: Tensor) -> float:
        return distance(errors(points, everyone), weights, far)

    equal = torch.ones(method.steps, dtype=torch.float64)
    widths = [replace(grid, width=width) for width in _WIDTHS]
    grid = min(widths, key=lambda one: judged(one.divided(down.span, equal)))
    shares = refined(
        lambda m: errors(grid.divided(down.span, m), learn),
        lambda m: judged(grid.divided(down.span, m)),
        weights[learn],
        method.steps,
        far,
    )
    return Given(grid.divided(down.span, shares), evaluations)


def _between(a: Tensor, b: Tensor, phi: Tensor) -> Tensor:
    """a cos(phi) + b sin(phi), phi `(batch,)`."""
    return a * broadcast(phi.cos().to(a), a) + b * broadcast(phi.sin().to(b), b)


def _derivative(v: tuple[float, ...], values: tuple[Tensor, ...], h: float) -> Tensor:
    """F^{(k)}(v) (dv/dl)^k, but for the sign, from k + 1 values, v the clock at points of l with distance h."""
    difference, k = torch.stack(values), len(values) - 1
    for j in range(1, k + 1):
        apart = [j / (b - a) for a, b in zip(v, v[j:], strict=False)]
        difference = difference.diff(dim=0) * broadcast(torch.tensor(apart, dtype=torch.float64), difference)
    return difference[0] * ((v[-1] - v[0]) / (k * h)) ** k


def _pulled(problem: AbstractClocked, t: float, x: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
    """f and (df/dx)^T p."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        slope = problem.drift(t, x)
        (pulled,) = torch.autograd.grad(slope, x, dual, materialize_grads=True)
    return slope.detach(), pulled


GRIDS: dict[str, AbstractGrid] = {
    "native": Native(),
    "time": UniformInTime(),
    "quadratic": Quadratic(),
    "sigma": GeometricInSigma(),
    "karras": Karras(),
    "log_snr": UniformInLogSNR(),
    "focused": Focused(),
    "adapted": Adapted(),
}


def grid_of(given: AbstractGrid | str) -> AbstractGrid:
    """A grid from its name.

    Raises:
        TypeError: for what is neither a name nor a grid.
        ValueError: for an unknown name.
    """
    if isinstance(given, AbstractGrid):
        return given
    if not isinstance(given, str):
        raise TypeError(
            f"grid must be a name or a grid, not {type(given).__name__}; points of your own go as Given(l), with "
            "l = log(alpha / sigma) increasing, -torch.log(sigmas) where alpha = 1"
        )
    if given not in GRIDS:
        raise ValueError(
            f"unknown grid {given!r}; choose one of {', '.join(GRIDS)}, or pass a grid such as Karras(rho=7)"
            f"{did_you_mean(given, GRIDS)}"
        )
    return GRIDS[given]

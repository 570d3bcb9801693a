"""The grid that is adapted to a model: a pilot solve, its local errors, and steps that share them out."""

import math
from collections import deque
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

from sdekit import AbstractClocked, Solution, normal
from sdekit.elementary import axpy, broadcast
from sdekit_diffusion._clock import on_clock
from sdekit_diffusion._counters import PILOT
from sdekit_diffusion._diffusion import AbstractDiffusion
from sdekit_diffusion._flow import span_of
from sdekit_diffusion._grids import (
    AbstractGrid,
    Equidistributed,
    Focused,
    GeometricInSigma,
    Karras,
    Native,
    Quadratic,
    Span,
    UniformInLogSNR,
    UniformInTime,
    smoothed,
)
from sdekit_diffusion._model import AbstractModel, as_model, evaluating
from sdekit_diffusion._samplers import Descent, OnClock

_HALVINGS = 5  # of the angle between two pilots


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

    The grid is a function of the weights, and of nothing else: it is found anew in each call of `sample`, which tells the
    evaluations in `Solution.pilot`. `fitted` finds it once, to be used again and again until the weights change. It is made
    for the default method on the probability flow. Where there is noise, shorter steps towards the data are better.

    Arguments:
        order: k, 1 to 4: the larger, the more the rounding of float32 shows in F^{(k)}, as it does with more pilot_steps.
        pilots: how many samples, all in one batch, with gradients in x, which the network must have: fewer where they are
            large.
        pilot_steps: how many steps they take; each is about two evaluations, one of them with a gradient. Some 70 evaluations
            a pilot go before.
        seed: what the pilots depend on.
        width: the deviation of the Gaussian that smooths the density, in units of l; that of a mean step comes on top.
        even: the density of the steps spread evenly over that of the others.

    References:
        Hochbruck and Ostermann 2010, "Exponential integrators", for the errors; de Boor 1974, "Good approximation by splines
        with variable knots II", for equidistribution; Xue et al. 2024, arXiv 2402.17376, for grids from bounds of the error.
    """

    order: int = 3
    pilots: int = 32
    pilot_steps: int = 64
    seed: int = 0
    width: float = 0.4
    even: float = 0.1

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order is the number of values of a multistep rule, 1 to 4, not {self.order}")
        if not (isinstance(self.pilots, Integral) and isinstance(self.pilot_steps, Integral)):
            raise TypeError(f"pilots and pilot_steps are whole numbers, not {self.pilots!r} and {self.pilot_steps!r}")
        if self.pilots < 2 or self.pilot_steps < 10:
            raise ValueError(f"a pilot solve needs 2 samples and 10 steps or more, not {self.pilots} and {self.pilot_steps}")
        if not (0 < self.width < math.inf and 0 < self.even < math.inf):
            raise ValueError(f"width and even must be positive numbers, not {self.width} and {self.even}")

    def points(self, sde: AbstractDiffusion, span: Span, steps: int) -> Tensor:
        raise ValueError("an adapted grid comes from a model: ask Adapted().fitted(model, sde) for its points")

    def fitted(
        self, model: AbstractModel, sde: AbstractDiffusion | str | None = None, span: Span | None = None
    ) -> Equidistributed:
        """The grid of a model, for the weights that it has now.

        Arguments:
            model: what it is given by sample must be for as many samples as there are pilots.
            sde: the diffusion; the model's own unless given.
            span: the range of l; down to sigma / alpha = 1e-3 unless given.
        """
        model, sde = as_model(model, sde)
        span = span or span_of(model, sde, 1e-3)
        self._require(model)
        with torch.inference_mode(mode=False), torch.no_grad(), evaluating(model, self.pilots):
            start, evaluations = self._parting(self._drawn(model, sde, span))
            pilot = OnClock(steps=self.pilot_steps, grid=UniformInLogSNR()).run(replace(start, save="all"))
            errors = self._errors(model, sde, pilot, (span[1] - span[0]) / self.pilot_steps)
        return self._shared(errors, span, evaluations + int(pilot.evaluations.sum()) + self.pilots * len(pilot.ts))

    def _drawn(self, model: AbstractModel, sde: AbstractDiffusion, span: Span) -> Descent:
        """Pilots from the prior."""
        if model.shape is None:
            raise ValueError("the shape of one sample is not known: a model for an adapted grid needs its shape=")
        dtype, device = model.place()
        dtype, start = torch.promote_types(dtype, torch.float32), float(sde.time(span[0]))
        return Descent(
            model, sde, sde.prior((self.pilots, *model.shape), seed=self.seed, t=start, dtype=dtype, device=device), span
        )

    def _parting(self, down: Descent) -> tuple[Descent, int]:
        """The latter half of the pilots moved to where ends part, by bisection of phi; and the evaluations that this took."""
        half, method = self.pilots // 2, OnClock(integrand="velocity", steps=20)
        index = torch.arange(self.pilots - half, self.pilots, device=down.x.device)
        a, b, low = down.x[:half], down.x[index], torch.zeros(half, dtype=torch.float64)
        these, high = replace(down, model=down.model.rows(index), x=b), torch.full_like(low, 0.5 * math.pi)
        of_a, of_b = (method.run(replace(these, x=one)).x for one in (a, b))
        for _ in range(_HALVINGS):
            phi = 0.5 * (low + high)
            x = method.run(replace(these, x=_between(a, b, phi))).x
            near_a = ((x - of_a).square() - (x - of_b).square()).reshape(half, -1).sum(dim=1).cpu() < 0
            low, high = torch.where(near_a, phi, low), torch.where(near_a, high, phi)
        moved = torch.cat([down.x[: self.pilots - half], _between(a, b, 0.5 * (low + high))])
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
        return Equidistributed(fine, density / density.mean() + self.even, evaluations, width=1.0)

    def _require(self, model: AbstractModel) -> None:
        for name, value in model.conditions.items():
            if isinstance(value, Tensor) and value.ndim and len(value) != self.pilots:
                raise ValueError(
                    f"{name} has {len(value)} entries for {self.pilots} pilots: fit the grid beforehand, by "
                    f"Adapted().fitted(model.given({name}=...)) with {self.pilots} entries, and pass it as grid="
                )


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
        ValueError: for an unknown name.
    """
    if isinstance(given, AbstractGrid):
        return given
    if given not in GRIDS:
        raise ValueError(f"unknown grid {given!r}; choose one of {', '.join(GRIDS)}, or pass a grid such as Karras(rho=7)")
    return GRIDS[given]

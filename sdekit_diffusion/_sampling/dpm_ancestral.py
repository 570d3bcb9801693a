"""k-diffusion's two-stage ancestral samplers: a deterministic step to below the next noise level,
then new noise up to that level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor

from sdekit import AbstractSDE, AbstractSolver, Increment, Order, Step, computed
from sdekit.elementary import Time, axpy
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._sampling.grid import AbstractGrid
from sdekit_diffusion._sampling.method import ReverseProblem
from sdekit_diffusion._sampling.on_clock import AbstractOnClock, OnClock
from sdekit_diffusion._sampling.published_grids import UniformInLogSNR

Prediction = Literal["noise", "data"]


@dataclass(frozen=True, eq=False)
class DPMAncestralStep(AbstractSolver):
    """The step of `DPMAncestral` on the clock t = sigma / alpha, of y = x / alpha."""

    integrand: Prediction = "noise"
    eta: float = 1.0
    s_noise: float = 1.0
    order = {"none": Order(2, 2)}

    @computed
    def normals(self) -> int:
        return 1 if self.eta else 0

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: object
    ) -> Step:
        assert isinstance(t0, float), "ancestral samplers live on fixed grids"
        assert isinstance(t1, float)
        added, low, middle = self._levels(t0, t1)
        eps = problem.drift(t0, x)
        share = low / t0
        if not low:  # the middle in log(t) would be at t = 0 too
            end = axpy(-t0, eps, x)
        else:
            stage = axpy(middle - t0, eps, x)
            eps = problem.drift(middle, stage)
            if self.integrand == "noise":
                end = axpy(low - t0, eps, x)
            else:
                end = axpy(1 - share, axpy(-middle, eps, stage), share * x)
        if not self.eta:
            return Step(end)
        assert noise.z is not None
        return Step(axpy(self.s_noise * added, noise.z[0], end))

    def stage_times(self, problem: AbstractSDE, ts: Sequence[float]) -> Sequence[float]:
        middles = [self._levels(t0, t1)[2] for t0, t1 in pairwise(ts)]
        return [middle for middle in middles if middle]

    def _levels(self, t0: float, t1: float) -> tuple[float, float, float]:
        """The standard deviation of the noise that a step adds, the level before that, and the
        middle of the step to there in log(t).
        """
        added = min(1.0, self.eta * math.sqrt(1 - (t1 / t0) ** 2)) * t1
        low = math.sqrt(t1 * t1 - added * added)
        return added, low, math.sqrt(t0 * low)


@dataclass(frozen=True, eq=False)
class DPMAncestral(AbstractOnClock):
    """DPM-Solver-2 or DPM-Solver++(2S) with ancestral noise: k-diffusion's `sample_dpm_2_ancestral`
    and `sample_dpmpp_2s_ancestral`.

    With t = sigma / alpha, y = x / alpha and

        c = eta t_1 sqrt(1 - t_1^2 / t_0^2),  t_1' = sqrt(t_1^2 - c^2),

    a step consists of two stages from y_0 at t_0 to y at t_1', with the noise or the data
    predicted, and of y_1 = y + s_noise c z. The second stage is at sqrt(t_0 t_1'), which may be
    below t_1 for eta > 1. A step takes two evaluations, or one where c = t_1. For s_noise = 1 the
    law converges with order two. eta = 0 is the method without noise.

    Arguments:
        integrand: "noise" for DPM-Solver-2, "data" for DPM-Solver++(2S).
        eta: the noise, 0 or larger, in the sense of `DDIM`; c is at most t_1.
        s_noise: the standard deviation of the noise relative to c; only 1 keeps the law.
        steps, grid: the number of steps and their grid, unless `sample` receives others.

    Raises:
        TypeError: for an eta or s_noise that is not a number.
        ValueError: for another integrand, or a negative eta or s_noise.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> method = sd.DPMAncestral("data", eta=0.5)
        >>> sd.sample(model, 4, sde="vp", method=method, steps=20, seed=0).shape
        torch.Size([4, 1])

    References:
        Karras et al. 2022, arXiv 2206.00364, for DPM-Solver-2 on sigma; Lu et al. 2022,
        arXiv 2211.01095, for DPM-Solver++(2S); Song, Meng and Ermon 2021, arXiv 2010.02502, for
        the noise.
    """

    integrand: Prediction = "noise"
    eta: float = 1.0
    s_noise: float = 1.0
    steps: int = field(default=50, kw_only=True)
    grid: AbstractGrid = field(default=UniformInLogSNR(), kw_only=True)

    def __post_init__(self) -> None:
        require_numbers(self, "eta", "s_noise")
        if self.integrand not in get_args(Prediction):
            raise ValueError(f"integrand must be 'noise' or 'data', not {self.integrand!r}")
        if not (0 <= self.eta < math.inf and 0 <= self.s_noise < math.inf):
            raise ValueError(
                f"DPMAncestral needs eta >= 0 and s_noise >= 0, not {self.eta} and {self.s_noise}"
            )

    @property
    def solver(self) -> AbstractSolver:
        """The solver of one step."""
        return DPMAncestralStep(self.integrand, self.eta, self.s_noise)

    def on_clock(self, problem: ReverseProblem) -> OnClock:
        return OnClock(self.solver, integrand="noise", steps=self.steps, grid=self.grid)

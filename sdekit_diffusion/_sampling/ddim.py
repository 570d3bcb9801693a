"""DDIM with its own eta, and the two-stage sampler that consists of its steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sdekit import AbstractSDE, AbstractSolver, Increment, Order, Step, computed
from sdekit.elementary import Time, axpy
from sdekit_diffusion._arguments.inputs import require_numbers
from sdekit_diffusion._sampling.coordinates import Coordinates, Span
from sdekit_diffusion._sampling.grid import AbstractGrid
from sdekit_diffusion._sampling.method import ReverseProblem
from sdekit_diffusion._sampling.on_clock import AbstractOnClock, OnClock
from sdekit_diffusion._sampling.published_grids import UniformInLogSNR


@dataclass(frozen=True, eq=False)
class DDIMStep(AbstractSolver):
    """The step of `DDIM` for the equation of noise level eta in y = x e^{eta^2 l} / sigma, on its
    clock, from whose drift the step computes D.

    z = W / sqrt(t_1 - t_0). With two stages, W in the middle is drawn from its law given W over the
    step, with another normal.
    """

    eta: float = 0.0
    stages: int = 1
    s_noise: float = 1.0

    @computed
    def order(self) -> Mapping[Any, Order]:
        weak = self.stages if self.eta in (0, 1) else 1
        return {"additive": Order(1, weak)} if self.eta else {"none": Order(weak, weak)}

    @computed
    def normals(self) -> int:
        return 1 if self.stages == 2 and self.eta else 0

    def stage_times(self, problem: AbstractSDE, ts: Sequence[float]) -> Sequence[float]:
        return list(map(_middle, ts[:-1], ts[1:])) if self.stages == 2 else ()

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: object
    ) -> Step:
        assert isinstance(t0, float), "DDIM lives on fixed grids"
        assert isinstance(t1, float)
        data = problem.drift(t0, x) * self._data_factor(t0)
        if self.stages == 2:
            middle = _middle(t0, t1)
            w = noise.w
            if w is not None:
                assert noise.z is not None
                r = (middle - t0) / (t1 - t0)
                w = axpy(math.sqrt((1 - r) * (middle - t0)), noise.z[0], r * w)
            stage = self._advance(t0, middle, x, data, w)
            data = problem.drift(middle, stage) * self._data_factor(middle)
        return Step(self._advance(t0, t1, x, data, noise.w))

    def _l(self, t: float) -> float:
        return math.log(t) / (2 * self.eta**2 or 1)

    def _data_factor(self, t: float) -> float:
        """D over the drift D dA/dt."""
        a = 1 + self.eta**2
        q = 2 * self.eta**2
        return q / a * math.exp((q - a) * self._l(t)) if q else 1.0

    def _advance(self, t0: float, t1: float, y: Tensor, data: Tensor, w: Tensor | None) -> Tensor:
        l0 = self._l(t0)
        l1 = self._l(t1)
        level = self.eta**2
        c = min(1.0, self.eta * math.sqrt(-math.expm1(2 * (l0 - l1))))
        signal = math.sqrt(1 - c * c)
        scale = math.exp(level * l1)
        y = axpy(
            scale * (math.exp(l1) - signal * math.exp(l0)),
            data,
            scale * signal * math.exp(-level * l0) * y,
        )
        return y if w is None else axpy(self.s_noise * scale * c / math.sqrt(t1 - t0), w, y)


def _middle(t0: float, t1: float) -> float:
    """The middle of a step in log(t)."""
    return math.sqrt(t0) * math.sqrt(t1)  # the product may overflow


@dataclass(frozen=True, eq=False)
class DDIM(AbstractOnClock):
    """DDIM, whose eta is the noise relative to that of DDPM's ancestral sampler: with
    tau = sigma / alpha and y = x / alpha,

        y_1 = D + sqrt(tau_1^2 - c^2) (y_0 - D) / tau_0 + s_noise c z,
        c = eta tau_1 sqrt(1 - tau_1^2 / tau_0^2).

    With one stage D is the denoiser at the start of the step: this is also k-diffusion's Euler
    sampler with ancestral noise. With two stages D is the denoiser in the middle of the step in
    log(tau), at a state that a step of one stage predicts: k-diffusion's `sample_dpmpp_sde`, and
    for eta = 0 DPM-Solver++(2S).

    For eta = 0 and eta = 1 the noise is that of `OnClock(eta=eta)`; for other values the variance
    of a step differs, and converges to it for short steps. As in `OnClock`, one Brownian path
    serves all grids; its time is the clock of the noise. In k-diffusion this time is sigma, so that
    the two normals of a step have another correlation.

    Without noise the order is the number of stages. With noise the strong order is one, and the
    weak order is two for two stages and eta = 1, else one.

    Arguments:
        eta: the noise, 0 for none and 1 for DDPM's; c is at most tau_1.
        stages: evaluations per step, 1 or 2.
        s_noise: the standard deviation of the noise relative to c; only 1 keeps the law.
        steps, grid: the number of steps and their grid, unless `sample` receives others.

    Raises:
        TypeError: for an eta or s_noise that is not a number.
        ValueError: for a negative eta or s_noise, or another number of stages.

    Example:
        >>> model = sd.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
        >>> method = sd.DDIM(eta=1.0, stages=2)
        >>> sd.sample(model, 4, sde="vp", method=method, steps=20, seed=0).shape
        torch.Size([4, 1])

    References:
        Song, Meng and Ermon 2021, arXiv 2010.02502, equations 12 and 16; Lu et al. 2022,
        arXiv 2211.01095, for two stages.
    """

    eta: float = 0.0
    stages: int = 1
    s_noise: float = 1.0
    steps: int = field(default=100, kw_only=True)
    grid: AbstractGrid = field(default=UniformInLogSNR(), kw_only=True)

    def __post_init__(self) -> None:
        require_numbers(self, "eta", "s_noise")
        if not (
            0 <= self.eta < math.inf and self.stages in (1, 2) and 0 <= self.s_noise < math.inf
        ):
            values = f"{self.eta}, {self.stages} and {self.s_noise}"
            raise ValueError(f"DDIM needs eta >= 0, 1 or 2 stages and s_noise >= 0, not {values}")
        object.__setattr__(self, "eta", float(self.eta))

    @property
    def solver(self) -> AbstractSolver:
        """The solver of one step."""
        return DDIMStep(self.eta, self.stages, self.s_noise)

    @property
    def _on_clock(self) -> OnClock:
        return OnClock(self.solver, self.eta, steps=self.steps, grid=self.grid)

    def on_clock(self, problem: ReverseProblem) -> OnClock:
        return self._on_clock

    def knots(self, coordinates: Coordinates, span: Span) -> Tensor:
        return self._on_clock.knots(coordinates, span)

"""Predictor-corrector sampling: moves of a Markov chain that leaves p_t invariant, then a step of a
solver.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from sdekit._arguments.numbers import require_number
from sdekit._equations.computed import computed
from sdekit._equations.sde import AbstractSDE, NoiseType, SDEType
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit.elementary import Time, broadcast, norm


class AbstractCorrector(ABC):
    """Moves a state towards the law p_t at a fixed time. A subclass defines `normals` and
    `correct`.

    Attributes:
        normals: the number of standard normals, shaped like the state, that it uses.

    Example:
        >>> class Unadjusted(sdekit.AbstractCorrector):  # a Langevin step of fixed size
        ...     normals = 1
        ...     def correct(self, problem, t0, t1, x, z):
        ...         return x + 0.01 * problem.score(t0, x) + 0.02**0.5 * z[0]
        >>> vp = sd.VPSDE()
        >>> reverse = sdekit.ReverseSDE(vp, lambda t, x: -x)  # of data from N(0, I)
        >>> solver = sdekit.PredictorCorrector(sdekit.EulerMaruyama(), Unadjusted())
        >>> ts = sdekit.uniform(1.0, 1e-3, 20)
        >>> sdekit.solve(reverse, torch.randn(4, 2), ts, solver=solver).x.shape
        torch.Size([4, 2])
    """

    normals: int

    @abstractmethod
    def correct(self, problem: AbstractSDE, t0: float, t1: float, x: Tensor, z: Tensor) -> Tensor:
        """x at t0, corrected; t1 is the end of the step that follows, and z are standard normals,
        `(normals, batch, *event)`.
        """


@dataclass(frozen=True, eq=False)
class Langevin(AbstractCorrector):
    """The Langevin corrector x <- x + e s + sqrt(2 e) z with the score s and a step size e for each
    sample:

        e = 2 a (snr sigma)^2 (|z|^2 + m) / (sigma^2 |s|^2 + m).

    s is evaluated at (t_0, x). The norms are those of one sample. The forward equation gives
    sigma = sigma(t_0) and a = alpha(t_0)^2 / alpha(t_1)^2. With m = 0 this is the published step,
    2 a (snr |z| / |s|)^2, except that its norms are averages over the batch. The norms of one
    sample are close to such averages only in many dimensions: in two, |s| may be near 0, the step
    becomes large, and mode weights are wrong by tens of standard errors. So m coordinates are added
    to both squared norms, each with the mean of a squared coordinate, 1.

    Arguments:
        snr: the ratio of the norms of signal and noise in a move; Song et al. use 0.16 on CIFAR-10
            and 0.075 to 0.17 elsewhere.
        steps: the number of such moves per time step.
        m: the number of added coordinates. For an equation without a known kernel m is 0 and a is
            1.

    Raises:
        TypeError: for an snr or an m that is not a number; in a solve of an equation without a
            score.
        ValueError: for an snr that is not positive, steps < 1 or a negative m.

    Example:
        >>> vp = sd.VPSDE()
        >>> reverse = sdekit.ReverseSDE(vp, lambda t, x: -x)  # of data from N(0, I)
        >>> corrector = sdekit.Langevin(snr=0.16, steps=1)
        >>> solver = sdekit.PredictorCorrector(sdekit.ReverseDiffusion(), corrector)
        >>> ts = sdekit.uniform(1.0, 1e-3, 100)
        >>> sdekit.solve(reverse, torch.randn(4, 2), ts, solver=solver).x.shape
        torch.Size([4, 2])

    References:
        Song et al. 2021, arXiv 2011.13456, algorithms 4 and 5.
    """

    snr: float = 0.16
    steps: int = 1
    m: float = 100.0

    def __post_init__(self) -> None:
        require_number("snr", self.snr, tensors=True)
        require_number("m", self.m, tensors=True)
        if not (self.snr > 0 and self.steps >= 1 and self.m >= 0):
            raise ValueError(
                f"Langevin needs snr > 0, steps >= 1 and m >= 0, not {self.snr}, {self.steps} and "
                f"{self.m}"
            )

    @computed
    def normals(self) -> int:
        return self.steps

    def correct(self, problem: AbstractSDE, t0: float, t1: float, x: Tensor, z: Tensor) -> Tensor:
        kernel0 = problem.kernel(t0)
        kernel1 = problem.kernel(t1)
        a = 1.0
        variance = 1.0
        m = 0.0
        if kernel0 is not None and kernel1 is not None:
            a = (kernel0[0] / kernel1[0]) ** 2
            variance = kernel0[1] ** 2
            m = self.m
        for noise in z:
            s = problem.score_at(t0)(x)
            ratio = (norm(noise).square() + m) / (variance * norm(s).square() + m)
            e = broadcast(2 * a * self.snr**2 * variance * ratio, x)
            x = x + e * s + torch.sqrt(2 * e) * noise
        return x


@dataclass(frozen=True, eq=False)
class PredictorCorrector(AbstractSolver):
    """A predictor-corrector sampler: the corrector at t_0, then the predictor from t_0 to t_1.

    Arguments:
        predictor: any solver; multistep rules do not keep their order, because they use values from
            before the corrections.
        corrector: a Markov chain that leaves p_t invariant, such as `Langevin`; it needs a problem
            with a score.

    Raises:
        TypeError: in a solve of an equation without a score.

    Example:
        >>> vp = sd.VPSDE()
        >>> reverse = sdekit.ReverseSDE(vp, lambda t, x: -x)  # of data from N(0, I)
        >>> solver = sdekit.PredictorCorrector(sdekit.ReverseDiffusion(), sdekit.Langevin())
        >>> ts = sdekit.uniform(1.0, 1e-3, 100)
        >>> sdekit.solve(reverse, torch.randn(4, 2), ts, solver=solver).x.shape
        torch.Size([4, 2])
    """

    predictor: AbstractSolver
    corrector: AbstractCorrector

    @computed
    def order(self) -> Mapping[NoiseType, Order]:
        # Each step has a correction: paths do not converge, and the law keeps the bias of the
        # corrector. So no order is promised.
        return dict.fromkeys(self.predictor.order, Order(math.nan, math.nan))

    @computed
    def normals(self) -> int:
        return self.predictor.normals + self.corrector.normals

    @computed
    def levy(self) -> Literal["H", "A"] | None:
        return self.predictor.levy

    @computed
    def sde_type(self) -> SDEType:
        return self.predictor.sde_type

    @computed
    def differentiates(self) -> bool:
        return self.predictor.differentiates

    @computed
    def iterates(self) -> bool:
        return self.predictor.iterates

    def plan(self, problem: AbstractSDE, ts: Sequence[float]) -> Self:
        return replace(self, predictor=self.predictor.plan(problem, ts))

    def stage_times(self, problem: AbstractSDE, ts: Sequence[float]) -> Sequence[float]:
        return self.predictor.stage_times(problem, ts)

    def init(self, problem: AbstractSDE, t0: Time, x: Tensor) -> Tree:
        return self.predictor.init(problem, t0, x)

    def restarted(self, problem: AbstractSDE, t0: Time, x: Tensor, state: Tree) -> Tree:
        return self.predictor.restarted(problem, t0, x, state)

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        assert isinstance(t0, float), "correctors live on fixed grids"
        assert isinstance(t1, float)
        z = x.new_empty(0, *x.shape) if noise.z is None else noise.z  # None: neither needs normals
        count = self.predictor.normals
        x = self.corrector.correct(problem, t0, t1, x, z[count:])
        increment = noise._replace(z=z[:count])
        return self.predictor.step(problem, t0, t1, x, increment, state)

    def output(self, t0: float, x: Tensor, state: Tree) -> Tensor:
        return self.predictor.output(t0, x, state)

"""The predictors of Song et al.: steps back along the Markov chain that discretises a diffusion."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from sdekit._equations.sde import AbstractSDE
from sdekit._noise.white import Increment
from sdekit._solvers.contract import AbstractSolver, Order, Step, Tree
from sdekit.elementary import Time, axpy


@dataclass(frozen=True, eq=False)
class AbstractPredictor(AbstractSolver, ABC):
    """A step x_1 = a x_0 + b s(t_0, x_0) + c z of Anderson's equation, backwards in time.

    z = dW / sqrt(|dt|) is standard normal and s the score. If a predictor supports the probability
    flow, b is halved there and c is 0.

    a, b and c are functions of r, v and w from `AbstractSDE.chain`: the forward chain is
    x_0 = r x_1 + sqrt(v) z, and w is the variance of a step back. For most diffusions these are
    exact, from alpha and sigma at the two times; for VE, v is then the published
    sigma_i^2 - sigma_{i-1}^2. `VPSDE` has the published v = w = beta(t_0) |dt| and
    r = sqrt(1 - v), which converge to the exact ones as the step goes to 0.

    Example:
        >>> isinstance(sdekit.ReverseDiffusion(), sdekit.AbstractPredictor)
        True
        >>> sdekit.ReverseDiffusion().coefficients(r=0.9, v=0.19, w=0.1)
        (1.1, 0.19, 0.19)
    """

    order = {"additive": Order(1, 1)}

    @abstractmethod
    def coefficients(self, r: float, v: float, w: float) -> tuple[float, float, float]:
        """a, b and c^2."""

    def step(
        self, problem: AbstractSDE, t0: Time, t1: Time, x: Tensor, noise: Increment, state: Tree
    ) -> Step:
        assert isinstance(t0, float), "predictors live on fixed grids"
        assert isinstance(t1, float)
        a, b, variance = self.coefficients(*problem.chain(t1, t0))
        score = problem.score_at(t0)(x)
        if noise.w is None:
            return Step(axpy(0.5 * b, score, a * x))
        return Step(axpy((variance / (t0 - t1)) ** 0.5, noise.w, axpy(b, score, a * x)))


@dataclass(frozen=True, eq=False)
class ReverseDiffusion(AbstractPredictor):
    """The reverse-diffusion predictor x_1 = x_0 - (r - 1) x_0 + v s + sqrt(v) z: the increments of
    the forward chain, reversed.

    The forward chain has the drift increment (r - 1) x and the variance v, see `AbstractPredictor`.
    For VP the step is x + (1 - sqrt(1 - beta_i)) x + beta_i s + sqrt(beta_i) z with
    beta_i = beta(t_i) |dt|; for VE it is x + v s + sqrt(v) z with v = sigma_i^2 - sigma_{i-1}^2.
    For sub-VP the authors' code has no chain and uses f dt and g^2 dt, which is `EulerMaruyama`;
    here its increments, like those of all other diffusions, are integrated exactly. With eta = 0
    this is the step of the probability flow, x + (1 - r) x + v s / 2.

    Raises:
        TypeError: in a solve of an equation without a score or a kernel.
        ValueError: in a solve of `ReverseSDE` with an eta other than 0 and 1, or forward in time.

    Example:
        >>> vp = sd.VPSDE()
        >>> reverse = sdekit.ReverseSDE(vp, lambda t, x: -x)  # of data from N(0, I)
        >>> ts = sdekit.uniform(1.0, 1e-3, 100)
        >>> sdekit.solve(reverse, torch.randn(4, 2), ts, solver=sdekit.ReverseDiffusion()).x.shape
        torch.Size([4, 2])

    References:
        Song et al. 2021, arXiv 2011.13456, appendix E, algorithms 2 and 3; appendix D.3 for the
        flow.
    """

    order = {"additive": Order(1, 1), "none": Order(1, 1)}

    def coefficients(self, r: float, v: float, w: float) -> tuple[float, float, float]:
        return 2 - r, v, v


@dataclass(frozen=True, eq=False)
class Ancestral(AbstractPredictor):
    """The ancestral predictor x_1 = (x_0 + v s) / r + sqrt(w) z, a sample of q(x_1 | x_0, D) with
    the denoised state D = (x_0 + sigma^2 s) / alpha.

    For VP it is (x + beta_i s) / sqrt(1 - beta_i) + sqrt(beta_i) z, DDPM's sampler with the larger
    of its two variances. For VE it is x + v s + sqrt(w) z with v = sigma_i^2 - sigma_{i-1}^2 and
    w = v sigma_{i-1}^2 / sigma_i^2. For all diffusions but VP it is exact if the data are one
    point; it is then the step of `AdamsBashforth(1)` on the clock with eta = 1, which is DDPM's
    sampler with the smaller variance.

    Arguments:
        large: whether the variance is v, that of a step of the forward chain, for every diffusion.
            Where variance is preserved, v is beta_i = 1 - alpha_0^2 / alpha_1^2.

    Raises:
        TypeError: in a solve of an equation without a score or a kernel.
        ValueError: in a solve of an equation without noise, of `ReverseSDE` with another eta than
            1, or forward in time.

    Example:
        >>> vp = sd.VPSDE()
        >>> reverse = sdekit.ReverseSDE(vp, lambda t, x: -x)  # of data from N(0, I)
        >>> ts = sdekit.uniform(1.0, 1e-3, 100)
        >>> sdekit.solve(reverse, torch.randn(4, 2), ts, solver=sdekit.Ancestral()).x.shape
        torch.Size([4, 2])

    References:
        Song et al. 2021, arXiv 2011.13456, appendix F; Ho et al. 2020, arXiv 2006.11239,
        algorithm 2.
    """

    large: bool = False

    def coefficients(self, r: float, v: float, w: float) -> tuple[float, float, float]:
        return 1 / r, v / r, v if self.large else w

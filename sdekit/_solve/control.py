"""Step size control: the error of each sample, and the controller of its step size."""

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from sdekit._arguments.numbers import require_number
from sdekit._solve.active import Host

_SMALLEST = 1e-300  # of errors, which may be 0
# The largest logarithm of a factor, and of its inverse: with an infinite factor a step of length 0,
# or a length divided by it, would become NaN.
_LARGEST = 230.0


@dataclass(frozen=True, eq=False)
class PIDController:
    """Adaptive steps: a step is accepted if its relative error q <= 1, and the length of the next
    one is this length times safety q_n^-a q_{n-1}^b q_{n-2}^-c.

    q is the root mean square, over the coordinates of a sample, of
    error / (atol + rtol max(|x_0|, |x_1|)) with x_0 and x_1 at the ends of the step, in the units
    of `AbstractSDE.physical`. Each sample has its own q and steps. q_n is that of this step,
    q_{n-1} and q_{n-2} are those of the last two accepted ones. With k the power of the step size
    in the error estimate (`AbstractSolver.estimate_power`),
    a = (proportional + integral + derivative) / k, b = (proportional + 2 derivative) / k and
    c = derivative / k.

    Arguments:
        rtol, atol: the relative and the absolute tolerance, the same for all coordinates.
        proportional, integral, derivative: the coefficients of the controller; (0, 1, 0) is the
            classical rule, PI control such as (0.4, 0.3, 0) suits stiff equations, and
            (0.1, 0.3, 0) stochastic ones.
        safety: makes steps shorter, because the error is an estimate.
        smallest, largest: the limits of the factor by which the length of a step changes.
        first: the length of the first step. None estimates it for ordinary equations, and takes a
            tenth of the span for stochastic ones, whose steps on nested intervals can at most
            double, while rejections shorten them fast.
        max_steps: the largest number of steps per sample, including rejected ones.

    Raises:
        TypeError: for tolerances or other arguments that are not numbers.
        ValueError: for tolerances that are negative or both zero, factors out of order,
            coefficients out of range, a max_steps that is not a whole number from 1 on, or a first
            step that is not positive.

    Example:
        >>> ode = sdekit.ODE(lambda t, x: -x)
        >>> control = sdekit.PIDController(rtol=1e-3, atol=1e-6)
        >>> solver = sdekit.Dopri5()
        >>> x0 = torch.ones(2, 1)
        >>> solution = sdekit.solve(ode, x0, [0.0, 1.0], solver=solver, control=control)
        >>> solution.accepted.shape
        torch.Size([2])

    References:
        Hairer, Norsett and Wanner 1993, "Solving ordinary differential equations I", section II.4;
        Soderlind 2003, "Digital filters in adaptive time-stepping".
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    proportional: float = 0.0
    integral: float = 1.0
    derivative: float = 0.0
    safety: float = 0.9
    smallest: float = 0.2
    largest: float = 10.0
    first: float | None = None
    max_steps: int = 100_000

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if not isinstance(value, Real):
                raise TypeError(
                    f"{name} is a number, the same for all coordinates, not {value!r:.60}; for a "
                    "tolerance per coordinate, scale the coordinates or take odeint"
                )
        for name in ("proportional", "integral", "derivative", "safety", "smallest", "largest"):
            require_number(name, getattr(self, name))
        require_number("max_steps", self.max_steps)
        if self.first is not None:
            require_number("first", self.first)
        if not (self.rtol >= 0 and self.atol >= 0 and 0 < max(self.rtol, self.atol) < math.inf):
            raise ValueError(
                f"rtol and atol are tolerances, from 0 on and not both 0; not {self.rtol} and "
                f"{self.atol}"
            )
        if not 0 < self.smallest < self.safety <= 1 <= self.largest:
            raise ValueError(
                "the factors must be in the order 0 < smallest < safety <= 1 <= largest"
            )
        if not (
            0 < self.integral < math.inf
            and 0 <= self.proportional < math.inf
            and 0 <= self.derivative < math.inf
        ):
            raise ValueError(
                "integral must be positive, proportional and derivative not negative, and all "
                f"finite; not {self.integral}, {self.proportional} and {self.derivative}"
            )
        whole = self.max_steps >= 1 and self.max_steps % 1 == 0
        if not whole or (self.first is not None and not self.first > 0):
            raise ValueError(
                "max_steps must be a whole number from 1 on, such as 1_000_000, and first "
                f"positive; not {self.max_steps} and {self.first}"
            )

    def require_resolved(self, dtype: torch.dtype) -> None:
        """Refuses tolerances below the rounding of a dtype.

        Raises:
            ValueError: with the smallest tolerance that the dtype resolves.
        """
        resolution = 4 * torch.finfo(dtype).eps
        if max(self.rtol, self.atol) < resolution:
            raise ValueError(
                f"rtol = {self.rtol:g} and atol = {self.atol:g} are below what {dtype} resolves; "
                f"ask for {resolution:.1g} or more, or use a wider dtype"
            )

    @property
    def uses_history(self) -> bool:
        """Whether the factor depends on earlier errors."""
        return bool(self.proportional or self.derivative)

    def error(self, error: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        """q of each sample, float64, `(batch,)`; infinite where anything is not finite."""
        tiny = torch.finfo(x0.dtype).tiny  # atol may be 0 in this dtype
        atol = max(self.atol, tiny) if self.atol else tiny**0.5
        scale = torch.maximum(x0.abs(), x1.abs()).mul_(self.rtol).add_(atol)
        # Adding 0 x1 makes the ratio NaN where x1 is infinite: there the scale is infinite too, and
        # the ratio would be 0.
        ratio = torch.add(error, x1, alpha=0).div_(scale)
        if ratio.ndim != 2:
            ratio = ratio.reshape(len(x1), math.prod(x1.shape[1:]))
        q = torch.linalg.vector_norm(ratio, dim=1, dtype=torch.float64)
        q.mul_(max(1, ratio.shape[1]) ** -0.5)
        return torch.nan_to_num_(q, nan=math.inf, posinf=math.inf)

    def factor(self, q: Host, previous: Host, power: float) -> Host:
        """The factor of the next step, `(batch,)`, from q and the q of the two previous accepted
        steps, `(batch, 2)`, the last one first; power is k. All are arrays of float64.

        After a rejection it is less than 1.
        """
        p = self.proportional / power
        i = self.integral / power
        d = self.derivative / power
        log = -(p + i + d) * np.log(np.maximum(q, _SMALLEST))
        if self.uses_history:
            last, before = np.log(previous.T)
            log = log + (p + 2 * d) * last - d * before
        factor = self.safety * np.exp(np.maximum(np.minimum(log, _LARGEST), -_LARGEST))
        factor = np.minimum(np.maximum(factor, self.smallest), self.largest)
        return np.where(q > 1, np.minimum(factor, self.safety), factor)

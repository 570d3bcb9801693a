"""The probability flow as the likelihood and the adaptive sampler solve it, and the range over which a solve runs."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sdekit import AbstractSDE, AbstractSolver, PIDController, Solution, Status, UnfinishedError, solve
from sdekit.elementary import Time, broadcast, expm1, log, sqrt
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._models.model import AbstractModel

_PRIOR = 2.0  # sigma / alpha over the data's root mean square, below which the prior's standard deviation is off by 12 %
_SLACK = 1.25  # of the standard deviation of states that are given, for models that are not exact
_RARE = 1e-6  # false alarms
ADVICE = "look at what the model returns there, or leave these rows out; see `.solution` of this error"


@dataclass(frozen=True, eq=False)
class StandardFlow(AbstractSDE):
    """The probability flow for w = x / r, r^2 = alpha^2 s^2 + sigma^2 with s the data's deviation, on a clock of its own.

    dw/dl = (alpha / r) (D - alpha s^2 x / r^2), l = log(alpha / sigma): the denoiser less that of a Gaussian of deviation s, so
    that the right-hand side and its divergence vanish where the data are such.

    The clock is v = log(1 + 5 y / (y + s)), y = sigma / alpha, from 0 to log 6: as y below s/6, as log y from there to s, as
    -1/y beyond. The flow is smooth in y as y goes to 0 and in 1/y as it goes to infinity, and its features lie between; l would
    run on without end on both sides. dl/dv = -(6 y + s)(y + s) / (5 s y).
    """

    noise_type = "none"

    model: AbstractModel
    sde: AbstractDiffusion

    def clock(self, l: float) -> float:
        """v at l."""
        y = math.exp(-l)
        return math.log1p(5 * y / (y + self.model.data_std))

    def ratio(self, v: Time) -> Time:
        """y = sigma / alpha at v."""
        rise = expm1(v)
        return self.model.data_std * rise / (5 - rise)

    def scale(self, v: Time) -> tuple[Time, Time, Time]:
        """t, alpha and r at v."""
        # In float32 v is so coarse near log 6 that t may come out beyond T.
        t = self.sde.time_within(-log(self.ratio(v)))
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        signal = alpha * self.model.data_std
        return t, alpha, sqrt(signal * signal + sigma * sigma)

    def radii(self, clock: tuple[float, float]) -> tuple[float, float]:
        """What w is to be multiplied with at two times: r where there is more noise, which gives x_T; r / alpha where there is
        less, which gives data + eps sigma / alpha, in the scale of the data.
        """
        (_, alpha0, r0), (_, alpha1, r1) = (tuple(map(float, self.scale(v))) for v in clock)
        return (r0 / alpha0, r1) if clock[0] < clock[1] else (r0, r1 / alpha1)

    def physical(self, t: Time, x: Tensor) -> Tensor:
        """The diffusion's x = w r."""
        return x * broadcast(self.scale(t)[2], x)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        y, s = self.ratio(t), self.model.data_std
        rate = -(6 * y + s) * (y + s) / (5 * s * y)
        t, alpha, r = self.scale(t)
        part = alpha / r
        denoised = self.model.denoise(t, x * broadcast(r, x), self.sde)
        return denoised * broadcast(rate * part, x) - x * broadcast(rate * (part * s) ** 2, x)

    def seen(self, error: UnfinishedError, r: float, after: int) -> UnfinishedError:
        """A failure as the caller knows it: x = w r, the diffusion's own time, `after` rows earlier."""
        solution, reached = error.solution, torch.as_tensor(self.scale(error.reached)[0])
        ts = torch.as_tensor(self.scale(solution.ts)[0])
        return UnfinishedError(replace(solution, x=solution.x * r, ts=ts), reached, after, ADVICE)

    def diffusion(self, t: Time, x: Tensor) -> float:
        return 0.0

    def rows(self, index: Tensor) -> Self:
        return replace(self, model=self.model.rows(index))


def flow(
    model: AbstractModel,
    sde: AbstractDiffusion,
    x: Tensor,
    span: tuple[float, float],
    solver: AbstractSolver,
    control: PIDController,
    *,
    after: int = 0,
) -> Solution:
    """The solution from one end of a span of l to the other; its times are the diffusion's own.

    At the noisy end x is x_T, at the other x_t / alpha, which is data with noise of deviation sigma / alpha.

    Arguments:
        after: how many rows of the caller's batch come before those of x.

    Raises:
        UnfinishedError: with such a solution, where some samples do not reach the end.
    """
    equation = StandardFlow(model, sde.unchecked())
    ends = equation.clock(span[0]), equation.clock(span[1])
    r0, r1 = equation.radii(ends)
    w = x / r0 if x.is_floating_point() else x
    ts = torch.tensor([float(sde.time_within(l)) for l in span], dtype=torch.float64)
    try:
        solution = solve(equation, w, ends, solver=solver, control=control)
    except UnfinishedError as error:
        raise equation.seen(error, r1, after) from None
    return replace(solution, x=solution.x * r1, ts=ts)


def agreed(
    model: AbstractModel,
    sde: AbstractDiffusion,
    x: Tensor,
    span: tuple[float, float],
    solver: AbstractSolver,
    control: Callable[[float], PIDController],
    accuracy: float,
    *,
    after: int = 0,
) -> Solution:
    """The solution at tolerances accuracy/10, accuracy/100, ... until two in a row agree within accuracy/2; the finer of them.

    Each sample goes on until its own do, in every coordinate, in units of r, the deviation of x. An error rho times that of the
    solve before is rho / (1 - rho) times the difference, so within accuracy for rho up to 2/3; tolerances alone say nothing,
    for the errors of steps add up and are magnified. Evaluations and steps are those of all solves together.

    Arguments:
        control: the controller for a tolerance.
        Others as in `flow`.

    Raises:
        UnfinishedError: where some samples fail, or agree at no tolerance that the dtype resolves.
    """
    equation = StandardFlow(model, sde)
    most = accuracy / 2 * equation.radii((equation.clock(span[0]), equation.clock(span[1])))[1]
    finest = 4 * torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
    rows, found, tol = torch.arange(len(x), device=x.device), None, max(accuracy / 10, finest)
    reached = torch.full((len(x),), float(sde.time_within(span[1])), dtype=torch.float64, device=x.device)
    while found is None or (len(rows) and tol >= finest):
        try:
            part = flow(model.rows(rows), sde, x[rows], span, solver, control(tol))
        except UnfinishedError as error:
            part, reached = error.solution, reached.index_copy(0, rows, error.reached.double())
        last = torch.full_like(part.x, math.inf) if found is None else found.x[rows]
        apart = (part.x - last).abs().unsqueeze(-1).flatten(1).amax(1)
        found = part if found is None else _renewed(found, part, rows)
        rows, tol = rows[(part.status == Status.DONE) & (apart > most)], tol / 10
    found.status[rows], found.x[rows] = Status.UNDERFLOW, math.nan
    if bool((found.status != Status.DONE).any()):
        advice = (
            "ask for less accuracy, a wider dtype or more steps, or look at the model; `.solution` of this error has the others"
        )
        raise UnfinishedError(found, reached, after, advice)
    return found


def _renewed(found: Solution, part: Solution, rows: Tensor) -> Solution:
    """What is found, some rows of it anew; what is counted adds up."""
    counts = {
        name: getattr(found, name).index_add(0, rows, getattr(part, name)) for name in ("evaluations", "accepted", "rejected")
    }
    return replace(found, x=found.x.index_copy(0, rows, part.x), status=found.status.index_copy(0, rows, part.status), **counts)


def span_of(model: AbstractModel, sde: AbstractDiffusion, end: float) -> tuple[float, float]:
    """The range of l = log(alpha / sigma) that the model and the diffusion share, down to sigma / alpha = end.

    Raises:
        ValueError: when nothing is left of it.
    """
    if not end > 0:
        raise ValueError(f"end is sigma / alpha where the solve stops, a positive number such as 1e-3; not {end}")
    parts = _parts(model, sde)
    start, noisiest = _start(model, sde)
    stop = min(-math.log(end), *(float(part.log_snr(0.0)) for part in parts), math.inf)
    if not start < stop:
        raise ValueError(
            f"nothing to solve: sigma / alpha runs from {math.exp(-start):.3g} to {math.exp(-stop):.3g} under {sde}"
            f"{'' if model.sde is None else f' with a model of {model.sde}'}; choose a smaller end{_raise(noisiest)} "
            "or another diffusion"
        )
    return start, stop


def warn_of_prior(model: AbstractModel, sde: AbstractDiffusion) -> None:
    """Warns where p_T is far from N(0, sigma_T^2 I): where sigma / alpha at the start is below twice data_std."""
    start, noisiest = _start(model, sde)
    ratio = math.exp(-start) / model.data_std
    if ratio < _PRIOR:
        warnings.warn(
            f"{noisiest} ends at sigma / alpha = {math.exp(-start):.3g}, {ratio:.3g} times data_std = {model.data_std:.3g}: "
            f"the prior N(0, sigma^2 I) is far from the law there, and so is the result from that of the data. Choose another "
            f"diffusion{_raise(noisiest)}, or give the start or its log-density (x_T, log_prior)",
            stacklevel=3,
        )


def warn_of_start(x_T: Tensor, sde: AbstractDiffusion, l: float, data_std: float) -> None:
    """Warns where given states are not noise as at l: data, or latents of another diffusion.

    The d coordinates of a sample are taken for independent normals of a standard deviation between
    sigma, the prior's, and sqrt(sigma^2 + alpha^2 data_std^2), that of latents of `encode`; a factor
    of 1.25 is allowed for models that are not exact and for latents of other data. The mean variance
    v of up to 64 samples is tested: v / E v is chi^2 / m, m = (d - 1) tr(C)^2 / tr(C^2) by Welch and
    Satterthwaite, C the correlation of the samples, so that copies and interpolated latents count
    for what they are. Data within [-1, 1] may pass this; but no d normals have all |x| < 1.05 sigma
    where 0.706^d is rare. Draws from the prior raise a warning once in a million calls at most.
    """
    from scipy.special import gammainccinv, gammaincinv

    k = x_T[:1].numel() - 1
    if k < 1:
        return
    alpha, sigma = sde.kernel(float(sde.time_within(l)))
    std, samples = _spread(x_T.detach()[:64].to(torch.float64).flatten(1))
    m = k * samples
    least, most = (math.sqrt(2 * quantile(0.5 * m, _RARE / 4) / m) for quantile in (gammaincinv, gammainccinv))
    low = std < least * sigma / _SLACK
    high = std > most * math.hypot(sigma, alpha * data_std) * _SLACK
    within = float(x_T.detach().abs().amax()) < _least_range(k + 1) * sigma
    if low or high or within:
        bound = f" and does not stay within +-{_least_range(k + 1) * sigma:.3g} as x_T does"
        warnings.warn(
            f"x_T has the standard deviation {std:.3g}, and the noise at which the solve starts has "
            f"{sigma:.3g}{bound if within and not low else ''}: x_T is that noise, not data. Take "
            "latents from encode(model, x), or prior(...) of the diffusion, or leave x_T out",
            stacklevel=3,
        )


def _spread(rows: Tensor) -> tuple[float, float]:
    """The standard deviation within rows, and how many independent rows they are worth."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    gram = centred @ centred.T / (rows.shape[1] - 1)
    total, squares = torch.stack([gram.trace(), gram.square().sum()]).tolist()
    return math.sqrt(total / len(rows)), total * total / squares if squares else 1.0


def _least_range(d: int) -> float:
    """The largest |x| that d standard normals exceed but for rare draws; 1.05 at most."""
    from scipy.special import ndtri

    return min(1.05, float(ndtri(0.5 + 0.5 * (_RARE / 4) ** (1 / d))))


def _parts(model: AbstractModel, sde: AbstractDiffusion) -> list[AbstractDiffusion]:
    """The diffusions whose ranges a solve shares."""
    return [sde] if model.sde is None else [sde, model.sde]


def _start(model: AbstractModel, sde: AbstractDiffusion) -> tuple[float, AbstractDiffusion]:
    """l at the noisy end, and whose end it is."""
    ends = [(float(part.log_snr(part.latest(model.data_std))), part) for part in _parts(model, sde)]
    return max(ends, key=lambda end: end[0])


def _raise(sde: AbstractDiffusion) -> str:
    return f", larger {sde.largest}" if sde.largest else ""

"""Published multistep samplers of diffusion models: on `Clocked` problems they have the weights
that their authors published.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from sdekit._equations.quadrature import Panels
from sdekit._solvers.multistep import AbstractMultistep

DPMForm = Literal["midpoint", "heun"]
UniPCForm = Literal["bh1", "bh2"]
Variable = Literal["t", "rho", "log_rho"]


@dataclass(frozen=True, eq=False)
class DPMSolver(AbstractMultistep):
    """DPM-Solver++(kM), or with noise SDE-DPM-Solver++(kM):

        x_1 = x_0 + M_0 c_0 + M_1 c_1 + M_2/2 c_2 + g dW.

    The polynomial sum_i c_i s^i interpolates the last k values of F, where s runs from 0 to 1 over
    the step as l does, and M_i is the integral of s^i dA. With M_2 instead of M_2/2 the order of
    (3M) would be three; as published it is two. With two values, the form "midpoint" has M_0/2 in
    place of M_1. The order is min(k, 2); with noise the strong order is one and the weak order
    min(k, 2).

    Arguments:
        k: the number of values, 1 to 3. k = 1 is DDIM, and with noise DDPM's ancestral sampler.
        form: "midpoint", as in the paper, or "heun", as k-diffusion's 3M-SDE in its second step.
        lower_final, steps_after: as in `AbstractMultistep`; self_starting has no effect.

    Raises:
        ValueError: for another k or form.

    Example:
        >>> from sdekit.elementary import scaled, sigmoid, sqrt
        >>> sigma = lambda l: sqrt(sigmoid(-2 * l))
        >>> denoiser = lambda l, x: scaled(sqrt(sigmoid(2 * l)), x)  # of data from N(0, 1)
        >>> flow = sdekit.Clocked(denoiser, sigma, a=1.0)  # in y = x / sigma
        >>> ts, y = flow.time(sdekit.uniform(-3.0, 3.0, 100)), torch.ones(1, 1) / sigma(-3.0)
        >>> y = sdekit.solve(flow, y, ts, solver=sdekit.DPMSolver(2)).x
        >>> round(float(y * sigma(3.0)), 2)  # the flow of normal data keeps x = 1
        1.0

    References:
        Lu et al. 2022, arXiv 2211.01095, algorithm 2 and appendix B; k-diffusion,
        `sample_dpmpp_3m_sde`; diffusers, `DPMSolverMultistepScheduler`, whose SDE form of k = 3 has
        -0.5 in place of +0.5 in the last weight.
    """

    form: DPMForm = "midpoint"
    accuracy = {1: 1, 2: 2, 3: 2}
    choices = {"form": get_args(DPMForm)}

    def rule(self, panels: Panels) -> np.ndarray:
        moments = panels.moments()
        if panels.k == 2 and self.form == "midpoint":
            moments[:, 1] = moments[:, 0] / 2
        moments[:, 2:] /= 2
        return panels.weights(moments)


@dataclass(frozen=True, eq=False)
class UniPC(AbstractMultistep):
    """UniPC-k: `AdamsMoulton(k)` with B/2 in place of M_1 in rules of two values, which are the
    predictor of k = 2 and the corrector of k = 1.

    M_i is the integral of s^i dA over the step, see `DPMSolver`. B is M_0 in the form "bh2", and
    the limit of M_0 for short steps, a dl A(l_1), in the form "bh1". The order is k + 1, but three
    for k = 3, because of its first step; with `lower_final`, as published, it is two.

    Arguments:
        k: the number of values of the predictor, 1 to 3.
        form: "bh1" or "bh2".
        lower_final, steps_after: as in `AbstractMultistep`; self_starting has no effect.

    Raises:
        ValueError: for another k or form.

    Example:
        >>> from sdekit.elementary import scaled, sigmoid, sqrt
        >>> sigma = lambda l: sqrt(sigmoid(-2 * l))
        >>> denoiser = lambda l, x: scaled(sqrt(sigmoid(2 * l)), x)  # of data from N(0, 1)
        >>> flow = sdekit.Clocked(denoiser, sigma, a=1.0)  # in y = x / sigma
        >>> ts, y = flow.time(sdekit.uniform(-3.0, 3.0, 100)), torch.ones(1, 1) / sigma(-3.0)
        >>> y = sdekit.solve(flow, y, ts, solver=sdekit.UniPC(2)).x
        >>> round(float(y * sigma(3.0)), 2)  # the flow of normal data keeps x = 1
        1.0

    References:
        Zhao et al. 2023, arXiv 2302.04867.
    """

    form: UniPCForm = "bh2"
    accuracy = {1: 2, 2: 3, 3: 3}
    choices = {"form": get_args(UniPCForm)}
    corrects = True

    def rule(self, panels: Panels) -> np.ndarray:
        moments = panels.moments()
        if panels.k == 2:
            limit = panels.rate_at_end * (panels.stop - panels.start)
            moments[:, 1] = (moments[:, 0] if self.form == "bh2" else limit) / 2
        return panels.weights(moments)


@dataclass(frozen=True, eq=False)
class DEIS(AbstractMultistep):
    """DEIS: the exact integral of the polynomial through the last k values of F, in a chosen
    variable.

    On the clock of noise prediction, with F = eps and A = sigma / alpha, this is tAB-DEIS with the
    variable "t"; with "rho" = e^{-l} = A it is rhoAB-DEIS, and for k = 4 the linear multistep
    method of k-diffusion; with "log_rho" it is the DEIS of diffusers. In the first steps fewer than
    k values are available, which limits the order to min(k, 2), as noise does.

    With data prediction A = e^{a l} grows, and a polynomial in A that interpolates at small A
    diverges at large A. So "rho" is e^{-l} on the clock of data prediction, too.

    Arguments:
        k: the number of values, 1 to 4.
        variable: for `Clocked` problems "t", their own time (`own`), "rho", e^{-l}, or "log_rho",
            l; for other problems in t all three are t.
        lower_final, steps_after: as in `AbstractMultistep`; self_starting has no effect.

    Raises:
        ValueError: for another k or variable.

    Example:
        >>> from sdekit.elementary import scaled, sigmoid, sqrt
        >>> sigma = lambda l: sqrt(sigmoid(-2 * l))
        >>> denoiser = lambda l, x: scaled(sqrt(sigmoid(2 * l)), x)  # of data from N(0, 1)
        >>> flow = sdekit.Clocked(denoiser, sigma, a=1.0)  # in y = x / sigma
        >>> ts, y = flow.time(sdekit.uniform(-3.0, 3.0, 100)), torch.ones(1, 1) / sigma(-3.0)
        >>> y = sdekit.solve(flow, y, ts, solver=sdekit.DEIS(3, "log_rho")).x
        >>> round(float(y * sigma(3.0)), 2)  # the flow of normal data keeps x = 1
        1.0

    References:
        Zhang and Chen 2023, arXiv 2204.13902; Karras et al. 2022, arXiv 2206.00364, for
        k-diffusion's `sample_lms`.
    """

    variable: Variable = "t"
    accuracy = {1: 1, 2: 2, 3: 2, 4: 2}
    choices = {"variable": get_args(Variable)}

    def rule(self, panels: Panels) -> np.ndarray:
        variables: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "t": panels.own,
            "rho": panels.inverse,
            "log_rho": lambda l: l,
        }
        return panels.exact(variables[self.variable])

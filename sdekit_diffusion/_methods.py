"""Each named sampler is a line of a table."""

from sdekit import (
    DEIS,
    AbstractSolver,
    AdamsBashforth,
    AdamsMoulton,
    Ancestral,
    ClockedHeun,
    DPMSolver,
    DPMSolverSingle,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    UniPC,
)
from sdekit_diffusion._annealed import AnnealedLangevin
from sdekit_diffusion._edm import EDM
from sdekit_diffusion._samplers import AbstractMethod, AdaptiveFlow, InTime, OnClock

METHODS: dict[str, AbstractMethod] = {
    "default": OnClock(),
    "ddim": OnClock(AdamsBashforth(1), steps=100),
    "ddpm": OnClock(AdamsBashforth(1), eta=1.0, steps=1000),
    "dpmpp_2m": OnClock(DPMSolver(2), steps=100),
    "dpmpp_3m": OnClock(DPMSolver(3), steps=100),
    "dpmpp_2m_sde": OnClock(DPMSolver(2), eta=1.0, steps=100),
    "dpmpp_3m_sde": OnClock(DPMSolver(3, "heun"), eta=1.0, steps=100),
    "deis": OnClock(DEIS(3), integrand="noise", steps=100),
    "lms": OnClock(DEIS(4, "rho"), integrand="noise", steps=100),
    "unipc": OnClock(UniPC(2), steps=100),
    "abm": OnClock(AdamsMoulton(2), steps=100),
    "sa": OnClock(AdamsMoulton(2), eta=1.0, steps=100),
    "heun": OnClock(Heun(), integrand="noise", steps=50),
    "edm": EDM(s_churn=40, s_tmin=0.05, s_tmax=50),
    "exp_heun": OnClock(ClockedHeun(), steps=50),
    "dpm_2": OnClock(DPMSolverSingle(2), integrand="noise", steps=50),
    "dpmpp_2s": OnClock(DPMSolverSingle(2), steps=50),
    "dpmpp_3s": OnClock(DPMSolverSingle(3), steps=33),
    "euler_maruyama": InTime(EulerMaruyama()),
    "reverse_diffusion": InTime(ReverseDiffusion()),
    "ancestral": InTime(Ancestral()),
    "pc": InTime(PredictorCorrector(EulerMaruyama(), Langevin(snr=0.16))),
    "ncsn": AnnealedLangevin(moves=100, size=0.2, convention="ncsn", steps=10),
    "ncsnv2": AnnealedLangevin(),
    "ode": AdaptiveFlow(),
}


def method_of(given: AbstractMethod | AbstractSolver | str) -> AbstractMethod:
    """A method from its name or from a solver, which is then used in the diffusion's own time.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(given, AbstractMethod):
        return given
    if isinstance(given, AbstractSolver):
        return InTime(given, eta=1.0 if "additive" in given.order else 0.0)
    if given not in METHODS:
        raise ValueError(f"unknown method {given!r}; choose one of {', '.join(METHODS)}, or pass a solver or a method object")
    return METHODS[given]

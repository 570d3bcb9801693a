"""The table of named sampling methods; `__all__` has the public classes of methods."""

from dataclasses import replace
from typing import Any

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
    did_you_mean,
)
from sdekit_diffusion._arguments.inputs import require_whole
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow, AdaptiveSDE
from sdekit_diffusion._sampling.annealed_langevin import AnnealedLangevin
from sdekit_diffusion._sampling.ddim import DDIM
from sdekit_diffusion._sampling.dpm_ancestral import DPMAncestral
from sdekit_diffusion._sampling.edm_sampler import EDM
from sdekit_diffusion._sampling.grid import AbstractGrid, Levels
from sdekit_diffusion._sampling.grids import grid_of
from sdekit_diffusion._sampling.in_time import InTime
from sdekit_diffusion._sampling.method import AbstractMethod
from sdekit_diffusion._sampling.on_clock import OnClock
from sdekit_diffusion._sampling.published_grids import UniformInLogSNR
from sdekit_diffusion._sampling.repaint import RePaint

__all__ = [
    "DDIM",
    "EDM",
    "METHODS",
    "AdaptiveFlow",
    "AdaptiveSDE",
    "AnnealedLangevin",
    "DPMAncestral",
    "InTime",
    "OnClock",
    "RePaint",
]


def _uniform_in_log_snr(
    solver: AbstractSolver,
    steps: int = 100,
    **settings: Any,  # noqa: ANN401
) -> OnClock:
    """A solver on the clock, with steps uniform in log-SNR."""
    return OnClock(solver, steps=steps, grid=UniformInLogSNR(), **settings)


_FEW_IN_DIFFUSERS = 15  # with fewer, its schedulers use fewer values in their last steps


METHODS: dict[str, AbstractMethod] = {
    "default": OnClock(integrand="model"),
    "sde": OnClock(eta=1.0),
    "ddim": _uniform_in_log_snr(AdamsBashforth(1)),
    "ddpm": _uniform_in_log_snr(AdamsBashforth(1), 1000, eta=1.0),
    "dpmpp_2m": _uniform_in_log_snr(DPMSolver(2, lower_final=_FEW_IN_DIFFUSERS)),
    "dpmpp_3m": _uniform_in_log_snr(DPMSolver(3, lower_final=_FEW_IN_DIFFUSERS)),
    "dpmpp_2m_sde": _uniform_in_log_snr(DPMSolver(2), eta=1.0),
    "dpmpp_3m_sde": _uniform_in_log_snr(DPMSolver(3, "heun"), eta=1.0),
    "deis": _uniform_in_log_snr(DEIS(3, lower_final=_FEW_IN_DIFFUSERS), integrand="noise"),
    "lms": _uniform_in_log_snr(DEIS(4, "rho"), integrand="noise"),
    "unipc": _uniform_in_log_snr(UniPC(2, lower_final=True)),
    "abm": _uniform_in_log_snr(AdamsMoulton(2, variable="l")),
    "sa": _uniform_in_log_snr(AdamsMoulton(2, variable="l"), eta=1.0),
    "heun": _uniform_in_log_snr(Heun(), 50, integrand="noise"),
    "edm": EDM(s_churn=40, s_tmin=0.05, s_tmax=50),
    "exp_heun": _uniform_in_log_snr(ClockedHeun(), 50),
    "dpm_2": _uniform_in_log_snr(DPMSolverSingle(2), 50, integrand="noise"),
    "dpmpp_2s": _uniform_in_log_snr(DPMSolverSingle(2), 50),
    "dpmpp_3s": _uniform_in_log_snr(DPMSolverSingle(3), 33),
    "dpmpp_sde": DDIM(eta=1.0, stages=2, steps=50),
    "dpm_2_ancestral": DPMAncestral("noise"),
    "dpmpp_2s_ancestral": DPMAncestral("data"),
    "euler_maruyama": InTime(EulerMaruyama()),
    "reverse_diffusion": InTime(ReverseDiffusion()),
    "ancestral": InTime(Ancestral()),
    "pc": InTime(PredictorCorrector(EulerMaruyama(), Langevin(snr=0.16))),
    "ncsn": AnnealedLangevin(moves=100, size=0.2, convention="ncsn", steps=10),
    "ncsnv2": AnnealedLangevin(),
    "ode": AdaptiveFlow(),
    "adaptive_sde": AdaptiveSDE(),
}
# Names in papers and other libraries, for suggestions in messages.
_PUBLISHED_NAMES = {
    "euler": "ddim", "sample_euler": "ddim", "eulerdiscretescheduler": "ddim",
    "em": "euler_maruyama", "euler_a": "ddpm", "eulerancestraldiscretescheduler": "ddpm",
    "euler_ancestral": "ddpm", "sample_euler_ancestral": "ddpm", "sample_heun": "heun",
    "sample_lms": "lms", "sample_dpm_2": "dpm_2", "kdpm2discretescheduler": "dpm_2",
    "sample_dpm_2_ancestral": "dpm_2_ancestral", "dpm2_a": "dpm_2_ancestral",
    "kdpm2ancestraldiscretescheduler": "dpm_2_ancestral",
    "sample_dpmpp_2s_ancestral": "dpmpp_2s_ancestral", "dpm++_2s_a": "dpmpp_2s_ancestral",
    "sample_dpmpp_2m": "dpmpp_2m", "sample_dpmpp_sde": "dpmpp_sde",
    "sample_dpmpp_2m_sde": "dpmpp_2m_sde", "sample_dpmpp_3m_sde": "dpmpp_3m_sde",
    "ddpmscheduler": "ddpm", "ddimscheduler": "ddim", "heundiscretescheduler": "heun",
    "unipcmultistepscheduler": "unipc", "deismultistepscheduler": "deis",
    "lmsdiscretescheduler": "lms", "dpmsolvermultistepscheduler": "dpmpp_2m",
    "predictor_corrector": "pc", "langevin": "pc",
    "probability_flow": "ode", "rk45": "ode", "dopri5": "ode", "dpm_solver++": "dpmpp_2m",
    "dpmsolver++": "dpmpp_2m", "dpm_solver": "dpm_2", "dpm++_2m": "dpmpp_2m",
    "dpm++_2m_sde": "dpmpp_2m_sde", "dpm++_3m_sde": "dpmpp_3m_sde", "dpm++_sde": "dpmpp_sde",
    "sa_solver": "sa", "annealed_langevin": "ncsnv2", "ald": "ncsnv2", "adams": "abm",
}  # fmt: skip


def method_of(
    choice: AbstractMethod | AbstractSolver | str,
    steps: int | None = None,
    grid: AbstractGrid | Levels | str | None = None,
) -> AbstractMethod:
    """A method with a number of steps and a grid, from its name, from a method object, or from a
    solver, which is used in the diffusion's own time.

    A grid of given points sets the number of steps, unless `steps` is given, or the method object
    has this grid and a number of steps that is not its default.

    Raises:
        TypeError: for a class instead of an object, or a method whose grid is not a grid object,
            such as a name, or whose number of steps is not a whole number.
        ValueError: for an unknown name, or a negative number of steps.
    """
    method = _method_given(choice)
    method = method if grid is None else replace(method, grid=grid_of(grid))
    if not isinstance(method.grid, AbstractGrid | None):
        raise TypeError(
            f"the grid of a method is an object such as Karras(), not {method.grid!r}; names go to "
            "sample(grid=)"
        )
    if steps is None and method.grid is not None and method.grid.count is not None:
        default_steps = type(method).__dataclass_fields__["steps"].default
        steps = (
            method.grid.count + method.extra_steps
            if grid is not None or method.steps == default_steps
            else None
        )
    method = method if steps is None else replace(method, steps=steps)
    require_whole(f"steps of {type(method).__name__}", method.steps, 0)
    return method


def _method_given(choice: AbstractMethod | AbstractSolver | str) -> AbstractMethod:
    """A method from its name, from a method object, or from a solver.

    Raises:
        TypeError, ValueError: as `method_of`.
    """
    if isinstance(choice, str) and choice in METHODS:
        return METHODS[choice]
    if isinstance(choice, AbstractMethod):
        return choice
    if isinstance(choice, AbstractSolver):
        return InTime(choice, eta=1.0 if "additive" in choice.order else 0.0)
    if isinstance(choice, type):
        raise TypeError(f"method is an object, {choice.__name__}(...), not the class")
    raise ValueError(
        f"unknown method {choice!r}; choose one of {', '.join(METHODS)}, or pass a solver or a "
        f"method object{did_you_mean(choice, METHODS, _PUBLISHED_NAMES)}"
    )

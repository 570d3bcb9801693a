"""Options that several commands have: how to load a model, to sample, to estimate likelihoods.

Each is a dataclass. A field is an option of every command that has a parameter of the class.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch

from sdekit_diffusion import nets
from sdekit_diffusion._diffusions.names import DIFFUSIONS
from sdekit_diffusion._models.guidance import Guided
from sdekit_diffusion._models.model import AbstractModel
from sdekit_diffusion._sampling.ddim import DDIM
from sdekit_diffusion._sampling.grid import DEFAULT_END
from sdekit_diffusion._sampling.grids import GRIDS
from sdekit_diffusion._sampling.method import AbstractMethod
from sdekit_diffusion._sampling.methods import method_of

Described = TypeVar("Described", bound=Callable[..., Any])


def with_names(described: Described) -> Described:
    """Replaces {diffusions}, {grids} or {networks} in a docstring by the names available."""
    tables = {"diffusions": DIFFUSIONS, "grids": GRIDS, "networks": nets.registry}
    for table, names in tables.items():
        described.__doc__ = (described.__doc__ or "").replace(f"{{{table}}}", ", ".join(names))
    return described


@dataclass(frozen=True)
class Loading:
    """How the model of a run is loaded.

    Attributes:
        network: for a run with a network of your own: the folder of a network of diffusers, or
            package.module:factory, a function without arguments, which is imported and returns the
            network.
        device: the device: cpu, cuda, cuda:1, ...; under torchrun cuda is one GPU for each process.
        average_width: for a run with --widths, the relative width of the average of the weights.
        best: use the checkpoint with the smallest validation loss, instead of the last weights.
    """

    network: str | None = None
    device: str = "cpu"
    average_width: float | None = None
    best: bool = False


@with_names
@dataclass(frozen=True)
class Sampler:
    """How to sample, for all commands that do. Options left out take the method's defaults.

    Attributes:
        method: default, euler_maruyama, pc, ode or another method of the library; an unknown
            name lists them.
        steps: the number of steps.
        grid: the grid of the steps: {grids}.
        noise: white, other noise for every number of steps; or path, one Brownian path per sample,
            which more steps refine.
        eta: the scale of the noise: 0 for the probability flow, 1 for the reverse SDE; above 0 the
            default method is "sde". For ddim it is the eta of DDIM, 1 for the noise of ddpm.
        sde: the diffusion to sample under: {diffusions}; the model's own unless given.
        end: sigma / alpha at which the solve stops, in units of the standard deviation of the data.
        denoise: replace each sample by its denoised value, which costs one evaluation.
        dtype: the dtype of the samples during the solve; the model's unless given.
        seed: of all noise.
        first: the index of the first sample; sample i depends on the seed and on i alone.
        batch_size: how many samples are solved together.
    """

    method: str = "default"
    steps: int | None = None
    grid: str | None = None
    noise: Literal["white", "path"] | None = None
    eta: float | None = None
    sde: str | None = None
    end: float = DEFAULT_END
    denoise: bool = False
    dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = None
    seed: int = 0
    first: int = 0
    batch_size: int = 256

    def settings(self) -> dict[str, Any]:
        """All fields as arguments of `sample`; eta as a field of the method.

        Raises:
            ValueError: for an eta that the method does not have, or does not take.
        """
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        settings["method"] = self._resolve_method(settings.pop("eta"))
        settings["dtype"] = None if self.dtype is None else getattr(torch, self.dtype)
        return settings

    def _resolve_method(self, eta: float | None) -> AbstractMethod | str:
        """The method, with its noise level if one is given."""
        if eta is None:
            return self.method
        name = "sde" if eta and self.method == "default" else self.method
        if name == "ddim":  # the eta of its paper
            return method_of(DDIM(eta), self.steps, self.grid)
        method = method_of(name, self.steps, self.grid)
        is_flow = eta > 0 and getattr(method, "integrand", "data") != "data"
        if is_flow or "eta" not in [field.name for field in fields(method)]:
            raise ValueError(
                f"the method {self.method!r} has no noise level; leave out --eta, or choose "
                "default or sde"
            )
        return replace(method, eta=eta)


@dataclass(frozen=True)
class Guidance:
    """How closely samples follow their labels and other conditions, see `Guided`.

    Attributes:
        guidance: w in the denoiser D_u + w (D_c - D_u), where D_c is given the conditions and D_u
            is not: 1 for the law given the conditions, above 1 for samples more typical of them.
        interval: the smallest and the largest sigma / alpha at which guidance applies; everywhere
            unless given.
        rescale: from 0 to 1, how far the standard deviation of the network's output is rescaled to
            that for w = 1.

    Raises:
        ValueError: for an interval or a rescale without guidance.
    """

    guidance: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if self.guidance == 1 and (self.interval is not None or self.rescale):
            raise ValueError(
                "--interval and --rescale change guidance, and there is none: add --guidance and "
                "a number above 1"
            )

    def of(self, model: AbstractModel) -> AbstractModel:
        """A model that was given conditions, with this guidance."""
        if self.guidance == 1:
            return model
        return Guided(model, self.guidance, interval=self.interval, rescale=self.rescale)

    def settings(self) -> dict[str, Any]:
        """The fields that matter, as JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Labelling:
    """Whether held-out samples, and those compared with them, are given their conditions.

    Attributes:
        unconditional: use a model with labels or other conditions without them: the law of all
            samples together.
        conditions: values of conditions instead of those of the held-out samples, as for sample.
    """

    unconditional: bool = False
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """How the likelihood of held-out samples is estimated.

    Attributes:
        probes: the number of random probes of each trace; up to 32 dimensions traces are exact.
        draws: how often each image is dequantised.
        tolerance: the relative and the absolute tolerance of the solver.
    """

    probes: int = 8
    draws: int = 2
    tolerance: float = 1e-5


QUICK = Estimate(probes=2, draws=1, tolerance=3e-4)  # for reports and training runs

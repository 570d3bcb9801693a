"""The likelihood of held-out samples, with standard errors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdekit import Exact, Hutchinson, Status
from sdekit_diffusion._app.options import Estimate
from sdekit_diffusion._diffusions.diffusion import AbstractDiffusion
from sdekit_diffusion._inference.bits_per_dim import BitsPerDim, bits_per_dim
from sdekit_diffusion._inference.flow_map import MAX_EXACT_DIMENSION
from sdekit_diffusion._inference.likelihood import log_likelihood
from sdekit_diffusion._models.model import AbstractModel, solved_like
from sdekit_diffusion._sampling.adaptive import AdaptiveFlow
from sdekit_diffusion.data import Scale

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Likelihoods of held-out samples with their standard errors.

    Attributes:
        value: bits per dimension for images, log-likelihoods in nats for other data, `(n,)`.
        stderr: the standard error of each value due to probes and dequantisation, `(n,)`; 0 for
            exact traces of continuous data.
        unit: "bits/dim" or "nats".
        parts: contributions to the standard error of the mean, see `BitsPerDim.parts`.
        probes: the number of probes of each trace; 0 for exact traces.
        draws: the number of dequantisations; 0 for continuous data.
        evaluations: of the model, the mean over the samples.
        failed: the number of samples whose solve failed.
    """

    value: Tensor
    stderr: Tensor
    unit: str
    parts: dict[str, float]
    probes: int
    draws: int
    evaluations: float
    failed: int

    def sentences(self) -> list[str]:
        """The mean, its standard error and the contributions to it, as text."""
        numbers = self.numbers()
        notes = {"probes": f" ({self.probes} a trace)" if self.probes else " (traces are exact)"}
        notes |= {"data": ", dequantisation with it (1 draw)" if self.draws == 1 else ""}
        notes |= {"dequantisation": f" ({self.draws} draws)"}
        shares = {
            name: "unknown" if share != share else f"{share:.4f}"
            for name, share in self.parts.items()
        }
        contributions = [f"{name} {share}{notes[name]}" for name, share in shares.items()]
        lines = [
            f"{numbers['mean']:.4f} ± {numbers['stderr']:.4f} {self.unit} (standard error, over "
            f"{numbers['n']} held-out samples)",
            f"of that error: {', '.join(contributions)}; "
            f"{self.evaluations:.0f} evaluations per sample",
        ]
        return lines + (
            [f"{self.failed} samples failed and are not in the mean"] if self.failed else []
        )

    def numbers(self) -> dict[str, Any]:
        """The mean, its standard error, the contributions to it, and the settings."""
        n = len(self.value)
        values = self.value[~self.value.isnan()]
        return {
            "unit": self.unit,
            "mean": float(values.mean()),
            "stderr": float(values.std(correction=1)) / len(values) ** 0.5
            if len(values) > 1
            else float("nan"),
            "parts": self.parts,
            "probes": self.probes,
            "n": n,
            "draws": self.draws,
            "evaluations": self.evaluations,
            "failed": self.failed,
        }


def measured(
    model: AbstractModel,
    scale: Scale,
    x: Tensor,
    estimate: Estimate,
    *,
    sde: AbstractDiffusion | str | None = None,
    seed: int = 0,
    first: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> BitsPerDim:
    """Bits per dimension of levels of images `(n, *shape)`; for continuous data the log-likelihood
    in nats, in the units of the data.

    `scale` maps the data to inputs of the model. See `bits_per_dim` and `log_likelihood`.
    """
    exact = x[:1].numel() <= MAX_EXACT_DIMENSION
    settings = {
        "sde": sde,
        "trace": Exact() if exact else Hutchinson(estimate.probes, seed=seed),
        "method": AdaptiveFlow(estimate.tolerance, estimate.tolerance),
        "first": first,
        "batch_size": batch_size,
        "progress": progress,
    }
    x = x.to(model.place()[1])
    if scale.levels is None:
        likelihood = log_likelihood(model, scale.encode(x).to(solved_like(model)), **settings)
        value = likelihood.value - scale.log_volume(tuple(x.shape[1:]))
        return BitsPerDim(
            value[None],
            likelihood.stderr,
            likelihood.evaluations,
            likelihood.status,
            likelihood.probes,
        )
    return bits_per_dim(
        model,
        x,
        low=scale.low,
        high=scale.high,
        levels=scale.levels,
        draws=estimate.draws,
        seed=seed,
        **settings,
    )


def summed(bits: BitsPerDim, scale: Scale) -> HeldOut:
    """The summary of a result of `measured`."""
    unit, draws = ("nats", 0) if scale.levels is None else ("bits/dim", len(bits.draws))
    evaluations = float(bits.evaluations.double().mean())
    solved = bits.status == Status.DONE
    failed = int((~solved).sum())
    parts = replace(bits, draws=bits.draws[:, solved], probe_stderr=bits.probe_stderr[solved]).parts
    return HeldOut(
        bits.value.cpu(), bits.stderr.cpu(), unit, parts, bits.probes, draws, evaluations, failed
    )


def columns(bits: BitsPerDim) -> dict[str, Tensor]:
    """The results as arrays by name, each with the samples along its first axis."""
    return {
        **vars(bits),
        "draws": bits.draws.T,
        "probes": torch.full_like(bits.status, bits.probes),
    }


def of_columns(parts: Iterable[Mapping[str, Array]]) -> BitsPerDim:
    """The inverse of `columns`, for all samples of several parts."""
    names = [field.name for field in fields(BitsPerDim)]
    parts = list(parts)
    arrays = {
        name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in names
    }
    return BitsPerDim(
        **{**arrays, "draws": arrays["draws"].T.contiguous(), "probes": int(arrays["probes"][0])}
    )

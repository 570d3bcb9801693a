"""The default on data of any mean and scale, with nothing said of them, over the centred and scaled
problem.

A mixture of three modes in two dimensions is moved and scaled, and the diffusion's range of noise
with it where that is its own parameter (VE, EDM). Error is the mean over samples of the distance of
x(end) from the solve with 1,500 steps, from the same numbers; the ratio is that to the error on the
mixture with mean 0 and standard deviation 1 which knows both; for networks, for which the default
has other rules and grids, it is that to the error of the first model of their kind there. The
models: the mixture itself; a plain score, a denoiser read by `from_edm` and a network read by
`from_diffusers`, whose mean and standard deviation are estimated when a solve begins; and a
`ScoreModel` that `fit` was called with, which records those of 4,000 samples. Their networks are
exact, so that errors are those of the sampler. Law: the largest deviation of mean and standard
deviation of a coordinate of the samples, in standard errors.

    python benchmarks/scale.py
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from _bench import environment, publish, save
from torch import Tensor, nn

from sdekit.elementary import broadcast
from sdekit_diffusion import (
    DDPM,
    EDMSDE,
    VESDE,
    VPSDE,
    AbstractDiffusion,
    GaussianMixture,
    Recipe,
    ScoreModel,
    fit,
    from_diffusers,
    from_edm,
    sample,
)

SEED = 5
SAMPLES = 2000
BUDGETS = (5, 10, 20, 50, 100)
SCALES = ((0.0, 1.0), (5.0, 20.0), (0.0, 0.01), (0.0, 100.0))
MEANS = torch.tensor([[-1.0, 0.3], [0.9, -0.6], [0.2, 1.1]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
BETAS = torch.linspace(1e-4, 0.04, 1000, dtype=torch.float64)
VARIANCES = torch.full((3,), 0.02, dtype=torch.float64)


def moved(mean: float, std: float) -> GaussianMixture:
    """The mixture with another mean and standard deviation."""
    law = GaussianMixture(WEIGHTS, MEANS, VARIANCES)
    means = (MEANS - law.data_mean) / law.data_std
    return GaussianMixture(WEIGHTS, means * std + mean, VARIANCES * (std / law.data_std) ** 2)


def diffusions(std: float) -> dict[str, AbstractDiffusion]:
    """Their largest noise in proportion to the data, or so large that it does not matter."""
    return {
        "ve": VESDE(0.01 * std, 50 * std),
        "vp": VPSDE(0.1, 40.0),
        "edm": EDMSDE(80 * std),
        "ddpm": DDPM(BETAS.tolist()),
    }


class Exact(nn.Module):
    """The denoiser of a mixture under a diffusion, with a parameter that has no effect."""

    def __init__(self, law: GaussianMixture, sde: AbstractDiffusion) -> None:
        super().__init__()
        self.law = law
        self.sde = sde
        self.nothing = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.to(torch.float64)
        return self.law.denoise(t, x.to(torch.float64), self.sde) + 0 * self.nothing


class Diffusers(Exact):
    """The same as diffusers' networks are called: with images, steps, and the noise as output."""

    config = {"in_channels": 1, "sample_size": (1, 2)}

    def forward(self, x: Tensor, t: Tensor) -> Any:
        t = (t.to(torch.float64) + 1) / len(BETAS)
        score = self.law.score(t, x.flatten(1).to(torch.float64), self.sde)
        eps = -score * broadcast(self.sde.sigma(t), score)
        return SimpleNamespace(sample=eps.reshape(x.shape) + 0 * self.nothing)


def fitted(law: GaussianMixture, sde: AbstractDiffusion) -> ScoreModel:
    """A model that has seen data, after one update that changes nothing."""
    model = ScoreModel(Exact(law, sde), sde, "data", shape=(2,))
    with torch.enable_grad():
        fit(model, law.sample(4000, seed=SEED), Recipe(steps=1), progress=False)
    return model


def models(law: GaussianMixture, sde: AbstractDiffusion) -> dict[str, Any]:
    """The same law as a mixture, as a plain score and as a denoiser."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        return law.score(t, x, sde)

    found: dict[str, Any] = {"mixture": law, "plain score": score}
    if isinstance(sde, EDMSDE):
        found["from_edm"] = from_edm(
            lambda x, sigma: law.denoise(sigma, x, sde),
            sigma_max=sde.sigma_max,
            shape=(2,),
            data_range=None,
        )
    if isinstance(sde, DDPM):
        scheduler = {"trained_betas": BETAS.tolist(), "prediction_type": "epsilon"}
        found["from_diffusers"] = from_diffusers(Diffusers(law, sde), scheduler, data_range=None)
    else:
        found["fit"] = fitted(law, sde)
    return found


def errors(draw: Callable[[int], Tensor], std: float) -> dict[int, float]:
    """The mean error by number of steps, in units of the standard deviation."""
    exact = draw(1500)
    return {n: float((draw(n) - exact).norm(dim=1).mean()) / std for n in BUDGETS}


def extremes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The least and the largest ratio over the scales, for each diffusion and kind of model."""
    groups: dict[tuple[str, str], list[dict[int, float]]] = {}
    for row in rows:
        groups.setdefault((row["sde"], row["model"]), []).append(row["ratios"])
    found = []
    for (sde, model), ratios in groups.items():
        few = [one[n] for one in ratios for n in BUDGETS[:-1]]
        many = [one[BUDGETS[-1]] for one in ratios]
        names = {"diffusion": sde, "model": model}
        found.append({**names, "few": [min(few), max(few)], "many": [min(many), max(many)]})
    return found


def main() -> None:
    rows: list[dict[str, Any]] = []
    known: dict[tuple[Any, ...], dict[int, float]] = {}
    for mean, std in SCALES:
        law = moved(mean, std)
        for name, sde in diffusions(std).items():
            for kind, model in models(law, sde).items():

                def draw(steps: int, model: Any = model, sde: AbstractDiffusion = sde) -> Tensor:
                    settings = {"seed": SEED, "dtype": torch.float64}
                    if not isinstance(model, ScoreModel):
                        settings |= {"sde": sde, "shape": (2,)}
                    return sample(model, SAMPLES, steps=steps, **settings).flatten(1)

                found = errors(draw, std)
                # Of mean 0 and standard deviation 1: by the mixture, or by the first network that
                # predicts the noise or does not.
                kinds = (getattr(model, kind, False) for kind in ("learned", "predicts_noise"))
                reference = (name, *kinds)
                known.setdefault(reference, found)
                x = draw(100)
                off = (x.mean(0) - law.data_mean).abs() / (x.std(0) / math.sqrt(SAMPLES))
                ratios = {n: found[n] / known[reference][n] for n in BUDGETS}
                spread = float(x.var(0, correction=0).mean().sqrt()) / std
                rows.append(
                    {
                        "mean": mean,
                        "std": std,
                        "sde": name,
                        "model": kind,
                        "errors": found,
                        "ratios": ratios,
                    }
                )
                rows[-1] |= {"std of samples": spread, "mean in standard errors": float(off.max())}
                shown = "  ".join(f"{n}: {ratio:.3f}" for n, ratio in ratios.items())
                print(
                    f"mean {mean:g}, std {std:g}, {name:3s} {kind:14s} {shown}   std of samples "
                    f"{spread:.3f}, mean off by {float(off.max()):.1f} standard errors",
                    flush=True,
                )
    particulars = environment(dtype="float64", seed=SEED, samples=SAMPLES)
    save("scale", {"environment": particulars, "rows": rows})
    publish("scale", particulars, extremes(rows))


if __name__ == "__main__":
    with torch.no_grad():
        main()

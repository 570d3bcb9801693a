"""`sample(noise="path")`: one Brownian path per sample, so that more steps refine the same samples.

Statistical bounds are 5.5 standard errors with a fixed seed: false alarm below 1e-6 a test.
"""

import math

import pytest
import torch
from convergence import slope

from sdekit import (
    SRA1,
    AdamsBashforth,
    Ancestral,
    BrownianPath,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    WhiteNoise,
)
from sdekit_diffusion import DIFFUSIONS, METHODS, VPSDE, GaussianMixture, InTime, OnClock, sample
from sdekit_diffusion._sampling.adaptive import AbstractAdaptive
from sdekit_diffusion._sampling.coordinates import Coordinates

MIXTURE = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-1.0, 0.3], [0.5, -0.4]], dtype=torch.float64), [0.3, 0.2]
)
ON_GRIDS = {
    name: method for name, method in METHODS.items() if not isinstance(method, AbstractAdaptive)
}
NAMED = [
    name
    for name, method in ON_GRIDS.items()
    if getattr(method, "eta", 0) and not getattr(method, "rule", method.solver).normals
]
NOISY = {name: METHODS[name] for name in NAMED}
NOISY |= {"eta = 1/2": OnClock(AdamsBashforth(1), eta=0.5), "large": InTime(Ancestral(large=True))}


def errors(method, sde, noise, steps):
    """Root mean squares of x(n) - x(4 n), one seed throughout."""
    settings = {"sde": sde, "method": method, "seed": 1, "noise": noise, "end": 0.05}
    ends = {n: sample(MIXTURE, 300, steps=n, **settings) for n in {*steps, *(4 * n for n in steps)}}
    return [float((ends[n] - ends[4 * n]).square().mean().sqrt()) for n in steps]


def test_which_methods_have_a_path():
    assert NAMED == [
        "sde",
        "ddpm",
        "dpmpp_2m_sde",
        "dpmpp_3m_sde",
        "sa",
        "euler_maruyama",
        "reverse_diffusion",
        "ancestral",
    ]


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize("method", NOISY)
def test_more_steps_refine_the_same_sample(method):
    """At the strong order, 1, under VP and VE by turns; with white noise another grid gives another
    sample.
    """
    sde = ("vp", "ve")[list(NOISY).index(method) % 2]
    steps = [21, 84]
    assert slope(steps, errors(NOISY[method], sde, "path", steps)) == pytest.approx(1, abs=0.15)
    assert min(errors(NOISY[method], sde, "white", steps[:1])) > 0.5


def test_solvers_of_higher_order_refine_faster():
    """SRA1 reads the areas of the path too; its order is 1.5, and more where the drift is nearly
    linear.
    """
    steps = [21, 84]
    assert slope(steps, errors(OnClock(SRA1(), eta=1.0), "vp", "path", steps)) > 1.35


@pytest.mark.parametrize("method", ["ddpm", "ancestral"])
def test_samples_on_a_path_have_the_law(method):
    n = 2000
    sde = VPSDE()
    solution = sample(
        MIXTURE, n, sde=sde, method=method, seed=2, steps=200, noise="path", return_solution=True
    )
    law = MIXTURE.marginal(float(solution.ts[-1]), sde)
    x = solution.x
    exactly = law.sample(n, seed=9)
    assert ((x.mean(0) - law.mean()).abs() < 5.5 * exactly.std(0) / math.sqrt(n)).all()
    products, known = (v[:, :, None] * v[:, None] for v in (x, exactly))
    assert ((products.mean(0) - law.covariance()).abs() < 5.5 * known.std(0) / math.sqrt(n)).all()


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize("method", NOISY)
def test_paths_resolve_every_clock_and_do_not_depend_on_the_batch(method):
    for sde in DIFFUSIONS:
        resolved(method, sde)


def resolved(method, sde):
    """Also the clock's grid of ten thousand steps, which would be refused if ticks changed its
    steps by 2 %.
    """
    settings = {"sde": sde, "method": NOISY[method], "steps": 25, "seed": 3, "noise": "path"}
    whole = sample(MIXTURE, 5, **settings)
    assert whole.isfinite().all()
    if sde == "vp":
        assert torch.equal(sample(MIXTURE, 5, batch_size=3, **settings), whole)
        assert torch.equal(sample(MIXTURE, 2, first=3, **settings), whole[3:])
    method = NOISY[method]
    coordinates = Coordinates.of(MIXTURE, DIFFUSIONS[sde]())
    span = coordinates.span(MIXTURE, 1e-3)
    path = BrownianPath(0, method.knots(coordinates, span).tolist())
    if isinstance(method, OnClock):
        fine = torch.linspace(*span, 10_001, dtype=torch.float64).mul(2 * method.eta**2).exp()
        steps = fine.diff()
        assert ((path.tree.times(path.ticks(fine)).diff() - steps).abs() < 0.02 * steps).all()


def test_a_noise_object_has_a_row_a_sample():
    settings = {"sde": "vp", "method": "ddpm", "steps": 20, "seed": 3}
    coordinates = Coordinates.of(MIXTURE, VPSDE())
    knots = METHODS["ddpm"].knots(coordinates, coordinates.span(MIXTURE, 1e-3)).tolist()
    by_name = sample(MIXTURE, 4, noise="path", **settings)
    assert torch.equal(
        sample(MIXTURE, 4, noise=BrownianPath(3, knots), batch_size=3, **settings), by_name
    )
    assert torch.equal(
        sample(MIXTURE, 4, noise=WhiteNoise(3), **settings), sample(MIXTURE, 4, **settings)
    )
    seeds = sample(
        MIXTURE,
        4,
        noise=BrownianPath([7, 8, 7, 9], knots),
        **settings,
        x_T=torch.tensor([[1.0, -1.0]]).expand(4, 2),
    )
    assert torch.equal(seeds[0], seeds[2])
    assert not torch.equal(seeds[0], seeds[1])


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
def test_what_has_no_path():
    corrected = InTime(PredictorCorrector(ReverseDiffusion(), Langevin()))
    for method, message in (
        ("default", "without noise reads no Brownian path"),
        ("ode", "AdaptiveFlow reads no Brownian path"),
        (InTime(AdamsBashforth(1), eta=0.0), "without noise there is none"),
        ("pc", "corrector draws new noise"),
        (corrected, "corrector draws new noise"),
        (OnClock(AdamsBashforth(1), eta=8.0), "too long for eta = 8"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(
                MIXTURE,
                2,
                sde="vp",
                method=method,
                steps=30 if method != "ode" else None,
                noise="path",
            )
    with pytest.raises(
        ValueError,
        match=r"noise must be 'white', 'path', or an object .* not "
        r"'brown'",
    ):
        sample(MIXTURE, 2, sde="vp", noise="brown")

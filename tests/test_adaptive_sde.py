"""AdaptiveSDE: each sample's own steps on one Brownian path, which ends where fine equal steps on
that path do.
"""

import functools
import math

import pytest
import torch

from sdekit import SRA1, SRA3, SRID2, BrownianPath, UnfinishedError, WhiteNoise, all_solvers
from sdekit_diffusion import (
    VPSDE,
    AdaptiveSDE,
    GaussianMixture,
    OnClock,
    ScoreModel,
    UniformInLogSNR,
    sample,
)
from sdekit_diffusion._sampling.coordinates import Coordinates

MIXTURE = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-1.0, 0.3], [0.5, -0.4]], dtype=torch.float64), [0.3, 0.05]
)


def on_a_path(method, noise, **settings):
    return sample(
        MIXTURE, 60, sde="vp", method=method, noise=noise, seed=1, return_solution=True, **settings
    )


@functools.cache
def followed():
    """A path, and where fine equal steps on it end."""
    coordinates = Coordinates.of(MIXTURE, VPSDE())
    knots = AdaptiveSDE().knots(coordinates, coordinates.span(MIXTURE, 1e-3)).tolist()
    path = BrownianPath(3, knots)
    return path, on_a_path(OnClock(SRA1(), eta=1.0, grid=UniformInLogSNR()), path, steps=500).x


# A method for stiff equations, of strong order one, would take too many steps; those of SRID2 are
# SRA3's where noise is additive.
PAIRS = [
    s
    for s in all_solvers()
    if s.embedded
    and "additive" in s.order
    and s.order["additive"][0] > 1
    and not isinstance(s, SRID2)
]


@pytest.mark.parametrize("solver", PAIRS, ids=str)
def test_it_follows_the_path_as_the_tolerance_falls(solver):
    """Medians over samples: some pass close to where modes separate. White noise would leave errors
    of the size of x.
    """
    path, exact = followed()
    errors = []
    evaluations = []
    for tol in (0.3, 0.03):
        solution = on_a_path(AdaptiveSDE(tol, tol, solver), path)
        errors.append(float((solution.x - exact).norm(dim=1).median()))
        evaluations.append(float(solution.evaluations.double().mean()))
    assert errors[0] < 0.1
    assert errors[0] > 9 * errors[1]
    assert evaluations[0] < evaluations[1]


def test_the_steps_of_srid2_are_those_of_sra3():
    path, _ = followed()
    one, other = (on_a_path(AdaptiveSDE(0.4, 0.4, solver), path) for solver in (SRID2(), SRA3()))
    torch.testing.assert_close(one.x, other.x, rtol=1e-9, atol=1e-9)
    assert torch.equal(one.evaluations, other.evaluations)


def test_samples_have_steps_of_their_own_on_the_path_of_their_own():
    """By default a path is read, the one that noise="path" gives."""
    settings = {"sde": "vp", "method": AdaptiveSDE(0.15, 0.15), "seed": 5}
    solution = sample(MIXTURE, 50, return_solution=True, **settings)
    assert len(solution.evaluations.unique()) > 5
    assert int(solution.rejected.sum()) > 0
    assert torch.equal(sample(MIXTURE, 50, noise="path", **settings), solution.x)


def test_a_failure_is_told_in_x_and_in_the_diffusions_time():
    """Sample 3 has a label with which the score is NaN below t = 0.3; that of the others is the
    mixture's.
    """
    net = lambda x, t, spoilt: torch.where(  # noqa: E731
        spoilt[:, None] & (t < 0.3)[:, None], math.nan, MIXTURE.score(t, x, "vp")
    )
    model = ScoreModel(net, "vp", "score", shape=(2,), data_std=1.0)
    settings = {"method": AdaptiveSDE(0.3, 0.3), "seed": 1, "dtype": torch.float64}
    with pytest.raises(
        UnfinishedError,
        match=r"1 of 5 samples did not reach the end \(row 3.*look at what the "
        r"model returns",
    ) as caught:
        sample(model.given(spoilt=torch.arange(5) == 3), 5, **settings)
    assert 0.25 < float(caught.value.reached[3]) < 0.4
    fine = sample(model.given(spoilt=torch.zeros(5, dtype=torch.bool)), 5, **settings)
    solution = caught.value.solution
    others = torch.tensor([0, 1, 2, 4])
    torch.testing.assert_close(solution.x[others], fine[others])
    assert bool(((solution.ts >= 0) & (solution.ts <= 1)).all())


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"noise": "white"}, TypeError, "cannot be read twice"),
        ({"noise": WhiteNoise(0)}, TypeError, "cannot be read twice"),
        ({"steps": 5}, ValueError, "chooses its own steps"),
        ({"grid": "karras"}, ValueError, "chooses its own steps"),
        ({"save": "all", "return_solution": True}, ValueError, "chooses its own steps"),
    ],
)
def test_refusals(settings, kind, message):
    with pytest.raises(kind, match=message):
        sample(MIXTURE, 2, sde="vp", method="adaptive_sde", **settings)


@pytest.mark.parametrize("eta", [0.0, -1.0, float("inf")])
def test_eta_is_positive(eta):
    with pytest.raises(ValueError, match="eta must be a positive number"):
        AdaptiveSDE(eta=eta)

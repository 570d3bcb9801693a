"""The interval that a likelihood with random probes reports covers what exact traces give, as often
as it says.
"""

import math

import pytest
import torch

import sdekit
from sdekit import ODE, Exact, Hutchinson, PIDController
from sdekit._likelihood.divergence import skewness
from sdekit_diffusion import AdaptiveFlow, GaussianMixture, decode, log_likelihood

POINTS = 20
COPIES = 50
PROBES = 8
METHOD = AdaptiveFlow(1e-2, 1e-2)
RUNS = 8000


@pytest.fixture(scope="module")
def problem():
    """Four modes in 16 dimensions with full covariances, points, and their log p by exact traces
    along the same ways.
    """
    generator = torch.Generator().manual_seed(16)
    means = 0.5 * torch.randn(4, 16, generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(4, 16, 16, generator=generator, dtype=torch.float64))[0]
    variances = torch.logspace(-1.5, -0.5, 16, dtype=torch.float64).expand(4, 16)
    mixture = GaussianMixture(
        [0.1, 0.2, 0.3, 0.4], means, axes @ torch.diag_embed(variances) @ axes.mT
    )
    x = mixture.sample(POINTS, seed=0)
    return mixture, x, log_likelihood(mixture, x, sde="vp", trace=Exact(), method=METHOD).value


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "fixed"])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_intervals_cover_the_exact_trace(problem, kind, fresh):
    """1,000 runs, 50 of each point, cover within 90.5 and 98.2 %.

    With new seeds this fails by chance in 1 of 10 million runs where the coverage is 94.3 %, the
    least that is measured.
    """
    mixture, x, exact = problem
    trace = Hutchinson(PROBES, kind, seed=1, fresh=fresh)
    found = log_likelihood(mixture, x.repeat(COPIES, 1), sde="vp", trace=trace, method=METHOD)
    low, high = found.interval(0.95)
    error = (found.value - exact.repeat(COPIES)).reshape(COPIES, POINTS)
    coverage = ((low <= exact.repeat(COPIES)) & (exact.repeat(COPIES) <= high)).double().mean()
    assert 0.905 <= coverage <= 0.982
    # As large as it says, besides: the squares of 1,000 errors and of their standard errors, on
    # average.
    assert found.stderr.square().mean() == pytest.approx(error.square().mean().item(), rel=0.3)


def plane(dim, size=1.0):
    """A flow with one direction, oblique to all axes, along which it contracts: that of data near a
    plane.
    """
    u = torch.randn(dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    return size * torch.outer(u, u) / u.square().sum()


def full(dim):
    """The logarithm of a full covariance, which is what the flow of a Gaussian integrates to."""
    a = torch.randn(dim, dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    values, axes = torch.linalg.eigh(a @ a.T / dim + 0.01 * torch.eye(dim))
    return axes @ torch.diag(values.log()) @ axes.T


JACOBIANS = {
    "plane, d = 16": plane(16),
    "plane, d = 32": plane(32, -1.0),
    "full, d = 32": full(32),
}


def along(matrix, trace, rows=RUNS):
    """dx = A x dt over a span of one, in one step, whose divergence integrates to tr A: each row
    has probes of its own.
    """
    x = torch.zeros(rows, len(matrix), dtype=torch.float64)
    control = PIDController(1e-2, 1e-2, first=1.0)
    flow = ODE(lambda t, x: x @ matrix.T)
    return sdekit.log_likelihood(
        flow, x, [0.0, 1.0], lambda x: x.new_zeros(len(x)), trace=trace, control=control
    )


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "fixed"])
@pytest.mark.parametrize("name", JACOBIANS)
def test_intervals_cover_where_jacobians_are_far_from_diagonal(name, fresh):
    """Each matrix and both kinds of probes, by turns, new at each evaluation and fixed.

    8,000 runs of 8 probes cover within 92.2 and 96.5 %.

    With new seeds this fails by chance in 1 of 10 million runs where the coverage is 93.6 %, the
    least that simulations give for any number of probes from 8 on. Fixed probes near a plane have
    estimates as skewed as a square of one normal; Student's t alone covers 85 to 88 % of them,
    beyond 9 standard errors below the bound.
    """
    kind = ("rademacher", "gaussian")[(list(JACOBIANS).index(name) + fresh) % 2]
    found = along(JACOBIANS[name], Hutchinson(PROBES, kind, seed=1, fresh=fresh))
    low, high = found.interval(0.95)
    exact = JACOBIANS[name].trace()
    coverage = ((low <= exact) & (exact <= high)).double().mean()
    assert 0.922 <= coverage <= 0.965
    assert (low <= high).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_skewness_is_that_of_the_estimates(sign):
    """Fixed Gaussian probes along one direction, whatever the dimension: chi-squared of one degree
    of freedom, skewness sqrt(8).

    The mean of 500 skewnesses of 512 estimates is -+2.6: 5.5 standard errors of some 0.7 /
    sqrt(500) and the bias of skewnesses of heavy tails.
    """
    found = along(plane(2, sign), Hutchinson(512, "gaussian", seed=2, fresh=False), rows=500)
    assert float(found.skewness.mean()) * sign == pytest.approx(2.65, abs=0.25)


def test_skewness_by_hand():
    """n^2 / ((n - 1)(n - 2)) m_3 / s^3 of 0, 0, 0, 4: m_3 = 6, s = 2. Of equal estimates, and of
    three, 0.
    """
    estimates = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [4.0, 1.0]], dtype=torch.float64)
    assert skewness(estimates).tolist() == pytest.approx([16 / 6 * 6 / 8, 0.0])
    assert skewness(estimates[1:]).tolist() == [0.0, 0.0]


def test_the_ends_of_an_interval_solve_halls_equation():
    found = along(plane(16), Hutchinson(PROBES, seed=3, fresh=False), rows=300)
    a = found.skewness / math.sqrt(PROBES)
    assert found.skewness.abs().max() > 2
    q = 2.364624251592785  # t of 7 degrees of freedom
    for end, expected in zip(found.interval(0.95), (q, -q), strict=True):
        t = (found.value - end) / found.stderr
        transformed = t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
        torch.testing.assert_close(transformed, torch.full_like(t, expected), rtol=0, atol=1e-9)


def test_the_other_way_estimates_are_skewed_to_the_other_side():
    """`decode` subtracts what it finds on the way: its interval is that of `log_likelihood`, not
    its mirror image.
    """
    covariance = torch.linalg.matrix_exp(plane(6, -5.0))
    law = GaussianMixture([1.0], torch.zeros(1, 6, dtype=torch.float64), covariance.unsqueeze(0))
    settings = {
        "sde": "vp",
        "trace": Hutchinson(PROBES, fresh=False),
        "method": AdaptiveFlow(1e-7, 1e-7),
    }
    found = log_likelihood(law, law.sample(4, seed=0), **settings)
    _, back = decode(law, found.latent, return_likelihood=True, **settings)
    assert found.skewness.abs().max() > 1
    torch.testing.assert_close(
        torch.stack(back.interval()), torch.stack(found.interval()), rtol=0, atol=1e-3
    )

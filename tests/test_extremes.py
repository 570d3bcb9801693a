"""Diffusions with extreme parameters: the law, the likelihood and the latents are right, or an
error names the parameter.

The law is tested by Kolmogorov and Smirnov's statistic D against the mixture's distribution
function: by Massart's bound P(D > d) <= 2 exp(-2 n d^2) for exact samples. With n = 4000 and d =
0.06, 1e-12, with n = 2000 and d = 0.08, 1e-11; methods have a bias of up to 0.025 more.
"""

import itertools
import math

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from physical import span_of
from scipy.special import ndtr

from sdekit_diffusion import (
    DDPM,
    DIFFUSIONS,
    EDMSDE,
    METHODS,
    NCSN,
    VESDE,
    VPSDE,
    CosineVPSDE,
    GaussianMixture,
    RectifiedFlow,
    SubVPSDE,
    cosine_betas,
    decode,
    linear_betas,
    log_likelihood,
    sample,
)

WEIGHTS = [0.375, 0.625]
MEANS = [-1.0, 0.6]
VARIANCES = [0.05, 0.2]
MIXTURE = GaussianMixture(WEIGHTS, torch.tensor(MEANS)[:, None], VARIANCES)
DOUBLE = GaussianMixture(WEIGHTS, torch.tensor(MEANS, dtype=torch.float64)[:, None], VARIANCES)

# What raised in the default method or in "ode", with neighbours that did not.
EXTREME = [
    *(
        VPSDE(*betas)
        for betas in [
            (0.1, 100.0),
            (0.1, 1000.0),
            (0.0, 20.0),
            (0.0, 1000.0),
            (50.0, 50.0),
            (0.1, 1e12),
        ]
    ),
    *(SubVPSDE(*betas) for betas in [(0.1, 100.0), (0.1, 1000.0), (0.0, 1000.0)]),
    *(VESDE(*sigmas) for sigmas in [(0.01, 1e30), (1e-200, 1e3), (1e-200, 1e200)]),
    VESDE(0.01, 1e30, exact=False),
    *(CosineVPSDE(s) for s in (1e-12, 1e-3, 10.0, 1e12)),
    *(EDMSDE(sigma_max) for sigma_max in (1e6, 1e300)),
    *(
        DDPM(betas)
        for betas in (
            [0.999] * 1000,
            [1 - 1e-12] * 3,
            cosine_betas(1000),
            linear_betas(1000, 1e-12, 0.999999),
        )
    ),
    *(NCSN(sigmas) for sigmas in ([1e-3, 100.0], [1e-3, 1e30], [1e-6, 1e-3, 1e6])),
]
# Fewer steps where the bias allows it, also 50 instead of 100; and fewer samples by adaptive steps,
# with d = 0.14.
STEPS = {
    "ddim": 100,
    "ddpm": 200,
    "euler_maruyama": 200,
    "reverse_diffusion": 200,
    "ancestral": 200,
    "pc": 200,
    "ncsnv2": 116,
}


def distance(x, noise):
    """Kolmogorov and Smirnov's D between samples and the mixture with noise."""
    ordered = np.sort(x.numpy().ravel().astype(np.float64))
    count = np.arange(len(x) + 1) / len(x)
    parts = zip(WEIGHTS, MEANS, VARIANCES, strict=True)
    exact = sum(w * ndtr((ordered - m) / math.sqrt(v + noise**2)) for w, m, v in parts)
    return max((count[1:] - exact).max(), (exact - count[:-1]).max())


@pytest.mark.parametrize(
    ("method", "sde"),
    [
        *itertools.product(["default", "ode"], EXTREME),
        *(("sde", sde) for sde in EXTREME[::3]),  # on the same clock and grid as "default"
    ],
    ids=str,
)
def test_the_law(method, sde):
    """In 40 steps, fewer than the default."""
    steps = None if method == "ode" else 40
    x = sample(MIXTURE, 4000, sde=sde, method=method, steps=steps, seed=0)
    assert distance(x, 1e-3) < 0.06


@pytest.mark.parametrize(
    "method", [name for name in METHODS if name not in ("default", "sde", "ode")]
)
def test_the_law_by_every_method(method):
    """Under the two diffusions by turns."""
    sde = (VPSDE(0.1, 1000.0), VESDE(0.01, 1e30))[list(METHODS).index(method) % 2]
    n, most = (700, 0.14) if method == "adaptive_sde" else (2000, 0.08)
    steps = STEPS.get(method, 50 if getattr(METHODS[method], "steps", 0) == 100 else None)
    x = sample(MIXTURE, n, sde=sde, method=method, steps=steps, seed=0)
    assert distance(x, 1e-3) < most


@pytest.mark.parametrize("sde", EXTREME, ids=str)
def test_the_likelihood_and_the_latents(sde):
    """Up to the prior, which lacks the mean at T: 1e-2 nats as documented; in two of the standard
    deviations at T.
    """
    x = DOUBLE.sample(20, seed=1)
    found = log_likelihood(DOUBLE, x, sde=sde)
    expected = DOUBLE.marginal(1e-3, EDMSDE()).log_prob(x)
    torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-2)
    latent = found.latent
    assert latent.std() == pytest.approx(float(sde.sigma(sde.latest(DOUBLE.data_std))), rel=0.9)
    torch.testing.assert_close(decode(DOUBLE, latent, sde=sde), x, rtol=0, atol=1e-3)


def test_a_standard_deviation_of_the_distance_is_seen():
    """A shift of 0.1 or a tenth more spread, a fifth of a mode's, is rejected."""
    x = MIXTURE.sample(4000, seed=0)
    assert distance(x, 0.0) < 0.03
    assert distance(x + 0.1, 0.0) > 0.06
    assert distance(1.2 * x, 0.0) > 0.06


# Any parameters


def magnitude(low, high):
    """Floats whose logarithm is uniform, the exponent of ten from low to high."""
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


def betas(kind):
    first = st.just(0.0) | magnitude(-30, 29)
    return st.tuples(first, magnitude(-30, 30)).map(lambda pair: kind(pair[0], max(pair)))


ANY = {
    "vp": betas(VPSDE),
    "subvp": betas(SubVPSDE),
    "ve": st.builds(
        lambda low, ratio, exact: VESDE(low, low * (1 + ratio), exact),
        magnitude(-200, 3),
        magnitude(-12, 200),
        st.booleans(),
    ),
    "cosine": magnitude(-12, 12).map(CosineVPSDE),
    "edm": magnitude(-30, 300).map(EDMSDE),
    "flow": st.just(RectifiedFlow()),
    "ddpm": st.lists(
        magnitude(-12, -1) | magnitude(-12, -1).map(lambda rest: 1 - rest), min_size=2, max_size=50
    ).map(DDPM),
    "ncsn": st.lists(magnitude(-100, 100), min_size=2, max_size=5, unique=True)
    .map(sorted)
    .map(NCSN),
}
ANY |= {name: st.builds(kind) for name, kind in DIFFUSIONS.items() if name not in ANY}


def drawn(data, family):
    """A diffusion and its span, or the message of the error."""
    try:
        sde = data.draw(ANY[family])
        return sde, span_of(MIXTURE, sde, 1e-3), ""
    except ValueError as error:
        return None, None, str(error)


@pytest.mark.filterwarnings("ignore:the least noise of")  # the law with that noise is compared
@pytest.mark.parametrize("family", ANY)
@given(st.data())
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_any_parameters(family, data):
    """Refused by name, warned of by name where there is too little noise at the end, or right: d =
    0.25 for n = 200, 3e-11.
    """
    sde, span, refused = drawn(data, family)
    if refused:
        assert DIFFUSIONS[family].__name__ in refused
        return
    l = torch.linspace(*span, 50, dtype=torch.float64)
    t = sde.time(l)
    assert (t.diff() < 0).all()
    torch.testing.assert_close(sde.log_snr(t), l, rtol=1e-5, atol=1e-5)
    for at, value in zip(l[::7].tolist(), t[::7].tolist(), strict=True):
        assert sde.time(at) == pytest.approx(value, rel=1e-9)
    noise = math.exp(-span[0]) / MIXTURE.data_std
    if noise < 1.99:
        with pytest.warns(UserWarning, match=f"larger {sde.largest}"):
            sample(MIXTURE, 10, sde=sde, steps=5, seed=0)
    elif noise > 30:
        x = sample(MIXTURE, 200, sde=sde, seed=0, steps=12) / float(
            sde.alpha(float(sde.time(span[1])))
        )
        assert distance(x, math.exp(-span[1])) < 0.25

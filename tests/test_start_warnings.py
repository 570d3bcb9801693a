"""x_T: its dtype is kept, and what is data rather than noise is warned of, but no draw from the
prior and no latent is. Results with visible noise are warned of.
"""

import warnings

import pytest
import torch
from physical import prior, span_of

from sdekit import Ancestral, EulerMaruyama, Heun, ReverseDiffusion
from sdekit_diffusion import (
    DIFFUSIONS,
    METHODS,
    NCSN,
    VESDE,
    VPSDE,
    AdaptiveFlow,
    CosineVPSDE,
    EmpiricalMixture,
    GaussianMixture,
    InTime,
    LinearObservation,
    encode,
    log_likelihood,
    sample,
    sample_posterior,
)
from sdekit_diffusion._sampling import start_warnings
from sdekit_diffusion._sampling.coordinates import Coordinates

LOOSE = AdaptiveFlow(1e-2, 1e-2)
FEW = {"steps": 1, "seed": 0}
POINT = GaussianMixture([0.5, 0.5], [[-1.0, 0.5], [0.5, 0.3]], [0.05, 0.1])
# Images of 8 x 8 pixels in [-1, 1], smooth and of different contrast, with the standard deviation
# 0.4.
WAVES = torch.stack(
    [
        a
        * torch.outer(torch.sin(torch.linspace(p, p + 4, 16)), torch.cos(torch.linspace(0, q, 16)))
        for a, p, q in [
            (0.5, 0.0, 3.0),
            (0.9, 1.0, 2.0),
            (1.0, 2.0, 5.0),
            (0.7, 0.5, 1.0),
            (0.8, 3.0, 4.0),
            (0.95, 1.5, 6.0),
        ]
    ]
)[:, None]
IMAGES = EmpiricalMixture(WAVES, 0.05)


def test_the_prior_is_compared_with_the_direction_in_which_the_data_vary_most():
    """100 equal coordinates of standard deviation 1: in their common direction it is 10."""
    means = torch.tensor([[-1.0], [1.0]]).expand(2, 100)
    together = GaussianMixture([0.5, 0.5], means, [1e-4, 1e-4])
    assert together.data_std == pytest.approx(1.0, rel=1e-3)
    y = LinearObservation(torch.eye(100)[:1], torch.zeros(1), 100.0)
    x = together.sample(1, seed=0)
    few = VESDE(sigma_max=15.0)
    told = (
        "1.5 times the standard deviation of the data in the direction in which it is largest, 10"
    )
    with pytest.warns(UserWarning, match=told):
        sample(together, 1, sde=few, **FEW)
    with pytest.warns(UserWarning, match=told):
        log_likelihood(together, x, sde=few, method=LOOSE)
    with pytest.warns(UserWarning, match=told):
        sample_posterior(together, y, 16, sde=few, particles=16, steps=16)
    sample(together, 1, sde=VESDE(sigma_max=25.0), **FEW)  # warnings are errors
    sample_posterior(together, y, 16, sde=VESDE(sigma_max=25.0), particles=16, steps=16, seed=0)


def test_the_dtype_of_x_T_is_kept():
    x_T = VPSDE().prior((4, 2), seed=1, dtype=torch.float64)
    found = sample(POINT, sde="vp", x_T=x_T, **FEW)
    assert found.dtype == torch.float64
    assert torch.equal(found, sample(POINT, sde="vp", x_T=x_T, dtype=torch.float64, **FEW))
    assert sample(POINT, sde="vp", x_T=x_T.float(), **FEW).dtype == torch.float32
    assert (
        sample(POINT, sde="vp", x_T=x_T.float(), dtype=torch.float64, **FEW).dtype == torch.float64
    )
    assert (
        sample(POINT, sde="vp", x_T=x_T.float(), dtype=torch.bfloat16, **FEW).dtype
        == torch.bfloat16
    )
    for dtype in (torch.float32, torch.float16):
        with pytest.raises(
            ValueError,
            match=r"x_T is torch.float64 and dtype=torch.float\d\d "
            r"would drop its digits",
        ):
            sample(POINT, sde="vp", x_T=x_T, dtype=dtype, **FEW)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), CosineVPSDE()], ids=["vp", "ve", "cosine"])
@pytest.mark.parametrize("n", [1, 6, 60])
def test_clean_images_are_warned_of(sde, n):
    with pytest.warns(
        UserWarning,
        match=r"x_T has the standard deviation 0\.\d+, and the noise at "
        r"which the solve starts has",
    ):
        sample(IMAGES, sde=sde, x_T=WAVES.repeat(n, 1, 1, 1)[:n], **FEW)


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("std", [0.39, 0.5, 0.6, 0.8])
def test_clean_images_in_the_usual_range_are_warned_of_whatever_their_contrast(std, n):
    """Their standard deviation is within what latents of other data have; none of them exceeds
    1.
    """
    noise = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = (noise / noise.std() * std).tanh() if std < 0.8 else 0.8 * noise.sign()
    model = GaussianMixture([1.0], torch.zeros(1, 64), [0.5])
    with pytest.warns(UserWarning, match=r"standard deviation 0\.\d+, and the noise .* has 1"):
        sample(model, sde="vp", x_T=images.reshape(n, 64), **FEW)


def test_a_batch_is_known_better_than_one_sample():
    """512 numbers of standard deviation 0.62; the limit is 0.83 / 1.25, of one sample 0.6 /
    1.25.
    """
    model = GaussianMixture([1.0], torch.zeros(1, 64), [0.5])
    x_T = VPSDE().prior((8, 64), seed=3)
    x_T = 0.62 * x_T / x_T.std(dim=1, keepdim=True)
    with pytest.warns(UserWarning, match="x_T has the standard deviation 0.62"):
        sample(model, sde="vp", x_T=x_T, **FEW)
    sample(model, sde="vp", x_T=x_T[:1], **FEW)
    sample(model, sde="vp", x_T=x_T[:1].expand(50, 64), **FEW)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), CosineVPSDE()], ids=["vp", "ve", "cosine"])
@pytest.mark.parametrize("shift", [0.0, 0.5], ids=["centred", "shifted"])
def test_a_batch_of_small_clean_samples_is_warned_of(sde, shift):
    """Of few numbers each: the batch has enough of them."""
    model = GaussianMixture([1.0], torch.full((1, 1, 3, 3), shift), [0.04])
    for n in (500, 40):
        x_T = model.sample(n, seed=0)
        with pytest.warns(UserWarning, match="x_T has the standard deviation"):
            sample(model, sde=sde, x_T=x_T, **FEW)


def test_a_batch_far_from_zero_is_warned_of():
    """Within samples, and between those of one number, it spreads as noise does."""
    for event in ((1,), (4,)):
        x_T = 100 + VPSDE().prior((3, *event), seed=0)
        model = GaussianMixture([1.0], torch.zeros(1, *event), [1.0])
        with pytest.warns(UserWarning, match="x_T has the root mean square"):
            sample(model, sde="vp", x_T=x_T, **FEW)


def test_latents_near_one_another_count_once():
    """Copies of few latents, those between two of them, and those near one: none is data."""
    coordinates = Coordinates(VPSDE(), std=1.0)
    l = float(coordinates.log_snr(1.0))
    normal = torch.Generator().manual_seed(0)
    for size in (1, 2, 4, 64):
        few = torch.randn(3, size, generator=normal).double()
        few = 0.4 * few / few.square().mean().sqrt()
        path = torch.linspace(0, 1.5, 1000)[:, None].double()
        between = path.cos() * few[0] + path.sin() * few[1]
        near = few[0] + 0.001 * torch.randn(1000, size, generator=normal)
        for x_T in (few[:1].expand(1000, size), few[:2].repeat(500, 1), between, near):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                start_warnings.warn_of_states(x_T, coordinates, l)
            assert bool(caught) == (size == 64)  # which alone is not noise


@pytest.mark.parametrize("size", [1, 2, 16])
def test_paths_between_several_latents_are_no_data(size):
    """In any order, straight or round, and what is near few of them."""
    coordinates = Coordinates(VPSDE(), std=1.0)
    l = float(coordinates.log_snr(1.0))
    u = torch.linspace(0, 1, 64)[:, None, None]
    for seed in range(100):
        normal = torch.Generator().manual_seed(seed)
        first, last = torch.randn(2, 2, size, generator=normal)
        straight = torch.lerp(first, last, u).flatten(0, 1)
        around = ((1.57 * u).cos() * first + (1.57 * u).sin() * last).flatten(0, 1)
        shuffled = straight[torch.randperm(128, generator=normal)]
        near = torch.cat([first, last]).repeat(32, 1) + 0.01 * torch.randn(
            128, size, generator=normal
        )
        for x_T in (straight, around, shuffled, near):
            start_warnings.warn_of_states(x_T, coordinates, l)


def test_latents_of_data_with_another_mean_in_each_coordinate_are_not_warned_of():
    model = GaussianMixture([1.0], [[0.0, 5000.0]], [1.0])
    x_T = encode(model, model.sample(8, seed=0), sde="ve")
    sample(model, sde="ve", x_T=x_T, **FEW)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), CosineVPSDE()], ids=["vp", "ve", "cosine"])
def test_latents_of_one_diffusion_are_warned_of_under_another(sde):
    start = float(sde.sigma(sde.latest(IMAGES.data_std)))
    other = VESDE(sigma_max=5.0)
    with pytest.warns(UserWarning, match="x_T has the (standard deviation|root mean square)"):
        sample(
            IMAGES,
            sde=sde,
            x_T=start * torch.randn(2, 1, 16, 16) * (3 if start < 5 else 0.1),
            **FEW,
        )
    with pytest.warns(UserWarning, match="x_T has the standard deviation"):
        sample(
            IMAGES,
            sde=other,
            x_T=torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)),
            **FEW,
        )


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), CosineVPSDE()], ids=["vp", "ve", "cosine"])
@pytest.mark.parametrize("model", [IMAGES, POINT], ids=["images", "points"])
def test_latents_and_draws_are_not(model, sde):
    """Of the data, of less contrast and of none, one and many; what lies between two; copies.
    Warnings are errors here.
    """
    x = model.sample(8, seed=1)
    kinds = [x, x[:1], 0.5 * x[:3], torch.zeros_like(x[:2])]
    latents = encode(model, torch.cat(kinds), sde=sde, method=LOOSE)
    for x_T in latents.split([len(kind) for kind in kinds]):
        sample(model, sde=sde, x_T=x_T, **FEW)
    t = float(sde.time(span_of(model, sde, 1e-3)[0]))
    draws = [sde.prior((1 + seed, *model.shape), seed=seed, t=t) for seed in range(5)]
    draws += [prior(model, sde, t, 1 + seed, seed, torch.float32) for seed in range(5)]
    for x_T in draws:
        sample(model, sde=sde, x_T=x_T, **FEW)
        sample(model, sde=sde, x_T=x_T[:1].expand(20, *model.shape), **FEW)
        mixed = torch.stack(
            [
                torch.cos(u) * x_T[0] + torch.sin(u) * x_T[-1].flip(0)
                for u in torch.linspace(0, 1.5, 9)
            ]
        )
        sample(model, sde=sde, x_T=mixed, **FEW)


@pytest.mark.parametrize(("n", "size"), [(1, 9), (9, 1), (50, 2), (20, 20)])
def test_false_alarms(n, size):
    """The thresholds are quantiles: with 1e-6 replaced by a half, at most half of the draws are
    warned of; of single samples at least an eighth, those whose spread is too small.
    """
    coordinates = Coordinates(VPSDE(), std=1.0)
    l = float(coordinates.log_snr(1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start_warnings, "_FALSE_ALARM", 0.5)
        patch.setattr(start_warnings, "_STD_MARGIN", 1.0)
        count = 0
        for x_T in VPSDE().prior((1000, n, size), seed=0):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                start_warnings.warn_of_states(x_T, coordinates, l)
            count += len(caught)
    # 5 standard deviations are 53 at an eighth, and 79 at a half; batches count for fewer samples
    # than they have.
    assert count < 579
    assert n > 1 or count > 72


def test_a_diffusion_that_can_change_has_the_range_that_it_has_now():
    class Shortened(VPSDE):  # not a frozen dataclass of its own, so it may change
        last = 1.0

        @property
        def T(self):
            return self.last

    sde = Shortened()
    law = GaussianMixture([1.0], torch.zeros(1, 2), [1.0])
    for last in (1.0, 0.5):
        object.__setattr__(sde, "last", last)
        assert Coordinates.of(law, sde).span(law, 1e-3)[0] == sde.log_snr(last)


SMALL = GaussianMixture([1.0], [[0.0]], [1e-6])
OF_SMALL = LinearObservation(torch.ones(1, 1), torch.zeros(1), 1.0)


@pytest.mark.parametrize("sde", [NCSN(), VESDE(exact=False)], ids=str)
@pytest.mark.parametrize(
    "call",
    [
        lambda **options: sample(SMALL, 2, **FEW, **options),
        lambda **options: log_likelihood(SMALL, torch.zeros(1, 1), method=LOOSE, **options),
        lambda **options: sample_posterior(SMALL, OF_SMALL, 8, particles=4, seed=0, **options),
    ],
    ids=["sample", "log_likelihood", "sample_posterior"],
)
def test_noise_that_a_diffusion_leaves_is_warned_of(sde, call):
    """Not if the caller accepts it."""
    with pytest.warns(
        UserWarning,
        match=r"least noise of .* is sigma / alpha = 0\.01, 10 times the standard deviation of the "
        r"data, 0\.001: .* accept the noise by end=10",
    ):
        call(sde=sde)
    call(sde=sde, end=10)


def test_noise_levels_that_the_caller_chose_are_not_warned_of():
    sample(SMALL, 2, sde="ncsn", grid=[50.0, 1.0, 0.01], seed=0)


def test_noise_that_a_denoising_step_removes_is_not_warned_of():
    x = sample(SMALL, 2, sde="ncsn", denoise=True, **FEW)
    assert (x.abs() < 0.001).all()


@pytest.mark.parametrize("std", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("sde", DIFFUSIONS)
def test_defaults_leave_no_visible_noise(sde, std):
    law = GaussianMixture([1.0], [[0.0]], [std**2])
    sample(law, 2, sde=sde, **FEW)
    coordinates = Coordinates.of(law, DIFFUSIONS[sde](), (1,))
    for method in METHODS.values():
        left_over = method.left_over(coordinates, method.span(law, coordinates, 1e-3))
        start_warnings.warn_of_last_step(left_over)


@pytest.mark.parametrize("solver", [EulerMaruyama(), ReverseDiffusion(), Ancestral()], ids=repr)
def test_noise_that_the_last_step_leaves_is_warned_of(solver):
    """The noise of the step, (beta h)^(1/2) / s = 2.35, is what the result consists of."""
    law = GaussianMixture([1.0], [[0.0]], [1e-4])
    settings = {"sde": "vp", "method": solver, "steps": 300, "seed": 0}
    with pytest.warns(UserWarning, match=r"leaves noise in the result, 2\.35 times the standard d"):
        x = sample(law, 2000, **settings)
    assert 2.2 < x.std() / law.data_std < 2.6
    sample(law, 2, grid="log_snr", **settings)


def test_steps_without_visible_noise_are_not_warned_of():
    """Of the posterior's variance, without noise, or from where the noise is wanted."""
    law = GaussianMixture([1.0], [[0.0]], [1e-4])
    sample(law, 2, sde="ddpm", method="ancestral", steps=30, seed=0)
    sample(law, 2, sde="vp", method=InTime(Heun(), eta=0.0, steps=30), seed=0)
    sample(law, 2, sde="vp", method="euler_maruyama", steps=1000, end=5.0, seed=0)

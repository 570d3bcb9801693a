"""check_model: right models pass; each usual mistake is found, and named."""

import functools
import math
import re

import pytest
import torch

from sdekit_diffusion import (
    DDPM,
    DIFFUSIONS,
    NCSN,
    VESDE,
    VPSDE,
    CosineVPSDE,
    GaussianMixture,
    Recipe,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    check_model,
    fit,
    nets,
)

# Points in [-1, 1]^4 in three groups, and another 64 of the same law in the place of data.
MIXTURE = GaussianMixture(
    [0.3, 0.3, 0.4],
    torch.tensor(
        [[0.6, -0.7, 0.5, 0.2], [-0.6, -0.5, -0.7, 0.5], [0.5, 0.7, -0.4, -0.6]],
        dtype=torch.float64,
    ),
    torch.tensor([0.004, 0.002, 0.008], dtype=torch.float64),
)
X = MIXTURE.sample(64, seed=1)
STEPS = DDPM()


@pytest.fixture
def each_point_once(monkeypatch):
    """The batch is not repeated: where what is wrong is plain, this saves a third of the time."""
    monkeypatch.setattr("sdekit_diffusion._models.check._MIN_COORDINATES", X.numel())


def posterior_mean(x, alpha, sigma):
    """E[x_0 | alpha x_0 + sigma eps = x] under the mixture: its own formula, in a few operations,
    as thousands of evaluations want.
    """
    v = MIXTURE._variances[:, 0]
    spread = alpha**2 * v + sigma**2
    means = MIXTURE._means
    rest = x[:, None] - alpha[..., None] * means
    exponents = MIXTURE.weights.log() - 0.5 * (
        rest.square().sum(2) / spread + x.shape[1] * spread.log()
    )
    known = means + (alpha * v / spread)[..., None] * rest
    return (exponents.softmax(1)[..., None] * known).sum(1)


def exact(sde, predicts="noise", t_of=lambda label: label, sign=1.0):
    """The network that the mixture would be under a diffusion, told of t by a label."""

    def net(x, label):
        t = t_of(label).clamp(0.0, sde.T)
        alpha = sde.alpha(t)[:, None]
        sigma = sde.sigma(t)[:, None]
        data = posterior_mean(x, alpha, sigma)
        noise = (x - alpha * data) / sigma
        outputs = {"noise": noise, "data": data, "score": -noise / sigma, "flow": noise - data}
        return sign * outputs.get(predicts, alpha * noise - sigma * data)

    return net


def test_the_exact_network_is_that_of_the_library():
    for sde in (VPSDE(), RectifiedFlow(), VESDE()):
        for t in (0.05, 0.5, 1.0):
            times = torch.full((len(X),), t, dtype=torch.float64)
            alpha = sde.alpha(times)[:, None]
            sigma = sde.sigma(times)[:, None]
            x = alpha * X + sigma
            expected = MIXTURE.denoise(times, x, sde)
            torch.testing.assert_close(
                posterior_mean(x, alpha, sigma), expected, rtol=1e-9, atol=1e-12
            )


PREDICTIONS = ["noise", "data", "score", "velocity", "flow"]


@pytest.mark.parametrize(
    ("sde", "predicts"),
    [
        pytest.param(sde, predicts, id=f"{sde!r}-{predicts}")
        for i, sde in enumerate(
            [VESDE(), VPSDE(), SubVPSDE(), CosineVPSDE(), RectifiedFlow(), STEPS, NCSN()]
        )
        for j, predicts in enumerate(PREDICTIONS)
        if (i + j) % 2 == 0
    ],
)
def test_right_models_pass(sde, predicts):
    """Errors are below the guess's at every level: the data are four numbers in three groups, of
    which it knows nothing. Every diffusion goes with two predictions or three, which are one and
    the same denoiser.
    """
    found = check_model(ScoreModel(exact(sde, predicts), sde, predicts), X)
    assert found.fits
    assert found.worst <= 1.1
    assert found.score < 0.7
    assert "and nowhere more" in found.verdict
    assert list(found.noise) == sorted(found.noise)
    assert list(found.errors) == sorted(found.errors)


def test_errors_are_those_of_the_posterior():
    """Against E |D - x_0|^2 by the law of total variance, one Gaussian: v r^2 / (v + r^2), within
    5.5 standard errors.
    """
    v = 0.25
    n = 4000
    gauss = GaussianMixture(
        [1.0], torch.zeros(1, 3, dtype=torch.float64), torch.tensor([v], dtype=torch.float64)
    )
    found = check_model(gauss, gauss.sample(n, seed=3), sde="vp")
    for r, error, guess in zip(found.noise, found.errors, found.guesses, strict=True):
        expected = v * r * r / (v + r * r)
        assert abs(error / expected - 1) < 5.5 * math.sqrt(2 / (3 * n))
        assert abs(guess / expected - 1) < 5.5 * math.sqrt(2 / (3 * n))
    assert found.noise == pytest.approx(
        [0.1 * s * math.sqrt(v) for s in (1, 2, 5, 10, 20, 50)], rel=0.05
    )


@pytest.mark.parametrize(
    ("sde", "truth", "told"),
    [
        pytest.param(sde, truth, told, id=f"{sde!r}-{truth}-{told}")
        for i, truth in enumerate(PREDICTIONS)
        for j, told in enumerate(PREDICTIONS)
        for sde in [(VPSDE(), RectifiedFlow())[(i + j) % 2]]
        if truth != told
    ],
)
@pytest.mark.usefixtures("each_point_once")
def test_a_wrong_output_is_named(sde, truth, told):
    """Every pair, under one diffusion or the other; right ones see above."""
    model = ScoreModel(exact(sde, truth), sde, told)
    with pytest.raises(ValueError, match=f"does not denoise x.*With predicts='{truth}'"):
        check_model(model, X)


@pytest.mark.parametrize("sde", [VPSDE(), NCSN()], ids=repr)
@pytest.mark.parametrize("predicts", ["noise", "score", "data"])
@pytest.mark.usefixtures("each_point_once")
def test_a_wrong_sign_is_named(sde, predicts):
    """As of a network trained to give sigma s, where -sigma s is the noise."""
    with pytest.raises(ValueError, match="the opposite sign of the output"):
        check_model(ScoreModel(exact(sde, predicts, sign=-1.0), sde, predicts), X)


# The diffusion, what the network was trained with, how it finds t from that, how it is named.
LABELS = {
    "999 t": (VPSDE(), (999.0, 0.0), lambda label: label / 999, r"\(999, 0\)|\(1000, -1\)"),
    "t": (VPSDE(), "time", lambda label: label, "'time'"),
    "steps": (STEPS, (1000, -1), lambda label: (label + 1) / 1000, r"\(999, 0\)|\(1000, -1\)"),
    "few steps": (
        DDPM([0.02 + 0.005 * i for i in range(50)]),
        (50, -1),
        lambda label: (label + 1) / 50,
        r"\(49, 0\)|\(50, -1\)",
    ),
    "levels from the noisiest": (
        NCSN(),
        (-231.0, 231.0),
        lambda label: 1 - label / 231,
        r"\(-231, "
        r"231\)",
    ),
    "sigma": (NCSN(), "sigma", lambda label: NCSN().time(-label.log()), "'sigma'"),
    "reversed": (RectifiedFlow(), (-1.0, 1.0), lambda label: 1 - label, r"\(-1, 1\)"),
}


@functools.cache
def with_its_label(truth):
    """The check of a network of `LABELS` that receives what it was trained with."""
    sde, conditioning, t_of, _ = LABELS[truth]
    model = ScoreModel(exact(sde, "noise", t_of), sde, conditioning=conditioning)
    return check_model(model, X, throw=False)


@pytest.mark.parametrize("truth", LABELS)
@pytest.mark.parametrize("told", ["time", (999.0, 0.0), (-1.0, 1.0)], ids=str)
@pytest.mark.usefixtures("each_point_once")
def test_a_wrong_label_of_time_is_named(truth, told):
    """Told t, 999 t or 1 - t: too small, too large, or the other way round; labels that differ by
    one step are the same.
    """
    sde, conditioning, t_of, names = LABELS[truth]
    right = with_its_label(truth)
    assert right.fits
    assert right.worst <= 1.1
    if told == conditioning:
        return
    net = exact(sde, "noise", t_of)
    found = check_model(ScoreModel(net, sde, conditioning=told), X, throw=False)
    if (told, truth) == ((999.0, 0.0), "steps"):
        assert found.fits
    else:
        assert not found.fits
        assert re.search(f"With conditioning=({names}) it is", found.verdict)


@pytest.mark.parametrize(
    ("truth", "told"),
    [("vp", "flow"), ("flow", "vp"), ("vp", "ve"), ("cosine", "flow")],
)
@pytest.mark.usefixtures("each_point_once")
def test_a_wrong_diffusion_is_named(truth, told):
    """Some were let pass: the error of a network of VP, taken for one of the flow, is twice that of
    a guess at one level alone.
    """
    model = ScoreModel(exact(DIFFUSIONS[truth]()), told, "noise", shape=(4,))
    found = check_model(model, X, throw=False)
    assert not found.fits
    assert f"With sde={truth!r} it is" in found.verdict


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("known", [None, (-1.0, 1.0)])
@pytest.mark.usefixtures("each_point_once")
def test_a_wrong_range_is_named(low, high, known):
    model = ScoreModel(exact(VPSDE()), "vp", data_range=known)
    x = low + (high - low) * (X + 1) / 2
    with pytest.raises(
        ValueError,
        match=rf"With x moved from \[{low:g}, {high:g}\] to \[-1, 1\] "
        r"it is",
    ):
        check_model(model, x)


def test_a_model_of_another_range_is_named():
    """One of images in [0, 1], as NCSN's and Song's VE models are, given x in [-1, 1]."""
    half = GaussianMixture(MIXTURE.weights, (MIXTURE._means + 1) / 2, MIXTURE._variances[:, 0] / 4)
    assert check_model(half, (X + 1) / 2, sde=VESDE(0.01, 5.0)).fits
    with pytest.raises(ValueError, match=r"With x moved from \[-1, 1\] to \[0, 1\] it is"):
        check_model(half, X, sde=VESDE(0.01, 5.0))


@pytest.mark.parametrize("n", [8, 64])
def test_right_models_pass_on_any_batch(n):
    """No false alarm in five batches and noises: the exact network leaves 0.6 of the guess's error,
    and the limit is 1.1.
    """
    model = ScoreModel(exact(VPSDE()), "vp")
    for seed in range(5):
        assert check_model(model, MIXTURE.sample(n, seed=seed), seed=seed).fits


def test_few_points_that_are_found_exactly_pass():
    """Errors at low noise are rounding, which no other convention may seem to improve."""
    x = MIXTURE._means
    points = GaussianMixture([0.3, 0.3, 0.4], x, [1e-18] * 3)
    model = ScoreModel(
        lambda x, t: points.denoise(t / 999, x, "vp"), "vp", "data", conditioning=(999, 0)
    )
    found = check_model(model, x)
    assert found.fits
    assert min(found.ratios) < 1e-9


def test_data_of_which_nothing_more_is_known_pass():
    """A Gaussian's exact denoiser is the guess itself: ratios of 1, within 0.1, some 8 standard
    errors of 4096 numbers.
    """
    gauss = GaussianMixture([1.0], torch.zeros(1, 2), torch.tensor([0.3]))
    for seed in range(30):
        found = check_model(gauss, gauss.sample(500, seed=seed), sde="vp", seed=seed)
        assert abs(found.score - 1) < 0.1


def test_a_trained_network_passes_and_its_mistakes_are_named():
    torch.manual_seed(0)
    model = ScoreModel(nets.MLP((4,), 32, 2), "vp", shape=(4,))
    x = X.float()
    untrained = check_model(model, x, throw=False)
    assert not untrained.fits
    assert "may be untrained" in untrained.verdict
    recipe = Recipe(steps=150, lr=1e-2)
    fit(model, MIXTURE.sample(4000, seed=9).float(), recipe, progress=False)
    assert check_model(model.train(), x).score < 0.8
    assert model.net.training
    for told in ("data", "flow"):
        with pytest.raises(ValueError, match="With predicts='noise' it is"):
            check_model(ScoreModel(model.net, "vp", told), x)
    for conditioning in ((999, 0), (-1, 1), "log_snr", "sigma"):
        with pytest.raises(ValueError, match="With conditioning='time' it is"):
            check_model(ScoreModel(model.net, "vp", conditioning=conditioning), x)
    with pytest.raises(ValueError, match=r"may be untrained, or of other data"):
        check_model(model, torch.rand(64, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def test_other_arguments_of_a_network_go_with_their_samples():
    """Labels, one a sample: the right ones fit, and repeating the batch keeps them with their
    points.
    """
    net = exact(VPSDE())
    model = ScoreModel(
        lambda x, t, shift: net(x - VPSDE().alpha(t)[:, None] * shift[:, None], t), "vp"
    )
    shift = torch.arange(64.0, dtype=torch.float64)
    assert check_model(model.given(shift=shift), X + shift[:, None]).fits
    assert not check_model(model.given(shift=shift.flip(0)), X + shift[:, None], throw=False).fits


def test_a_condition_that_is_one_number_stays_with_the_opposite_sign():
    """It is repeated for the samples there too; else the network fails, and another convention is
    named.
    """

    class Opposite(torch.nn.Module):
        null = {"label": -1}

        def forward(self, x, t, label=None):
            assert label.shape == t.shape
            return -exact(VPSDE())(x, t)

    model = ScoreModel(Opposite(), "vp", shape=(4,))
    with pytest.raises(ValueError, match="With the opposite sign of the output it is"):
        check_model(model.given(label=1), X)


@pytest.mark.parametrize(
    "refusal",
    [IndexError, AssertionError, TypeError, KeyError, ZeroDivisionError, AttributeError],
)
@pytest.mark.usefixtures("each_point_once")
def test_a_network_that_refuses_other_labels_is_checked(refusal):
    def net(x, t):
        if t.max() > 1:
            raise refusal("no such row")
        return exact(VPSDE(), "data")(x, t)

    assert check_model(ScoreModel(net, "vp", "data"), X).fits
    wrong = (
        f"its network fails with {refusal.__name__}: .*no such row.*With conditioning='time' it is"
    )
    with pytest.raises(ValueError, match=wrong):
        check_model(ScoreModel(net, "vp", "data", conditioning=(2, 3)), X)

    def broken(x, t):
        raise refusal("never")

    with pytest.raises(refusal, match="never"):
        check_model(ScoreModel(broken, "vp", "data"), X)


def test_a_model_that_is_not_finite_does_not_fit():
    found = check_model(ScoreModel(lambda x, t: x * math.nan, "vp"), X, throw=False)
    assert not found.fits
    assert found.worst == math.inf


def test_a_plain_score_and_half_precision():
    assert check_model(exact(VPSDE(), "score"), X, sde="vp").fits
    assert check_model(ScoreModel(exact(VPSDE()), "vp"), X.half()).fits


def test_what_is_refused():
    model = ScoreModel(exact(VPSDE()), "vp", shape=(4,))
    with pytest.raises(TypeError, match=r"x must be floating.*uint8"):
        check_model(model, X.to(torch.uint8))
    with pytest.raises(ValueError, match=r"x has shape \(64, 2\); this model needs \(batch, 4\)"):
        check_model(model, X[:, :2])
    for x in (torch.ones(3, 4), torch.full((3, 4), math.nan), torch.ones(0, 4)):
        with pytest.raises(ValueError, match="give a batch of data that vary"):
            check_model(model, x)
    with pytest.raises(ValueError, match=r"has no noise between 0.1 and 5 times"):
        check_model(model, X * 1e6)


@pytest.mark.parametrize(("told", "other"), [("flow", "reverse_flow"), ("reverse_flow", "flow")])
def test_a_sign_that_is_another_prediction_is_named_as_both(told, other):
    sde = RectifiedFlow()
    net = exact(sde, "flow", sign=1.0 if other == "flow" else -1.0)
    model = ScoreModel(net, sde, told, shape=(4,))
    verdict = check_model(model, X, throw=False).verdict
    assert f"With the opposite sign of the output (predicts={other!r}) it is" in verdict


def test_of_changes_that_fit_equally_the_one_of_fewest_parts_is_named():
    """Time reversed and nothing else, which also describes flow matching from noise to data, in
    three parts.
    """
    sde = RectifiedFlow()
    model = ScoreModel(
        exact(sde, "flow", lambda label: 1 - label, -1.0), sde, "reverse_flow", shape=(4,)
    )
    verdict = check_model(model, X, throw=False).verdict
    assert "With conditioning=(-1, 1) it is" in verdict

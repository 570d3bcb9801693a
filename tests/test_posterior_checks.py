"""Checks of posteriors: uniform where they are exact, and not where they are wrong."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from sdekit_diffusion import GaussianMixture, LinearObservation, sample_posterior
from sdekit_diffusion.metrics import Calibration, Predictive, TwoSample, c2st, predictive, sbc, tarp
from sdekit_diffusion.metrics._calibration import _of_others

N = 1000
LAW = GaussianMixture([0.4, 0.6], torch.tensor([[-1.0, 0.5], [1.0, 0.0]]).double(), [0.3, 0.8])
A = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
FALSE_ALARM = 1e-6


@pytest.fixture(scope="module")
def problem():
    """The truth, y, and 19 exact samples of each posterior: by rejection from the prior's ones."""
    truth = LAW.sample(N, seed=0)
    y = LinearObservation.simulated(A, truth, 0.4, seed=1).y
    pool = LAW.sample(20_000, seed=2)
    generator = torch.Generator().manual_seed(3)
    rows = []
    for one in y:
        weights = torch.exp(-0.5 * (one - pool @ A.T)[:, 0] ** 2 / 0.4)
        rows.append(pool[torch.multinomial(weights, 19, generator=generator)])
    return truth, y, torch.stack(rows)


def test_exact_posteriors_pass(problem):
    truth, _, samples = problem
    ranks = sbc(samples, truth)
    assert ranks.values.shape == (N, 2)
    assert (ranks.p_value > FALSE_ALARM).all()
    for level, (share, stderr) in ranks.coverage().items():
        assert abs(share - level) < 5 * stderr
    balls = tarp(samples, truth)
    assert balls.values.shape == (N,)
    assert balls.p_value > FALSE_ALARM
    assert abs(balls.coverage([0.5])[0.5][0] - 0.5) < 5 * 0.5 / math.sqrt(N)


def test_wrong_posteriors_fail(problem):
    """Half as wide, shifted by half of a deviation, or the prior in the place of the posterior."""
    truth, _, samples = problem
    centre = samples.mean(1, keepdim=True)
    narrow = centre + 0.5 * (samples - centre)
    shifted = samples + 0.5 * samples.std(1, keepdim=True)
    prior = LAW.sample(19 * N, seed=5).reshape(N, 19, 2)
    for wrong in (narrow, shifted):
        assert (sbc(wrong, truth).p_value < FALSE_ALARM).all()
        assert tarp(wrong, truth).p_value < FALSE_ALARM
    assert sbc(narrow, truth).coverage([0.8])[0.8][0] < 0.65
    # Ranks do not see the prior; balls around points that depend on y do.
    assert (sbc(prior, truth).p_value > FALSE_ALARM).all()


def test_points_that_depend_on_y_see_the_prior(problem):
    truth, y, samples = problem
    prior = LAW.sample(19 * N, seed=5).reshape(N, 19, 2)
    points = torch.cat([y, 0 * y], dim=1)
    assert tarp(prior, truth, references=points).p_value < FALSE_ALARM
    assert tarp(samples, truth, references=points).p_value > FALSE_ALARM


def test_weights_count():
    """Samples of the prior with the likelihood as weights are those of the posterior."""
    n, count = 500, 400
    truth = LAW.sample(n, seed=0)
    y = LinearObservation.simulated(A, truth, 0.4, seed=1).y
    samples = LAW.sample(n * count, seed=2).reshape(n, count, 2)
    log_weights = -0.5 * (y[:, None, 0] - samples @ A[0]) ** 2 / 0.4
    weighted = sbc(samples, truth, log_weights)
    assert (weighted.p_value > FALSE_ALARM).all()
    points = torch.cat([y, 0 * y], dim=1)
    assert tarp(samples, truth, log_weights, references=points).p_value > FALSE_ALARM
    assert tarp(samples, truth, references=points).p_value < FALSE_ALARM


def test_ties_are_broken_at_random():
    """Of coins, whose posterior is a coin; and samples that are all the truth."""
    generator = torch.Generator().manual_seed(0)
    coins = torch.randint(2, (N, 20), generator=generator).double()
    assert sbc(coins[:, 1:, None], coins[:, :1]).p_value > FALSE_ALARM
    same = torch.ones(N, 9, 1)
    assert sbc(same, same[:, 0]).p_value > FALSE_ALARM


def test_our_posteriors_pass():
    """By particles, of 40 observations."""
    truth = LAW.sample(40, seed=0)
    observed = LinearObservation.simulated(A, truth, 0.4, seed=1)
    found = sample_posterior(LAW, observed, 48, sde="vp", seed=0, particles=48, steps=20)
    ranks = sbc(found.x, truth, found.log_weights)
    assert (ranks.p_value > FALSE_ALARM).all()
    p = predictive(
        found.x,
        observed.y,
        lambda x: observed.simulate(x, seed=9),
        lambda y, x: (y - x @ A.T).abs().sum(1),
        found.log_weights,
    ).values
    assert p.shape == (40,)
    assert 0.3 < p.mean() < 0.7


def test_predictive_values_see_impossible_data():
    x = torch.zeros(2, 400, 1, dtype=torch.float64)
    y = torch.tensor([[0.7], [4.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    p = predictive(
        x,
        y,
        lambda x: x + torch.randn(x.shape, generator=generator, dtype=torch.float64),
        lambda y, x: (y - x).square().sum(1),
    ).values
    assert p[0] == pytest.approx(2 * (1 - 0.758), abs=5 * 0.025)  # of |N(0, 1)| above 0.7
    assert p[1] < 0.02
    heavy = torch.zeros(2, 400, dtype=torch.float64)
    heavy[:, 0] = 50.0
    one = predictive(x, y, lambda x: x + 1, lambda y, x: (y - x).square().sum(1), heavy)
    assert one.values.tolist() == pytest.approx([1.0, 0.0])


def test_c2st():
    a, b, c = (LAW.sample(300, seed=seed) for seed in range(3))
    same = c2st(a, b)
    assert abs(same.accuracy - 0.5) < 5 * same.stderr + 0.02
    assert same.p_value > 1e-4
    different = c2st(a[:100], c[:100] + 2)
    assert different.accuracy > 0.8
    assert different.p_value < 1e-10
    assert same.stderr == pytest.approx(0.5 / math.sqrt(600))
    with pytest.raises(ValueError, match="give as many of both"):
        c2st(a, b[:200])


def _coverage_scores(n, d, correlation, level, runs=300):
    """Coverage of exact posteriors with correlated coordinates less the level, in the stated
    standard errors; and these, relative to that of one coordinate.
    """
    rng = np.random.default_rng([n, d])
    scores, sizes = [], []
    for _ in range(runs):
        z = math.sqrt(correlation) * rng.standard_normal((n, 1))
        z = z + math.sqrt(1 - correlation) * rng.standard_normal((n, d))
        share, stderr = Calibration(norm.cdf(z)).coverage([level])[level]
        scores.append((share - level) / stderr)
        sizes.append(stderr / math.sqrt(level * (1 - level) / n))
    return np.abs(scores), np.mean(sizes)


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("correlation", [0.0, 0.95, 1.0])
@pytest.mark.parametrize(("n", "d"), [(5, 64), (20, 10), (50, 64)])
def test_standard_errors_of_correlated_coordinates(n, d, correlation, level):
    """Scores beyond 3 have a probability of at most 0.01: of 300 runs 17 have them with one of
    1e-8. Without regard to the correlation 30 % did.
    """
    scores, _ = _coverage_scores(n, d, correlation, level)
    assert (scores > 3).sum() < 17


def test_standard_errors_of_independent_coordinates_are_small():
    """1/8 of that of one for 64; with the additional row a little more."""
    assert _coverage_scores(200, 64, 0.0, 0.95, runs=20)[1] < 1.4 / 8
    assert _coverage_scores(200, 1, 0.0, 0.95, runs=1)[1] == pytest.approx(1)
    (one,) = Calibration(np.full((1, 3), 0.75)).coverage([0.5]).values()
    assert one == pytest.approx((1, math.sqrt(0.5 * 0.5 / 2)))


def test_the_distribution_and_its_band():
    uniform = Calibration((np.arange(400) + 0.5) / 400)
    assert uniform.p_value > 0.99
    assert uniform.coverage([0.9])[0.9] == pytest.approx((0.9, 0.015))
    assert uniform.floor() == pytest.approx(1.358 / 20, rel=0.02)
    half = Calibration(uniform.values / 2, central=False)
    assert half.coverage([0.3])[0.3][0] == pytest.approx(0.6)
    assert half.p_value < 1e-10
    assert "400 observations; covered at 50 %: 50.0 +- 2.5" in repr(uniform)
    ax = half.plot()
    (line,) = ax.get_lines()[:1]
    assert float(np.max(line.get_ydata())) == pytest.approx(0.5, abs=0.01)
    assert ax.get_xlabel() == "credibility"
    assert uniform.plot(ax) is ax


def test_exact_posteriors_of_many_coordinates_pass_with_few_observations():
    """Of 100 tests of exact posteriors 22 or more have p < .05 with probability 1e-9; where each
    truth had a part in the box and the units, 98 had.
    """
    generator = torch.Generator().manual_seed(0)
    small = 0
    for _ in range(100):
        samples = torch.randn(20, 10, 200, generator=generator)
        small += float(tarp(samples, torch.randn(20, 200, generator=generator)).p_value) < 0.05
    assert small < 22


def test_the_box_and_the_units_of_the_other_truths():
    theta = np.random.default_rng(0).normal([3.0, -1.0, 0.0], [2.0, 0.1, 1.0], size=(6, 3))
    theta[:, 2] = 7.0
    low, high, std = _of_others(theta)
    for i in range(6):
        others = np.delete(theta, i, axis=0)
        np.testing.assert_array_equal(low[i], others.min(axis=0))
        np.testing.assert_array_equal(high[i], others.max(axis=0))
        np.testing.assert_allclose(std[i, :2], others.std(axis=0)[:2], rtol=1e-12)
    assert (std[:, 2] == 1).all()


@pytest.mark.parametrize("test", [sbc, tarp])
def test_collapsed_weights_are_told(test):
    """Posteriors 50 times too narrow and far off the truth, by weights of one sample."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(300, 2, generator=generator)
    samples = 4.0 + 0.02 * torch.randn(300, 100, 2, generator=generator)
    log_weights = torch.zeros(300, 100)
    log_weights[:, 0] = 50.0
    collapsed = test(samples, truth, log_weights)
    assert collapsed.size == pytest.approx(1.0)
    with pytest.warns(UserWarning, match="effectively 1 samples, too few for regions of 95 %"):
        covered = collapsed.coverage([0.5, 0.95])
    assert covered == collapsed.coverage([0.5, 0.95], quiet=True)
    assert covered[0.95][0] > 0.8
    equal = test(samples, truth)
    assert equal.size == 100
    assert equal.coverage([0.95])[0.95][0] < 0.2 or not equal.central


def test_the_share_of_outer_truths_that_counts_as_covered():
    """Nine samples below each truth: its rank is (9 + U) / 10."""
    outer = sbc(torch.zeros(4000, 9, 1), torch.ones(4000, 1))
    for level in (0.85, 0.95):
        share, stderr = outer.coverage([level], quiet=True)[level]
        assert abs(share - outer.hidden(level)) < 5.5 * stderr
    assert outer.hidden(0.95) == pytest.approx(0.75)
    assert outer.hidden(0.7) == 0.0
    one_sided = Calibration(outer.values, central=False, size=9.0)
    assert one_sided.hidden(0.95) == pytest.approx(0.5)


def test_p_values_are_shown_for_all_coordinates_together():
    values = np.random.default_rng(0).random((200, 8))
    shown = Calibration(values)
    corrected = 8 * shown.p_value.min()
    assert f"p-value {min(1.0, corrected):.2g}, 8 times the least of 8)" in repr(shown)
    assert repr(Calibration(values[:, 0])).endswith(
        f"p-value {Calibration(values[:, 0]).p_value:.2g})"
    )


def test_coordinates_that_do_not_vary_are_not_scaled():
    """Such as the border of images: noise of 1e-4 there does not hide the others."""
    truth = LAW.sample(300, seed=0)
    samples = LAW.sample(300 * 30, seed=1).reshape(300, 30, 2)
    points = LAW.sample(300, seed=2)
    expected = tarp(samples, truth, references=points).values
    constant = torch.full((300, 1), 0.1, dtype=torch.float64)
    truth, points = (torch.cat([x, constant], dim=1) for x in (truth, points))
    noise = 1e-4 * torch.randn(300, 30, 1, generator=torch.Generator().manual_seed(0))
    samples = torch.cat([samples, 0.1 + noise.double()], dim=2)
    found = tarp(samples, truth, references=points).values
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.5 / 31)
    assert tarp(samples, truth).p_value > FALSE_ALARM
    one = tarp(samples[:1], truth[:1], references=0 * points[:1]).values
    assert 1 / 31 < one[0] < 30 / 31
    with pytest.raises(ValueError, match="give references="):
        tarp(samples[:1], truth[:1])
    a, b = (np.c_[LAW.sample(100, seed=seed), np.ones(100)] for seed in range(2))
    b[:, 2] += 4
    assert c2st(a, b).accuracy > 0.95


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((5, 3, 2), (5, 3)), r"give \(n, L, \*shape\)"),
        (((5, 3, 2), (4, 2)), r"give \(n, L, \*shape\)"),
    ],
)
def test_shapes_are_checked(shapes, message):
    samples, truth = (torch.zeros(shape) for shape in shapes)
    for check in (sbc, tarp):
        with pytest.raises(ValueError, match=message):
            check(samples, truth)


@pytest.mark.parametrize("level", [95, 1.5, -0.1, math.nan])
def test_levels_are_probabilities(level):
    calibration = Calibration(np.linspace(0, 1, 9))
    for given in (lambda: calibration.coverage([0.5, level]), lambda: calibration.floor(level)):
        with pytest.raises(ValueError, match=rf"probability between 0 and 1, .* not {level}"):
            given()
    assert calibration.coverage([0.0, 1.0], quiet=True)[1.0] == (1, 0)


@pytest.mark.parametrize("count", [1, 2])
def test_each_observation_has_a_reference(count):
    with pytest.raises(ValueError, match=f"{count} references for 6 observations"):
        tarp(torch.randn(6, 5, 2), torch.randn(6, 2), references=torch.zeros(count, 2))


def test_weights_are_checked():
    with pytest.raises(ValueError, match=r"give one per sample, \(5, 3\)"):
        sbc(torch.zeros(5, 3, 2), torch.zeros(5, 2), torch.zeros(5))


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_observations_without_weights_are_refused(value):
    """Not counted as observations whose truth is outside the credible regions."""
    log_weights = torch.zeros(6, 3)
    log_weights[:, 1:] = -math.inf  # one sample with a weight is enough
    sbc(torch.randn(6, 3, 1), torch.randn(6, 1), log_weights)
    log_weights[:2, 0] = value
    for check in (sbc, tarp):
        with pytest.raises(ValueError, match="2 of 6 observations have no weights"):
            check(torch.randn(6, 3, 1), torch.randn(6, 1), log_weights)
    with pytest.raises(ValueError, match="2 of 6 observations have no weights"):
        predictive(torch.randn(6, 3, 1), torch.randn(6, 1), lambda x: x, sum, log_weights)


def _distance(y, x):
    return (y - x).abs().sum(1)


def test_a_y_of_another_length_is_refused():
    x = torch.zeros(5, 1, 1)
    with pytest.raises(ValueError, match="samples of 5 posteriors and 1 of y"):
        predictive(x, torch.ones(1, 1), lambda x: x, _distance)


@pytest.mark.parametrize("measured", [(), (1,)])
def test_simulated_data_of_another_shape_than_y_are_refused(measured):
    """Each sample was compared with the data of all, and no p-value was right."""
    x, y = torch.zeros(5, 50, 1), torch.arange(5.0)
    simulate = (lambda x: x + 1) if not measured else (lambda x: x[:, 0] + 1)

    def discrepancy(y, x):
        return (y - x).abs().reshape(len(x), -1).sum(1)

    with pytest.raises(ValueError, match=r"simulate returned \(250.*y has shape \(5"):
        predictive(x, y.reshape(5, *measured), simulate, discrepancy)


def test_the_weight_of_the_truth_makes_few_samples_exact():
    """Five samples of a wide proposal: coverage of sbc and tarp is right with the truth's own
    weight, within 5.3 standard errors, and too large where it is replaced by one over the effective
    number.
    """
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    truth = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    y = truth + 0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    x = 2 * torch.randn(n, 5, 1, generator=generator, dtype=torch.float64)

    def weighed(x, y):
        return (-0.5 * x**2 - 0.5 * ((y - x) / 0.5) ** 2 + 0.5 * (x / 2) ** 2).squeeze(-1) - 400

    of_samples = weighed(x, y[:, None])
    of_truth = weighed(truth, y)
    for check, options in ((sbc, {}), (tarp, {"references": y})):

        def deviation(own, check=check, options=options):
            found = check(x, truth, of_samples, truth_log_weights=own, **options)
            assert found.size < 5
            (share, stderr) = found.coverage([0.95], quiet=True)[0.95]
            return (share - 0.95) / stderr

        assert abs(deviation(of_truth)) < 5.3
        assert deviation(None) > 8
        assert abs(deviation(of_truth + 2)) > 8
    equal = torch.zeros(n, 5)
    torch.testing.assert_close(
        sbc(x, truth, equal, truth_log_weights=equal[:, 0]).values, sbc(x, truth).values
    )
    for wrong in ({"truth_log_weights": of_truth[:5]}, {"truth_log_weights": of_truth / 0}):
        with pytest.raises(ValueError, match="one finite number for each of 20000 observations"):
            sbc(x, truth, of_samples, **wrong)
    with pytest.raises(ValueError, match="and the log_weights of their samples"):
        sbc(x, truth, truth_log_weights=of_truth)


def test_predictive_values_and_their_floor():
    """Exact posteriors have values below 0.1 with a probability of at most 0.2; of 100, 27 are the
    0.95 quantile: P(B <= 26) < 0.95 <= P(B <= 27).
    """
    p = Predictive(np.concatenate([np.full(28, 0.05), np.full(72, 0.6)]))
    assert p.share(0.1) == 0.28
    assert p.floor(0.1) == 0.27
    assert p.floor(0.9) == 1.0
    ax = p.plot()
    xs, ys = ax.lines[0].get_data()
    ends = [0, 27, 28, -1]
    assert xs[ends].tolist() == [0.05, 0.05, 0.6, 0.6]
    assert ys[ends].tolist() == [0.01, 0.28, 0.29, 1.0]
    assert p.plot(ax) is ax
    (grey, _) = ax.collections
    top = {round(float(x), 3): float(y) for x, y in grey.get_paths()[0].vertices if y > 0}
    assert top[0.1] == 0.27
    for call in (lambda: p.floor(1.5), lambda: p.floor(0.1, -1.0), lambda: p.plot(level=2.0)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            call()


def test_the_floor_of_a_classifier():
    found = TwoSample(0.6, 0.02, 1e-6)
    assert found.floor() == pytest.approx(0.5 + 1.645 * 0.02, abs=1e-4)
    ax = found.plot()
    assert ax.lines[1].get_xdata()[0] == 0.6
    xs, ys = ax.lines[0].get_data()
    assert np.trapezoid(ys, xs) == pytest.approx(1.0, abs=1e-3)
    assert xs[ys.argmax()] == pytest.approx(0.5, abs=1e-3)
    edge = ax.patches[0].get_extents().transformed(ax.transData.inverted()).x1
    assert edge == pytest.approx(found.floor())
    assert found.plot(ax) is ax
    with pytest.raises(ValueError, match="between 0 and 1"):
        found.floor(2.0)


def test_predictive_takes_arrays():
    x, y = np.arange(10.0).reshape(5, 2, 1), np.arange(5.0)[:, None]
    expected = predictive(torch.as_tensor(x), torch.as_tensor(y), lambda x: x + 2, _distance)
    found = predictive(x, y, lambda x: x + 2, lambda y, x: _distance(y, x).numpy())
    assert found.values.tolist() == expected.values.tolist()
    assert 0 < expected.values.mean() < 1


def test_discrepancies_are_one_number_for_each_sample():
    x, y = torch.zeros(5, 1, 1), torch.ones(5, 1)
    column = predictive(x, y, lambda x: x + 2, lambda y, x: (y - x).abs())
    row = predictive(x, y, lambda x: x + 2, _distance)
    assert column.values.tolist() == row.values.tolist() == [1.0] * 5
    with pytest.raises(ValueError, match=r"one per sample, \(5,\)"):
        predictive(x, y, lambda x: x, lambda y, x: _distance(y, x)[:1])
    with pytest.raises(ValueError, match="NaN for y"):
        predictive(x, y * torch.nan, lambda x: x, _distance)
    with pytest.raises(ValueError, match="NaN for simulated data"):
        predictive(x, y, lambda x: x * torch.nan, _distance)
    assert predictive(x, y * torch.inf, lambda x: x, _distance).values.tolist() == [0.0] * 5

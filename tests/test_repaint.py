"""RePaint: its schedule, its law for Gaussian data by an exact recursion, what it keeps and
refuses.
"""

import math
from itertools import pairwise, product

import pytest
import torch

from sdekit import NotFiniteError
from sdekit_diffusion import (
    VPSDE,
    GaussianMixture,
    Inpainted,
    Noised,
    RePaint,
    ScoreModel,
    UniformInLogSNR,
    noise_scale,
    sample,
    signal_scale,
)
from sdekit_diffusion._sampling.repaint import visited_points

C = torch.tensor([[1.2, 0.9], [0.9, 0.8]], dtype=torch.float64)
LAW = GaussianMixture([1.0], torch.zeros(1, 2, dtype=torch.float64), C[None])  # of data_std 1
TWO = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05])
Y = torch.tensor([1.5, math.nan], dtype=torch.float64)
MASK = torch.tensor([True, False])
N = 40_000
Z = 5.6  # standard errors; with 300 comparisons a false alarm once in 200,000


def published(steps, jump, resamplings):
    """The paper's schedule of time steps, as points from the noisy end; ascents in one move."""
    left = dict.fromkeys(range(0, steps - jump, jump), resamplings - 1)
    t = steps
    times = []
    while t >= 1:
        t -= 1
        times.append(t)
        if left.get(t, 0) > 0:
            left[t] -= 1
            t += jump
            times.append(t)
    return [steps - 1 - t for t in times] + [steps]


def test_the_schedule_is_the_published_one():
    for case in product((1, 5, 11, 40), (1, 3, 10), (1, 2, 5)):
        assert visited_points(*case) == published(*case), case


def test_the_schedule_is_that_of_diffusers():
    scheduler = pytest.importorskip("diffusers").RePaintScheduler()
    scheduler.set_timesteps(50, jump_length=5, jump_n_sample=4)
    stride = 1000 // 50
    theirs = [49 - int(t) // stride for t in scheduler.timesteps]
    expected = [k for k, after in zip(theirs, [*theirs[1:], 50], strict=True) if True]
    ascents = [
        i for i in range(1, len(theirs) - 1) if theirs[i + 1] < theirs[i] < theirs[i - 1]
    ]  # within one
    kept = [k for i, k in enumerate(expected) if i not in ascents]
    assert visited_points(50, 5, 4) == [*kept, 50]


def gaussian(levels, y, eta):
    """Mean and covariance of the state after each move, of u under linear denoisers."""
    eye = torch.eye(2, dtype=torch.float64)
    known = torch.diag(MASK.double())
    mean = torch.zeros(2, dtype=torch.float64)
    covariance = eye
    for k, (l0, l1) in enumerate(pairwise(levels)):
        a0, b0, a1, b1 = signal_scale(l0), noise_scale(l0), signal_scale(l1), noise_scale(l1)
        if l1 < l0:
            factor = a1 / a0
            mean = factor * mean
            covariance = factor**2 * covariance + (b1**2 - (factor * b0) ** 2) * eye
            continue
        data = a0 * C @ torch.linalg.inv(a0**2 * C + b0**2 * eye)
        c2 = (eta * b1) ** 2 * (1 - (a0 * b1 / (a1 * b0)) ** 2)
        kept = math.sqrt(b1**2 - c2) / b0
        step = (eye - known) @ (a1 * data + kept * (eye - a0 * data))
        last = k == len(levels) - 2
        mean = step @ mean + a1 * known @ y
        noise = c2 * (eye - known) + (0 if last else b1**2) * known
        covariance = step @ covariance @ step.T + noise
    return mean, covariance


@pytest.mark.parametrize(
    ("resamplings", "jump", "eta"), [(1, 10, 1.0), (3, 4, 1.0), (2, 1, 0.5), (4, 3, 0.0)]
)
def test_the_law_for_gaussian_data(resamplings, jump, eta):
    """Every move is linear: mean and covariance follow exactly. The last value is y itself."""
    method = RePaint(Y, MASK, resamplings=resamplings, jump=jump, eta=eta, steps=20)
    end = 0.05
    settings = {"sde": "vp", "seed": 1, "end": end, "save": "all", "return_solution": True}
    solution = sample(LAW, N, method=method, **settings)
    vp = VPSDE()
    levels = [float(vp.log_snr(t)) for t in solution.ts.tolist()]
    mean, covariance = gaussian(levels, torch.nan_to_num(Y), eta)
    alpha = vp.alpha(float(solution.ts[-1]))
    x = solution.x * alpha
    std = float(covariance[1, 1].sqrt())
    assert abs(float(x[:, 1].mean() - mean[1])) < Z * std / math.sqrt(N)
    assert abs(float(x[:, 1].std()) / std - 1) < Z / math.sqrt(2 * N)
    torch.testing.assert_close(solution.x[:, 0], Y[:1].expand(N), rtol=0, atol=1e-9)
    for l, before, state in zip(levels[1:-1], levels, solution.xs[1:-1], strict=False):
        if before < l:  # after a descent
            eps = (state[:, 0] - signal_scale(l) * Y[0]) / noise_scale(l)
            assert abs(float(eps.mean())) < Z / math.sqrt(N)
            assert abs(float(eps.std()) - 1) < Z / math.sqrt(2 * N)
    descents = sum(b > a for a, b in pairwise(levels))
    assert solution.evaluations.tolist() == [descents] * N  # a return asks no model
    assert len(levels) == len(visited_points(20, jump, resamplings))


def test_returns_reduce_the_bias():
    """Of the conditional mean 1.125 and standard deviation 0.354 of the second coordinate."""
    mean, std = 0.9 / 1.2 * 1.5, math.sqrt(0.8 - 0.9**2 / 1.2)
    errors = []
    for resamplings in (1, 5, 20):
        method = RePaint(Y, MASK, resamplings=resamplings, jump=5, steps=50)
        x = sample(LAW, 4000, sde="vp", method=method, seed=1)[:, 1]
        errors.append(abs(float(x.mean()) - mean) + abs(float(x.std()) - std))
    assert errors[0] > 2.5 * errors[1] > 2.5 * 1.5 * errors[2]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_where_nothing_is_known_a_step_is_that_of_ddim(eta):
    """Of the flow point by point, of the ancestral sampler in law."""
    method = RePaint(torch.zeros(2), torch.zeros(2, dtype=torch.bool), 1, 1, eta)
    settings = {"sde": "vp", "seed": 2, "steps": 30, "grid": UniformInLogSNR()}
    n = 5 if eta == 0 else 20_000
    found = sample(TWO, n, method=method, dtype=torch.float64, **settings)
    expected = sample(TWO, n, method="ddpm" if eta else "ddim", dtype=torch.float64, **settings)
    if eta == 0:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    else:
        error = expected.std(0) * math.sqrt(2 / n)
        assert bool(((found.mean(0) - expected.mean(0)).abs() < Z * error).all())
        assert bool(((found.std(0) / expected.std(0) - 1).abs() < Z / math.sqrt(n)).all())


def test_each_sample_has_its_own_values_in_every_batch():
    y = TWO.sample(7, seed=1)
    mask = torch.rand(7, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    method = RePaint(y, mask, resamplings=2, jump=2, steps=6)
    whole = sample(TWO, sde="vp", method=method, seed=3)
    assert whole.shape == (7, 2)  # n follows from y
    assert torch.equal(sample(TWO, 7, sde="vp", method=method, seed=3, batch_size=3), whole)
    part = RePaint(y[4:6], mask[4:6], resamplings=2, jump=2, steps=6)
    assert torch.equal(sample(TWO, 2, sde="vp", method=part, seed=3, first=4), whole[4:6])
    torch.testing.assert_close(whole[mask], y[mask])


def test_one_value_serves_all_samples():
    y, mask = torch.tensor([0.9, 0.0]), MASK
    settings = {"sde": "vp", "seed": 3, "steps": 6, "batch_size": 2}
    one = sample(TWO, 5, method=RePaint(y, mask, 2, 2), **settings)
    for values, known in ((y.expand(5, 2), mask), (y, mask.expand(5, 2)), (y[None], mask[None])):
        assert torch.equal(sample(TWO, 5, method=RePaint(values, known, 2, 2), **settings), one)


def test_a_start_gives_the_number_too():
    y = TWO.sample(3, seed=1)
    method = RePaint(y, MASK, 2, 2, steps=6)
    x = TWO.sample(3, seed=2)
    for start in (Noised(x, strength=0.5), Noised(x[:1], strength=0.5)):
        found = sample(TWO, sde="vp", method=method, seed=3, start=start)
        torch.testing.assert_close(found[:, 0], y[:, 0])
    with pytest.raises(ValueError, match="y has 3 entries for 2 samples"):
        sample(TWO, sde="vp", method=method, start=Noised(x[:2], strength=0.5))
    with pytest.raises(ValueError, match=r"x_T has shape \(1, 2\)"):
        sample(TWO, sde="vp", method=method, x_T=VPSDE().prior((1, 2), seed=0))


def test_all_points_are_reported(capsys):
    seen = []
    method = RePaint(Y, MASK, resamplings=3, jump=2, steps=6)
    moves = len(visited_points(6, 2, 3)) - 1
    settings = {"sde": "vp", "method": method, "seed": 0, "batch_size": 2}
    solution = sample(
        LAW, 4, callback=seen.append, save="all", return_solution=True, progress=True, **settings
    )
    assert f"{2 * moves}/{2 * moves}" in capsys.readouterr().err
    assert [point.step for point in seen] == [*range(moves + 1)] * 2
    assert solution.xs.shape == (moves + 1, 4, 2)
    for point, t, x in zip(seen, solution.ts, solution.xs, strict=False):
        assert point.t == pytest.approx(float(t))
        torch.testing.assert_close(point.x, x[:2])
    assert bool((solution.ts.diff() > 0).any())  # it returns


def test_a_failure_names_the_time():
    def net(x, t):
        return torch.where((t < 0.3).reshape(-1, 1), math.nan, 0 * x)

    model = ScoreModel(net, "vp", "data", shape=(2,))
    with pytest.raises(NotFiniteError) as caught:
        sample(model, 3, method=RePaint(Y.float(), MASK, 2, 2, steps=10), seed=0)
    assert 0.005 < caught.value.t < 0.3


def test_the_mask_hides_no_output_that_is_not_finite():
    spoilt = torch.tensor([math.nan, 0.0])
    model = ScoreModel(lambda x, t: x + spoilt, "vp", "data", shape=(2,), data_std=1.0)
    with pytest.raises(NotFiniteError):
        sample(model, 3, method=RePaint(Y.float(), MASK, 2, 2, steps=5), seed=0)
    with pytest.raises(NotFiniteError):
        sample(Inpainted(model, Y.float(), MASK), 3, steps=5, seed=0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"resamplings": 0}, r"resamplings >= 1 .* not 0, 10 and 1.0"),
        ({"resamplings": 1.5}, r"whole numbers resamplings >= 1 .* not 1\.5, 10 and"),
        ({"resamplings": math.nan}, "whole numbers resamplings >= 1"),
        ({"jump": 0}, "jump >= 1"),
        ({"jump": 2.0}, r"whole numbers .* jump >= 1, .* 10, 2\.0 and"),
        ({"eta": math.nan}, "eta from 0 to 1"),
        ({"eta": 1.5}, "eta from 0 to 1"),
        ({"eta": -0.5}, "eta from 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        RePaint(Y, MASK, **settings)


def test_a_return_longer_than_the_grid_is_refused():
    """It was left out, and with it all resamplings."""
    with pytest.raises(ValueError, match=r"jump = 10 steps needs more .* there are 10: take a sma"):
        sample(LAW, 2, sde="vp", method=RePaint(Y, MASK), steps=10)
    assert sample(LAW, 2, sde="vp", method=RePaint(Y, MASK, 2, 9), steps=10).shape == (2, 2)
    assert sample(LAW, 2, sde="vp", method=RePaint(Y, MASK, 1, 10), steps=10).shape == (2, 2)


def test_values_of_another_shape_are_refused():
    for y in (torch.zeros(3), torch.zeros(1, 1, 2)):
        method = RePaint(y, torch.ones(len(y.shape) * (1,), dtype=torch.bool))
        with pytest.raises(ValueError, match=r"y has shape .* and samples have \(2,\)"):
            sample(TWO, 1, sde="vp", method=method)
    with pytest.raises(ValueError, match="reads no Brownian path"):
        sample(LAW, 1, sde="vp", method=RePaint(Y, MASK), noise="path")


@pytest.mark.parametrize("settings", [{"denoise": True, "steps": 20}, {"grid": [9.0, 2.0, 0.5, 0]}])
def test_denoising_would_change_what_is_known(settings):
    method = RePaint(Y, MASK, resamplings=2, jump=1)
    with pytest.raises(ValueError, match="RePaint sets known values in its last step"):
        sample(LAW, 2, sde="ve", method=method, **settings)

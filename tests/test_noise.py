"""White noise: independent of the block, the batch and the dtype it is drawn in."""

import math

import pytest
import torch

from sdekit import (
    SDE,
    BrownianPath,
    LogODE,
    NoiseQuery,
    ShARK,
    WhiteNoise,
    normal,
    solve,
    uniform,
)
from sdekit.interop import TorchsdeNoise

TS = torch.linspace(0, 1, 65).tolist()


def drawn(noise, x, ts=TS, **kinds):
    return list(noise.increments(ts, x, tuple(x.shape[1:]), **kinds))


@pytest.mark.parametrize("steps", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_and_dtypes_give_the_same_bits(monkeypatch, steps, dtype):
    ts = [float(i) for i in range(65)]  # unit steps: no factor between the draw and the increment
    x = torch.zeros(6, 3, 5)
    whole = drawn(WhiteNoise(1), x, ts, levy=True, normals=2)
    monkeypatch.setattr("sdekit._noise.white._BLOCK", steps * x.numel())
    blocks = drawn(WhiteNoise(1), x.to(dtype), ts, levy=True, normals=2)
    for a, b in zip(whole, blocks, strict=True):
        assert torch.equal(a.w.to(dtype), b.w)
        assert torch.equal(a.z.to(dtype), b.z)
        torch.testing.assert_close(a.h.to(dtype), b.h)


def test_increments_scale_with_the_step():
    x = torch.zeros(4, 2, dtype=torch.float64)
    unit = drawn(WhiteNoise(3), x, [0.0, 1.0], levy=True)[0]
    fine = drawn(WhiteNoise(3), x, [5.0, 4.75], levy=True)[0]
    torch.testing.assert_close(fine.w, 0.5 * unit.w)
    torch.testing.assert_close(fine.h, 0.5 * unit.h)


def test_every_block_has_the_widths_of_its_own_steps(monkeypatch):
    ts = [0.0, 0.25, 1.25, 1.5, 5.5, 5.75]
    x = torch.zeros(5, 2)
    unit = drawn(WhiteNoise(1), x, [float(i) for i in range(6)], levy=True)
    monkeypatch.setattr("sdekit._noise.white._BLOCK", 2 * x.numel())
    for start in (0, 1):
        found = drawn(WhiteNoise(1), x, ts, levy=True, start=start)
        for a, b, root in zip(unit[start:], found, [0.5, 1.0, 0.5, 2.0, 0.5][start:], strict=True):
            assert torch.equal(root * a.w, b.w)
            torch.testing.assert_close(root * a.h, b.h)


def test_moments_and_independence_of_what_a_step_gets():
    """5.5 standard errors on 1e6 numbers: a false alarm below 4e-8 each."""
    x = torch.zeros(1000, 1000, dtype=torch.float64)
    w, h, z, _ = drawn(WhiteNoise(5), x, [0.0, 0.3], levy=True, normals=2)[0]
    parts = torch.stack([w / math.sqrt(0.3), h / math.sqrt(0.3 / 12), z[0], z[1]]).flatten(1)
    bound = 5.5 / math.sqrt(parts.shape[1])
    assert (parts.mean(dim=1).abs() < bound).all()
    gram = parts @ parts.T / parts.shape[1]
    assert (
        (gram - torch.eye(4)).abs() < bound * torch.full((4, 4), 1.0).fill_diagonal_(math.sqrt(2))
    ).all()


@pytest.mark.parametrize("noise", [WhiteNoise(8), BrownianPath(8, depth=6)], ids=["white", "path"])
def test_no_draw_serves_two_steps(noise):
    """W, H and three fresh normals of 6 steps: 435 correlations within 6 standard errors, a false
    alarm of 1e-6 in all.
    """
    n = 200_000
    steps = 6
    x = torch.zeros(200, n // 200)
    parts = drawn(noise, x, [i / 8 for i in range(steps + 1)], levy=True, normals=3)
    numbers = torch.stack(
        [number for w, h, z, _ in parts for number in (w / w.std(), h / h.std(), *z)]
    ).flatten(1)
    correlations = numbers @ numbers.T / n - torch.eye(len(numbers))
    assert correlations.fill_diagonal_(0).abs().max() < 6 / math.sqrt(n)


def test_ornstein_uhlenbeck_has_its_variance():
    """dx = -x dt + dW at equilibrium, 1/2: were a draw used in two steps, H of one as W of the
    next, it would be .43.

    5.5 standard errors of 40,000 samples, a false alarm of 4e-8; the error of steps of 0.1 is 4e-4.
    """
    n = 40_000
    equation = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x), "additive")
    x = solve(
        equation,
        torch.zeros(n, 1, dtype=torch.float64),
        uniform(0.0, 6.0, 60),
        solver=ShARK(),
        noise=WhiteNoise(2),
    ).x
    assert abs(float(x.square().mean()) - 0.5) < 5.5 * 0.5 * math.sqrt(2 / n)


def test_rows_and_first_select_samples():
    x = torch.zeros(10, 3)
    whole = drawn(WhiteNoise(1), x)
    for noise in (
        WhiteNoise(1).rows(torch.tensor([7, 2])),
        WhiteNoise(1, first=1).rows(torch.tensor([6, 1])),
    ):
        some = drawn(noise, x[:2])
        assert all(torch.equal(a.w[[7, 2]], b.w) for a, b in zip(whole, some, strict=True))
    tail = drawn(WhiteNoise(1, first=6), x[6:])
    assert all(torch.equal(a.w[6:], b.w) for a, b in zip(whole, tail, strict=True))
    twice = WhiteNoise(1).rows(torch.tensor([9, 8, 7])).rows(torch.tensor([2]))
    assert torch.equal(drawn(twice, x[:1])[5].w, whole[5].w[[7]])
    assert WhiteNoise(1, index=torch.tensor([[1, 2], [3, 4]])).index.tolist() == [1, 2, 3, 4]


def test_starting_late_gives_the_same_steps():
    x = torch.zeros(3, 2)
    late = drawn(WhiteNoise(4), x, start=50)
    assert [
        torch.equal(a.w, b.w) for a, b in zip(drawn(WhiteNoise(4), x)[50:], late, strict=True)
    ] == [True] * 14


def test_only_what_is_asked_for_is_drawn():
    step = next(WhiteNoise(0).increments(TS, torch.zeros(2, 2), None, normals=0))
    assert step == (None, None, None, None)


def test_noise_differs_from_the_initial_state():
    x = torch.zeros(3, 4)
    assert not torch.equal(
        drawn(WhiteNoise(2), x, [0.0, 1.0])[0].w, normal(2, torch.arange(3), (4,))
    )


@pytest.mark.parametrize("noise", [WhiteNoise(0), BrownianPath(0)], ids=["white", "path"])
def test_a_step_has_as_many_normals_as_do_not_meet_those_of_the_next(noise):
    x = torch.zeros(1, 1)
    ts = [0.0, 0.5, 1.0]
    first, second = noise.increments(ts, x, (1,), normals=1021)
    drawn_before = {float(z) for z in first.z.flatten()}
    assert len(drawn_before) == 1021
    assert drawn_before.isdisjoint({float(second.w) / 0.5**0.5, *second.z.flatten().tolist()})
    with pytest.raises(ValueError, match="draws 1,022 normals a step, and a step has 1,021"):
        next(noise.increments(ts, x, (1,), normals=1022))


def test_a_fresh_seed_is_taken_and_kept():
    torch.manual_seed(1)
    a = WhiteNoise()
    b = WhiteNoise()
    assert a.seed != b.seed
    torch.manual_seed(1)
    assert WhiteNoise().seed == a.seed


def test_wrong_number_of_samples_is_refused():
    with pytest.raises(ValueError, match="for 2 samples and the state has 3"):
        drawn(WhiteNoise(0, index=torch.arange(2)), torch.zeros(3, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1.5}, "seed must be an integer"),
        ({"seed": [1.5, 2.5]}, "seed must be an integer"),
        ({"seed": torch.tensor([1.5])}, "seed must be an integer"),
        ({"seed": 1, "index": torch.tensor([0.5])}, "index must be an integer"),
        ({"first": 1.5}, "first is the index of a sample"),
        ({"first": torch.tensor(1.5)}, "first is the index of a sample"),
    ],
)
def test_seeds_and_indices_are_integers(arguments, message):
    with pytest.raises(TypeError, match=message):
        WhiteNoise(**arguments)


def test_indices_of_any_integer_kind_and_masks_are_the_same_samples():
    x = torch.zeros(2, 1)
    expected = drawn(WhiteNoise(1, index=torch.tensor([3, 5])), x)[0].w
    for index in ([3, 5], torch.tensor([3, 5], dtype=torch.int32)):
        assert torch.equal(drawn(WhiteNoise(1, index=index), x)[0].w, expected)
    mask = torch.tensor([False, True, False, True])
    assert torch.equal(drawn(WhiteNoise(1, first=2).rows(mask), x)[0].w, expected)
    for rows in ([0, 1], 0, [True]):
        with pytest.raises(TypeError, match=r"give torch\.tensor\(index\)"):
            WhiteNoise(1).rows(rows)
    with pytest.raises(ValueError, match="leave out index"):
        WhiteNoise([1, 2], index=[3, 4])


NOISES = pytest.mark.parametrize(
    "noise", [WhiteNoise(3), BrownianPath(3, (0.0, 2.0))], ids=["white", "path"]
)


def with_areas(noise, n, ts, m=3, x=None):
    x = torch.zeros(n, 1, dtype=torch.float64) if x is None else x
    return list(noise.answer(NoiseQuery(ts, x, (m,), areas=True)))


@pytest.mark.parametrize(
    "noise", [WhiteNoise(3), BrownianPath(3, (0.0, 2.0))], ids=["white", "path"]
)
def test_areas_have_the_mean_and_the_covariance_of_levys(noise):
    """Given W and H too, with which the rest is uncorrelated; 100,000 samples and six standard
    errors, a false alarm of 1e-7.
    """
    n = 100_000
    dt = 0.5
    (step,) = with_areas(noise, n, [0.5, 1.0])
    w, h, a = step.w, step.h, step.a
    assert torch.equal(a, -a.mT)
    mean = h[:, :, None] * w[:, None, :]
    rest = a - (mean - mean.mT)
    bound = 6 / math.sqrt(n)
    for j, k in ((0, 1), (0, 2), (1, 2)):
        assert a[:, j, k].mean().abs() < bound * dt / 2
        # Kurtosis of Levy's area is 5, so that its square varies by twice its mean.
        assert (a[:, j, k].square().mean() / (dt**2 / 4) - 1).abs() < bound * 2.5
        assert rest[:, j, k].mean().abs() < bound * dt / math.sqrt(12)
        given = dt**2 / 20 + dt * (h[:, j].square() + h[:, k].square()) / 5
        ratio = rest[:, j, k].square() / given
        assert (ratio.mean() - 1).abs() < bound * math.sqrt(2)
        for i in (j, k):
            assert (ratio * h[:, i].sign()).mean().abs() < bound * math.sqrt(3)
        assert (ratio * (given > given.median()) * 2 - 1).mean().abs() < bound * math.sqrt(5)
    assert (a[:, 0, 1] * a[:, 0, 2]).mean().abs() < bound * dt**2 / 2
    for one, two, (j, k), sign in (
        ((0, 1), (0, 2), (1, 2), 1),
        ((0, 1), (1, 2), (0, 2), -1),
        ((0, 2), (1, 2), (0, 1), 1),
    ):
        given = sign * dt * h[:, j] * h[:, k] / 5  # the covariance of the two, given W and H
        product = rest[:, *one] * rest[:, *two] * h[:, j] * h[:, k] - given * h[:, j] * h[:, k]
        assert product.mean().abs() < bound * product.std()
        assert (given * h[:, j] * h[:, k]).mean().abs() > 20 * product.std() / math.sqrt(n)
    for j, k in ((0, 1), (0, 2), (1, 2)):
        for i in range(3):
            for other, std in ((w, math.sqrt(dt)), (h, math.sqrt(dt / 12))):
                product = rest[:, j, k] * other[:, i]
                # H has the kurtosis 3, and the variance of the rest grows with its square.
                assert product.mean().abs() < 1.5 * bound * std * dt / math.sqrt(12)


@pytest.mark.parametrize(
    "noise", [WhiteNoise(3), BrownianPath(3, (0.0, 2.0))], ids=["white", "path"]
)
def test_areas_do_not_depend_on_the_batch(noise):
    whole = with_areas(noise, 6, [0.0, 0.5, 1.0])
    index = torch.tensor([4, 1])
    some = with_areas(noise.rows(index), 2, [0.0, 0.5, 1.0])
    for a, b in zip(whole, some, strict=True):
        assert torch.equal(a.a[index], b.a)
        assert torch.equal(a.w[index], b.w)
    assert not torch.equal(whole[0].a, whole[1].a)
    if isinstance(noise, BrownianPath):
        assert torch.equal(with_areas(noise, 6, [0.5, 1.0])[0].a, whole[1].a)
        back = with_areas(noise, 6, [1.0, 0.5, 0.0])
        for i in range(2):
            assert torch.equal(back[1 - i].a, -whole[i].a)


@pytest.mark.parametrize(
    "noise",
    [WhiteNoise(3), BrownianPath(3, depth=32), BrownianPath(3, uniform(0.0, 1.0, 512))],
    ids=["white", "path of many ticks", "path of many cells"],
)
def test_areas_of_different_steps_are_independent(noise):
    """130,816 correlations of 1,000 samples, seven standard errors each: 3.4e-7 together."""
    n = 1000
    ts = uniform(0.0, 1.0, 512)
    steps = with_areas(noise, n, ts.tolist(), m=2)
    w, h, a = (torch.stack([part[i] for part in steps]) for i in (0, 1, 3))
    mean = h[..., 0] * w[..., 1] - w[..., 0] * h[..., 1]
    dt = 1 / 512
    variance = dt * (dt / 20 + h.square().sum(-1) / 5)
    normals = (a[..., 0, 1] - mean) / variance.sqrt()
    correlation = torch.corrcoef(normals) - torch.eye(512)
    assert correlation.abs().max() < 7 / math.sqrt(n)


@pytest.mark.parametrize(
    "noise", [WhiteNoise(3), BrownianPath(3, (0.0, 2.0**28), depth=30)], ids=["white", "path"]
)
def test_more_steps_than_have_counters_are_refused(noise):
    steps = 2**27
    ts = range(steps + 2)
    with pytest.raises(ValueError, match="at most 134,217,728 steps, not 134,217,729"):
        next(noise.increments(ts, torch.zeros(1, 1), None, normals=1, start=steps))


def test_the_log_ode_adds_levys_area():
    """dx_3 = (x_1 dW_2 - x_2 dW_1) / 2 is the area, in one step and in the sum of several."""

    def g(t, x):
        zero = torch.zeros_like(x[:, 0])
        rows = [[zero + 1, zero], [zero, zero + 1], [-x[:, 1] / 2, x[:, 0] / 2]]
        return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)

    heisenberg = SDE(lambda t, x: 0 * x, g, "general", "stratonovich", noise_size=2)
    x0 = torch.zeros(5, 3, dtype=torch.float64)
    for noise in (WhiteNoise(7), BrownianPath(7)):
        (step,) = with_areas(noise, 5, [0.0, 1.0], m=2)
        x = solve(heisenberg, x0, [0.0, 1.0], solver=LogODE(), noise=noise).x
        torch.testing.assert_close(x[:, :2], step.w)
        torch.testing.assert_close(x[:, 2], step.a[:, 0, 1])
        parts = with_areas(noise, 5, [0.0, 0.3, 1.0], m=2)
        x = solve(heisenberg, x0, [0.0, 0.3, 1.0], solver=LogODE(), noise=noise).x
        first, second = (part.w for part in parts)
        crossed = (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2
        expected = sum(part.a[:, 0, 1] for part in parts) + crossed
        torch.testing.assert_close(x[:, 2], expected)


def test_torchsdes_areas_are_used_and_required():
    torchsde = pytest.importorskip("torchsde")
    x = torch.zeros(4, 2, dtype=torch.float64)
    for levy in ("foster", "space-time"):
        bm = torchsde.BrownianInterval(
            0.0, 1.0, (4, 2), dtype=torch.float64, entropy=1, levy_area_approximation=levy
        )
        noise = TorchsdeNoise(bm)
        if levy == "space-time":
            with pytest.raises(ValueError, match="bm does not have"):
                with_areas(noise, 4, [0.0, 1.0], m=2, x=x)
            continue
        (forth,) = with_areas(noise, 4, [0.25, 1.0], m=2, x=x)
        (back,) = with_areas(noise, 4, [1.0, 0.25], m=2, x=x)
        w, a = bm(0.25, 1.0, return_A=True)
        assert torch.equal(forth.w, w)
        assert torch.equal(forth.a, a)
        assert torch.equal(back.w, -w)
        assert torch.equal(back.a, -a)
        (some,) = with_areas(noise.rows(torch.tensor([2])), 1, [0.25, 1.0], m=2, x=x[:1])
        assert torch.equal(some.a, a[2:3])

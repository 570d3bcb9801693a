"""Shares of steps that are moved so that what arrives at the end is small."""

import itertools
import math

import pytest
import torch

from sdekit_diffusion._sampling.refined import CAUTIONS, MOVES, distance, refined

N, SAMPLES, FAR = 8, 64, 0.3
ONES = torch.ones(SAMPLES, dtype=torch.float64)


@pytest.fixture
def signs():
    draw = torch.Generator().manual_seed(0)
    common, own = torch.randn(N, 1, 1, generator=draw), torch.randn(N, SAMPLES, 1, generator=draw)
    return (1e-3 * (common + 0.1 * own)).double()


def solved(signs, shares):
    """A step's local error is its share to the fourth power, and its size and sign are given."""
    return torch.tensordot(shares.pow(4), signs, 1)


def moved(errors, judged=None, weights=ONES, far=FAR):
    return refined(errors, judged or (lambda m: distance(errors(m), weights, far)), weights, N, far)


@pytest.fixture
def cautious(monkeypatch):
    """Small local errors weigh as much as the errors at the end do at first, and moves are made until they bring nothing."""
    for name, value in (("CAUTIONS", (1.0,)), ("MOVES", 40), ("GAIN", 0.0)):
        monkeypatch.setattr(f"sdekit_diffusion._sampling.refined.{name}", value)


def test_errors_cancel(signs):
    shares = moved(lambda m: solved(signs, m))
    before, after = (distance(solved(signs, m), ONES, FAR) for m in (torch.ones(N, dtype=torch.float64), shares))
    assert after < 0.25 * before
    assert (shares > 0).all()
    torch.testing.assert_close(shares.mean(), torch.tensor(1.0, dtype=torch.float64))


def test_caution_is_left_step_by_step(signs, monkeypatch):
    """The errors of four samples, which the shares of eight steps can make as small as they may."""

    def kept(*cautions):
        monkeypatch.setattr("sdekit_diffusion._sampling.refined.CAUTIONS", cautions)
        shares = moved(lambda m: solved(signs[:, :4], m), weights=ONES[:4])
        return distance(solved(signs[:, :4], shares), ONES[:4], FAR), float(shares.pow(4).mean())

    (careful, even), (bold, uneven) = kept(1.0), kept(1.0, 0.01)
    assert bold < 0.7 * careful
    assert uneven > even > 1


def test_local_errors_stay_small(cautious):
    """Of eight only the last cancels the others, where it is long: one M to which the least cost of all leads."""
    last = torch.full((N, SAMPLES, 1), 1e-3, dtype=torch.float64)
    last[-1] = -2e-4
    order = itertools.count()
    shares = moved(lambda m: solved(last, m), judged=lambda m: -next(order))

    def cost(m):
        return float(solved(last, m).square().mean() / solved(last, m * 0 + 1).square().mean() + m.pow(4).mean())

    longest = torch.linspace(1.0, 2.0, 1001, dtype=torch.float64)
    tried = [torch.cat([((N - m) / (N - 1)).expand(N - 1), m[None]]) for m in longest]
    torch.testing.assert_close(shares, min(tried, key=cost), rtol=0, atol=5e-3)


def test_other_samples_gain(signs):
    """As the constants are: half of the samples learn; the others, which nobody asks, have less than half of the error."""
    learn, rest = signs[:, ::2], signs[:, 1::2]
    shares = refined(lambda m: solved(learn, m), lambda m: distance(solved(learn, m), ONES[::2], FAR), ONES[::2], N, FAR)
    before, after = (distance(solved(rest, m), ONES[1::2], FAR) for m in (torch.ones(N, dtype=torch.float64), shares))
    assert after < 0.5 * before
    assert shares.pow(4).mean() < 1.5


def test_where_nothing_cancels_shares_stay_equal(cautious):
    """Local errors all of one sign: equal shares are best already."""
    same = torch.full((N, SAMPLES, 1), 1e-3, dtype=torch.float64)
    torch.testing.assert_close(moved(lambda m: solved(same, m)), torch.ones(N, dtype=torch.float64), rtol=0, atol=2e-3)


def test_samples_that_end_elsewhere_hardly_count(signs, cautious):
    """Four whose error is 100 times as large as what is told apart, against the same samples without weight."""
    away = torch.zeros(SAMPLES, 1, dtype=torch.float64)
    away[:4] = 30.0
    weights = torch.where(away[:, 0] > 0, 0.0, 1.0)
    few = moved(lambda m: solved(signs, m), weights=weights)
    torch.testing.assert_close(moved(lambda m: solved(signs, m) - away), few, rtol=0, atol=1e-3)
    assert (moved(lambda m: solved(signs, m) - away, far=1e3) - few).abs().max() > 0.05


def test_weights_count_samples(signs):
    """Weight two is a sample twice, weight nought is none."""
    times = torch.randint(0, 3, (SAMPLES,), generator=torch.Generator().manual_seed(1))
    repeated = signs.repeat_interleave(times, dim=1)
    many = moved(lambda m: solved(repeated, m), weights=torch.ones(repeated.shape[1], dtype=torch.float64))
    torch.testing.assert_close(moved(lambda m: solved(signs, m), weights=times.double()), many, rtol=0, atol=2e-3)
    assert (moved(lambda m: solved(signs, m)) - many).abs().max() > 5e-3


def test_only_ratios_of_weights_count(signs):
    shares = moved(lambda m: solved(signs, m))
    torch.testing.assert_close(moved(lambda m: solved(signs, m), weights=1e4 * ONES), shares, rtol=0, atol=1e-6)


def test_other_samples_judge(signs):
    """Where no move helps them none is made."""
    shares = moved(lambda m: solved(signs, m), judged=lambda m: float((m - 1).abs().max()))
    assert torch.equal(shares, torch.ones(N, dtype=torch.float64))


@pytest.mark.parametrize("event", [(), (3,), (2, 3, 4)])
def test_events_of_any_shape(signs, event):
    """Coordinates that are all the same."""
    shares = moved(lambda m: solved(signs, m).reshape(-1, *[1 for _ in event]).expand(-1, *event))
    torch.testing.assert_close(shares, moved(lambda m: solved(signs, m)), rtol=0, atol=1e-6)


def test_solves_are_few(signs):
    """One for the start, and for each caution one a share for derivatives and one a move."""
    calls, rough = [], torch.Generator().manual_seed(0)

    def errors(shares):
        calls.append(shares)
        return solved(signs, shares) * (1 + 0.3 * torch.randn(1, generator=rough).double())

    refined(errors, lambda m: float(m[0]), ONES, N, FAR)
    assert 1 + len(CAUTIONS) * (N + 1) <= len(calls) <= 1 + len(CAUTIONS) * (N + MOVES)
    assert all(abs(float(shares.mean()) - 1) < 1e-12 for shares in calls)


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e3, 1e160])
def test_trials_that_fail_are_passed_over(signs, value):
    """No value, or one out of all measure, where a share is above 1.05; that of the least error is 1.08."""
    shares = moved(lambda m: solved(signs, m) if m.max() < 1.05 else torch.full((SAMPLES, 1), value, dtype=torch.float64))
    assert 1.04 < shares.max() < 1.05


@pytest.mark.parametrize("value", [0.0, math.inf])
def test_where_there_is_nothing_to_learn_shares_stay_equal(value):
    shares = moved(lambda m: torch.full((SAMPLES, 1), value, dtype=torch.float64))
    assert torch.equal(shares, torch.ones(N, dtype=torch.float64))


def test_errors_of_the_rounding_of_a_solve_do_no_harm():
    """The same error, wherever the steps are."""
    shares = moved(lambda m: torch.full((SAMPLES, 1), 1e-16, dtype=torch.float64))
    torch.testing.assert_close(shares, torch.ones(N, dtype=torch.float64))

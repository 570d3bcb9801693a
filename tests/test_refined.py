"""Shares of steps that are moved so that what arrives at the end is small."""

import pytest
import torch

from sdekit_diffusion._refined import MOVES, refined, remoteness

N, SAMPLES = 8, 64


@pytest.fixture
def signs():
    draw = torch.Generator().manual_seed(0)
    common, own = torch.randn(N, 1, 1, generator=draw), torch.randn(N, SAMPLES, 1, generator=draw)
    return (1e-3 * (common + 0.1 * own)).double()


def solved(signs, shares):
    return torch.tensordot(shares.pow(4), signs, 1)


def test_errors_cancel(signs):
    exact = torch.zeros(SAMPLES, 1, dtype=torch.float64)
    shares = refined(lambda m: solved(signs, m), exact, N, far=0.3)
    before, after = (remoteness(solved(signs, m), 0.3) ** 0.5 for m in (torch.ones(N, dtype=torch.float64), shares))
    assert after < 0.5 * before
    assert (shares > 0).all()
    assert shares.pow(4).mean() < 2
    torch.testing.assert_close(shares.mean(), torch.tensor(1.0, dtype=torch.float64))


def test_where_nothing_cancels_shares_stay_equal():
    """Local errors all of one sign: equal shares are best already."""
    same = torch.full((N, SAMPLES, 1), 1e-3, dtype=torch.float64)
    shares = refined(lambda m: solved(same, m), torch.zeros(SAMPLES, 1, dtype=torch.float64), N, far=0.3)
    torch.testing.assert_close(shares, torch.ones(N, dtype=torch.float64), rtol=0, atol=2e-3)


def test_samples_that_end_elsewhere_hardly_count(signs):
    """Four whose error is 100 times as large as what is told apart, against the same samples without them."""
    exact = torch.zeros(SAMPLES, 1, dtype=torch.float64)
    few = refined(lambda m: solved(signs, m)[4:], exact[4:], N, far=0.3)
    exact[:4] = 30.0
    torch.testing.assert_close(refined(lambda m: solved(signs, m), exact, N, far=0.3), few, rtol=0, atol=0.1)


def test_each_share_is_changed_once(signs):
    calls = []

    def end(shares):
        calls.append(shares)
        return solved(signs, shares)

    refined(end, torch.zeros(SAMPLES, 1, dtype=torch.float64), N, far=0.3)
    assert len(calls) == 1 + N + MOVES
    assert all(abs(float(shares.mean()) - 1) < 1e-12 for shares in calls)

"""The generator: an independent copy in Python integers, pinned values, and its distribution.

Every statistical assertion is a z-score or p-value with a false-alarm rate below 1e-6; seeds are
fixed.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtr
from torch.fx.experimental.proxy_tensor import make_fx

from sdekit import fresh_seed, normal, uniform01
from sdekit._noise.generator import keys, normal_pairs, salt, standard_normal

Z = 5.5  # two-sided false-alarm rate 4e-8
_MASK = 2**64 - 1


def finaliser(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def golden(n):
    return (n * 0x9E3779B97F4A7C15) & _MASK


def signed32(v):
    return v - 2**32 if v >= 2**31 else v


def reference(seed, index, counter, position, size):
    """The definition in `_random`, in unbounded integers and math."""
    salt = 0x6A09E667F3BCC909
    key = finaliser((golden(index) + salt + finaliser((seed ^ salt) & _MASK)) & _MASK)
    words = (size + 1) // 2
    word = finaliser((key + golden(2**26 * counter + position % words)) & _MASK)
    radius = math.sqrt(-2 * math.log(abs(signed32(word >> 32) + 0.5) / 2**31))
    angle = math.pi * signed32(word & 0xFFFFFFFF) / 2**31
    return radius * (math.cos(angle) if position < words else math.sin(angle))


@pytest.mark.parametrize(
    ("seed", "index", "counter"), [(0, 0, 0), (1, 2, 3), (-7, 10**6, -1), (2**63 - 1, 5, 2**36)]
)
def test_equals_an_independent_implementation(seed, index, counter):
    drawn = normal(seed, torch.tensor([index]), (5,), counter=counter, dtype=torch.float64)[0]
    expected = [reference(seed, index, counter, p, 5) for p in range(5)]
    assert drawn.tolist() == pytest.approx(expected, abs=2e-6)


def unfinalised(word):
    """The number that the finaliser makes this word of."""
    z = word ^ (word >> 31) ^ (word >> 62)
    z = (z * pow(0x94D049BB133111EB, -1, 2**64)) & _MASK
    z ^= (z >> 27) ^ (z >> 54)
    z = (z * pow(0xBF58476D1CE4E5B9, -1, 2**64)) & _MASK
    return z ^ (z >> 30) ^ (z >> 60)


def from_halves(upper, lower, *, recorded):
    """The two normals made of a word, from its halves as signed integers; recorded programs use
    torch's operations where others use numpy's.
    """
    word = unfinalised(((upper << 32) | (lower % 2**32)) & _MASK)
    key = torch.tensor([word - 2**64 if word >= 2**63 else word])

    def draw(key):
        return standard_normal(key, range(1), 2).flatten()

    return make_fx(draw)(key)(key) if recorded else draw(key)


@pytest.mark.parametrize("recorded", [False, True])
def test_radii_of_the_most_extreme_words(recorded):
    """|upper + 1/2| / 2^31 is never 0, and the same for upper and -1 - upper."""
    assert unfinalised(finaliser(0x123456789ABCDEF0)) == 0x123456789ABCDEF0
    lower = 123456789
    for upper in (0, 1, 2, 1000, 2**30):
        found = from_halves(upper, lower, recorded=recorded)
        assert torch.equal(found, from_halves(-1 - upper, lower, recorded=recorded))
        radius = math.sqrt(-2 * math.log((upper + 0.5) / 2**31))
        assert float(found.norm()) == pytest.approx(radius, abs=1e-5)
    assert float(from_halves(0, lower, recorded=recorded).norm()) == pytest.approx(
        math.sqrt(2 * 32 * math.log(2)), abs=1e-5
    )


def test_pinned_values():
    drawn = normal(2026, torch.tensor([0, 1]), (3,), counter=4)
    expected = torch.tensor(
        [[-0.7577915, 0.3290450, -0.7900370], [-0.9965829, 1.2472508, 1.0176659]]
    )
    torch.testing.assert_close(drawn, expected, atol=2e-6, rtol=0)


def test_counters_are_whole_numbers_of_any_kind():
    index = torch.arange(2)
    expected = normal(3, index, (2,), counter=-5)
    for counter in (np.int64(-5), torch.tensor(-5)):
        assert torch.equal(normal(3, index, (2,), counter=counter), expected)
    for seed in (3, torch.tensor([3, 3])):
        with pytest.raises(TypeError):
            normal(seed, index, (2,), counter=1.5)


def test_draws_that_reach_the_next_counter_are_refused():
    one = torch.arange(1)
    with pytest.raises(ValueError, match="at most 67,108,864 random words"):
        normal(0, one, (2**27 + 1,))
    with pytest.raises(ValueError, match="divide the sample"):
        uniform01(0, one, (2**13, 2**13 + 1), counter=0)


def test_salts_depend_on_all_bits_and_on_the_order():
    numbers = [0, 1, 2**36, 2**36 + 1, 2**36 - 1]
    salts = {salt(a, b) for a in numbers for b in numbers}
    assert len(salts) == 25
    assert all(-(2**63) <= number < 2**63 for number in salts)
    inner = finaliser((golden(3) + 0x6A09E667F3BCC909) & _MASK)
    outer = finaliser((inner + golden(5) + 0x6A09E667F3BCC909) & _MASK)
    assert salt(3, 5) % 2**64 == outer


def test_small_seeds_and_counters_have_ordinary_numbers():
    """The finaliser leaves 0 alone: an unsalted generator begins sample 0 of seed 0 with 6.66."""
    for seed in range(20):
        assert normal(seed, torch.arange(1000), (4,), counter=0).abs().max() < 5.5
        assert uniform01(seed, torch.arange(1000), (4,), counter=0).min() > 0


@pytest.fixture(scope="module")
def many():
    """1e7 normals: 100 samples, 100 counters, 1000 positions."""
    return standard_normal(keys(3, torch.arange(100)), range(100), 1000)


def test_distribution(many):
    flat = many.flatten().double()
    n = flat.numel()
    assert n == 10_000_000
    exact = ndtr(np.sort(many.numpy().ravel()).astype(np.float64))
    count = np.arange(n + 1) / n
    distance = max((count[1:] - exact).max(), (exact - count[:-1]).max())
    assert stats.kstwobign.sf(math.sqrt(n) * distance) > 1e-6  # Kolmogorov and Smirnov's test
    square = flat.square()
    moments = [
        (flat, 0, 1),
        (square, 1, 2),
        (square * flat, 0, 15),
        (square.square(), 3, 96),
        (square.square() * square, 15, 10170),
    ]
    for value, mean, variance in moments:
        assert abs(value.mean() - mean) < Z * math.sqrt(variance / n)
    assert 4.8 < flat.abs().max() < 6.7


@pytest.mark.parametrize("transform", [lambda v: v, torch.square], ids=["values", "squares"])
def test_no_correlation_between_neighbours(many, transform):
    """Samples, counters, positions, and the two normals that share a word."""
    value = transform(many.double())
    value = (value - value.mean()) / value.std()
    pairs = {
        "counter": (value[1:], value[:-1]),
        "sample": (value[:, 1:], value[:, :-1]),
        "position": (value[:, :, 1:], value[:, :, :-1]),
        "word": (value[:, :, :500], value[:, :, 500:]),
    }
    for name, (a, b) in pairs.items():
        assert abs((a * b).mean()) * math.sqrt(a.numel()) < Z, name


@pytest.mark.parametrize("step", [1, 2**32, 2**62])
def test_no_correlation_between_seeds(step):
    index = torch.arange(2000)
    draws = [normal(17 + i * step, index, (500,), dtype=torch.float64) for i in range(2)]
    n = draws[0].numel()
    assert abs((draws[0] * draws[1]).mean()) * math.sqrt(n) < Z
    assert abs(((draws[0].square() - 1) * (draws[1].square() - 1)).mean() / 2) * math.sqrt(n) < Z


def test_far_apart_seeds_differ():
    """Torch's own CPU generator keeps 32 bits of a seed; this one keeps 64."""
    index = torch.arange(4)
    assert not torch.equal(normal(1, index, (4,)), normal(1 + 2**32, index, (4,)))
    assert torch.equal(normal(1, index, (4,)), normal(1 + 2**64, index, (4,)))


def test_a_number_depends_on_its_coordinates_alone():
    whole = standard_normal(keys(5, torch.arange(40)), range(9), 7)
    part = standard_normal(keys(5, torch.tensor([31, 4])), range(2, 9, 3), 7)
    assert torch.equal(part, whole[2:9:3][:, [31, 4]])


def test_large_events_are_drawn_in_pieces_that_do_not_show(monkeypatch):
    whole = normal(1, torch.arange(3), (11, 13))
    monkeypatch.setattr("sdekit._noise.generator._CPU_BLOCK", 10)
    assert torch.equal(normal(1, torch.arange(3), (11, 13)), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_default_dtype_changes_nothing(dtype):
    """In half precision the numbers were drawn in it."""
    index = torch.arange(5)

    def numbers():
        return (
            normal(0, index, (3,), dtype=torch.float64),
            standard_normal(keys(0, index), range(5), 3),
            normal_pairs(keys(0, index), index, 3),
        )

    expected = numbers()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = numbers()
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_short_integers_give_the_numbers_of_long_ones(dtype):
    """Two samples of 32 bits shared a word, so that one depended on its neighbour."""
    index = torch.tensor([3, 7, 100])
    for seed in (5, torch.tensor([1, 2, 1])):
        short = seed if isinstance(seed, int) else seed.to(dtype)
        expected = normal(seed, index, (4,))
        assert torch.equal(normal(short, index.to(dtype), (4,)), expected)
        assert torch.equal(normal(short, index, (4,)), expected)


def test_empty_shapes():
    assert normal(0, torch.arange(0), (3,)).shape == (0, 3)
    assert normal(0, torch.arange(2), (0,)).shape == (2, 0)
    assert normal(0, torch.arange(2), ()).shape == (2,)


def test_uniform():
    u = uniform01(9, torch.arange(1000), (1000,), counter=-3).flatten()
    assert u.dtype == torch.float64
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-6
    assert u.min() >= 0
    assert u.max() < 1
    assert len(u.unique()) == len(u)


def test_fresh_seeds_follow_torch_manual_seed():
    torch.manual_seed(0)
    first = fresh_seed(), fresh_seed()
    torch.manual_seed(0)
    assert (fresh_seed(), fresh_seed()) == first
    assert first[0] != first[1]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_recorded_programs_mix_words_of_other_samples_too():
    """Where torch records what is done, words are mixed by its own functions."""
    draw = lambda index: normal(3, index, (2,))  # noqa: E731
    first, other = torch.arange(3), torch.arange(5, 8)
    traced = torch.jit.trace(draw, first, check_trace=False)
    assert torch.equal(traced(other), draw(other))
    graph = make_fx(draw)(first)
    assert torch.equal(graph(other), draw(other))

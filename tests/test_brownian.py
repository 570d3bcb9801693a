"""The Brownian path: its law, and that an answer never depends on how it was asked.

Statistical bounds are 5.3 standard errors a number (two-sided 1e-7), at most ten numbers a test:
false-alarm rates of 1e-6. Seeds are fixed.
"""

import math
import resource

import numpy as np
import pytest
import scipy.stats
import torch

from sdekit import BrownianPath, geometric, uniform

PATHS = 100_000
Z = 5.3
GRID = [0.0, 0.1, 0.25, 0.3, 0.77, 1.0]


def read(path, ts, *, batch=PATHS, event=(1,), dtype=torch.float64):
    """W and H over the intervals of a grid, `(steps, batch, *event)`."""
    found = list(path.increments(ts, torch.zeros(batch, *event, dtype=dtype), event, levy=True))
    return torch.stack([i.w for i in found]), torch.stack([i.h for i in found])


def combined(ts, w, h):
    """W and H over a whole grid from those of its intervals (Chen's relation)."""
    dt = torch.tensor(ts, dtype=torch.float64).diff()
    dt = dt.abs().reshape(-1, *[1] * (w.ndim - 1))
    area = (dt * (w.cumsum(0) - w + w / 2 + h)).sum(0)
    return w.sum(0), area / dt.sum() - w.sum(0) / 2


# The law


@pytest.mark.parametrize(
    "knots", [(0.0, 1.0), (0.0, 0.2, 0.21, 1.0)], ids=["one cell", "three cells"]
)
def test_increments_have_the_law_of_w_and_h(knots):
    w, h = read(BrownianPath(1, knots), GRID)
    scale = torch.tensor(GRID, dtype=torch.float64).diff().sqrt().reshape(-1, 1)
    unit = torch.cat([w[..., 0] / scale, h[..., 0] / scale * math.sqrt(12)])
    for row in unit.numpy():
        assert scipy.stats.kstest(row, "norm").pvalue > 1e-7
    covariance = unit @ unit.T / PATHS
    error = torch.where(torch.eye(len(unit)) > 0, math.sqrt(2), 1.0) / math.sqrt(PATHS)
    # 55 numbers; 6 standard errors each: 1.1e-7 together.
    assert ((covariance - torch.eye(len(unit), dtype=torch.float64)).abs() < 6 * error).all()


def test_the_seed_index_and_dimension_make_independent_paths():
    parts = [
        read(BrownianPath(1), GRID, event=(2,)),
        read(BrownianPath(2), GRID, event=(2,)),
        read(BrownianPath(1, first=PATHS), GRID, event=(2,)),
    ]
    w = torch.cat([part[0].permute(0, 2, 1).reshape(-1, PATHS) for part in parts])
    w = w / w.square().mean(1, keepdim=True).sqrt()
    covariance = (w @ w.T / PATHS) - torch.eye(len(w))
    assert covariance.abs().max() < 6.2 / math.sqrt(PATHS)  # 435 numbers, 5.6e-10 each


@pytest.mark.parametrize("r", [0.5, 0.3])
def test_conditional_moments_of_a_part_given_the_whole(r):
    """Given W and H of [0, 1], the mean over [0, r] is (r W + 6 r (1 - r) H, r^2 H); what remains
    is independent of them.
    """
    path = BrownianPath(3)
    (whole_w, whole_h), (part_w, part_h) = (
        tuple(v[0, :, 0] for v in read(path, ts)) for ts in ([0.0, 1.0], [0.0, r, 1.0])
    )
    rest = torch.stack([part_w - r * whole_w - 6 * r * (1 - r) * whole_h, part_h - r * r * whole_h])
    # Variances by subtraction: those of the part less those explained.
    variance = torch.tensor([r - r * r - 36 * r**2 * (1 - r) ** 2 / 12, r / 12 - r**4 / 12])
    assert ((rest.square().mean(1) / variance - 1).abs() < Z * math.sqrt(2 / PATHS)).all()
    for given in (whole_w, whole_h * math.sqrt(12)):
        assert ((rest * given).mean(1).abs() < Z * variance.sqrt() / math.sqrt(PATHS)).all()


def test_a_path_in_float32_keeps_its_small_levy_areas():
    """H is of the size of sqrt(dt / 12), far below W's value; subtracting integrals in float32
    would leave noise.
    """
    ts = (0.7 + torch.arange(3, dtype=torch.float64) * 2.0**-16).tolist()
    narrow, wide = (
        read(BrownianPath(1, depth=24), ts, batch=1000, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    for a, b in zip(narrow, wide, strict=True):
        torch.testing.assert_close(
            a.double(), b, rtol=0, atol=2e-6 * float(b.square().mean().sqrt())
        )


# One path, however it is asked


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("knots", [(0.0, 1.0), (0.0, 0.3, 2.0)], ids=["one cell", "two cells"])
def test_answers_do_not_depend_on_grid_order_block_or_batch(dtype, knots):
    path = BrownianPath(7, knots)
    event = (3,)
    ts = torch.linspace(0, 1, 98, dtype=torch.float64).tolist()
    w, h = read(path, ts, batch=9, event=event, dtype=dtype)
    # Interval by interval, last first.
    for i in range(96, -1, -3):
        alone = read(path, ts[i : i + 2], batch=9, event=event, dtype=dtype)
        assert torch.equal(alone[0][0], w[i])
        assert torch.equal(alone[1][0], h[i])
    # From the middle; samples alone, permuted; a large batch, which is summed in another loop.
    late = list(
        path.increments(ts, torch.zeros(9, *event, dtype=dtype), event, levy=True, start=40)
    )
    assert torch.equal(torch.stack([i.w for i in late]), w[40:])
    assert torch.equal(
        read(BrownianPath(7, knots, first=4), ts, batch=1, event=event, dtype=dtype)[1][:, 0],
        h[:, 4],
    )
    order = torch.tensor([5, 2, 7])
    assert torch.equal(
        read(path.rows(order), ts, batch=3, event=event, dtype=dtype)[1], h[:, order]
    )
    assert torch.equal(read(path, ts[:9], batch=1500, event=event, dtype=dtype)[1][:, :9], h[:8])


def test_what_does_not_fit_is_made_piece_by_piece_with_the_same_bits(monkeypatch):
    path = BrownianPath(7, (0.0, 0.3, 2.0))
    x = torch.zeros(3, 40)
    ts = uniform(0.0, 2.0, 13).tolist()
    t = torch.tensor([[0.1, 0.5, 1.9], [0.4, 0.6, 0.2]], dtype=torch.float64)

    def ask():
        own = path.reader(x, (40,), levy=True)(*t)
        return [
            own.w,
            own.h,
            *(part for i in path.increments(ts, x, (40,), levy=True) for part in (i.w, i.h)),
        ]

    whole = ask()
    for large in (1, 1 << 12):
        monkeypatch.setattr("sdekit._noise.brownian._MAX_NORMALS", 1)
        monkeypatch.setattr("sdekit._noise.brownian._LARGE_BATCH", large)
        assert all(map(torch.equal, whole, ask()))


def test_samples_with_times_of_their_own_read_the_same_path():
    path = BrownianPath(7, (0.0, 0.3, 2.0))
    x = torch.zeros(50, 2)
    event = (2,)
    generator = torch.Generator().manual_seed(0)
    t0, t1 = 2 * torch.rand(2, 50, generator=generator, dtype=torch.float64)
    own = path.reader(x, event, levy=True)(t0, t1)
    for i in range(50):
        w, h = read(
            path.rows(torch.tensor([i])),
            [float(t0[i]), float(t1[i])],
            batch=1,
            event=event,
            dtype=torch.float32,
        )
        assert torch.equal(own.w[i], w[0, 0])
        assert torch.equal(own.h[i], h[0, 0])
    again = path.rows(torch.arange(20, 50)).reader(x[20:], event, levy=True)(t0[20:], t1[20:])
    assert torch.equal(again.h, own.h[20:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "knots", [(0.0, 1.0), (0.0, 0.3, 0.35, 1.0)], ids=["one cell", "three cells"]
)
def test_a_reader_answers_alike_whatever_it_was_asked_before(knots, dtype):
    """It keeps the branches of its last query: steps that go on, are shortened, go back, jump, stay
    or meet coarse ticks.
    """
    path = BrownianPath(7, knots)
    x = torch.zeros(9, 3, dtype=dtype)
    generator = torch.Generator().manual_seed(0)

    def uniform01():
        return torch.rand(9, generator=generator, dtype=torch.float64)

    for levy in (False, True):
        kept = path.reader(x, (3,), levy=levy)
        (t0, t1) = (uniform01(), uniform01())
        for i in range(60):
            found = kept(t0, t1)
            assert all(
                map(
                    torch.equal,
                    found[: 1 + levy],
                    path.reader(x, (3,), levy=levy)(t0, t1)[: 1 + levy],
                )
            )
            accept = uniform01() < 0.7
            length = 10 ** (-4 * uniform01())
            t0, t1 = (
                torch.where(accept, t1, t0),
                torch.where(accept, t1 + length, (t0 + t1) / 2).clamp(max=1.0),
            )
            if i % 10 == 5:
                t0, t1 = t1, t0
            elif i % 10 == 7:
                t0, t1 = torch.where(accept, t0, uniform01()), torch.where(accept, t0, uniform01())
            elif i % 10 == 9:
                t0 = (8 * uniform01()).round() / 8
                t1 = (8 * uniform01()).round() / 8


def test_any_grid_adds_up_to_the_same_path():
    path = BrownianPath(2, (0.0, 0.2, 1.0), depth=30)
    whole = read(path, [0.0, 1.0], batch=100)
    for grid in (uniform(0, 1, 7), uniform(0, 1, 64), [0.0, 0.1999, 0.2, 0.2001, 1.0]):
        grid = torch.as_tensor(grid, dtype=torch.float64).tolist()
        w, h = combined(grid, *read(path, grid, batch=100))
        torch.testing.assert_close(w, whole[0][0], rtol=0, atol=1e-12)
        torch.testing.assert_close(h, whole[1][0], rtol=0, atol=1e-8)  # times are rounded to 2^-30


def test_reversed_in_time_w_changes_sign_and_h_does_not():
    path = BrownianPath(5)
    ts = torch.linspace(0, 1, 34, dtype=torch.float64).tolist()
    (w, h) = read(path, ts, batch=10)
    (back_w, back_h) = read(path, ts[::-1], batch=10)
    assert torch.equal(back_w, -w.flip(0))
    assert torch.equal(back_h, h.flip(0))
    reader = path.reader(torch.zeros(10, 1, dtype=torch.float64), (1,), levy=True)
    back = reader(*torch.tensor([[ts[4]] * 10, [ts[3]] * 10], dtype=torch.float64))
    assert torch.equal(back.w, -w[3])
    assert torch.equal(back.h, h[3])


def test_snapped_grids_are_near_and_coarse():
    path = BrownianPath(0, geometric(1e-3, 1.0, 6))
    grid = geometric(1e-3, 1.0, 50)
    for spare in (1, 2, 3):
        snapped = path.snap(grid, spare)
        assert (snapped[[0, -1]] == grid[[0, -1]]).all()
        assert (snapped.diff() > 0).all()
        assert ((snapped - grid).abs() <= grid.diff().max() * 2.0**-spare).all()
    ticks = BrownianPath(0).ticks(BrownianPath(0).snap(uniform(0, 1, 100), 1))
    assert (ticks % (1 << 12) == 0).all()
    with pytest.raises(ValueError, match="increase strictly or decrease strictly"):
        path.snap([0.1, 0.3, 0.2])
    with pytest.raises(ValueError, match="at least two times"):
        path.snap([0.1])
    with pytest.raises(TypeError, match=r"spare, a number of bits, is an integer, not 1\.5"):
        path.snap(grid, 1.5)


@pytest.mark.parametrize("noise_shape", [(), (5,), (2, 3)], ids=str)
def test_noise_of_any_shape_and_fresh_normals_beside_it(noise_shape):
    x = torch.zeros(4, 7)
    found = list(BrownianPath(0).increments([0.0, 0.5, 1.0], x, noise_shape, levy=True, normals=2))
    assert [i.w.shape for i in found] == [(4, *noise_shape)] * 2
    assert [i.z.shape for i in found] == [(2, 4, 7)] * 2
    assert found[0].z.unique().numel() == 56


def test_fresh_normals_of_late_steps_have_nothing_to_do_with_the_path():
    """Steps count from 0 and must not reach the counters of the path's nodes, whatever the length
    of the grid.
    """
    x = torch.zeros(2000, 1, dtype=torch.float64)
    path = BrownianPath(5)
    w, h = read(path, [0.0, 0.25, 0.5, 1.0], batch=2000)
    parts = torch.stack([*(w[:2] - w[:2].mean(0)), *h[:2], w[:2].sum(0) - w[2]])[..., 0]
    for start in (2**8, 2**10, 2**12):
        step = next(
            path.increments(uniform(0.0, 1.0, 2**13).tolist(), x, (1,), normals=1, start=start)
        )
        assert step.z is not None
        correlations = torch.corrcoef(torch.cat([step.z[0].T, parts]))[0, 1:]
        assert correlations.abs().max() < 5.3 / math.sqrt(2000)


def growth(grown):
    """Sends the megabytes by which the memory of this process grows."""
    torch.set_num_threads(1)
    x = torch.zeros(1000, 1)
    path = BrownianPath(0)

    def ask(n):
        for _ in path.increments(uniform(0, 1, n), x, (1,), levy=True):
            pass
        read = path.reader(x, (1,), levy=False)
        for i in range(n // 100):
            read(torch.full((1000,), i / n), torch.full((1000,), (i + 1) / n))

    ask(200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ask(2000)
    grown.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def test_memory_does_not_grow_with_queries(context):
    """Two million numbers read, in blocks and one by one: what is kept is nothing."""
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=growth, args=(sending,))
    process.start()
    sending.close()
    assert receiving.recv() < 8  # megabytes; the numbers themselves are 16
    process.join()


# What is refused


def test_times_outside_the_knots_and_below_the_resolution_are_refused():
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="is defined on"):
        list(BrownianPath(0).increments([0.0, 1.5], x, (1,)))
    with pytest.raises(ValueError, match="larger depth"):
        list(BrownianPath(0, depth=4).increments(uniform(0, 1, 33).tolist(), x, (1,)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"knots": (1.0, 0.0)}, "increasing"),
        ({"knots": (0.0,)}, "at least two"),
        ({"knots": (0.0, math.inf)}, "finite"),
        ({"depth": 0}, "depth must be from 1 to 32"),
        ({"depth": 33}, "depth must be from 1 to 32"),
        ({"knots": np.arange(100.0), "depth": 30}, "at most 2\\^36"),
    ],
)
def test_knots_and_depth_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        BrownianPath(0, **arguments)


def test_the_depth_is_an_integer():
    for depth in (20.5, "3", None):
        with pytest.raises(TypeError, match="depth, a number of levels, is an integer, not"):
            BrownianPath(0, depth=depth)
    assert BrownianPath(0, depth=np.int64(3)).tree.depth == 3


def test_seeds_of_samples_of_any_size_and_kind():
    big = [2**64 - 1, 2, np.int64(3)]
    w = read(BrownianPath(big), GRID, batch=3)[0]
    for i, seed in enumerate(big):
        assert torch.equal(read(BrownianPath(seed), GRID, batch=1)[0][:, 0], w[:, i])
    assert torch.equal(read(BrownianPath(torch.tensor([5, 2])), GRID, batch=2)[0][:, 1], w[:, 1])


def test_readings_may_be_of_no_time_at_all():
    path = BrownianPath(1)
    x = torch.zeros(2, 1)
    found = list(path.readings([0.3, 0.3, 0.3 + 1e-9, 0.5], x, (1,), levy=True))
    assert [bool(i.w.any()) for i in found] == [False, False, True]
    assert all(bool(i.h.isfinite().all()) for i in found)


def test_a_seed_is_taken_from_the_default_generator():
    torch.manual_seed(3)
    a = BrownianPath()
    b = BrownianPath()
    torch.manual_seed(3)
    assert (a.seed, b.seed) == (BrownianPath().seed, BrownianPath().seed)
    assert a.seed != b.seed


def test_ticks_and_times_are_inverse_and_walks_are_nested():
    tree = BrownianPath(0, (0.0, 0.3, 2.0), depth=10).tree
    ticks = torch.arange(0, 2 * 1024 + 1)
    assert torch.equal(tree.ticks(tree.times(ticks)), ticks)
    assert tree.times(ticks[[0, 1024, 2048]]).tolist() == [0.0, 0.3, 2.0]
    generator = torch.Generator().manual_seed(0)
    for t0, end in ((0.0, 2.0), (2.0, 0.0)):
        t = torch.full((200,), t0, dtype=torch.float64)
        length = torch.full((200,), torch.inf)
        tried = [set() for _ in t]
        for _ in range(60):
            # Any length after an accepted step, a shorter one after a rejected one.
            h = torch.minimum(
                0.9 * length, 10 ** (-3 * torch.rand(200, generator=generator, dtype=torch.float64))
            )
            t1 = torch.where(
                t == end, t, tree.after(t, h, 1 if end > t0 else -1, torch.tensor([0, 0]))[0]
            )
            for i, (a, b) in enumerate(zip(t.tolist(), t1.tolist(), strict=True)):
                assert not any(min(a, b) < time < max(a, b) for time in tried[i]), (
                    "a time that was tried is jumped over"
                )
                assert a == b or abs(b - a) <= max(float(h[i]) * (1 + 1e-8), 1.7 / 1024 + 1e-9)
                tried[i].add(b)
            accept = torch.rand(200, generator=generator) < 0.5
            length = torch.where(accept, torch.inf, (t1 - t).abs())
            t = torch.where(accept, t1, t)


def test_two_times_at_one_tick_have_no_grid():
    path = BrownianPath(0, depth=4)
    with pytest.raises(
        ValueError, match="two of these times are at one tick of this path of depth 4"
    ):
        path.snap(uniform(0.0, 1.0, 17))
    assert path.snap(uniform(0.0, 1.0, 16)).tolist() == uniform(0.0, 1.0, 16).tolist()

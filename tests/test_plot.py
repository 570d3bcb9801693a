"""What the plot functions draw, read from matplotlib's objects, and what they refuse."""

import json
import math
import sys

import numpy as np
import pytest
import torch

import sdekit
import sdekit_diffusion as sd
from sdekit.plot import convergence, new_axes, paths
from sdekit_diffusion import plot

OU = sdekit.SDE(lambda t, x: -x, lambda t, x: 1.0, "additive")
LAW = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1])
SAVED = {"sde": "vp", "steps": 8, "seed": 0, "save": "all", "return_solution": True}


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def solved(shape=(1,), n=40, **options):
    return sdekit.solve(
        OU, torch.zeros(n, *shape), sdekit.uniform(0.0, 1.0, 10), solver=sdekit.Heun(),
        noise=sdekit.WhiteNoise(0), **{"save": "all"} | options,
    )  # fmt: skip


# sdekit.plot


def test_paths_are_the_states_with_their_mean_and_quantiles():
    solution = solved()
    ax = paths(solution, count=7, mean=True, band=0.8)
    x = solution.xs[:, :, 0].numpy()
    assert len(ax.lines) == 8
    for i, line in enumerate(ax.lines[:7]):
        assert np.allclose(line.get_xdata(), solution.ts)
        assert np.allclose(line.get_ydata(), x[:, i])
    assert np.allclose(ax.lines[7].get_ydata(), x.mean(axis=1))
    corners = ax.collections[0].get_paths()[0].vertices
    low, high = np.quantile(x[-1].astype(float), (0.1, 0.9))
    at_end = corners[corners[:, 0] == 1.0][:, 1]
    assert (at_end.min(), at_end.max()) == pytest.approx((low, high))
    assert texts(ax) == ["80 % of the samples", "mean"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time", "x")


def test_paths_of_one_coordinate_on_given_axes():
    solution = solved((2, 2))
    (ax,) = new_axes()
    assert paths(solution, coordinate=3, ax=ax) is ax
    assert np.allclose(ax.lines[5].get_ydata(), solution.xs[:, 5, 1, 1])
    assert ax.get_ylabel() == "x[3]"
    assert ax.get_legend() is None
    chosen = solved(save=[0.0, 0.5])
    assert np.allclose(paths(chosen).lines[0].get_xdata(), [0.0, 0.5])


def test_what_paths_refuse():
    with pytest.raises(ValueError, match='save="all"'):
        paths(solved(save="last"))
    with pytest.raises(TypeError, match="not Tensor"):
        paths(solved().xs)
    with pytest.raises(ValueError, match="coordinate 2 is not one of the 1"):
        paths(solved(), coordinate=2)
    for count, error in ((-1, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match=f"count.* not {count}"):
            paths(solved(), count=count)
    with pytest.raises(TypeError, match=r"coordinate is an integer, not 0\.5"):
        paths(solved(), coordinate=0.5)
    for options in ({"band": 0.9}, {"mean": True}):
        with pytest.raises(ValueError, match="the solution has no samples"):
            paths(solved(n=0), **options)
    with pytest.raises(ValueError, match="between 0 and 1, not 90"):
        paths(solved(), band=90)
    solution = solved()
    solution.xs[3, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        paths(solution)


def test_slopes_of_exact_powers():
    """3 h^1.5 has slope 1.5; the line of a given order passes through the middle of the points."""
    h = np.array([0.5, 0.25, 0.125])
    ax = convergence(h, 3 * h**1.5, label="a")
    assert np.allclose(ax.lines[1].get_ydata(), 3 * np.array([0.125, 0.5]) ** 1.5)
    assert convergence(h, h, order=2, ax=ax) is ax
    assert np.allclose(ax.lines[2].get_ydata(), h)
    assert np.allclose(ax.lines[3].get_ydata(), 0.25 * np.array([0.5, 2.0]) ** 2)
    assert texts(ax) == ["a: slope 1.50", "error: slope 1.00 (line: 2)"]
    assert ax.lines[2].get_color() == ax.lines[3].get_color() != ax.lines[0].get_color()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


@pytest.mark.parametrize(
    ("steps", "errors", "message"),
    [
        ([0.1, 0.2], [0.1], r"shape \(2,\) and errors \(1,\)"),
        ([0.1, 0.1], [0.1, 0.2], "different steps"),
        ([0.1, 0.2], [0.1, 0.0], "positive"),
        ([0.1, 0.2], [0.1, math.inf], "positive"),
    ],
)
def test_what_convergence_refuses(steps, errors, message):
    with pytest.raises(ValueError, match=message):
        convergence(steps, errors)


def test_errors_with_gradients_are_drawn():
    steps = [0.1, 0.05]
    errors = torch.tensor([0.02, 0.005], requires_grad=True)
    for given in (errors, list(errors), errors.tolist()):
        assert texts(convergence(steps, given)) == ["error: slope 2.00"]
    with pytest.raises(ValueError, match="a finite number, not nan"):
        convergence(steps, [0.02, 0.005], order=math.nan)


# sdekit_diffusion.plot


def test_a_grid_of_images():
    """Of values -1 and 1 and of integers 0 and 255 are black and white, unless others are given."""
    x = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 1, 4, 6)
    ax = plot.samples(x, columns=3, headings=["a", "b", "c"], names=["d", "e"], gap=2)
    canvas = np.asarray(ax.images[0].get_array())
    assert canvas.shape == (2 * 6 - 2, 3 * 8 - 2, 3)
    assert canvas[0, [0, 8, 16]].tolist() == [[0] * 3, [0.25] * 3, [0.5] * 3]
    assert canvas[0, 6].tolist() == canvas[-1, -1].tolist() == [1] * 3  # a gap, and no image
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    assert list(ax.get_xticks()) == [2.5, 10.5, 18.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["d", "e"]
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert np.allclose(plot.samples(levels).images[0].get_array(), [[[0, 0.2, 1]]])
    mask = torch.tensor([False, True]).reshape(2, 1, 1, 1)
    assert np.asarray(plot.samples(mask, gap=0).images[0].get_array())[0, :, 0].tolist() == [0, 1]
    shown = plot.samples(torch.tensor([3.0, 9.0]).reshape(2, 1, 1, 1), black=2, white=4, gap=0)
    assert np.asarray(shown.images[0].get_array())[0, :, 0].tolist() == [0.5, 1]


def test_points_and_numbers():
    x = LAW.sample(200, seed=0)
    ax = plot.samples(x, limits=[(-3, 3), (-2, 1)])
    assert np.allclose(ax.collections[0].get_offsets(), x)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-3, 3), (-2, 1))
    for numbers in (x[:, :1], x[:, 0].numpy(), x[:, 0].requires_grad_()):
        ax = plot.samples(numbers)
        area = sum(bar.get_height() * bar.get_width() for bar in ax.patches)
        assert area == pytest.approx(1)
        assert ax.get_ylabel() == "density"


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(0, 2), {}, "no samples"),
        (torch.full((3, 2), math.nan), {}, "NaN"),
        (torch.zeros(4, 3), {}, r"shape \(4, 3\).*x\[:, :2\]"),
        (torch.zeros(4, 2, 8, 8), {}, "1 or 3 channels"),
        (torch.zeros(4, 8, 8), {}, r"\(n, C, H, W\).*images \(n, H, W\) as x\[:, None\]"),
        (torch.zeros(4, 8, 8, 3), {}, r"images \(n, H, W, C\) as x\.permute\(0, 3, 1, 2\)"),
        (torch.zeros(8, 8, 3), {}, r"an image \(H, W, C\) as x\.permute\(2, 0, 1\)\[None\]"),
        (torch.zeros(8, 8), {}, r"an image \(H, W\) as x\[None, None\]"),
        (torch.zeros(()), {}, "no samples"),
        (torch.zeros(4, 2), {"limits": [(0, 1)]}, "each of the 2 coordinates"),
        (torch.zeros(4, 1, 8, 8), {"headings": ["a"]}, "1 texts for 2 columns"),
    ],
)
def test_what_samples_refuses(x, options, message):
    with pytest.raises(ValueError, match=message):
        plot.samples(x, **options)
    with pytest.raises(TypeError, match="x is a tensor or an array of samples, not 'x'"):
        plot.samples("x")


def test_the_density_of_a_law_and_of_a_score():
    """log p at the points of the grid, the second coordinate upwards; without log_prob by the
    flow, within its tolerance.
    """
    limits = [(-2.0, 2.0), (-0.5, 1.0)]
    mesh = plot.density(LAW, limits=limits, size=5).collections[0]
    point = torch.tensor([[1.0, -0.125]])  # column 3, row 1
    assert mesh.get_array()[1, 3] == pytest.approx(float(LAW.log_prob(point)), abs=1e-5)
    assert mesh.get_clim()[1] - mesh.get_clim()[0] == 10
    shown = plot.density(sd.Guided(LAW, 1.0, by=LAW), limits=limits, size=5, sde="vp").collections[
        0
    ]
    assert np.allclose(shown.get_array(), mesh.get_array(), atol=0.1)
    assert not np.array_equal(shown.get_array(), mesh.get_array())
    ax = plot.density(LAW, size=3)
    corners = np.asarray(ax.collections[0].get_coordinates())  # half a step around the grid
    assert np.allclose(corners[[0, -1], 0, 1], [-6 * LAW.data_std, 6 * LAW.data_std])
    assert ax.figure.axes[1].get_ylabel() == "log p in nats"


def test_what_density_refuses():
    with pytest.raises(ValueError, match=r"shape \(1,\); a density is drawn of two"):
        plot.density(sd.GaussianMixture([1.0], [[0.0]], [1.0]))
    with pytest.raises(ValueError, match="pairs"):
        plot.density(LAW, limits=[(0, 1)])
    with pytest.raises(ValueError, match="pairs"):
        plot.density(LAW, limits=[(0, 1), (1, 1)])
    net = sd.nets.MLP(shape=(2,), width=8, depth=1)
    with pytest.raises(ValueError, match="give limits="):
        plot.density(sd.ScoreModel(net, "vp", shape=(2,)))


def test_trajectories_in_the_plane_and_against_time():
    solution = sd.sample(LAW, 6, **SAVED)
    ax = plot.trajectories(solution, count=4)
    assert len(ax.lines) == 4
    assert np.allclose(ax.lines[2].get_xydata(), solution.xs[:, 2])
    first, last = (np.asarray(dots.get_offsets()) for dots in ax.collections)
    assert np.allclose(first, solution.xs[0, :4])
    assert np.allclose(last, solution.x[:4])
    one = sd.sample(sd.GaussianMixture([1.0], [[0.0]], [1.0]), 6, **SAVED)
    ax = plot.trajectories(one)
    assert np.allclose(ax.lines[3].get_ydata(), one.xs[:, 3, 0])
    assert ax.get_xlabel() == "time"
    with pytest.raises(ValueError, match=r"plot\.denoising"):
        plot.trajectories(solved((3,)))


def test_denoising_shows_states_and_denoised_images():
    """Of one image of grey 0.5 the denoised one is that image at every noise level."""
    model = sd.EmpiricalMixture(torch.full((1, 1, 2, 3), 0.5))
    solution = sd.sample(model, 5, **SAVED)
    states, images = plot.denoising(model, solution, sde="vp", count=2, columns=4)
    canvas = np.asarray(images.images[0].get_array())
    assert canvas.shape == (2 * 3 - 1, 4 * 4 - 1, 3)
    assert np.allclose(canvas[:2, :3], 0.75, atol=1e-3)
    shown = np.asarray(states.images[0].get_array())
    alpha, sigma = sd.VPSDE().kernel(float(solution.ts[0]))
    noise = solution.xs[0, 1, 0] / math.hypot(alpha, sigma)
    assert np.allclose(shown[3:, :3, 0], ((noise + 1) / 2).clip(0, 1), atol=1e-5)
    headings = [float(label.get_text()) for label in states.get_xticklabels()]
    assert headings == sorted(headings, reverse=True)
    canvas = plot.denoising(model, solution, sde="vp", count=1, columns=99)[0].images[0]
    assert canvas.get_array().shape == (2, 9 * 4 - 1, 3)  # all states of eight steps
    own = new_axes(columns=2)
    assert list(plot.denoising(model, solution, sde="vp", axes=tuple(own))) == own
    with pytest.raises(ValueError, match="no diffusion of its own"):
        plot.denoising(model, solution)
    with pytest.raises(ValueError, match=r"plot\.trajectories"):
        plot.denoising(LAW, sd.sample(LAW, 2, **SAVED), sde="vp")


def test_the_loss_of_a_folder_and_of_records(tmp_path):
    lines = [{"step": 10 * i, "loss": float(i)} for i in range(1, 41)]
    for line in lines[9::10]:
        line["validation_loss"] = 2.0 * line["loss"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ax = plot.loss(tmp_path)
    assert texts(ax) == ["batches", "moving mean", "validation"]
    assert ax.lines[0].get_ydata().tolist() == list(range(1, 41))
    assert ax.lines[1].get_ydata()[20] == pytest.approx(20.5)  # of two, a twentieth of 40
    assert ax.lines[2].get_xydata().tolist() == [[100, 20], [200, 40], [300, 60], [400, 80]]
    records = [sd.Record(i, torch.tensor(float(i)), 1e-3) for i in range(1, 41)]
    ax = plot.loss(records)
    assert ax.lines[0].get_xydata().tolist() == [[i, i] for i in range(1, 41)]
    assert texts(ax) == ["batches", "moving mean"]
    with pytest.raises(FileNotFoundError, match="give the folder of a run"):
        plot.loss(tmp_path / "none")
    with pytest.raises(ValueError, match="no records"):
        plot.loss([])
    with pytest.raises(TypeError, match=r"or the records that fit returned, .* not \[1\.0, 2\.0\]"):
        plot.loss([1.0, 2.0])


def test_calibration_is_the_coverage_with_its_error():
    values = np.linspace(0.005, 0.995, 100)
    found = sd.metrics.Calibration(values)
    ax = plot.calibration({"exact": found, "narrow": sd.metrics.Calibration(values**3)})
    assert texts(ax) == ["exact", "narrow"]
    exact, narrow = ax.lines[1:]
    levels = exact.get_xdata()
    assert np.allclose(exact.get_ydata(), levels, atol=0.01)
    assert (narrow.get_ydata() < levels).all()
    share, stderr = found.coverage([0.5])[0.5]
    corners = ax.collections[0].get_paths()[0].vertices
    at_half = corners[np.isclose(corners[:, 0], 0.5)][:, 1]
    bounds = (share - 1.96 * stderr, share + 1.96 * stderr)
    assert (at_half.min(), at_half.max()) == pytest.approx(bounds)
    assert plot.calibration(found, levels=[0.5]).get_legend() is None
    with pytest.raises(TypeError, match="not list"):
        plot.calibration({"a": [0.5]})
    with pytest.raises(ValueError, match="between 0 and 1"):
        plot.calibration(found, levels=[50])


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for call in (
        lambda: paths(solved()),
        lambda: convergence([1, 2], [1, 2]),
        lambda: plot.samples(torch.zeros(3, 2)),
        lambda: plot.density(LAW, size=3),
    ):
        with pytest.raises(ImportError, match=r"pip install 'sdekit\[plot\]'"):
            call()

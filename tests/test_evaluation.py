"""What is measured of a run, against closed forms: anchors, floors, neighbours, scores,
likelihoods; pictures.
"""

import csv
import importlib.metadata
import inspect
import json
import math
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

import sdekit_diffusion as sd
from sdekit import Exact, Status
from sdekit_diffusion._app import (
    classified,
    comparison,
    evaluation,
    figures,
    held_out,
    outputs,
    trained,
)
from sdekit_diffusion._app.options import Estimate, Sampler
from sdekit_diffusion.data import Dataset, Scale
from sdekit_diffusion.metrics import DISTANCES, frechet, inception_scores

LEVELS = 17


def generator(seed=0):
    return np.random.default_rng(seed)


def images(n, low, high, seed=0):
    return torch.from_numpy(generator(seed).integers(low, high, (n, 1, 4, 4))).to(torch.uint8)


def three_classes(n=90):
    """Training images near 4, held-out ones near 12, of three classes that a corner tells apart."""
    labels = torch.arange(n) % 3
    train = images(n, 2, 6)
    test = images(n, 10, 14, seed=1)
    for part in (train, test):
        part[torch.arange(n), 0, 0, labels] = 16
    return Dataset(train, test, Scale.quantised(LEVELS), "made", labels, labels)


def points(train, test, scale):
    return Dataset(torch.as_tensor(train), torch.as_tensor(test), scale, "points")


def linear_model(shape=(2,), **settings):
    """D(x) of data N(0, I): everything about it is known."""
    return sd.ScoreModel(Unit(), "vp", "data", shape=shape, **settings)


class Unit(torch.nn.Module):
    """E[x_0 | x] = alpha x for data N(0, I) under vp, where alpha^2 + sigma^2 = 1."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, t):
        alpha = sd.VPSDE().alpha(t.double()).to(x.dtype)
        return self.one * x * alpha.reshape(-1, *[1] * (x.ndim - 1))


# Anchors


def test_held_out_images_are_the_real_anchor():
    """Held-out images far from the training images: their distance is that of their own features,
    not that of a copy's.
    """
    source = three_classes()
    rows = classified.classified(source.train[:60], source, seed=0)["rows"]
    assert rows["real"]["distance"] > 10 * rows["model"]["distance"]
    mirrored = replace(source, train=source.test, test=source.train)
    other = classified.classified(source.train[:60], mirrored, seed=0)["rows"]
    assert other["real"]["distance"] == pytest.approx(other["model"]["distance"])


def test_anchors_have_the_moments_that_they_are_named_for():
    """Of constant images of level 8 of 17: noise of a tenth of the range, and uniform levels; six
    standard errors.
    """
    n = 400
    d = 50
    train = np.full((n, d), 8.0)
    labels = np.arange(n) % 3
    found = classified._anchors(train, labels, 17, n, generator())
    std = math.sqrt(1.7**2 + 1 / 12)  # rounded to levels
    assert found["noisy"].std() == pytest.approx(std, rel=6 / math.sqrt(2 * n * d))
    assert found["noisy"].mean() == pytest.approx(8, abs=6 * std / math.sqrt(n * d))
    assert found["noise"].std() == pytest.approx(math.sqrt((17**2 - 1) / 12), rel=0.02)
    assert found["noise"].mean() == pytest.approx(8, abs=6 * 4.9 / math.sqrt(n * d))
    assert (found["noise"].min(), found["noise"].max()) == (0, 16)
    assert np.array_equal(found["gaussians"], train)
    wide = classified._anchors(np.full((n, d), 16.0), labels, 17, n, generator())["noisy"]
    assert wide.max() == 16


def test_noisy_images_are_training_images_each_once():
    train = np.arange(30.0)[:, None] + np.zeros((30, 400))
    found = classified._anchors(train, np.arange(30) % 3, 31, 30, generator())["noisy"]
    inner = np.sort(found.mean(1))[5:-5]  # away from the ends, where levels are clipped
    assert np.allclose(inner, np.arange(5, 25), atol=6 * 3.1 / 20)


def test_gaussians_have_the_moments_of_each_class():
    """Two classes of known mean and covariance, in their shares; 20,000 draws within six standard
    errors.
    """
    rng = generator()
    first = rng.standard_normal((300, 2)) @ np.array([[1.0, 0.5], [0.0, 0.3]])
    second = rng.standard_normal((100, 2)) + np.array([50.0, 0.0])
    x = np.concatenate([first, second])
    labels = np.repeat([0, 1], [300, 100])
    made = classified._gaussians(x, labels, 20_000, rng)
    near = made[:, 0] < 25
    assert near.mean() == pytest.approx(0.75, abs=6 * math.sqrt(0.75 * 0.25 / 20_000))
    for part, own in ((made[near], first), (made[~near], second)):
        covariance = np.cov(own.T)
        scale = np.sqrt(np.diag(covariance))
        assert np.allclose(part.mean(0), own.mean(0), atol=6 * scale.max() / math.sqrt(len(part)))
        errors = np.outer(scale, scale) * math.sqrt(2 / len(part))
        assert (np.abs(np.cov(part.T) - covariance) < 6 * errors).all()
    # With 1/n for 1/(n - 1) a fifth too small.
    few = classified._gaussians(first[:5], np.zeros(5), 20_000, rng)
    assert np.trace(np.cov(few.T)) == pytest.approx(np.trace(np.cov(first[:5].T)), rel=0.06)


def test_the_scale_and_its_errors(monkeypatch):
    """Features that are the pixels: distances, the scale from real to noise, the bootstrap's error
    in units of the scale.
    """
    rng = generator()
    known = rng.standard_normal((400, 3))
    sets = {"model": known[:200] + 1, "real": known[200:] + 0.5, "noise": known[:200] + 4}
    rows = classified._rows(sets, known, generator(1))
    span = frechet(sets["noise"], known) - frechet(sets["real"], known)
    for name, part in sets.items():
        assert rows[name]["distance"] == frechet(part, known)
        assert rows[name]["relative"] == pytest.approx(
            (frechet(part, known) - frechet(sets["real"], known)) / span
        )
        assert rows[name]["n"] == 200
    draws = generator(1)
    again = [frechet(sets["model"][draws.integers(200, size=200)], known) for _ in range(10)]
    mean = sum(again) / 10
    assert rows["model"]["stderr"] == pytest.approx(
        math.sqrt(sum((a - mean) ** 2 for a in again) / 9) / span
    )
    # KID by its definition.
    a = sets["model"]
    b = known

    def kernel(p, q):
        return (p @ q.T / 3 + 1) ** 3

    within = [
        (kernel(p, p).sum() - np.trace(kernel(p, p))) / (len(p) * (len(p) - 1)) for p in (a, b)
    ]
    assert rows["model"]["kid"] == pytest.approx(sum(within) - 2 * kernel(a, b).mean())
    monkeypatch.setattr(classified, "_KERNEL_IMAGES", 50)
    b = known[:50]
    within = [
        (kernel(p, p).sum() - np.trace(kernel(p, p))) / (len(p) * (len(p) - 1)) for p in (a, b)
    ]
    assert classified._rows(sets, known, generator(1))["model"]["kid"] == pytest.approx(
        sum(within) - 2 * kernel(a, b).mean()
    )


def test_the_score_of_known_classes():
    """Sure of k classes in equal shares: k. Sure of one, or unsure of all: 1. Between, the
    definition.
    """
    sure = 1000 * np.eye(4)[np.arange(40) % 4]
    assert classified.classes_score(sure) == pytest.approx(4)
    assert classified.classes_score(sure[:1].repeat(7, 0)) == pytest.approx(1)
    assert classified.classes_score(np.zeros((5, 3))) == pytest.approx(1)
    logits = generator().standard_normal((30, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert classified.classes_score(logits) == pytest.approx(
        math.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    )


def test_accuracy_is_of_held_out_images():
    source = three_classes()
    wrong = replace(source, test_labels=(source.test_labels + 1) % 3)
    kept = classified.classified(source.train[:30], source, seed=0)["accuracy"]
    turned = classified.classified(source.train[:30], wrong, seed=0)["accuracy"]
    assert kept > turned + 0.2


@pytest.mark.parametrize(
    ("size", "kind"), [((15, 20), "classifier_features"), ((16, 20), "image_features")]
)
def test_which_classifier_images_have(monkeypatch, size, kind):
    class Asked(Exception):  # noqa: N818
        pass

    def asked(*args, **options):
        raise Asked

    monkeypatch.setattr(classified, kind, asked)
    x = torch.zeros(9, 1, *size, dtype=torch.uint8)
    source = Dataset(x, x, Scale.quantised(4), "zeros", torch.arange(9) % 3, torch.arange(9) % 3)
    with pytest.raises(Asked):
        evaluation.distances(x, source, 0)


def test_agreement_is_of_samples_with_the_labels_that_they_were_given():
    source = three_classes()
    x = source.train[:30]
    assert "agreement" not in classified.classified(x, source, seed=0)
    for given, least, most in (
        (source.labels[:30], 0.9, 1),
        ((source.labels[:30] + 1) % 3, 0, 0.1),
    ):
        found = evaluation.distances(x, source, 0, given)["frechet"]["agreement"]
        assert least <= found <= most


def test_two_classes_are_too_few_for_features():
    source = three_classes()
    two = replace(source, labels=source.labels % 2)
    assert set(evaluation.distances(source.train[:20], two, 0)) == {"distances"}
    assert set(evaluation.distances(source.train[:20], source, 0)) == {"frechet"}


# Inception scores


def test_colours_spread_the_levels_over_all_shades():
    """The lowest level black, the highest white, those between rounded; grey three times."""
    x = torch.arange(LEVELS, dtype=torch.uint8).reshape(LEVELS, 1, 1, 1)
    found = evaluation.coloured(x, LEVELS)
    assert found.dtype == torch.uint8
    assert found.shape == (LEVELS, 3, 1, 1)
    shades = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert all(found[:, i, 0, 0].tolist() == shades for i in range(3))
    assert evaluation.coloured(torch.tensor([[[[0, 1]]]]), 2)[0, 0, 0].tolist() == [0, 255]
    full = torch.randint(256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(evaluation.coloured(full, 256), full.to(torch.uint8))


def test_inception_scores_are_of_samples_and_of_held_out_images():
    """Both against training images, with pixels in the place of the network's outputs."""

    def network(part):
        assert part.dtype == torch.uint8
        assert part.shape[1:] == (3, 4, 4)
        return part.float()[:, 0].flatten(1) / 255

    def head(features):
        return 4 * features[:, :3]

    def classifier(part):
        return head(network(part))

    source = three_classes()
    x = images(20, 0, 17, seed=2)
    found = evaluation.inception_table(x, source, (network, head), torch.device("cpu"), seed=1)
    assert found["n_train"] == len(source.train)
    known = evaluation.coloured(source.train, LEVELS)
    for name, part in (("model", x), ("real", source.test[:20])):
        expected = inception_scores(
            evaluation.coloured(part, LEVELS), known, network=network, classifier=classifier, seed=1
        )
        row = found["rows"][name]
        assert row.pop("n") == 20
        assert row == pytest.approx(asdict(expected), rel=1e-4)
        assert row["inception"] > 1.01
    # Held-out images are far from the training images: their distance is not that of a copy's.
    assert found["rows"]["real"]["fid"] > 1


# Floors and neighbours


def test_the_floor_is_of_training_data_in_ten_random_draws(monkeypatch):
    """A distance that is the difference of means: the model's, and the mean and the largest of ten
    draws.
    """
    rng = generator()
    scale = Scale((10.0,), (2.0,))
    train = torch.from_numpy(rng.normal(10, 2, (500, 1)))
    test = torch.from_numpy(rng.normal(14, 2, (80, 1)))
    source = points(train, test, scale)

    def gap(a, b):
        return abs(float(np.mean(np.asarray(a)) - np.mean(np.asarray(b))))

    monkeypatch.setitem(DISTANCES, "gap", ("difference of means", gap))
    found = comparison.against_floor(torch.full((50, 1), 20.0, dtype=torch.float64), source, seed=3)
    assert found["n"] == 50
    row = found["rows"]["gap"]
    held = float(test[:50].mean() - 10) / 2
    assert row["distance"] == pytest.approx(5 - held, rel=1e-6)
    draws = generator(3)
    picks = [float(train[draws.permutation(500)[:50]].mean() - 10) / 2 for _ in range(10)]
    gaps = [held - pick for pick in picks]
    assert row["floor"] == pytest.approx(sum(gaps) / 10, rel=1e-6)
    assert row["floor_max"] == pytest.approx(max(gaps), rel=1e-6)


def test_neighbours_of_known_points(monkeypatch):
    """On a line with training points at whole numbers: 0.3 for samples, 0.1 for held-out data,
    whatever fits into memory.
    """
    train = torch.arange(100.0).reshape(-1, 1)
    source = points(train, train[:40] + 0.1, Scale())
    for rows in (100, 7):
        monkeypatch.setattr(comparison, "fitting", lambda source, rows=rows: rows)
        monkeypatch.setattr(comparison, "_SEARCH_BLOCKS", 100)
        found, near = comparison.neighbours(train[50:80] + 0.3, source)
        assert (found["samples"], found["held_out"]) == (
            pytest.approx(0.3, rel=1e-4),
            pytest.approx(0.1, rel=1e-4),
        )
        assert found["ratio"] == pytest.approx(3, rel=1e-4)
        assert (found["n_samples"], found["n_held_out"], found["n_train"]) == (30, 30, 100)
        assert torch.equal(near.training_samples, train[50:80])
        assert near.distances == pytest.approx(np.full(30, 0.3), rel=1e-4)
        assert near.held_out == pytest.approx(np.full(30, 0.1), rel=1e-3)


def test_neighbours_are_compared_in_the_scale_of_the_model():
    """Coordinates in units of 1000 and 1: as they are stored the first would decide alone."""
    scale = Scale((0.0, 0.0), (1000.0, 1.0))
    train = torch.tensor([[0.0, 0.0], [900.0, 5.0]])
    source = points(train, torch.tensor([[0.0, 2.0]]), scale)
    found, near = comparison.neighbours(torch.tensor([[500.0, 0.0]]), source)
    assert torch.equal(near.training_samples, train[:1])
    assert found["samples"] == pytest.approx(0.5)
    assert found["held_out"] == pytest.approx(2.0)


# Likelihood


def test_the_likelihood_of_points_is_in_their_own_units():
    """Data N(0, 100^2) to a model of N(0, I): the log of the unit is subtracted for each
    coordinate.
    """
    scale = Scale((0.0, 0.0), (100.0, 50.0))
    x = torch.tensor([[0.0, 0.0], [100.0, -50.0], [30.0, 10.0]], dtype=torch.float64)
    found = held_out.summed(
        held_out.measured(linear_model(scale=scale), scale, x, Estimate(tolerance=1e-6)), scale
    )
    u = x / torch.tensor([100.0, 50.0])
    expected = -0.5 * u.square().sum(1) - math.log(2 * math.pi) - math.log(100 * 50)
    assert torch.allclose(found.value, expected, atol=1e-3)
    assert (found.unit, found.probes, found.draws, found.failed) == ("nats", 0, 0, 0)
    assert found.numbers()["mean"] == pytest.approx(float(expected.mean()), abs=1e-3)
    assert found.numbers()["stderr"] == pytest.approx(float(expected.std() / 3**0.5), rel=1e-2)


def test_points_are_not_rounded_to_the_half_precision_of_a_model():
    """3.007 is 3.0 in bfloat16, whose likelihood is another."""
    model = linear_model((1,)).bfloat16()
    x = torch.tensor([[3.007], [3.0]])
    settings = {"trace": Exact(), "method": sd.AdaptiveFlow(1e-5, 1e-5)}
    expected = sd.log_likelihood(model, x, **settings).value
    found = held_out.measured(model, Scale(), x, Estimate(tolerance=1e-5)).value
    assert torch.equal(found, expected)
    assert found[0] != found[1]


def test_failed_samples_are_left_out_of_the_mean_and_of_its_parts():
    nan = math.nan
    draws = torch.tensor([[1.0, 2.0, nan, 6.0]], dtype=torch.float64)
    status = torch.tensor([Status.DONE, Status.DONE, Status.TOO_MANY_STEPS, Status.DONE])
    bits = sd.BitsPerDim(
        draws, torch.tensor([0.3, 0.3, nan, 0.3]), torch.tensor([10, 20, 30, 40]), status, 2
    )
    found = held_out.summed(bits, Scale.quantised(4))
    numbers = found.numbers()
    assert (numbers["mean"], numbers["n"], numbers["failed"]) == (3.0, 4, 1)
    assert numbers["stderr"] == pytest.approx(math.sqrt(7 / 3))  # variance 7 of three
    assert numbers["parts"]["probes"] == pytest.approx(0.3 / 3**0.5)
    assert numbers["parts"]["data"] == pytest.approx(math.sqrt(7 / 3 - 0.03))
    assert numbers["evaluations"] == 25
    said = found.sentences()
    assert said[-1] == "1 samples failed and are not in the mean"
    assert "3.0000 ± 1.5275 bits/dim (standard error, over 4 held-out samples)" in said[0]
    alone = held_out.summed(
        replace(
            bits,
            draws=draws[:, :1],
            probe_stderr=bits.probe_stderr[:1],
            evaluations=bits.evaluations[:1],
            status=status[:1],
        ),
        Scale.quantised(4),
    )
    assert math.isnan(alone.numbers()["stderr"])


def test_measured_depends_on_its_seed_in_probes_and_in_dequantisation():
    """Probes of points, whose dequantisation is none; levels with exact traces, which have no
    probes; and the tolerance.
    """
    torch.manual_seed(0)
    net = sd.nets.MLP((40,), 8, 1)
    with torch.no_grad():
        net.last.weight.normal_(std=0.1)
    wide = sd.ScoreModel(net, "vp", "data", shape=(40,))
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    values = [
        held_out.measured(wide, wide.scale, x, Estimate(probes=1, tolerance=1e-2), seed=seed).value
        for seed in (0, 0, 1)
    ]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    scale = Scale.quantised(5)
    small = linear_model((1, 2, 2), scale=scale)
    levels = images(4, 0, 5)[:, :, :2, :2]
    values = [
        held_out.measured(
            small, small.scale, levels, Estimate(draws=1, tolerance=1e-2), seed=seed
        ).value
        for seed in (0, 0, 1)
    ]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    coarse, fine = (
        held_out.measured(small, small.scale, levels, Estimate(draws=1, tolerance=t)).evaluations
        for t in (1e-2, 1e-6)
    )
    assert (fine > coarse).all()
    assert held_out.measured(
        small, small.scale, levels, Estimate(draws=3, tolerance=1e-1)
    ).draws.shape == (3, 4)


def test_premises_tell_models_apart(tmp_path):
    found = []
    for i, value in enumerate((1.0, 2.0)):
        model = sd.ScoreModel(sd.nets.MLP((2,), 8, 1), "vp", shape=(2,))
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(value)
        sd.save(model, tmp_path / str(i))
        found.append(trained.result_identity(tmp_path / str(i), sd.load(tmp_path / str(i))))
    assert found[0]["model"] != found[1]["model"]
    assert found[0]["device"] == "cpu"
    assert found[0]["torch"] == importlib.metadata.version("torch")


# Pictures


def test_states_on_the_way_to_noise():
    """The forward process of constants: alpha x + sigma eps over its root, from the data on, at
    times even in log-SNR.
    """
    x = torch.full((600, 2), 3.0)
    figure = figures.forward(linear_model(), points(x, x, Scale()), seed=0)
    assert len(figure.axes) == 5
    sde = sd.VPSDE()
    means = []
    ratios = []
    for ax in figure.axes:
        means.append(np.asarray(ax.collections[0].get_offsets()).mean())
        ratios.append(float(ax.get_title().rpartition("=")[2]))
    assert ratios == sorted(ratios)
    assert ratios[0] < 2e-3
    steps = np.diff(np.log(ratios))
    assert np.allclose(steps, steps.mean(), rtol=0.1)
    for mean, ratio in zip(means, ratios, strict=True):
        alpha = 1 / math.hypot(1, ratio)
        assert mean == pytest.approx(
            3 * alpha, abs=6 * math.sqrt(1 - alpha**2) / math.sqrt(1000) + 0.05
        )
    assert ratios[-1] == pytest.approx(math.exp(-float(sde.log_snr(1.0))), rel=0.05)


def test_states_are_shown_at_unit_signal_plus_noise():
    """3 x + 4 eps of two numbers 10: over 5, and named by 4/3."""
    x = torch.full((1, 2), 10.0)
    ((label, shown),) = figures._labelled([(3.0, 4.0, x)], points(x, x, Scale()))
    assert shown.tolist() == [[2.0, 2.0]]
    assert label.endswith("= 1.3")


def test_states_of_a_solve_end_in_data():
    """From noise to data: sigma / alpha falls, and states at unit size have unit deviation
    throughout for N(0, I).
    """
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    figure = figures.denoising(linear_model(), points(x, x, Scale()), seed=0)
    ratios = [float(ax.get_title().rpartition("=")[2]) for ax in figure.axes]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] == pytest.approx(1e-3, rel=0.1)
    assert ratios[0] > 100
    for ax in figure.axes:
        offsets = np.asarray(ax.collections[0].get_offsets())
        assert offsets.shape == (500, 2)
        assert offsets.std() == pytest.approx(1, abs=0.12)


def test_what_a_model_makes_of_images_on_the_way():
    """On the right D(x): for N(0, I) x alpha at unit size, grey for noise, and the state itself in
    the end.
    """
    scale = Scale.quantised(5)
    model = linear_model((1, 2, 2), scale=scale)
    figure = figures.denoising(model, Dataset(images(8, 0, 5), images(8, 0, 5), scale, "x"), seed=0)
    states, made = (np.asarray(ax.images[0].get_array())[..., 0] for ax in figure.axes)
    assert states.shape == made.shape == (8 * 3 - 1, 9 * 3 - 1)
    assert np.allclose(made[:2, :2], 0.5, atol=0.02)
    assert not np.allclose(states[:2, :2], 0.5, atol=0.02)
    assert np.allclose(made[:, -2:], states[:, -2:], atol=0.01)


def test_neighbours_are_on_the_right():
    scale = Scale.quantised(5)
    figure = figures.neighbouring(
        torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.full((3, 1, 2, 2), 2), scale
    )
    canvas = np.asarray(figure.axes[0].images[0].get_array())[..., 0]
    assert canvas.shape == (2, 8 * 8 - 3)
    assert canvas[0, :8].tolist() == [0, 0, 1, 0.5, 0.5, 1, 1, 1]


def test_the_loss_is_smoothed_over_a_twentieth(tmp_path):
    """Of 200 losses the mean over ten; at the ends over those that are there: a constant stays
    one.
    """
    for losses in (np.full(200, 3.0), np.arange(1.0, 201.0)):
        lines = [json.dumps({"step": 10 * (i + 1), "loss": loss}) for i, loss in enumerate(losses)]
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
        ax = figures.loss_curve(tmp_path).axes[0]
        raw, smooth = (line.get_ydata() for line in ax.lines)
        assert np.array_equal(raw, losses)
        assert np.array_equal(ax.lines[1].get_xdata(), 10 * np.arange(1, 201))
        i = np.arange(200)
        expected = [losses[max(0, k - 5) : k + 5].mean() for k in i]
        assert np.allclose(smooth, expected)
        assert ax.get_xlim() == (0, 2000)


def test_a_picture_by_class_has_named_rows():
    scale = Scale.quantised(5)
    x = images(6, 0, 5)
    ax = figures.picture(x, scale, ["3", "7"]).axes[0]
    canvas = np.asarray(ax.images[0].get_array())
    assert canvas.shape == (2 * 5 - 1, 3 * 5 - 1, 3)
    assert np.allclose(canvas[5:, :4, 0], x[3, 0] / 4)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["3", "7"]
    assert list(ax.get_yticks()) == [1.5, 6.5]
    assert not figures.picture(x, scale).axes[0].get_yticklabels()
    panels = figures.picture(torch.arange(8.0).reshape(4, 2), Scale(), ["3", "7"]).axes
    assert [ax.get_title() for ax in panels] == ["class 3", "class 7"]
    assert panels[1].collections[0].get_offsets().tolist() == [[4, 5], [6, 7]]
    (panel,) = figures.picture(torch.arange(8.0).reshape(4, 2), Scale()).axes
    assert panel.get_title() == "4 samples"


def test_pictures_are_nearly_square():
    scale = Scale.quantised(5)
    figure = figures.picture(images(10, 0, 5), scale)
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == (3 * 5 - 1, 4 * 5 - 1, 3)


# Files


def test_images_are_numbered_from_the_first_and_spread_over_the_levels(tmp_path):
    shards = sd.Shards(tmp_path / "a.shards", 3, 2, first=7)
    shards.fill(
        lambda first, count: {
            "samples": torch.arange(first, first + count).reshape(-1, 1, 1, 1) - 7
        }
    )
    out = tmp_path / "a"
    outputs.require(out, shards, Scale.quantised(3))
    assert outputs.assemble(out, shards, Scale.quantised(3)) == (3, 1, 1, 1)
    assert sorted(path.name for path in out.iterdir()) == ["000007.png", "000008.png", "000009.png"]
    assert [np.asarray(Image.open(out / f"{i:06d}.png")).item() for i in (7, 8, 9)] == [0, 128, 255]
    assert not (tmp_path / "a.shards").exists()


def test_folders_hold_images_of_up_to_256_levels(tmp_path):
    shards = sd.Shards(tmp_path / "a.shards", 3, 2)
    outputs.require(tmp_path / "a", shards, Scale.quantised(256))
    with pytest.raises(ValueError, match="257 levels"):
        outputs.require(tmp_path / "a", shards, Scale.quantised(257, dtype="int16"))


def test_the_table_has_a_line_for_each_sample(tmp_path):
    held = held_out.HeldOut(
        torch.tensor([1.5, 2.5]), torch.tensor([0.25, 0.125]), "nats", {}, 0, 0, 1.0, 0
    )
    outputs.table(tmp_path / "a.csv", held)
    with (tmp_path / "a.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["sample", "nats", "stderr"],
            ["0", "1.5", "0.25"],
            ["1", "2.5", "0.125"],
        ]


# Options


def test_the_options_of_a_sampler_are_the_arguments_of_sample():
    """By signature, so that a new argument of `sample` is an option too; what is left out makes no
    sense there, and eta is part of the method in Python.
    """
    own = {"model", "n", "shape", "x_T", "start", "progress", "callback", "save", "return_solution"}
    arguments = set(inspect.signature(sd.sample).parameters) - own - {"device"}
    assert set(Sampler().settings()) == arguments
    assert {field.name for field in fields(Sampler)} - {"eta"} == arguments

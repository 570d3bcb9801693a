"""The report: what it writes, what its numbers say of known sets, and what it leaves out."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sdekit_diffusion as sd
from sdekit_diffusion._app import (
    classified,
    comparison,
    figures,
    quality,
    quality_figures,
    report,
)
from sdekit_diffusion._app.labels import Conditions
from sdekit_diffusion._app.options import QUICK, Guidance, Sampler
from sdekit_diffusion._training import clear
from sdekit_diffusion.data import Scale, load
from sdekit_diffusion.metrics import DISTANCES

SMALL = {"width": 8, "multipliers": (1,), "attention": (False,)}


def saved(folder, source, net, steps=8):
    """A run folder as `train` writes it, hardly trained."""
    torch.manual_seed(0)
    shape = tuple(source.test.shape[1:])
    model = sd.ScoreModel(net, "subvp", shape=shape, conditioning="log_snr", data_std=0.7)
    records = list(sd.Training(model, source, sd.Recipe(steps=steps, batch_size=16)))
    sd.save(model, folder, {"data": {"name": source.name}})
    lines = [
        json.dumps({"step": r.step, "loss": float(r.loss), "lr": r.lr, "seconds": 0.0})
        for r in records
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory, one_classifier):
    run = saved(tmp_path_factory.mktemp("digits"), load("digits"), sd.nets.UNet(**SMALL))
    return run, report.write_report(run, samples=12, estimate=replace(QUICK, tolerance=3e-2))


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    run = saved(
        tmp_path_factory.mktemp("moons"), load("moons"), sd.nets.MLP((2,), width=16, depth=1)
    )
    return run, report.write_report(run, samples=50, estimate=replace(QUICK, tolerance=1e-2))


def offline(page):
    """Whether a page has nothing of the net and runs nothing."""
    rest = re.sub(r'src="data:image/png;base64,[A-Za-z0-9+/=]+"', "", page)
    return not re.search(r"https?://|<script|<link|@import|url\(|src=|href=", rest)


def test_the_page_of_images(digits):
    run, _ = digits
    page = (run / "report.html").read_text(encoding="utf-8")
    assert offline(page)
    assert page.count("data:image/png;base64,") == 7
    assert "Fréchet" in page
    assert "FID" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    for text in (
        "12 samples",
        "500 held-out ones",
        "1297 training images",
        "4 held-out samples",
        "bits/dim",
    ):
        assert text in page, text
    for name in (
        "samples",
        "neighbours",
        "denoising",
        "forward",
        "loss",
        "worst",
        "histogram",
    ):
        with Image.open(run / f"{name}.png") as image:
            assert min(image.size) > 100
    # `train --overwrite` removes them.
    assert {path.stem for path in run.glob("*.png")} <= set(clear.PICTURES)


def test_the_numbers_of_images(digits):
    run, numbers = digits
    written = json.loads((run / "report.json").read_text())
    assert written == json.loads(json.dumps(numbers))
    rows = written["frechet"]["rows"]
    assert list(rows) == ["model", "real", "gaussians", "noisy", "noise"]
    assert (rows["real"]["relative"], rows["noise"]["relative"]) == (0, 1)
    assert all(row["n"] == 12 for row in rows.values())
    assert written["frechet"]["accuracy"] > 0.9
    assert written["likelihood"].items() >= {"unit": "bits/dim", "n": 12, "probes": 2}.items()
    assert 0 < written["likelihood"]["parts"]["probes"] < 1
    assert (
        written["neighbours"].items()
        >= {"n_samples": 12, "n_held_out": 12, "n_train": 1297}.items()
    )
    assert written["sampling"]["seed"] == 0
    assert written["sampling"]["evaluations"] > 0
    assert set(written["environment"]) == {"device", "dtype", "threads", "versions"}


def test_the_report_of_points(moons):
    run, numbers = moons
    page = (run / "report.html").read_text(encoding="utf-8")
    assert offline(page)
    assert "frechet" not in numbers
    assert "Fréchet" not in page
    assert (
        numbers["likelihood"].items()
        >= {"unit": "nats", "n": 50, "probes": 0, "draws": 0, "failed": 0}.items()
    )
    rows = numbers["distances"]["rows"]
    assert list(rows) == list(DISTANCES)
    assert all(heading in page for heading, _ in DISTANCES.values())
    # It was hardly trained.
    assert all(row["distance"] > row["floor_max"] >= row["floor"] > 0 for row in rows.values())
    assert "50 held-out data" in page or "50 samples" in page
    assert not (run / "neighbours.png").exists()


@pytest.mark.usefixtures("quick_reports")
def test_the_report_of_images_with_labels(tmp_path, monkeypatch):
    """A row of eight for each class at the sampler's settings, and how often a classifier finds the
    labels of the samples. The data are the first digits: their classifier is trained in no time.
    """
    digits = load("digits")
    first = {"train": digits.train[:100], "labels": digits.labels[:100]}
    first |= {"test": digits.test[:40], "test_labels": digits.test_labels[:40]}
    np.savez(tmp_path / "first.npz", **{name: part.numpy() for name, part in first.items()})
    source = load(str(tmp_path / "first.npz"))
    run = saved(tmp_path, source, sd.nets.UNet(**SMALL, classes=10))
    shown = []
    kept = report.picture

    def picture(x, scale, rows=()):
        shown.append((x, rows))
        return kept(x, scale, rows)

    given = []
    compared = report.distances

    def distances(x, source, seed, labels):
        given.append(labels)
        return compared(x, source, seed, labels)

    monkeypatch.setattr(report, "picture", picture)
    monkeypatch.setattr(report, "distances", distances)
    sampler = Sampler(steps=2, first=3, seed=1)
    settings = {"samples": 6, "estimate": replace(QUICK, tolerance=1e-1), "sampler": sampler}
    numbers = report.write_report(run, guidance=Guidance(3.0), **settings)
    model = sd.load(run)
    label = torch.arange(10).repeat_interleave(8)
    guided = sd.Guided(model.given(label=label), 3.0)
    expected = model.scale.decode(sd.sample(guided, 80, steps=2, first=3, seed=1))
    (_, no_rows), (x, rows) = shown
    assert no_rows == ()
    assert (x - expected.to(x.dtype)).abs().max() <= 1
    assert rows == [str(k) for k in range(10)]
    assert torch.equal(given[0], source.test_labels[3:9])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "One row for each class, at guidance 3." in page
    agreement = numbers["frechet"]["agreement"]
    assert f"It finds the label that a sample was given in {agreement:.1%} of them." in page
    assert page.index("Samples by class") < page.index("Nearest training images")
    with pytest.raises(ValueError, match="rescale is a share"):
        report.write_report(run, guidance=Guidance(3.0, rescale=2.0), **settings)


def test_a_picture_has_the_first_ten_classes(tmp_path):
    labels = torch.arange(60) % 12
    net = sd.nets.MLP((2,), width=8, depth=1, classes=12)
    model = sd.ScoreModel(net, "vp", shape=(2,))
    law = report._Law(model, Conditions({"label": labels}, "label"), Guidance())
    _, caption, figure = report._by_class(law, law.conditions, Sampler(steps=2))
    assert caption == "One panel for each class, at guidance 1; the first 10 of 12 classes."
    assert [ax.get_title() for ax in figure.axes] == [f"class {k}" for k in range(10)]
    assert len(figure.axes[0].collections[0].get_offsets()) == 200


def test_states_are_those_of_samples_with_labels():
    """The model that is sampled, and that denoises, is the one of this number of samples."""
    asked = []
    net = sd.nets.MLP((2,), width=8, depth=1, classes=3)
    model = sd.ScoreModel(net, "vp", shape=(2,), conditioning="log_snr")
    with torch.no_grad():
        net.conditions.labels.weight.normal_()
        net.last.weight.normal_(std=0.3)
    source = load("moons")

    def drawn(n):
        asked.append(n)
        return model.given(label=torch.full((n,), 2))

    with_labels = figures.denoising(model, source, 0, drawn)
    without = figures.denoising(model, source, 0)
    same = figures.denoising(model.given(label=2), source, 0)
    assert asked == [500]
    ends = [
        np.asarray(figure.axes[-1].collections[0].get_offsets())
        for figure in (with_labels, without, same)
    ]
    assert np.allclose(ends[0], ends[2])
    assert not np.allclose(ends[0], ends[1])


@pytest.mark.usefixtures("quick_reports")
def test_the_same_seed_gives_the_same_numbers(moons, tmp_path):
    run, numbers = moons
    again = report.write_report(
        run, samples=50, estimate=replace(QUICK, tolerance=1e-2), out=tmp_path / "again.html"
    )
    other = report.write_report(
        run,
        samples=50,
        estimate=replace(QUICK, tolerance=1e-2),
        out=tmp_path / "other.html",
        sampler=Sampler(seed=1),
    )
    assert again["distances"] == numbers["distances"]
    assert other["distances"] != numbers["distances"]


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).standard_normal(60),
        100 + 20 * np.random.default_rng(0).standard_normal((60, 2)) * [1, 1e-4],
        np.random.default_rng(0).standard_normal((60, 3)),
        np.random.default_rng(0).integers(0, 256, (60, 8, 4, 3)).astype(np.uint8),
    ],
    ids=["numbers", "far away", "vectors", "colour"],
)
def test_own_arrays(array, tmp_path, request):
    """Pictures of vectors and of images in colour are drawn as those of points and of digits."""
    if array[0].size > 2:
        request.getfixturevalue("quick_reports")
    np.save(tmp_path / "own.npy", array)
    source = load(tmp_path / "own.npy")
    shape = tuple(source.train.shape[1:])
    net = (
        sd.nets.MLP(shape, width=8, depth=1)
        if source.scale.levels is None
        else sd.nets.UNet(3, **SMALL)
    )
    run = saved(tmp_path / "run", source, net)
    rough = {"estimate": replace(QUICK, tolerance=1e-1), "sampler": Sampler(steps=5)}
    numbers = report.write_report(run, samples=6, **rough)
    assert "distances" in numbers
    assert offline((run / "report.html").read_text(encoding="utf-8"))


def test_the_page_says_whether_samples_can_be_distinguished(digits, moons):
    for (run, numbers), kind in ((digits, "images"), (moons, "data")):
        page = (run / "report.html").read_text(encoding="utf-8")
        row = numbers["two_sample"]["rows"]["model"]
        assert row["distinguishable"]  # it was hardly trained
        assert f"The samples are distinguishable from held-out {kind} by this test" in page
        assert f"(p = {row['p_value']:.2g})" in page
        assert f"Training {kind} are not distinguishable from held-out ones" in page
        assert f"precision and recall; training {kind}" in page
    run, numbers = digits
    page = (run / "report.html").read_text(encoding="utf-8")
    classes = numbers["frechet"]["classes"]
    assert f"{classes['confidence']['model']['mean']:.3f}</b>" in page
    assert [sum(counts) for counts in classes["counts"].values()] == [12, 12]
    assert "farthest" in numbers
    run, numbers = moons
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "There is no classifier to name the classes" in page
    assert not (run / "worst.png").exists()


def test_known_sets_against_held_out_ones():
    """Held-out images in the place of samples are like training images; a Gaussian for each class
    is distinguished, and so are images with noise of half a level, a thirty-second of the range.
    """
    source = load("digits")
    rng = np.random.default_rng(0)
    train = source.train.flatten(1).double().numpy()
    gaussians = classified._gaussians(train, source.labels.numpy(), 500, rng)
    noisy = train[500:1000] + rng.normal(0, 0.5, (500, 64))
    sets = {
        "train": train[500:1000],
        "gaussians": gaussians.round().clip(0, 16),
        "noisy": noisy.round().clip(0, 16),
    }
    found = {}
    for name, x in sets.items():
        numbers = quality.compared(torch.from_numpy(x).reshape(-1, 1, 8, 8), source, seed=0)
        found[name] = numbers["rows"]["model"]
        assert not numbers["rows"]["train"]["distinguishable"]
        assert numbers["rows"]["train"]["n"] == found[name]["n"] == 500
    assert [row["distinguishable"] for row in found.values()] == [False, True, True]
    assert found["gaussians"]["accuracy"] > 0.7 > 0.55 > found["train"]["accuracy"]
    assert found["gaussians"]["recall"] != found["train"]["recall"] > 0.7


def test_training_images_are_rarely_called_distinguishable():
    """At p < 0.01, in at most three of 20 draws of training images: more have a probability of 4e-5
    for independent draws. Here the held-out images are the same.
    """
    source = load("digits")
    found = [quality.compared(source.train[:100], source, seed)["rows"] for seed in range(20)]
    assert sum(rows["train"]["distinguishable"] for rows in found) <= 3


def test_classes_and_confidence_of_logits():
    """By hand: two classes of three, one of them never found."""
    model = np.log(np.array([[0.9, 0.05, 0.05], [0.2, 0.6, 0.2], [0.7, 0.2, 0.1]]))
    held_out = np.log(np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]))
    found = quality.classes(model, held_out, np.array([3, 5, 7]))
    assert found["names"] == ["3", "5", "7"]
    assert found["counts"] == {"model": [2, 1, 0], "held_out": [1, 1, 0]}
    assert found["confidence"]["model"]["mean"] == pytest.approx((0.9 + 0.6 + 0.7) / 3)
    assert found["confidence"]["held_out"] == pytest.approx({"mean": 0.8, "stderr": 0})
    assert found["worst"]["model"]["index"] == [1, 2, 0]
    assert found["worst"]["model"]["class"] == ["5", "3", "3"]
    assert found["p_value"] > 0.5
    missing = quality.classes(np.tile(model[:1], (50, 1)), np.tile(held_out, (25, 1)), np.arange(3))
    assert missing["p_value"] < 1e-6


def test_the_worst_of_images_without_labels(tmp_path):
    """Those farthest from the training images, in descending order, above the held-out ones."""
    source = load("digits")
    x = source.test[:30].clone()
    x[7] = 16 - x[7]
    _, nearest = comparison.neighbours(x, source)
    found = quality.farthest(nearest)
    assert found["model"]["index"][0] == 7
    assert found["model"]["distance"] == sorted(found["model"]["distance"], reverse=True)
    assert found["held_out"]["index"] == np.argsort(-nearest.held_out)[:10].tolist()
    unlabelled = replace(source, labels=None, test_labels=None)
    pictures = quality_figures.quality_figures(x, unlabelled, {"farthest": found})
    assert list(pictures) == ["worst"]
    figure = pictures["worst"][2]
    assert np.allclose(figure.axes[0].images[0].get_array()[..., 0], x[7, 0] / 16)
    assert figure.axes[0].get_title() == f"{found['model']['distance'][0]:.3g}"


def known(images, n=500):
    """The rows of the table for images put in the place of the model's samples."""
    source = load("digits")
    return classified.classified(images(source)[:n], source, seed=0)


@pytest.mark.usefixtures("one_classifier")
def test_the_scale_of_known_sets():
    rows = known(lambda source: source.train)["rows"]
    assert abs(rows["model"]["relative"]) < 0.03
    assert rows["gaussians"]["distance"] > 3 * rows["model"]["distance"]
    noise = known(
        lambda source: torch.randint(17, (500, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    )["rows"]
    assert noise["model"]["relative"] == pytest.approx(1, abs=0.1)
    constant = known(lambda source: torch.zeros(500, 1, 8, 8))["rows"]
    assert constant["model"]["relative"] > 0.2


def test_copies_have_no_distance_to_the_training_images():
    source = load("digits")
    numbers, found = comparison.neighbours(source.train[:100], source)
    assert (numbers["ratio"], numbers["samples"]) == (0, 0)
    assert torch.equal(found.training_samples, source.train[:100])
    assert found.distances.max() == 0 < found.held_out.min()
    assert comparison.neighbours(source.test[:100], source)[0]["ratio"] == 1


def test_the_frame_of_points_is_where_they_are():
    """One unit for both coordinates where they are alike, each its own where they are not."""
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    for unit, alike in ((torch.tensor([20.0, 10.0]), True), (torch.tensor([20.0, 0.01]), False)):
        ax = figures.scatter([("", 100 + x * unit)]).axes[0]
        (x0, x1) = ax.get_xlim()
        (y0, y1) = ax.get_ylim()
        assert (x0 + x1) / 2 == pytest.approx(100, abs=10)
        assert (y0 + y1) / 2 == pytest.approx(100, abs=5 * float(unit[1]))
        assert x1 - x0 == pytest.approx(2 * 3.3 * 20, rel=0.2)
        assert y1 - y0 == pytest.approx(2 * 3.3 * (20 if alike else 0.01), rel=0.2)


def test_tiles_show_levels_and_values_alike():
    scale = Scale.quantised(17)
    x = torch.randint(17, (3, 1, 4, 6), generator=torch.Generator().manual_seed(0))
    figure, (ax,) = figures._axes(2, 2)
    figures._tiles(ax, x, scale, 2)
    canvas = np.asarray(ax.images[0].get_array())
    assert canvas.shape == (9, 13, 3)
    assert np.allclose(canvas[:4, 7:, 0], x[1, 0] / 16)
    assert np.allclose(canvas[5:, 7:], 1)
    figures._tiles(ax, x / 8.0 - 1, scale, 2)
    assert np.allclose(np.asarray(ax.images[1].get_array()), canvas)
    assert figure.axes == [ax]


def test_damaged_metrics_and_none(digits, tmp_path):
    for text in ("{", '{"step": 1}', "[1]"):
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged"):
            figures.loss_curve(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    assert figures.loss_curve(tmp_path) is None


def test_what_it_refuses(digits, tmp_path):
    run, _ = digits
    with pytest.raises(ValueError, match="two samples"):
        report.write_report(run, samples=1)
    with pytest.raises(sd.CheckpointError, match="does not exist"):
        report.write_report(tmp_path)
    np.save(tmp_path / "own.npy", np.random.default_rng(0).standard_normal((60, 2)))
    other = saved(tmp_path / "run", load(tmp_path / "own.npy"), sd.nets.MLP((2,), width=8, depth=1))
    np.save(tmp_path / "own.npy", np.random.default_rng(0).standard_normal((60, 3)))
    with pytest.raises(ValueError, match="shape"):
        report.write_report(other)
    (tmp_path / "own.npy").unlink()
    with pytest.raises(ValueError, match="does not exist"):
        report.write_report(other)

"""Restored images: what is hidden, samples of a run, their picture and coverage, and resuming."""

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image

from sdekit import uniform01
from sdekit_diffusion import (
    Blur,
    Downsampling,
    LinearObservation,
    Mask,
    Shards,
    load,
    sample_posterior,
)
from sdekit_diffusion import __main__ as command_line
from sdekit_diffusion.__main__ import main
from sdekit_diffusion._app import report
from sdekit_diffusion._app.labels import Conditions
from sdekit_diffusion._app.options import Guidance
from sdekit_diffusion._app.restoring import Degradation, Restoration, restored
from sdekit_diffusion._training import clear
from sdekit_diffusion.data import load as load_data

# Four steps of sixteen particles after twelve updates.
UNRELIABLE = pytest.mark.filterwarnings(
    "ignore:(the samples of . of . observations are not reliable|4 steps are few)"
)
FEW = ["--n", "2", "--samples", "16", "--particles", "16", "--steps", "4", "--noise", "0.5"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    argv = ["--data", "digits", "--width", "8", "--multipliers", "1", "--attention", "False"]
    argv += ["--steps", "12", "--batch-size", "16", "--warmup", "2"]
    assert main(["train", str(folder), *argv]) == 0
    return folder


@pytest.mark.parametrize(
    ("hidden", "known"),
    [
        ("left", [[0, 0, 1, 1, 1]] * 4),
        ("right", [[1, 1, 0, 0, 0]] * 4),
        ("top", [[0] * 5] * 2 + [[1] * 5] * 2),
        ("bottom", [[1] * 5] * 2 + [[0] * 5] * 2),
        ("centre", [[1] * 5, [1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [1] * 5]),
    ],
)
def test_what_is_hidden(hidden, known):
    operator = Degradation(mask=hidden).operator((1, 4, 5))
    assert isinstance(operator, Mask)
    assert operator.mask.int().tolist() == known


def test_other_degradations():
    random = Degradation(mask="random").operator((1, 40, 50)).mask
    assert 0.4 < random.double().mean() < 0.6
    smaller = Degradation(downsample=4).operator((3, 8, 8))
    blurred = Degradation(blur=1.5).operator((3, 8, 8))
    assert isinstance(smaller, Downsampling)
    assert smaller.factor == 4
    assert isinstance(blurred, Blur)
    assert blurred.std == 1.5
    for wrong in ({}, {"mask": "left", "blur": 1.0}):
        with pytest.raises(ValueError, match="give one of --mask, --downsample and --blur"):
            Degradation(**wrong)
    with pytest.raises(ValueError, match="--noise is a positive number"):
        Degradation(blur=1.0, noise=0.0)
    with pytest.raises(ValueError, match="images are restored"):
        Degradation(blur=1.0).operator((2,))


@UNRELIABLE
def test_the_command(digits, tmp_path, capsys):
    """Its samples are those of `sample_posterior`, image by image; a part that is missing is made
    again, and the picture has a row for each image.
    """
    out = tmp_path / "all.npz"
    argv = ["restore", str(digits), "--mask", "bottom", *FEW, "--first", "3"]
    assert main([*argv, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "pixels of 2 held-out images within the intervals of their posteriors" in said
    found = np.load(out)
    model = load(digits)
    levels = load_data("digits").test[3:5]
    u = uniform01(0, torch.arange(3, 5), (1, 8, 8), counter=-3)  # as in training
    x = model.scale.encode(levels, u).float()
    np.testing.assert_allclose(found["x"], x, rtol=1e-6)
    assert torch.equal(model.scale.decode(x), levels)
    mask = Mask(Degradation(mask="bottom").operator((1, 8, 8)).mask)
    variance = (0.5 * model.data_std) ** 2
    for i in range(2):
        clean = LinearObservation(mask, mask(x[i : i + 1]), variance)
        y = clean.simulate(x[i : i + 1], seed=0, first=3 + i)
        np.testing.assert_allclose(found["observed"][i, 0, :4], y.reshape(4, 8), rtol=1e-5)
        assert (found["observed"][i, 0, 4:] == 0).all()
        one = sample_posterior(
            model, LinearObservation(mask, y, variance), 16, particles=16, steps=4, seed=0,
            first=3 + i,
        )  # fmt: skip
        np.testing.assert_array_equal(found["samples"][i], one.x[0])
        np.testing.assert_array_equal(found["log_weights"][i], one.log_weights[0])
    picture = tmp_path / "all.png"
    assert main([*argv, "--out", str(picture)]) == 0
    with Image.open(picture) as image:
        width, height = image.size
    assert width > 3 * height
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.npz", "all.png"]


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "classes"
    argv = ["--data", "digits", "--labels", "--width", "8", "--multipliers", "1"]
    argv += ["--attention", "False", "--steps", "12", "--batch-size", "16", "--warmup", "2"]
    assert main(["train", str(folder), *argv]) == 0
    return folder


@UNRELIABLE
@pytest.mark.parametrize("option", [None, "--unconditional", "--conditions"])
def test_images_are_restored_given_their_labels(classes, option, tmp_path, capsys):
    """Each its own, or a given one, or none."""
    options = {None: [], "--conditions": ["--conditions", "label=7"]}.get(option, [option])
    out = tmp_path / "all.npz"
    argv = ["restore", str(classes), "--mask", "top", *FEW, "--first", "3", "--out", str(out)]
    assert main([*argv, *options]) == 0
    said = capsys.readouterr().out
    words = {None: "given the label of the held-out sample", "--conditions": "of --conditions"}
    assert ("given the label" in said) == (option in words)
    assert words.get(option, "") in said
    found = np.load(out)
    model = load(classes)
    data = load_data("digits")
    own = {None: data.test_labels[3:5], "--conditions": torch.tensor([7, 7])}.get(option)
    for i in range(2):
        law = model if own is None else model.given(label=own[i : i + 1])
        one = restored(
            law, Degradation(mask="top", noise=0.5), data.test[3 + i : 4 + i], samples=16,
            particles=16, steps=4, seed=0, first=3 + i,
        )  # fmt: skip
        np.testing.assert_array_equal(found["samples"][i], one["samples"][0])


@UNRELIABLE
def test_images_of_a_report_are_restored_given_their_labels(classes, monkeypatch):
    settings = {"samples": 16, "particles": 16, "steps": 4}
    monkeypatch.setattr(report, "_RESTORING", settings)
    monkeypatch.setattr(report, "_RESTORED", 2)
    model = load(classes)
    data = load_data("digits")
    conditions = Conditions({"label": data.test_labels}, "label")
    degradation = Degradation(mask="top", noise=0.5)
    law = report._Law(model, conditions, Guidance())
    numbers, pictures = report._restored(law, data, degradation, 0)
    parts = []
    for i in range(2):
        given = model.given(label=data.test_labels[i : i + 1])
        one = restored(given, degradation, data.test[i : i + 1], **settings, seed=0, first=i)
        parts.append({name: part.numpy() for name, part in one.items()})
    assert numbers["restoration"]["error"] == Restoration.of(parts).error
    caption = pictures["restorations"][1]
    assert "given the label of the held-out sample" in caption


@UNRELIABLE
def test_images_with_other_labels_are_not_mixed(classes, tmp_path, monkeypatch, capsys):
    """What was begun with one label is not completed with another."""
    from sdekit_diffusion._app import restoring

    original = restoring.restored

    def failing(*args, first, **options):
        if first:
            raise KeyboardInterrupt
        return original(*args, first=first, **options)

    out = ["--out", str(tmp_path / "all.npz")]
    argv = ["restore", str(classes), "--mask", "top", *FEW, *out, "--conditions"]
    monkeypatch.setattr(restoring, "restored", failing)
    assert main([*argv, "label=7"]) == 130
    monkeypatch.setattr(restoring, "restored", original)
    assert main([*argv, "label=8"]) == 2
    assert "repeat that one to finish it" in capsys.readouterr().err
    assert main([*argv, "label=7"]) == 0


def test_a_model_that_knows_labels_only_restores_with_them(tmp_path, capsys):
    run = str(tmp_path / "run")
    argv = ["--data", "digits", "--labels", "--drop", "0", "--width", "8", "--multipliers", "1"]
    argv += ["--attention", "False", "--steps", "2", "--batch-size", "8", "--warmup", "1"]
    assert main(["train", run, *argv]) == 0
    assert main(["restore", run, "--mask", "top", *FEW, "--unconditional"]) == 2
    assert "was trained with drop = 0" in capsys.readouterr().err


@UNRELIABLE
def test_an_interrupted_command_resumes(digits, tmp_path, monkeypatch):
    """What is complete is not computed again, and the result is the same."""
    from sdekit_diffusion._app import restoring

    argv = ["restore", str(digits), "--downsample", "2", *FEW]
    assert main([*argv, "--out", str(tmp_path / "whole.npz")]) == 0
    original = restoring.restored
    calls = []

    def failing(*args, first, **options):
        calls.append(first)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, first=first, **options)

    monkeypatch.setattr(restoring, "restored", failing)
    out = tmp_path / "parts.npz"
    assert main([*argv, "--out", str(out)]) == 130
    assert not out.exists()
    assert main([*argv, "--out", str(out)]) == 0
    assert calls == [0, 1, 1]
    whole, parts = (np.load(tmp_path / name) for name in ("whole.npz", "parts.npz"))
    np.testing.assert_array_equal(whole["samples"], parts["samples"])


@UNRELIABLE
@pytest.mark.usefixtures("quick_reports")
def test_the_report_has_the_restorations_of_the_command(digits, tmp_path, monkeypatch):
    """Their picture, coverage and error."""
    settings = {"samples": 16, "particles": 16, "steps": 4}
    defaults = inspect.signature(command_line.restore).parameters
    assert {name: defaults[name].default for name in settings} == report._RESTORING
    assert defaults["n"].default == report._RESTORED
    monkeypatch.setattr(report, "_RESTORING", settings)
    monkeypatch.setattr(report, "_RESTORED", 2)
    source = load_data("digits")
    few = {"train": source.train[:40].numpy(), "test": source.test[:12].numpy()}
    np.savez(tmp_path / "few.npz", **few)  # without labels: no classifier is trained
    argv = ["report", str(digits), "--samples", "12", "--tolerance", "0.03", "--seed", "3"]
    argv += ["--data", str(tmp_path / "few.npz")]
    assert main([*argv, "--restore", "downsample=2,noise=0.5"]) == 0
    out = tmp_path / "all.npz"
    argv = ["restore", str(digits), "--downsample", "2", *FEW, "--seed", "3", "--out", str(out)]
    assert main(argv) == 0
    arrays = {name: torch.from_numpy(value) for name, value in np.load(out).items()}
    expected = Restoration(**arrays)
    found = json.loads((digits / "report.json").read_text())["restoration"]
    assert found == {"degradation": "downsample 2, noise 0.5", **settings, **expected.numbers()}
    assert list(found["coverage"]) == ["0.5", "0.8", "0.95"]
    page = (digits / "report.html").read_text(encoding="utf-8")
    assert "<h2>Restored images</h2>" in page
    for text in ("(downsample 2, noise 0.5)", *expected.sentences()):
        assert text in page
    with Image.open(digits / "restorations.png") as image:
        assert image.size[0] > 3 * image.size[1]
    assert "restorations" in clear.PICTURES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bottom", "--restore is mask=bottom"),
        ("blur=wide", "--restore is mask=bottom"),
        ("size=2", "--restore is mask=bottom"),
        ("mask=middle", "a mask hides left, .*; not 'middle'"),
        ("mask=top,blur=1", "2 are given"),
    ],
)
def test_a_degradation_in_one_word(text, message):
    assert Degradation.parsed("blur=1.5,noise=0.2") == Degradation(blur=1.5, noise=0.2)
    assert Degradation.parsed("mask=top") == Degradation(mask="top")
    with pytest.raises(ValueError, match=message):
        Degradation.parsed(text)


def test_moments_and_coverage():
    """Weighted by hand; pixels that are certain do not count."""
    x = torch.tensor([[[[0.0, 1.0]]], [[[2.0, 1.0]]]])
    samples = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])[:, :, None, None, None]
    samples = torch.cat([samples, torch.ones_like(samples)], dim=-1)
    log_weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25] * 4]).double().log()
    found = Restoration(x, x, samples, log_weights)
    assert found.mean[:, 0, 0].tolist() == [pytest.approx([2.0, 1.0]), pytest.approx([1.5, 1.0])]
    assert found.std[:, 0, 0, 0].tolist() == pytest.approx([1.0, 1.25**0.5])
    assert found.error == pytest.approx(((4 + 0.25) / 4) ** 0.5)
    assert found.numbers()["std"] == pytest.approx(((1 + 1.25) / 4) ** 0.5)
    ranks = found.calibration()
    assert ranks.values.shape == (2, 1)
    assert 0 <= ranks.values[0, 0] <= 0.2
    assert 0.4 <= ranks.values[1, 0] <= 0.6
    coverage, error = found.sentences()
    assert "2 held-out images" in coverage
    assert "posterior mean 1.03" in error


@UNRELIABLE
def test_a_model_in_half_precision_restores(digits, tmp_path):
    """Its images are those of a model in single precision, without rounding."""
    model = load(digits)
    levels = load_data("digits").test[:1]
    options = {"samples": 16, "particles": 16, "steps": 4, "seed": 0, "first": 0}
    single, half = (
        restored(each, Degradation(mask="bottom", noise=0.5), levels, **options)
        for each in (model, load(digits).bfloat16())
    )
    assert torch.equal(half["x"], single["x"])
    shards = Shards(tmp_path, 1, 1)
    shards.fill(lambda first, count: half)
    assert np.array_equal(next(iter(shards))["x"], single["x"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "bottom", "--blur", "1"], "give one of --mask"),
        (["--downsample", "3"], "do not fill images of 8 x 8"),
        (["--mask", "bottom", "--out", "x.txt"], "ends in neither .png nor .npz"),
        (["--mask", "bottom", "--first", "100000"], "--first 100000 --n 16 names none"),
        (["--mask", "bottom", "--first", "-1"], "--first -1 --n 16 names none"),
        (["--mask", "bottom", "--n", "0"], "--first 0 --n 0 names none"),
        (["--mask", "bottom", "--n", "-1"], "--first 0 --n -1 names none"),
    ],
)
def test_errors_are_one_line(digits, arguments, message, capsys):
    assert main(["restore", str(digits), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said

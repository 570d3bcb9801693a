"""The interactive page: its frames are states of `sample`, and a browser moves its sliders."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image

import sdekit_diffusion as sd
from sdekit_diffusion.__main__ import explore, main
from sdekit_diffusion._app import explored, exploring
from sdekit_diffusion._app.exploring import Sliders
from sdekit_diffusion._app.options import Sampler

FEW = Sliders(eta=(0.0, 1.0), steps=(2, 4), guidance=(0.0, 2.0), seed=(0, 5))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Of three classes, with two values of every slider."""
    out = tmp_path_factory.mktemp("explore") / "page.html"
    explore(mixture="three_modes", n=7, sliders=FEW, out=out)
    return out


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run folder of a network with labels that was not trained."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    torch.manual_seed(0)
    net = sd.nets.UNet(width=8, classes=10)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    model = sd.ScoreModel(net, "vp", shape=(1, 8, 8), conditioning="log_snr")
    model.scale = sd.data.load("digits").scale
    sd.save(model, folder, {"data": {"name": "digits", "label": "label"}, "recipe": {"drop": 0.1}})
    return folder


def frames_of(page):
    text = page.read_text(encoding="utf-8")
    (content,) = re.findall(r'<script type="application/json" id="frames">(.*?)</script>', text)
    return json.loads(content)


def points_of(frames, i):
    """The states of a solve, `(k, n, 2)`."""
    integers = np.frombuffer(base64.b64decode(frames["solves"][i]), "<u2")
    low = np.array(frames["low"])
    high = np.array(frames["high"])
    return (low + (high - low) * integers.reshape(-1, frames["n"], 2) / 65535), high - low


def mixture(components=(0, 1, 2)):
    means, variances = explored.MIXTURES["three_modes"]
    weights = [1 / len(components)] * len(components)
    return sd.GaussianMixture(
        weights, [means[k] for k in components], [variances[k] for k in components]
    )


@pytest.mark.parametrize(("i", "eta", "steps", "w", "seed"), [
    (0, 0.0, 2, 0.0, 0), (7, 0.0, 4, 2.0, 5), (10, 1.0, 2, 2.0, 0), (15, 1.0, 4, 2.0, 5),
])  # fmt: skip
def test_frames_are_the_states_of_sample(page, i, eta, steps, w, seed):
    """To half a unit of 16 bits; samples 1 and 4 have class 1."""
    frames = frames_of(page)
    states, unit = points_of(frames, i)
    guided = sd.Guided(mixture([1]), w, by=mixture())
    method = sd.METHODS["default" if eta == 0 else "sde"]
    options = {"method": method, "noise": None if eta == 0 else "path", "steps": steps}
    solution = sd.sample(
        guided, 7, sde="vp", seed=seed, save="all", return_solution=True, **options
    )
    kernels = [sd.VPSDE().kernel(float(t)) for t in solution.ts]
    for k, (alpha, sigma) in enumerate(kernels):
        expected = (solution.xs[k] / np.hypot(alpha, sigma))[[1, 4]].numpy()
        assert np.all(abs(states[k, [1, 4]] - expected) <= 0.51 * unit / 65535 + 1e-6)
        assert frames["ratios"][i][k] == pytest.approx(sigma / alpha, rel=6e-3)
        assert frames["ts"][i][k] == pytest.approx(float(solution.ts[k]), rel=6e-3)
    assert len(kernels) == len(states) == steps + 1


def test_all_values_are_in_the_page(page):
    frames = frames_of(page)
    assert frames["axes"] == {"eta": [0, 1], "steps": [2, 4], "guidance": [0, 2], "seed": [0, 5]}
    assert frames["classes"] == [0, 1, 2]
    assert len(frames["solves"]) == 16
    assert len(base64.b64decode(frames["data"])) == 400 * 4
    first = points_of(frames, 0)[0][0]
    assert np.allclose(first, points_of(frames, 14)[0][0], atol=2e-4)  # of the same seed
    assert not np.allclose(first, points_of(frames, 1)[0][0], atol=0.1)


def test_the_page_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|<link (?!rel=\"icon\" href=\"data:,\")|@import|url\(|src=", text)
    assert "default-src 'none'" in text
    assert "{{" not in text
    for name in ("time", "eta", "steps", "guidance", "seed"):
        assert f"<dt>{name}</dt>" in text


def test_frames_of_images(digits):
    """Pictures have a row for each time, and a sample in each column."""
    law = explored.of_run(digits, (3, 8), explored.Loading())
    sliders = Sliders(eta=(1.0,), steps=(6,), guidance=(2.0,), seed=(1,), times=3)
    frames = exploring.explored_frames(law, sliders, 4, Sampler(noise="path"))
    with Image.open(io.BytesIO(base64.b64decode(frames["solves"][0]))) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (3 * 8, 4 * 8)
    model = sd.load(digits)
    guided = sd.Guided(model.given(label=torch.tensor([3, 8, 3, 8])), 2.0)
    options = {"method": "sde", "steps": 6, "seed": 1, "noise": "path"}
    solution = sd.sample(guided, 4, save="all", return_solution=True, **options)
    for row, k in enumerate((0, 3, 6)):
        alpha, sigma = model.sde.kernel(float(solution.ts[k]))
        x = solution.xs[k, 2, 0] / np.hypot(alpha, sigma)
        expected = 255 * ((x + 1) / 2).clamp(0, 1).numpy()
        assert np.abs(pixels[8 * row : 8 * row + 8, 16:24] - expected).max() <= 0.51
    assert frames["classes"] == [3, 8]


def test_defaults_of_a_run(digits):
    """All its classes, guidance, and as many images as fit."""
    law = explored.of_run(digits, (), explored.Loading())
    sliders = Sliders().completed(law, "default")
    assert law.classes == tuple(range(10))
    assert sliders.guidance == (0.0, 1.0, 3.0)
    assert (sliders.eta, sliders.times) == ((0.0, 1.0), 9)
    assert exploring.number_of_samples(law, sliders, None, 3.0) == 40
    assert exploring.number_of_samples(law, sliders, None, 0.6) == 20
    assert exploring.number_of_samples(law, sliders, None, 0.1) == 3
    for method, eta in (("ddim", [0.0, 1.0]), ("heun", [None]), ("pc", [None])):
        assert Sliders().completed(law, method).axes()["eta"] == eta


def test_a_data_set_and_its_size(tmp_path, capsys):
    out = tmp_path / "moons.html"
    argv = ["explore", "--mixture", "moons", "--out", str(out), "--megabytes", "0.1"]
    argv += ["--steps", "3", "6", "--seed", "0", "--eta", "0", "--times", "4"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert f"wrote {out}, 0.0 MB, 300 samples of 8 states" in printed
    assert out.stat().st_size < 1e5
    frames = frames_of(out)
    assert [len(ts) for ts in frames["ts"]] == [4, 4]
    assert frames["classes"] == []
    assert frames["axes"]["guidance"] == [1]


@pytest.mark.parametrize(("argv", "message"), [
    ([], "give the folder of a run, or --mixture"),
    (["--mixture", "moon"], "--mixture is one of two_modes, .*; not 'moon'.*moons"),
    (["--mixture", "moons", "--label", "1"], "moons has no labels"),
    (["--mixture", "two_modes", "--label", "2"], "has the labels 0 to 1; --label has 2"),
    (["--mixture", "moons", "--steps", "5", "3"], "--steps takes increasing values"),
    (["--mixture", "moons", "--steps", "0", "3"], "--steps takes numbers from 1 on"),
    (["--mixture", "moons", "--times", "1"], "--times is a number of states from 2 on"),
    (["--mixture", "moons", "--n", "0"], "n is the number of samples"),
    (["--mixture", "moons", "--n", "5000"], "more than --megabytes 3: give fewer values"),
    (["--mixture", "moons", "--out", "none/page.html"], "the folder of none/page.html"),
    (["--mixture", "moons", "--out", "."], "is a folder; give the name of a file"),
    (["--mixture", "moons", "--method", "heun3"], "heun3"),
    (["--mixture", "moons", "--method", "pc", "--eta", "1"], "one Brownian path is for eta > 0"),
    (["--mixture", "moons", "--guidance", "2"], "moons has none: leave out --guidance"),
    (["--mixture", "moons", "--method", "ode"], "an adaptive method chooses its own steps"),
    (["absent"], "absent"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
def test_what_it_refuses(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["explore", *argv]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "explore.html").exists()


def test_one_coordinate_is_refused(tmp_path):
    net = sd.nets.MLP((1,), width=8, depth=1)
    sd.save(sd.ScoreModel(net, "vp", shape=(1,)), tmp_path / "run")
    with pytest.raises(ValueError, match="one coordinate"):
        explore(tmp_path / "run")


def test_points_of_more_than_two_coordinates_are_named(tmp_path):
    net = sd.nets.MLP((3,), width=8, depth=1)
    sd.save(sd.ScoreModel(net, "vp", shape=(3,)), tmp_path / "run")
    explore(tmp_path / "run", n=2, sliders=Sliders(eta=(0.0,), steps=(2,), seed=(0,)))
    page = (tmp_path / "run" / "explore.html").read_text(encoding="utf-8")
    assert "The first two of their 3 coordinates are drawn." in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, of Debian's package of that name")
def test_a_browser_moves_every_slider(page, tmp_path):
    """By the keyboard; every value changes the picture, and nothing is asked for."""
    picture = "document.getElementById('canvas').toDataURL()"
    with Browser(tmp_path / "profile") as browser:
        browser.screen(1280, 900)
        browser.open(page, "#eta=0&steps=2&guidance=0&seed=0&time=0.5")
        seen = [browser.run(picture)]
        for name in ("time", "eta", "steps", "guidance", "seed"):
            before = browser.run(f"document.getElementById('{name}-value').textContent")
            browser.run(f"document.getElementById('{name}').focus()")
            browser.press("ArrowRight", 39)
            after = browser.run(f"document.getElementById('{name}-value').textContent")
            assert before != after, name
            seen.append(browser.run(picture))
        assert len(set(seen)) == len(seen)
        browser.press(" ", 32, " ")
        browser.run("new Promise(resolve => setTimeout(resolve, 900))")
        assert browser.run("document.getElementById('time').value") != "3"
        browser.screen(390, 844, dark=True, phone=True)
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 22)"
        assert browser.run("fetch('http://127.0.0.1:9/').catch(error => error.name)") == "TypeError"
        violated = browser.problems
        assert all("Content Security Policy" in problem for problem in violated)
    asked = [address for address in browser.requests if not address.startswith("data:")]
    assert asked == [page.resolve().as_uri()]

"""The command line: a tiny run through every command, and one line for every error."""

import csv
import hashlib
import inspect
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from safetensors.torch import save as serialised

from sdekit_diffusion import (
    DDIM,
    DIFFUSIONS,
    GRIDS,
    METHODS,
    Guided,
    Log,
    Recipe,
    ScoreModel,
    fit,
    nets,
    sample,
    save,
    validation_loss,
)
from sdekit_diffusion import load as load_model
from sdekit_diffusion.__main__ import COMMANDS, main
from sdekit_diffusion._app import evaluation, held_out, measurements, report, trained
from sdekit_diffusion._app.evaluation import distances
from sdekit_diffusion._app.held_out import measured
from sdekit_diffusion._app.net_options import Net
from sdekit_diffusion._app.network_arguments import with_network_arguments
from sdekit_diffusion._app.options import QUICK, Estimate, Sampler
from sdekit_diffusion._app.parsing import _message
from sdekit_diffusion.data import Dataset, Scale, load
from sdekit_diffusion.metrics import inception_scores
from sdekit_diffusion.metrics._inception import outputs, standard_network

TRAIN = ["--steps", "12", "--batch-size", "16", "--warmup", "2"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert (
        main(["train", str(folder), "--data", "digits", "--width", "8", "--seed", "3", *TRAIN]) == 0
    )
    return folder


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "moons"
    assert (
        main(
            [
                "train",
                str(folder),
                "--data",
                "moons",
                "--width",
                "16",
                "--depth",
                "1",
                "--sde",
                "vp",
                *TRAIN,
            ]
        )
        == 0
    )
    return folder


@pytest.fixture
def damaged(digits, tmp_path):
    """A copy of the run, to be spoiled."""
    for path in digits.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def weights_of(run):
    (path,) = run.glob("weights-*.safetensors")
    return path


def write_config(run, config):
    """As its writer could have, checksum and all."""
    rest = {key: value for key, value in config.items() if key != "sha256"}
    checksum = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (run / "config.json").write_text(json.dumps(rest | {"sha256": checksum}))


def replace_weights(run, content):
    path = weights_of(run)
    config = json.loads((run / "config.json").read_text())
    path.write_bytes(content)
    config["files"]["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
    write_config(run, config)


def error(capsys, *argv):
    """The one line on stderr of a command that fails; bars that were begun aside."""
    capsys.readouterr()
    assert main([str(part) for part in argv]) == 2
    out, err = capsys.readouterr()
    lines = [
        line for line in err.replace("\r", "\n").splitlines() if line.strip() and "/s]" not in line
    ]
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in err
    return lines[0]


def samples(run, out, *argv):
    assert main(["sample", str(run), "--out", str(out), "--steps", "5", *argv]) == 0
    return np.load(out)["samples"]


def test_train_writes_a_run(digits):
    config = json.loads((digits / "config.json").read_text())
    assert config["notes"]["data"] == {"name": "digits"}
    assert config["scale"] == {"shift": 8.5, "unit": 8.5, "levels": 17, "dtype": "uint8"}
    assert (config["notes"]["recipe"]["steps"], config["notes"]["recipe"]["seed"]) == (12, 3)
    assert config["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (config["sde"]["name"], config["shape"], config["conditioning"]) == (
        "subvp",
        [1, 8, 8],
        "log_snr",
    )
    levels = load("digits").train.double()
    values = 2 * (levels + 0.5) / 17 - 1
    assert config["data_std"] == pytest.approx(
        float((values - values.mean(0)).square().mean().sqrt()), rel=1e-5
    )
    lines = [json.loads(line) for line in (digits / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 12]
    assert all(
        set(line) == {"step", "loss", "lr", "seconds"} and 0 < line["loss"] < 10 for line in lines
    )
    assert lines[0]["seconds"] < lines[1]["seconds"]


def test_training_depends_on_the_seed_alone(digits, tmp_path):
    weights = load_file(weights_of(digits))
    for seed, same in (("3", True), ("4", False)):
        torch.manual_seed(int(seed) + 100)
        run = tmp_path / seed
        assert (
            main(["train", str(run), "--data", "digits", "--width", "8", "--seed", seed, *TRAIN])
            == 0
        )
        again = load_file(weights_of(run))
        assert all(torch.equal(again[name], weights[name]) for name in weights) is same


@pytest.mark.parametrize("seed", [0, 4])
def test_the_seed_chooses_the_first_weights(seed, tmp_path, monkeypatch):
    """Those that the network's constructor draws from torch's generator with this seed."""
    first = []

    def fit(model, *args, **options):
        first.append(model.net.state_dict())
        return []

    monkeypatch.setattr("sdekit_diffusion.fit", fit)
    argv = ["--data", "moons", "--width", "8", "--depth", "1", "--seed", str(seed)]
    assert main(["train", str(tmp_path / "run"), *argv]) == 0
    torch.manual_seed(seed)
    expected = nets.MLP((2,), width=8, depth=1).state_dict()
    assert first[0].keys() == expected.keys()
    assert all(torch.equal(first[0][name], value) for name, value in expected.items())


def test_samples_are_levels_and_depend_on_seed_and_number(digits, tmp_path, capsys):
    first = samples(digits, tmp_path / "a.npz", "--n", "6")
    assert "6 samples" in capsys.readouterr().out
    assert (first.shape, first.dtype) == ((6, 1, 8, 8), np.uint8)
    assert first.max() <= 16
    assert np.array_equal(first, samples(digits, tmp_path / "b.npz", "--n", "6", "--seed", "0"))
    assert not np.array_equal(first, samples(digits, tmp_path / "c.npz", "--n", "6", "--seed", "1"))
    rest = samples(digits, tmp_path / "d.npz", "--n", "2", "--first", "4")
    # A float on the edge of a level may round either way.
    assert np.abs(rest.astype(int) - first[4:]).max() <= 1


@pytest.mark.parametrize(
    "argv", [["--sde", "ve"], ["--method", "euler_maruyama"], ["--batch-size", "2"]]
)
@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
def test_samples_by_other_ways(digits, tmp_path, argv):
    assert samples(digits, tmp_path / "a.npz", "--n", "3", *argv).shape == (3, 1, 8, 8)


def test_sampling_is_that_of_the_library(moons, tmp_path):
    """Grid, noise and noise level reach `sample`: the same numbers. That of ddim is its own."""
    argv = [
        "--n",
        "6",
        "--method",
        "ddim",
        "--grid",
        "karras",
        "--noise",
        "path",
        "--eta",
        "0.7",
        "--seed",
        "2",
    ]
    for name, method in (("ddim", DDIM(eta=0.7)), ("ddpm", replace(METHODS["ddpm"], eta=0.7))):
        argv[3] = name
        expected = sample(
            load_model(moons), 6, method=method, steps=5, grid="karras", noise="path", seed=2
        )
        assert np.array_equal(samples(moons, tmp_path / f"{name}.npz", *argv), expected.numpy())


def test_the_default_with_noise_is_sde(moons, tmp_path):
    expected = sample(
        load_model(moons), 6, method=replace(METHODS["sde"], eta=0.5), steps=30, seed=2
    )
    assert np.array_equal(
        samples(
            moons, tmp_path / "a.npz", "--n", "6", "--eta", "0.5", "--steps", "30", "--seed", "2"
        ),
        expected,
    )


def test_no_noise_is_the_default(moons, tmp_path):
    """--eta 0, which changes nothing, takes the method that `sample` takes."""
    plain, told = (
        samples(moons, tmp_path / f"{i}.npz", "--n", "4", *argv)
        for i, argv in enumerate([[], ["--eta", "0"]])
    )
    assert np.array_equal(plain, told)


def test_flips_and_samples_in_their_own_type(tmp_path):
    """Images of another type than bytes, and numbers far from the origin, come back as they
    were.
    """
    np.save(tmp_path / "own.npy", np.random.default_rng(0).integers(0, 8, (30, 8, 8), np.int16))
    np.save(tmp_path / "far.npy", np.random.default_rng(0).normal([100, -5], [20, 0.01], (400, 2)))
    small = ["--width", "4", "--steps", "3", "--batch-size", "4"]
    assert (
        main(["train", str(tmp_path / "a"), "--data", str(tmp_path / "own.npy"), "--flip", *small])
        == 0
    )
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["notes"]["recipe"]["flip"] is True
    assert config["net"]["config"]["multipliers"] == [1, 2]
    made = samples(tmp_path / "a", tmp_path / "a.npz", "--n", "3")
    assert (made.dtype, made.shape) == (np.int16, (3, 1, 8, 8))
    assert 0 <= made.min() <= made.max() <= 7
    assert main(["train", str(tmp_path / "b"), "--data", str(tmp_path / "far.npy"), *small]) == 0
    made = samples(tmp_path / "b", tmp_path / "b.npz", "--n", "50")
    assert made.dtype == np.float64
    assert np.allclose(made.mean(0), [100, -5], rtol=0.2)


@pytest.mark.usefixtures("quick_reports")
def test_a_stream_trains_and_is_reported(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    x = np.random.default_rng(0).integers(0, 256, (80, 8, 8)).astype(np.uint8)
    features = datasets.Features(
        {"x": datasets.Array2D((8, 8), "uint8"), "label": datasets.Value("int64")}
    )
    made = datasets.Dataset.from_dict(
        {"x": x, "label": [i % 4 for i in range(80)]}, features=features
    )
    made.to_parquet(tmp_path / "a.parquet")
    run = [
        "--data",
        f"hf-stream:{tmp_path}/a.parquet",
        "--width",
        "4",
        "--steps",
        "3",
        "--batch-size",
        "4",
    ]
    assert main(["train", str(tmp_path / "run"), *run]) == 0
    assert main(["report", str(tmp_path / "run"), "--samples", "6", "--steps", "3"]) == 0
    found = json.loads((tmp_path / "run" / "report.json").read_text())
    assert found["data"].items() >= {"train": None, "test": 8}.items()
    assert (found["neighbours"]["n_train"], found["frechet"]["n_train"]) == (72, 72)


REFINENET = ["--width", "4", "--multipliers", "1", "2", "--dilations", "1", "2"]


@pytest.mark.parametrize(
    ("argv", "kind", "predicts", "conditioning"),
    [
        (
            ["--data", "digits", "--sde", "ncsn", "--network", "NCSNv2", *REFINENET],
            "NCSNv2",
            "noise",
            "time",
        ),
        (
            ["--data", "digits", "--sde", "ncsn", "--discrete", "--network", "NCSN", *REFINENET],
            "NCSN",
            "score",
            "time",
        ),
        (
            ["--data", "digits", "--network", "NCSN", "--levels", "3", *REFINENET],
            "NCSN",
            "score",
            "time",
        ),
        (
            [
                "--data",
                "moons",
                "--sde",
                "ddpm",
                "--discrete",
                "--predicts",
                "noise",
                "--conditioning",
                "1000",
                "-1",
            ],
            "MLP",
            "noise",
            [1000.0, -1.0],
        ),
        (
            ["--data", "digits", "--network", "MLP", "--conditioning", "sigma"],
            "MLP",
            "velocity",
            "sigma",
        ),
    ],
)
def test_networks_and_what_they_are_told(tmp_path, argv, kind, predicts, conditioning):
    """What was not said is as published; NCSN has norms for each level of the diffusion, or for as
    many as are asked for.
    """
    assert main(["train", str(tmp_path / "run"), *argv, *TRAIN, "--steps", "2"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["net"]["class"], config["predicts"], config["conditioning"]) == (
        kind,
        predicts,
        conditioning,
    )
    assert config["net"]["config"].get("levels") == (
        {True: 3, False: 232}["--levels" in argv] if kind == "NCSN" else None
    )
    assert config["notes"]["recipe"]["discrete"] is ("--discrete" in argv)
    assert len(samples(tmp_path / "run", tmp_path / "a.npz", "--n", "2")) == 2


def test_samples_as_other_files(digits, moons, tmp_path):
    for run in (digits, moons):
        out = tmp_path / run.name / "grid.png"
        assert main(["sample", str(run), "--n", "5", "--steps", "4", "--out", str(out)]) == 0
        with Image.open(out) as image:
            assert min(image.size) > 300
    assert (
        main(["sample", str(moons), "--n", "5", "--steps", "4", "--out", str(tmp_path / "x.npy")])
        == 0
    )
    assert np.load(tmp_path / "x.npy").shape == (5, 2)
    assert main(["sample", str(moons), "--n", "5", "--steps", "4"]) == 0
    assert np.load(moons / "samples.npz")["samples"].dtype == np.float32
    assert samples(digits, tmp_path / "none.npz", "--n", "0").shape == (0, 1, 8, 8)


def test_likelihood_of_images(digits, tmp_path, capsys):
    argv = [
        "likelihood",
        str(digits),
        "--n",
        "6",
        "--probes",
        "16",
        "--tolerance",
        "1e-2",
        "--batch-size",
        "4",
    ]
    assert main([*argv, "--csv", str(tmp_path / "a.csv")]) == 0
    mean, parts = capsys.readouterr().out.splitlines()
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    values = np.array([float(row["bits/dim"]) for row in rows])
    assert len(values) == 6
    assert f"{values.mean():.4f} ± {values.std(ddof=1) / 6**0.5:.4f} bits/dim" in mean
    assert mean.startswith("digits: ")
    assert "6 held-out samples" in mean
    assert "(16 a trace)" in parts
    assert "(2 draws)" in parts
    shares = [
        float(re.search(rf"{name} ([0-9.]+)", parts)[1])
        for name in ("data", "probes", "dequantisation")
    ]
    assert all(share > 0 for share in shares)
    assert np.hypot.reduce(shares) == pytest.approx(values.std(ddof=1) / 6**0.5, rel=0.01)
    errors = np.array([float(row["stderr"]) for row in rows])
    assert (errors > 0).all()
    assert main([*argv, "--draws", "1"]) == 0
    assert "dequantisation with it (1 draw)" in capsys.readouterr().out


def test_likelihood_of_points(moons, tmp_path, capsys):
    assert main(["likelihood", str(moons), "--n", "20", "--tolerance", "1e-3"]) == 0
    mean, parts = capsys.readouterr().out.splitlines()
    assert "nats" in mean
    assert "exact" in parts
    assert "dequantisation" not in parts
    np.save(tmp_path / "points.npy", np.random.default_rng(0).standard_normal((40, 2)))
    assert (
        main(
            [
                "likelihood",
                str(moons),
                "--data",
                str(tmp_path / "points.npy"),
                "--tolerance",
                "1e-2",
            ]
        )
        == 0
    )
    assert "over 4 held-out samples" in capsys.readouterr().out


@pytest.mark.usefixtures("quick_reports")
def test_report_command(moons, capsys):
    argv = ["--steps", "20", "--grid", "karras", "--noise", "path", "--eta", "0.5"]
    assert (
        main(
            [
                "report",
                str(moons),
                "--samples",
                "40",
                "--out",
                str(moons / "page" / "r.html"),
                *argv,
            ]
        )
        == 0
    )
    assert "report.json" in capsys.readouterr().out
    page = (moons / "page" / "r.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    told = json.loads((moons / "report.json").read_text())["sampling"]
    assert (told["steps"], told["grid"], told["noise"]) == (20, "karras", "path")
    assert "eta=0.5" in told["method"]


OPTIONS = [
    *[
        "--sde",
        "ve",
        "--method",
        "ddpm",
        "--steps",
        "6",
        "--grid",
        "karras",
        "--noise",
        "white",
        "--eta",
        "0.5",
    ],
    *[
        "--end",
        "0.02",
        "--denoise",
        "--dtype",
        "float64",
        "--seed",
        "2",
        "--first",
        "3",
        "--batch-size",
        "16",
    ],
]


@pytest.mark.usefixtures("quick_reports")
def test_the_report_samples_as_sample_does(moons, tmp_path):
    """Every option that `sample` takes, in `report` too: the same samples, and the likelihood under
    the same diffusion.
    """
    argv = ["--samples", "24", "--out", str(tmp_path / "r.html"), "--tolerance", "1e-2", *OPTIONS]
    assert main(["report", str(moons), *argv]) == 0
    found = json.loads((moons / "report.json").read_text())
    assert (
        main(["sample", str(moons), "--n", "24", "--out", str(tmp_path / "x.npz"), *OPTIONS]) == 0
    )
    x = torch.from_numpy(np.load(tmp_path / "x.npz")["samples"])
    model = load_model(moons)
    source = load("moons")
    assert found["distances"] == distances(x, source, 2)["distances"]
    method = replace(METHODS["ddpm"], eta=0.5)
    settings = {
        "method": method,
        "steps": 6,
        "grid": "karras",
        "noise": "white",
        "sde": "ve",
        "end": 0.02,
        "denoise": True,
    }
    same = sample(model, 24, dtype=torch.float64, seed=2, first=3, **settings)
    assert torch.allclose(x.double(), same, atol=1e-5)
    assert (
        found["sampling"].items()
        >= {"n": 24, "seed": 2, "end": 0.02, "denoise": True, "first": 3, "sde": "ve"}.items()
    )
    assert found["sampling"]["evaluations"] == 7
    held = measured(
        model, model.scale, source.test[:24], Estimate(tolerance=1e-2), sde="ve", seed=2
    )
    assert found["likelihood"]["mean"] == pytest.approx(float(held.value.mean()), abs=1e-6)


def test_every_option_of_sample_is_one_of_the_report(capsys):
    said = {}
    for command in ("sample", "report"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said[command] = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", capsys.readouterr().out)) - {
            "--nproc-per-node"
        }
    # --n is --samples in the report, which counts held-out ones too.
    own = {
        name for name, hint in get_type_hints(COMMANDS["sample"]).items() if not is_dataclass(hint)
    }
    own = {f"--{name.replace('_', '-')}" for name in own} - {"--out"}
    assert "--n" in own
    assert said["sample"] - own <= said["report"]
    every = {f"--{name.replace('_', '-')}" for name in Sampler.__dataclass_fields__}
    assert {"--denoise", "--end", "--first", "--sde", "--batch-size", "--dtype", "--seed"} <= every
    assert every <= said["sample"] & said["report"]


class Asked(Exception):  # noqa: N818
    """Raised in the place of the work."""


@pytest.mark.parametrize("command", ["sample", "report"])
def test_one_more_option_of_the_sampler_reaches_sample(command, moons, monkeypatch):
    """A field of the dataclass is an option of both commands and an argument of `sample`; nothing
    else names it.
    """
    with_field(COMMANDS[command], "sampler", monkeypatch)

    def asked(model, n, *, stretch, **options):
        raise Asked(stretch)

    monkeypatch.setattr("sdekit_diffusion.sample", asked)
    monkeypatch.setattr(report, "sample", asked)
    for argv, value in (([], 1.0), (["--stretch", "0.5"], 0.5)):
        with pytest.raises(Asked) as caught:
            main([command, str(moons), "--n" if command == "sample" else "--samples", "2", *argv])
        assert caught.value.args == (value,)


@pytest.mark.parametrize("command", ["likelihood", "report"])
def test_one_more_option_of_the_estimate_reaches_the_likelihood(command, moons, monkeypatch):
    with_field(COMMANDS[command], "estimate", monkeypatch)

    def asked(model, scale, x, estimate, **options):
        raise Asked(estimate.stretch)

    monkeypatch.setattr(held_out, "measured", asked)
    monkeypatch.setattr(report, "measured", asked)
    argv = ["--stretch", "0.5", *(["--samples", "2"] if command == "report" else [])]
    with pytest.raises(Asked) as caught:
        main([command, str(moons), *argv])
    assert caught.value.args == (0.5,)


def with_field(command, group, monkeypatch):
    """The dataclass of a group of options of a command has one field more."""
    kind = command.__annotations__[group]
    added = [("stretch", float, field(default=1.0))]
    more = make_dataclass(kind.__name__, added, bases=(kind,), frozen=True)
    monkeypatch.setitem(command.__annotations__, group, more)
    monkeypatch.setitem(command.__kwdefaults__, group, more())


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_option_has_a_description(command):
    described = [(command, inspect.signature(command).parameters)]
    groups = [hint for hint in get_type_hints(command).values() if is_dataclass(hint)]
    described += [(group, inspect.signature(group).parameters) for group in groups]
    for one, names in described:
        lines = re.findall(r"^ {4}(\w+): \S", inspect.getdoc(one), re.M)
        assert set(names) <= set(lines), one


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Weights of the standard network's shapes, at random."""
    # Not above, here and below: it imports torchvision, which takes seconds.
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "none.pth")

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **options):
            return None

    torch.manual_seed(0)
    network = Blank("blank", ["2048"], str(folder / "none.pth"))
    for weight in network.parameters():
        if weight.ndim == 4:  # torch's own are so small that features of all images are 0
            torch.nn.init.kaiming_normal_(weight)
    torch.save(network.state_dict(), folder / "random.pth")
    return folder


def few_eigenvalues(matrix):
    """Those that are not 0, where they are at most eight: from the range of the matrix.

    torchmetrics takes all 2048 of a product of two covariances, which of n images have rank n - 1;
    that would be most of the time here.
    """
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(len(matrix), 8, dtype=matrix.dtype, generator=generator)
    basis = torch.linalg.qr(matrix @ probes).Q
    return torch.linalg.eig(basis.T @ matrix @ basis).eigenvalues


@pytest.mark.usefixtures("quick_reports")
def test_a_report_with_inception_scores(digits, inception, tmp_path, monkeypatch):
    """Those of torchmetrics with the file's network, of the same images in colour, against the
    training images.
    """
    monkeypatch.setattr(evaluation, "_REFERENCE_IMAGES", 3)
    monkeypatch.setattr(torch.linalg, "eigvals", few_eigenvalues)
    source = load("digits")
    # Without labels: no classifier is trained, and the rest of the report is short.
    few = {"train": source.train[:40].numpy(), "test": source.test[:10].numpy()}
    np.savez(tmp_path / "few.npz", **few)
    argv = [
        "--data",
        str(tmp_path / "few.npz"),
        "--samples",
        "2",
        "--steps",
        "3",
        "--tolerance",
        "1e-1",
        "--probes",
        "1",
        "--out",
        str(tmp_path / "r.html"),
    ]
    assert main(["report", str(digits), *argv, "--inception", str(inception / "random.pth")]) == 0
    found = json.loads((digits / "report.json").read_text())["inception"]
    assert (list(found["rows"]), found["n_train"]) == (["model", "real"], 3)
    known = load(str(tmp_path / "few.npz")).reference(3)[0]
    shades = np.rint(np.arange(17) * 255 / 16).astype(np.uint8)
    coloured = [
        torch.from_numpy(shades[part.numpy()]).expand(-1, 3, -1, -1)
        for part in (source.test[:2], known)
    ]
    expected = inception_scores(*coloured, weights=inception / "random.pth", seed=0)
    row = found["rows"]["real"]
    assert row["n"] == 2
    assert [row["fid"], row["kid"], row["inception"]] == pytest.approx(
        [expected.fid, expected.kid, expected.inception], rel=1e-4
    )
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "FID, KID and Inception Score against 3 training images" in page
    assert f"<td>{row['fid']:.3f}</td>" in page


def test_logits_are_those_of_the_standard_network(inception):
    """From features that were computed for the Fréchet distance already."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    path = inception / "random.pth"
    network, head = standard_network(path, torch.device("cpu"))
    whole = NoTrainInceptionV3("inception-v3-compat", ["logits_unbiased"], str(path))
    image = torch.randint(
        256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    torch.testing.assert_close(
        head(outputs(network, image)), outputs(whole, image), rtol=1e-4, atol=1e-4
    )


class Executed:
    """A pickle of this runs code."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_inception_weights_that_are_none(digits, moons, inception, tmp_path, capsys):
    """Refused before the work, and a pickle that runs code is not run."""
    torch.save({"a": Executed()}, tmp_path / "evil.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("weights")
    for name in ("evil", "text"):
        assert "is not a file of weights alone" in error(
            capsys, "report", digits, "--inception", tmp_path / f"{name}.pth"
        )
    assert "something else than tensors by name" in error(
        capsys, "report", digits, "--inception", tmp_path / "list.pth"
    )
    assert "does not fit" in error(capsys, "report", digits, "--inception", inception / "none.pth")
    assert "weights are not available" in error(
        capsys, "report", digits, "--inception", tmp_path / "missing.pth"
    )
    assert "holds no images" in error(
        capsys, "report", moons, "--inception", tmp_path / "missing.pth"
    )


def test_the_likelihood_reads_its_seed_and_its_tolerance(digits, capsys):
    """The line that is printed: the same for one seed, another for another, and more evaluations
    for a finer tolerance.
    """
    argv = ["likelihood", str(digits), "--n", "3", "--probes", "1", "--draws", "1"]
    lines = []
    for more in (
        ["--seed", "0"],
        ["--seed", "0"],
        ["--seed", "1"],
        ["--seed", "0", "--tolerance", "1e-2"],
    ):
        assert main([*argv, "--tolerance", "1e-1", *more]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]
    assert lines[0].splitlines()[0] != lines[2].splitlines()[0]
    evaluations = [int(re.search(r"(\d+) evaluations", line)[1]) for line in lines]
    assert evaluations[3] > evaluations[0]
    model = load_model(digits)
    held = measured(model, model.scale, load("digits").test[:3], Estimate(1, 1, 1e-1), seed=1)
    assert f"digits: {float(held.value.mean()):.4f} ±" in lines[2]


@pytest.mark.parametrize(
    ("shape", "multipliers", "attention"),
    [
        ((1, 8, 8), [1, 2], [False, True]),
        ((1, 28, 28), [1, 2, 2], [False, False, True]),
        ((3, 32, 32), [1, 2, 2, 2], [False, False, True, True]),
        ((3, 15, 32), [1], [False]),
        ((1, 16, 8), [1, 2, 2], [False, True, True]),
    ],
)
def test_levels_of_a_unet_by_size(shape, multipliers, attention):
    images = torch.zeros(4, *shape, dtype=torch.uint8)
    net = Net(width=4).model(Dataset(images, images, Scale.quantised(256), "zeros"), "vp").net
    assert (net.config["multipliers"], net.config["attention"]) == (multipliers, attention)


@pytest.mark.parametrize(
    ("network", "shape", "found"),
    [
        ("UNet", (2, 64), {"dimensions": 1, "multipliers": [1, 2, 2], "channels": 2}),
        ("UNet", (1, 8, 8, 8), {"dimensions": 3, "multipliers": [1, 2, 2], "channels": 1}),
        ("UNet", (1, 8, 8, 6), {"dimensions": 3, "attention": [False, True]}),
        ("DiT", (3, 8, 12), {"size": [8, 12], "channels": 3, "patch": 2}),
        ("MLP", (), {"shape": []}),
    ],
)
def test_networks_have_the_shape_of_the_data(network, shape, found):
    x = torch.zeros(4, *shape)
    net = Net(network=network, width=8).model(Dataset(x, x, Scale(), "zeros"), "vp").net
    assert {name: net.config[name] for name in found} == found
    assert net.null == {}


def test_what_follows_from_the_data_is_no_option():
    known = {option.name for option in fields(Net)}
    assert {"patch", "heads", "circular", "multipliers", "depth"} <= known
    assert not known & {"shape", "channels", "size", "dimensions", "classes", "context", "image"}


def test_own_arrays_keep_their_path(tmp_path, monkeypatch):
    np.save(tmp_path / "own.npy", np.random.default_rng(0).integers(0, 8, (30, 4, 4)))
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "train",
                "run",
                "--data",
                "own.npy",
                "--width",
                "8",
                "--multipliers",
                "1",
                "--attention",
                "False",
                *TRAIN,
            ]
        )
        == 0
    )
    monkeypatch.chdir(tmp_path.parent)
    assert (
        main(
            [
                "likelihood",
                str(tmp_path / "run"),
                "--n",
                "2",
                "--tolerance",
                "1e-1",
                "--probes",
                "1",
            ]
        )
        == 0
    )


def test_overwriting(tmp_path, capsys):
    (tmp_path / "keep.txt").write_text("mine")
    argv = ["train", tmp_path, "--data", "moons", "--width", "8", *TRAIN]
    assert "--overwrite" in error(capsys, *argv)
    assert main([str(part) for part in [*argv, "--overwrite"]]) == 0
    assert (tmp_path / "keep.txt").read_text() == "mine"
    assert "--overwrite" in error(capsys, *argv)
    written = (tmp_path / "config.json").read_bytes()
    assert "give one of them" in error(capsys, *argv, "--overwrite", "--resume")
    assert (tmp_path / "config.json").read_bytes() == written
    assert "did you mean 'likelihood'?" in error(capsys, *argv, "--weighting", "liklihood")


@pytest.mark.usefixtures("quick_reports")
def test_overwriting_removes_what_the_run_wrote_and_nothing_else(tmp_path, capsys):
    run = tmp_path / "run"
    argv = ["--data", "moons", "--width", "8", *TRAIN]
    assert main(["train", str(run), *argv, "--sample-every", "12", "--save-every", "4"]) == 0
    assert main(["report", str(run), "--samples", "20", "--steps", "3"]) == 0
    assert main(["sample", str(run), "--n", "2", "--steps", "3"]) == 0
    assert main(["explore", str(run), "--n", "2", "--steps", "2", "--eta", "0"]) == 0
    pictures = {path.stem for path in run.glob("*.png")}
    assert pictures == {"samples", "denoising", "forward", "loss"}  # and of images "neighbours"
    (tmp_path / "archive").mkdir()
    (run / "checkpoints" / "00000008").rename(tmp_path / "archive" / "00000008")
    (run / "checkpoints" / "00000008").symlink_to(tmp_path / "archive" / "00000008")
    mine = [
        "weights-mine.safetensors",
        "notes.txt",
        "progress/mine.png",
        "checkpoints/7/mine.pt",
        "checkpoints/00000004/mine",
    ]
    for name in [*mine, "tensorboard/events.out.tfevents.1"]:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"mine")
    kept = sorted(path.name for path in (tmp_path / "archive" / "00000008").iterdir())
    assert main(["train", str(run), *argv, "--overwrite", "--seed", "1"]) == 0
    assert all(
        (run / name).read_bytes() == b"mine"
        for name in [*mine, "tensorboard/events.out.tfevents.1"]
    )
    assert sorted(path.name for path in (tmp_path / "archive" / "00000008").iterdir()) == kept
    assert len(list(run.glob("weights-*.safetensors"))) == 2
    assert not [*run.glob("*.html"), *run.glob("report.*"), *run.glob("*.png"), *run.glob("*.npz")]
    assert [path.name for path in (run / "progress").iterdir()] == ["mine.png"]
    left = sorted(
        str(path.relative_to(run / "checkpoints"))
        for path in (run / "checkpoints").glob("*/*")
        if "mine" in path.name
    )
    assert left == ["00000004/mine", "7/mine.pt"]
    assert load_model(run)


@pytest.mark.parametrize(
    "wrong", [("--minutes", "0"), ("--minutes", "nan"), ("--lr", "-1"), ("--flip",)]
)
def test_what_is_refused_leaves_the_older_run(tmp_path, wrong, capsys):
    argv = ["train", tmp_path / "run", "--data", "moons", "--width", "8", *TRAIN]
    assert main([str(part) for part in argv]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    error(capsys, *argv, "--overwrite", *wrong)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_missing_tensorboard_is_refused_with_the_options(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="needs TensorBoard: pip install"):
        Log(tensorboard=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"model_type": "bert"}'),
        ("config.json", "{"),
        ("metrics.jsonl", '{"epoch": 1}\n'),
    ],
)
def test_folders_of_other_programs_are_not_overwritten(tmp_path, name, text, capsys):
    for file in (
        "weights-1.safetensors",
        "report.html",
        "report.json",
        "checkpoints/00000001/model.pt",
        "progress/00000001.png",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).write_text("mine")
    argv = ["train", tmp_path, "--data", "moons", "--width", "8", *TRAIN, "--overwrite"]
    np.savez_compressed(tmp_path / "samples.npz", mine=np.zeros(2))
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / name).write_text(text)
    assert "remove that file" in error(capsys, *argv)
    assert (tmp_path / name).read_text() == text
    (tmp_path / name).unlink()
    assert sorted(tmp_path.rglob("*")) == before
    assert main([str(part) for part in argv]) == 0
    assert set(before) <= set(tmp_path.rglob("*"))


@pytest.mark.parametrize("command", ["sample", "likelihood", "report"])
def test_a_missing_run(command, tmp_path, capsys):
    assert "does not exist" in error(capsys, command, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--data", "mnists"], "digits, mnist, fashion-mnist, moons"),
        (["--data", "moons", "--sde", "vq"], ", ".join(DIFFUSIONS)),
        (["--data", "moons", "--predicts", "noises"], "velocity"),
        (["--data", "moons", "--blocks", "2"], "blocks"),
        (["--data", "moons", "--network", "unet"], ", ".join(nets.registry)),
        (["--data", "moons", "--network", "UNet"], "this UNet was built for"),
        (["--data", "moons", "--network", "DiT"], "this DiT was built for"),
        (["--data", "digits", "--network", "DiT", "--patch", "3"], "patches that divide height"),
        (["--data", "digits", "--network", "NCSN"], "no discrete noise levels"),
        (["--data", "moons", "--sde", "vp", "--discrete"], "no discrete noise levels"),
        (["--data", "moons", "--conditioning", "times"], "--conditioning"),
        (["--data", "moons", "--flip"], "leave out flip"),
        (["--data", "hf:nowhere.parquet"], "it does not exist"),
        (["--data", "digits", "--multipliers", "1", "1", "1", "1", "1"], "attention"),
        (["--data", "moons", "--lr", "-1"], "lr"),
        (["--data", "moons", "--lr", "fast"], "lr"),
        (["--data", "moons", "--rate", "1"], "--rate"),
        (["--data", "moons", "--weighting", "heavy"], "likelihood"),
        (["--data", "moons", "--device", "abacus"], "cpu always can"),
        ([], "--data"),
    ],
)
def test_what_train_refuses(argv, said, tmp_path, capsys):
    assert said in error(capsys, "train", tmp_path / "run", *argv)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--sde", "vq"], ", ".join(DIFFUSIONS)),
        (["--method", "rk45"], ", ".join(METHODS)),
        (["--method", "rk45", "--eta", "1"], "euler_maruyama"),
        (["--method", "ode", "--eta", "1"], "no noise level"),
        (["--method", "lms", "--eta", "1"], "the method 'lms' has no noise level"),
        (["--eta", "-1"], "eta must be a number from 0"),
        (["--grid", "squares"], ", ".join(GRIDS)),
        (["--noise", "pink"], "white"),
        (["--noise", "path"], "reads no Brownian path"),
        (["--out", "grid.bmp"], ".npz"),
        (["--n", "-1"], "n must be 0 or more, not -1"),
        (["--n", "many"], "many"),
        (["--steps", "0"], "step"),
        (["--n", "0", "--out", "none.png"], "no samples"),
    ],
)
def test_what_sample_refuses(digits, argv, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in error(capsys, "sample", digits, *argv)


def test_what_likelihood_refuses(digits, moons, tmp_path, capsys):
    assert "images" in error(capsys, "likelihood", digits, "--data", "moons")
    assert "probe" in error(capsys, "likelihood", digits, "--probes", "0")
    assert "from 1 on" in error(capsys, "likelihood", digits, "--n", "0")
    np.save(tmp_path / "large.npy", np.full((20, 8, 8), 200))
    assert "levels" in error(capsys, "likelihood", digits, "--data", tmp_path / "large.npy")
    np.save(tmp_path / "wide.npy", np.zeros((20, 3)))
    assert "shape" in error(capsys, "likelihood", moons, "--data", tmp_path / "wide.npy")


def test_images_of_another_number_of_levels_are_refused(tmp_path):
    """Digits have 17 levels. Integers whose maximum is somewhat smaller may be of the same kind;
    bytes, which could have 256 levels, are of fewer if none of them is larger.
    """
    for levels in (16, 34, 256):
        message = f"the levels 0 to 16 and the model is for 0 to {levels - 1}"
        with pytest.raises(ValueError, match=message):
            trained.source_of("digits", Scale.quantised(levels))
    digits = load("digits")
    np.savez(tmp_path / "bytes.npz", train=digits.train.numpy(), test=digits.test.numpy())
    for name, levels in (("digits", 17), ("digits", 32), (str(tmp_path / "bytes.npz"), 17)):
        assert trained.source_of(name, Scale.quantised(levels)).scale.levels == levels


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "sdekit-diffusion 1"}'])
def test_a_damaged_config(damaged, text, capsys):
    (damaged / "config.json").write_text(text)
    assert "config.json" in error(capsys, "sample", damaged)


def test_a_config_without_notes(damaged, capsys):
    config = json.loads((damaged / "config.json").read_text())
    for notes in ({}, {"data": {"levels": 17}}, None):
        write_config(damaged, config | {"notes": notes})
        for command in ("likelihood", "report"):
            assert "what data" in error(capsys, command, damaged)


def test_damaged_weights(damaged, moons, capsys):
    replace_weights(damaged, serialised({"first.weight": torch.zeros(3)}))
    assert "another network" in error(capsys, "sample", damaged)
    replace_weights(damaged, weights_of(moons).read_bytes())
    assert "another network" in error(capsys, "report", damaged)
    weights_of(damaged).write_bytes(b"\xff" * 40)
    assert "checksum" in error(capsys, "likelihood", damaged)


class Wide(torch.nn.Linear):
    """One layer.

    Args:
        shape: of the data.
        heights: of nothing.
    """

    def __init__(self, shape: Sequence[int] = (2,), heights: Sequence[int] = (3,), width: int = 1):
        super().__init__(shape[0], shape[0])
        self.config = {"shape": list(shape), "heights": list(heights), "width": width}

    def forward(self, x, t):
        return super().forward(x)


def test_the_arguments_of_a_registered_network_are_options(monkeypatch):
    monkeypatch.setitem(nets.registry, "Wide", Wide)
    options = with_network_arguments("Options", Net.__base__)
    assert "heights: Wide: of nothing." in options.__doc__
    x = torch.zeros(4, 2)
    source = Dataset(x, x, Scale(), "points")
    net = options(network="Wide", heights=(5, 7)).model(source, "vp").net
    assert net.config == {"shape": [2], "heights": [5, 7], "width": 1}
    with pytest.raises(ValueError, match="--heights is not an option of MLP"):
        options(network="MLP", heights=(5,)).model(source, "vp")
    assert get_type_hints(options)["heights"] == tuple[int, ...] | None


def test_weights_that_are_not_finite(damaged, capsys):
    weights = {
        name: value if name.startswith(".") else torch.full_like(value, torch.nan)
        for name, value in load_file(weights_of(damaged)).items()
    }
    replace_weights(damaged, serialised(weights))
    with pytest.warns(UserWarning, match="NaN or infinite numbers in"):
        assert "not finite" in error(capsys, "sample", damaged, "--n", "2", "--steps", "3")


def test_messages_have_no_names_of_tyros_own():
    shown = "╭─ Parsing error ─╮\n│ Missing value for argument '--__tyro-dummy-inner__.n' │\n╰──╯"
    assert _message(shown) == "Missing value for argument '--n'"
    shown = "╭──╮\n│ Error parsing `__tyro-dummy-inner__.degradation`: --noise is positive │\n╰──╯"
    assert _message(shown) == "--noise is positive"
    shown = "╭──╮\n│ Error parsing --steps: no type matching {None}|INT could be instantiated │\n"
    shown += "│ from ['abc']. │\n│ │\n│ Got errors: │\n│ - int: not 1 │\n╰──╯"
    assert _message(shown) == "--steps: 'abc' is not INT"
    shown = "╭──╮\n│ invalid choice 'a'. Expected one of ('top', 'None', 'left', 'None') │\n╰──╯"
    assert _message(shown) == "invalid choice 'a'. Expected one of ('top', 'left')"


def test_no_command_and_help(capsys):
    assert "train" in error(capsys)
    assert "draw" in error(capsys, "draw")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert not stop.value.code
    told = capsys.readouterr().out
    assert all(
        option in told
        for option in (
            "--batch-size",
            "--network",
            "--conditioning",
            "--discrete",
            "UNet: residual",
        )
    )
    for command in ("sample", "report"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        told = capsys.readouterr().out
        assert all(
            option in told
            for option in ("--method", "--steps", "--grid", "--noise", "--eta", "karras")
        )


def test_without_tyro(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert "pip install 'sdekit[app]'" in error(capsys, "sample", "run")


# Labels

LABELS = ["--width", "16", "--depth", "1", "--labels", "--drop", "0.2", *TRAIN, "--lr", "0.05"]


def classes(path, **others):
    """A file with points of three classes, some of the last only held out."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 2
    test_labels = np.arange(20) % 3
    arrays = {"labels": labels, "test_labels": test_labels}
    for name, part in (("train", labels), ("test", test_labels)):
        x = rng.normal([[3.0, 0.0]], 1.0, (len(part), 2))
        x[:, 1] += 5 * part
        arrays[name] = x.astype(np.float32)
    arrays |= others
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run on points of three classes, and its data."""
    folder = tmp_path_factory.mktemp("labelled")
    data = classes(folder / "points.npz")
    argv = ["--validate-every", "12", "--bits-every", "12", "--sample-every", "12"]
    assert main(["train", str(folder / "run"), "--data", data, *LABELS, *argv]) == 0
    return folder / "run", load(data)


def test_training_with_labels_is_that_of_the_library(labelled, monkeypatch):
    run, source = labelled
    config = json.loads((run / "config.json").read_text())
    assert config["net"]["config"]["classes"] == 3
    assert config["notes"]["data"] == {"name": source.name, "label": "label"}
    assert config["notes"]["recipe"]["drop"] == 0.2
    torch.manual_seed(0)
    net = nets.MLP((2,), width=16, depth=1, classes=3)
    model = ScoreModel(
        net, "subvp", "velocity", shape=(2,), conditioning="log_snr", scale=source.scale
    )
    recipe = Recipe(steps=12, batch_size=16, warmup=2, drop=0.2, lr=0.05)
    fit(model, source, recipe, progress=False)
    loaded = load_model(run)
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    held = (source.test, source.test_labels)
    loss = validation_loss(held, recipe, transform=source.scale.encode)(loaded, 12)
    assert line["validation_loss"] == pytest.approx(loss["validation_loss"], rel=1e-6)
    nats = measured(loaded.given(label=source.test_labels), loaded.scale, source.test, QUICK)
    assert line["nats"] == pytest.approx(float(nats.value.mean()), rel=1e-6)
    assert (run / "progress" / "00000012.png").exists()


def test_pictures_of_a_training_run_have_a_part_for_each_class(labelled, tmp_path, monkeypatch):
    run, source = labelled
    shown = []
    kept = measurements.picture

    def picture(x, scale, rows=()):
        shown.append((x, rows))
        return kept(x, scale, rows)

    monkeypatch.setattr(measurements, "picture", picture)
    model = load_model(run)
    ((every, pictures),) = measurements.Measurements(sample_every=7).measures(
        source, Recipe(), tmp_path, "label"
    )
    assert every == 7
    assert pictures(model, 7) == {}
    label = torch.tensor([0, 1]).repeat_interleave(200)
    expected = model.scale.decode(sample(model.given(label=label), 400, seed=0, steps=20))
    assert torch.equal(shown[0][0], expected)
    assert shown[0][1] == ["0", "1"]  # those of the training samples
    ((_, pictures),) = measurements.Measurements(sample_every=7).measures(
        source, Recipe(), tmp_path
    )
    pictures(model, 8)
    assert torch.equal(shown[1][0], model.scale.decode(sample(model, 36, seed=0, steps=20)))
    assert shown[1][1] == []


def test_without_the_option_no_network_has_labels(labelled, tmp_path):
    """Neither those of the library nor one that could take some."""
    source = labelled[1]
    plain = Net().with_labels(source)
    assert (plain.labels, plain.test_labels) == (None, None)
    assert Net(width=8, depth=1).model(plain, "vp").null == {}
    assert Net(labels=True).with_labels(source) is source


def test_a_run_with_labels_goes_on(labelled, tmp_path):
    run, source = labelled
    argv = ["train", str(tmp_path / "part"), "--data", source.name, *LABELS]
    assert main([*argv, "--minutes", "1e-9"]) == 0
    assert main([*argv, "--resume"]) == 0
    whole = load_file(weights_of(run))
    part = load_file(weights_of(tmp_path / "part"))
    assert all(torch.equal(part[name], value) for name, value in whole.items())


def test_samples_have_the_labels_of_their_numbers(labelled, tmp_path, capsys):
    run, _ = labelled
    model = load_model(run)
    made = samples(run, tmp_path / "a.npz", "--n", "5", "--first", "3", "--label", "2", "0")
    assert "number 3; labels 2, 0 in turn, guidance 1" in capsys.readouterr().out
    given = model.given(label=torch.tensor([0, 2, 0, 2, 0]))
    expected = model.scale.decode(sample(given, 5, steps=5, seed=0, first=3)).numpy()
    assert np.array_equal(made, expected)
    again = samples(
        run,
        tmp_path / "b.npz",
        "--n",
        "4",
        "--first",
        "4",
        "--label",
        "2",
        "0",
        "--batch-size",
        "3",
    )
    assert np.allclose(again, expected[1:], atol=1e-4)
    argv = ["--guidance", "1.5", "--interval", "0.1", "10", "--rescale", "0.3", "--n", "5"]
    made = samples(run, tmp_path / "c.npz", "--label", "1", *argv)
    assert "; label 1, guidance 1.5" in capsys.readouterr().out
    guided = Guided(model.given(label=1), 1.5, interval=(0.1, 10.0), rescale=0.3)
    expected = model.scale.decode(sample(guided, 5, steps=5, seed=0)).numpy()
    assert np.allclose(made, expected, atol=1e-5)
    for other in (argv[:2], [*argv[:2], *argv[5:7]], argv[:5]):
        made = samples(run, tmp_path / "d.npz", "--label", "1", "--n", "5", *other)
        assert not np.allclose(made, expected, atol=1e-4)
    plain = model.scale.decode(sample(model, 5, steps=5, seed=0)).numpy()
    assert np.array_equal(samples(run, tmp_path / "e.npz", "--n", "5"), plain)
    assert "number 0\n" in capsys.readouterr().out


def test_interrupted_samples_of_other_labels_are_not_mixed(labelled, moons, tmp_path, capsys):
    run, _ = labelled
    out = tmp_path / "a.shards"
    argv = ["sample", run, "--n", "2", "--steps", "3", "--out", out, "--label"]
    assert main([str(part) for part in [*argv, "1", "--guidance", "2"]]) == 0
    assert "label [1] (now [2])" in error(capsys, *argv, "2", "--guidance", "2")
    assert "guidance 2.0 (now 3.0)" in error(capsys, *argv, "1", "--guidance", "3")
    assert "rescale 0.0 (now 0.5)" in error(
        capsys, *argv, "1", "--guidance", "2", "--rescale", "0.5"
    )
    interval = ["--interval", "0.1", "5"]
    assert "interval None (now [0.1, 5.0])" in error(
        capsys, *argv, "1", "--guidance", "2", *interval
    )
    assert "label [1] (now None)" in error(capsys, *argv[:-1])
    # Without labels they are as they were before there were any.
    argv = ["sample", str(moons), "--n", "2", "--steps", "3", "--out", str(tmp_path / "b.shards")]
    assert main(argv) == 0
    with np.load(next((tmp_path / "b.shards").iterdir())) as part:
        assert not {"label", "guidance"} & set(json.loads(str(part["settings"])))


def stopped(model, x, *args, first, **options):
    """The first part of a likelihood, and no other."""
    if first:
        raise ValueError("stop")
    return measured(model, x, *args, first=first, **options)


def mean_in(line):
    return float(re.search(r"(-?[0-9.]+) ±", line)[1])


def test_likelihood_given_labels_and_without(labelled, tmp_path, capsys, monkeypatch):
    run, source = labelled
    model = load_model(run)
    estimate = Estimate(tolerance=1e-3)
    values = {
        "given": measured(
            model.given(label=source.test_labels[:8]), model.scale, source.test[:8], estimate
        ),
        "none": measured(model, model.scale, source.test[:8], estimate),
    }
    argv = ["likelihood", str(run), "--n", "8", "--tolerance", "1e-3", "--batch-size", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(held_out, "measured", stopped)
        assert "stop" in error(capsys, *argv)  # a part of it stays
    assert len(list(run.glob("likelihood-*.shards"))) == 1
    for more, kind, said in (
        (["--unconditional"], "none", "this is log p(x), of samples without their labels"),
        ([], "given", "this is log p(x | label), each sample with its own label"),
    ):
        assert main([*argv, *more]) == 0
        mean, _, last = capsys.readouterr().out.splitlines()
        assert mean_in(mean) == pytest.approx(float(values[kind].value.mean()), abs=2e-4)
        assert last == f"{source.name}: {said}"
    assert abs(float((values["given"].value - values["none"].value).mean())) > 1e-3


def test_likelihood_of_a_guided_law(labelled, capsys):
    run, source = labelled
    model = load_model(run)
    guided = Guided(model.given(label=source.test_labels[:8]), 2.0)
    wanted = measured(guided, model.scale, source.test[:8], Estimate(tolerance=1e-3)).value.mean()
    argv = ["likelihood", str(run), "--n", "8", "--tolerance", "1e-3", "--guidance", "2"]
    assert main([*argv, "--batch-size", "3"]) == 0
    mean, _, last = capsys.readouterr().out.splitlines()
    assert mean_in(mean) == pytest.approx(float(wanted), abs=2e-4)
    assert "the law of the flow guided by 2 towards the label" in last
    assert "guidance follows labels or other conditions, and there are none" in error(
        capsys, *argv, "--unconditional"
    )


def test_the_weights_of_a_run_are_chosen(tmp_path, capsys):
    """The average of a width, and the checkpoint with the least validation loss."""
    run = tmp_path / "run"
    argv = ["--data", "moons", "--width", "8", "--depth", "1", *TRAIN, "--lr", "0.05"]
    assert main(["train", str(run), *argv, "--widths", "0.05", "0.1", "--validate-every", "3"]) == 0
    means = []
    for chosen, which in (
        ([], {}),
        (["--average-width", "0.2"], {"width": 0.2}),
        (["--best"], {"best": True}),
    ):
        assert main(["sample", str(run), "--n", "6", "--steps", "3", *chosen]) == 0
        x = torch.from_numpy(np.load(run / "samples.npz")["samples"])
        model = load_model(run, **which)
        expected = model.scale.decode(sample(model, 6, steps=3, seed=0))
        torch.testing.assert_close(x, expected, check_dtype=False)
        means.append(float(x.mean()))
    assert "give one of them" in error(
        capsys, "sample", str(run), "--best", "--average-width", "0.2"
    )
    assert means[0] != means[1]


def test_likelihood_of_other_labels_is_not_mixed(labelled, tmp_path, capsys, monkeypatch):
    """Of two data sets with the same samples."""
    run, source = labelled
    turned = classes(tmp_path / "a.npz", test_labels=(np.arange(20) + 1) % 3)
    argv = ["likelihood", str(run), "--n", "4", "--tolerance", "1e-3", "--batch-size", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(held_out, "measured", stopped)
        assert "stop" in error(capsys, *argv)
    assert main([*argv, "--data", turned]) == 0
    labels = (source.test_labels[:4] + 1) % 3
    model = load_model(run)
    expected = measured(
        model.given(label=labels), model.scale, source.test[:4], Estimate(tolerance=1e-3)
    )
    assert mean_in(capsys.readouterr().out) == pytest.approx(float(expected.value.mean()), abs=2e-4)


@pytest.mark.usefixtures("quick_reports")
def test_a_report_with_labels(labelled, tmp_path):
    """Samples have the labels of held-out samples by number, also beyond their end."""
    run, source = labelled
    page = tmp_path / "r.html"
    argv = ["--samples", "24", "--steps", "5", "--first", "2", "--tolerance", "1e-3"]
    argv += ["--out", str(page)]
    assert main(["report", str(run), "--guidance", "2", *argv]) == 0
    found = json.loads((run / "report.json").read_text())
    model = load_model(run)
    label = source.test_labels[(torch.arange(24) + 2) % 20]
    x = sample(Guided(model.given(label=label), 2.0), 24, steps=5, seed=0, first=2)
    assert found["distances"] == distances(model.scale.decode(x), source, 0)["distances"]
    held = measured(
        model.given(label=source.test_labels), model.scale, source.test, Estimate(tolerance=1e-3)
    )
    assert found["likelihood"]["mean"] == pytest.approx(float(held.value.mean()), abs=1e-5)
    told = {"labels": "of the held-out samples", "guidance": 2.0, "rescale": 0.0}
    assert found["sampling"].items() >= told.items()
    text = page.read_text(encoding="utf-8")
    for part in (
        "Each sample is given the label of the held-out sample, at guidance 2.",
        "Each sample is given its label, without guidance.",
        "held-out nats given label; 20 samples",
        "One panel for each class, at guidance 2.",
    ):
        assert part in text, part
    assert (run / "classes.png").exists()
    assert main(["report", str(run), "--unconditional", *argv]) == 0
    found = json.loads((run / "report.json").read_text())
    x = sample(model, 24, steps=5, seed=0, first=2)
    assert found["distances"] == distances(model.scale.decode(x), source, 0)["distances"]
    assert "labels" not in found["sampling"]
    text = page.read_text(encoding="utf-8")
    assert "is given" not in text
    assert "given label" not in text


@pytest.mark.usefixtures("quick_reports")
def test_overwriting_removes_the_picture_by_class(labelled, tmp_path):
    source = labelled[1]
    argv = ["train", str(tmp_path / "run"), "--data", source.name, *LABELS]
    assert main(argv) == 0
    assert main(["report", str(tmp_path / "run"), "--samples", "4", "--steps", "2"]) == 0
    assert (tmp_path / "run" / "classes.png").exists()
    assert main([*argv, "--overwrite"]) == 0
    assert not (tmp_path / "run" / "classes.png").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--label", "3"], "--label has 3; the classes of this model are 0 to 2"),
        (["--label", "-1"], "--label has -1; the classes of this model are 0 to 2"),
        (["--label", "1", "7"], "--label has values from 1 to 7; the classes"),
        (["--label", "cat"], "label"),
        (
            ["--guidance", "2"],
            "guidance follows labels or other conditions, and there are none: leave out --guidance",
        ),
        (["--label", "1", "--rescale", "0.5"], "there is none: add --guidance"),
        (["--label", "1", "--interval", "1", "2"], "there is none: add --guidance"),
        (["--label", "1", "--guidance", "2", "--rescale", "2"], "rescale is a share"),
        (["--label", "1", "--guidance", "2", "--interval", "2", "1"], "interval has a least"),
        (["--label", "1", "--guidance", "nan"], "scale is a finite number"),
    ],
)
def test_which_labels_sample_refuses(labelled, argv, said, tmp_path, capsys):
    out = tmp_path / "a.npz"
    assert said in error(capsys, "sample", labelled[0], "--n", "2", "--out", out, *argv)
    assert not list(tmp_path.iterdir())


def test_labels_of_models_without(moons, capsys):
    assert "this model has no labels: leave out --label, or train" in error(
        capsys, "sample", moons, "--label", "1"
    )
    for command in ("likelihood", "report"):
        assert "this model has no conditions: leave out --unconditional" in error(
            capsys, command, moons, "--unconditional"
        )
    assert "guidance follows labels" in error(capsys, "report", moons, "--guidance", "2")


@pytest.mark.parametrize("drop", [["0"], ["label", "0"]])
def test_a_model_that_never_dropped_its_labels(labelled, drop, tmp_path, capsys):
    source = labelled[1]
    run = tmp_path / "run"
    argv = ["--width", "8", "--depth", "1", "--labels", *TRAIN, "--drop", *drop]
    assert main(["train", str(run), "--data", source.name, *argv]) == 0
    for command in (
        ["sample", run],
        ["sample", run, "--label", "1", "--guidance", "2"],
        ["likelihood", run, "--unconditional"],
        ["report", run, "--unconditional"],
        ["report", run, "--guidance", "2"],
    ):
        assert "trained with drop = 0 and knows samples with labels only" in error(capsys, *command)
    assert main(["sample", str(run), "--n", "2", "--steps", "2", "--label", "1"]) == 0


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"labels": None, "test_labels": None}, "has no labels: leave out --labels, or give data"),
        ({"labels": np.arange(90) % 2 - 1}, "run from -1 to 2, of 90 training samples; number the"),
        ({"test_labels": np.arange(20) * 5}, "run from 0 to 95, of 90 training samples"),
        ({"labels": np.full(90, 90)}, "run from 0 to 90, of 90 training samples"),
    ],
)
def test_which_labels_train_refuses(others, said, tmp_path, capsys):
    data = classes(tmp_path / "a.npz", **others)
    assert said in error(capsys, "train", tmp_path / "run", "--data", data, *LABELS)
    assert not (tmp_path / "run").exists()


def test_networks_without_labels_are_refused(tmp_path, capsys):
    argv = ["--data", "digits", "--labels", "--network", "NCSNv2", "--sde", "ncsn", "--width", "4"]
    assert "this network takes no labels: leave out --labels, or choose another" in error(
        capsys, "train", tmp_path / "run", *argv
    )
    assert not (tmp_path / "run").exists()


def test_held_out_samples_without_labels(labelled, tmp_path, capsys):
    """A network can be trained, and what needs their labels is refused."""
    data = classes(tmp_path / "a.npz", test_labels=None, labels=np.arange(90) % 3)
    run = tmp_path / "run"
    argv = ["train", run, "--data", data, *LABELS]
    for more in ("--validate-every", "--bits-every"):
        assert "have none: leave out --validate-every and --bits-every" in error(
            capsys, *argv, more, "4"
        )
    assert main([str(part) for part in [*argv, "--sample-every", "12"]]) == 0
    for command in ("likelihood", "report"):
        assert "have none: give --data that have them, or add --unconditional" in error(
            capsys, command, run
        )
    other = classes(tmp_path / "b.npz", test_labels=np.arange(20) % 4)
    assert "the labels of " in error(capsys, "likelihood", run, "--data", other)
    assert "have values from 0 to 3; the classes of this model are 0 to 2" in error(
        capsys, "report", run, "--data", other
    )


OWN_NETWORK = """
import torch

from sdekit_diffusion import ScoreModel, nets


class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(4, 2)
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, t, classes=None):
        return self.layer(x) if classes is None else self.layer(x) + self.table(classes)


class Vector(Own):
    null = {"context": float("nan")}

    def forward(self, x, t, context=None):
        return self.layer(x)


def built():
    return nets.MLP((2,), 8, 1, classes=3)


def known():
    return ScoreModel(Own(), "vp", shape=(2,), null={"classes": 3})
"""


def test_networks_of_ones_own_take_labels(labelled, tmp_path, monkeypatch, capsys):
    """Under the name of their argument; those trained without are used without."""
    (tmp_path / "own_classes.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    source = labelled[1]
    short = ["--tolerance", "1e-1", "--n", "4"]
    network = ["--network", "own_classes:known"]
    argv = ["--data", source.name, *TRAIN]
    assert main(["train", str(tmp_path / "a"), *argv, *network, "--labels"]) == 0
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["notes"]["data"]["label"] == "classes"
    assert config["null"] == {"classes": 3}
    assert main(["likelihood", str(tmp_path / "a"), *short, *network]) == 0
    assert "log p(x | label)" in capsys.readouterr().out
    more = ["--label", "1", "--guidance", "2", *network]
    assert len(samples(tmp_path / "a", tmp_path / "a.npz", "--n", "2", *more)) == 2
    assert "from 0 on" in error(capsys, "sample", tmp_path / "a", "--label", "-2", *network)
    network = ["--network", "own_classes:Own"]
    for name, options, said in (("b", ["--labels"], True), ("c", [], False)):
        assert main(["train", str(tmp_path / name), *argv, *network, *options]) == 0
        assert main(["likelihood", str(tmp_path / name), *short, *network]) == 0
        assert ("log p(x | label)" in capsys.readouterr().out) is said
    network = ["--network", "own_classes:built"]
    assert "this network takes labels: add --labels" in error(
        capsys, "train", tmp_path / "d", *argv, *network
    )
    assert main(["train", str(tmp_path / "d"), *argv, *network, "--labels"]) == 0
    network = ["--network", "own_classes:Vector"]
    assert "takes no labels" in error(capsys, "train", tmp_path / "e", *argv, *network, "--labels")
    sys.modules.pop("own_classes", None)


def test_models_from_python_are_used_with_their_labels(labelled, tmp_path, capsys):
    """Those of the library say that they take some; their notes need not."""
    source = labelled[1]
    model = ScoreModel(nets.MLP((2,), 8, 1, classes=3), "vp", shape=(2,), scale=source.scale)
    save(model, tmp_path / "run", {"data": {"name": source.name}})
    argv = ["likelihood", str(tmp_path / "run"), "--tolerance", "1e-1"]
    assert main(argv) == 0
    assert "log p(x | label)" in capsys.readouterr().out
    assert main([*argv, "--unconditional"]) == 0


def test_the_help_names_what_labels_need(capsys):
    said = {}
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said[command] = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", capsys.readouterr().out))
    assert {"--labels", "--drop"} <= said["train"]
    assert {"--label", "--guidance", "--interval", "--rescale"} <= said["sample"]
    assert {"--unconditional", "--guidance"} <= said["report"]
    assert {"--unconditional", "--guidance"} <= said["likelihood"]
    assert not {"--label", "--labels"} & said["report"]


@pytest.mark.parametrize(
    ("argv", "end"),
    [
        ("sample run --guidence 2", "; did you mean '--guidance'?"),
        ("sample run --labl 1", "; did you mean '--label'?"),
        ("train run --data moons --stps=3", "; did you mean '--steps'?"),
        ("sample run --steps 3 --batch-siz 2", "; did you mean '--batch-size'?"),
        ("train run --data moons --guidence 2", "see what is allowed"),  # which train does not have
        ("sample run --zzzz 2", "see what is allowed"),
        ("--stps 3", "see what is allowed"),
        (
            "sampl run",
            "; 'sampl' is not one of train, sample, likelihood, restore, explore, report; did you "
            "mean 'sample'?",
        ),
    ],
)
def test_misspelt_options_and_commands(argv, end, capsys):
    assert error(capsys, *argv.split()).endswith(end)

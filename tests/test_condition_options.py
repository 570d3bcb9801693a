"""The option --conditions of the commands: vectors and images besides labels, and their values."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sdekit_diffusion as sd
from sdekit_diffusion.__main__ import main
from sdekit_diffusion._app import measurements
from sdekit_diffusion._app.held_out import measured
from sdekit_diffusion._app.options import QUICK, Estimate

TRAIN = ["--steps", "12", "--batch-size", "16", "--warmup", "2", "--lr", "0.05"]
SMALL = ["--width", "16", "--depth", "1"]
CONDITIONS = ["--labels", "--conditions", "context=theta,mass"]
ESTIMATE = ["--tolerance", "1e-2", "--n", "8"]


def simulated(path, **others):
    """A file of points of two classes around a parameter theta, with a mass."""
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, n in (("", 90), ("test_", 20)):
        theta = rng.uniform(-1, 1, (n, 2))
        labels = np.arange(n) % 2
        x = theta + 0.1 * rng.standard_normal((n, 2)) + 3 * labels[:, None]
        arrays |= {f"{prefix}theta": theta, f"{prefix}labels": labels}
        arrays |= {f"{prefix}mass": theta[:, 0] ** 2, prefix[:-1] or "train": x.astype("float32")}
    arrays |= others
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with labels and contexts, and its data."""
    folder = tmp_path_factory.mktemp("conditions")
    data = simulated(folder / "a.npz")
    argv = ["--validate-every", "12", "--bits-every", "12", "--sample-every", "12"]
    assert (
        main(["train", str(folder / "run"), "--data", data, *CONDITIONS, *SMALL, *TRAIN, *argv])
        == 0
    )
    return folder / "run", sd.data.load(data, conditions={"context": ["theta", "mass"]})


def drawn(run, out, *argv):
    arguments = ["sample", run, "--out", out, "--steps", 5, "--n", 5, *argv]
    assert main([str(part) for part in arguments]) == 0
    return np.load(out)["samples"]


def expected(model, **conditions):
    return model.scale.decode(sd.sample(model.given(**conditions), 5, steps=5, seed=0)).numpy()


def error(capsys, *argv):
    capsys.readouterr()
    assert main([str(part) for part in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.replace("\r", "\n").splitlines()[-1]


def test_training_is_that_of_the_library(run):
    folder, source = run
    config = json.loads((folder / "config.json").read_text())
    assert config["net"]["config"].items() >= {"classes": 2, "context": 3}.items()
    notes = {"context": {"columns": ["theta", "mass"], "shape": [3]}}
    assert config["notes"]["data"] == {
        "name": source.name,
        "label": "label",
        "conditions": notes,
    }
    torch.manual_seed(0)
    net = sd.nets.MLP((2,), width=16, depth=1, classes=2, context=3)
    settings = {"shape": (2,), "conditioning": "log_snr", "scale": source.scale}
    model = sd.ScoreModel(net, "subvp", "velocity", **settings)
    recipe = sd.Recipe(steps=12, batch_size=16, warmup=2, lr=0.05)
    sd.fit(model, source, recipe, progress=False)
    loaded = sd.load(folder)
    for name, value in loaded.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    held = {"label": source.test_labels, **source.test_conditions}
    validate = sd.validation_loss((source.test, held), recipe, transform=source.scale.encode)
    loss = validate(loaded, 12)["validation_loss"]
    assert line["validation_loss"] == pytest.approx(loss, rel=1e-6)
    nats = measured(loaded.given(**held), loaded.scale, source.test, QUICK).value.mean()
    assert line["nats"] == pytest.approx(float(nats), rel=1e-6)


def test_a_run_goes_on_with_the_same_conditions_only(run, tmp_path, capsys):
    folder, source = run
    train = ["train", str(tmp_path / "part"), "--data", source.name, *SMALL, *TRAIN]
    assert main([*train, *CONDITIONS, "--minutes", "1e-9"]) == 0
    assert "begun" in error(capsys, *train, "--labels", "--conditions", "context=theta", "--resume")
    assert main([*train, *CONDITIONS, "--resume"]) == 0
    weights = [load_file(next(path.glob("weights-*"))) for path in (folder, tmp_path / "part")]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_samples_have_values_of_numbers_and_files(run, tmp_path, capsys):
    folder, _ = run
    model = sd.load(folder)
    out = tmp_path / "a.npz"
    made = drawn(folder, out, "--conditions", "context=0.5,-1,0.25", "--label", "1")
    assert "; label 1, context given, guidance 1" in capsys.readouterr().out
    context = torch.tensor([[0.5, -1.0, 0.25]]).expand(5, 3)
    assert np.allclose(made, expected(model, label=1, context=context), atol=1e-5)
    unlabelled = drawn(folder, out, "--conditions", "context=0.5,-1,0.25")
    assert np.allclose(unlabelled, expected(model, context=context), atol=1e-5)
    assert not np.allclose(made, unlabelled, atol=1e-4)
    assert not np.allclose(drawn(folder, out), unlabelled, atol=1e-4)
    several = np.array([[0.5, -1.0, 0.25], [1.0, 0.0, 0.0]])
    np.save(tmp_path / "one.npy", several[0])
    np.save(tmp_path / "two.npy", several)
    np.savez(tmp_path / "named.npz", context=several, other=several)
    np.savez(tmp_path / "columns.npz", theta=several[:, :2], mass=several[:, 2], labels=[1, 0, 1])
    one = drawn(folder, out, "--conditions", f"context={tmp_path}/one.npy", "--label", "1")
    assert np.array_equal(one, made)
    in_turn = torch.tensor(several).float()[torch.arange(5) % 2]
    both = expected(model, context=in_turn)
    for given in (f"context={tmp_path}/two.npy", f"{tmp_path}/named.npz"):
        assert np.allclose(drawn(folder, out, "--conditions", given), both, atol=1e-5)
    given = f"{tmp_path}/columns.npz"
    both = expected(model, context=in_turn, label=torch.tensor([1, 0, 1, 1, 0]))
    assert np.allclose(drawn(folder, out, "--conditions", given), both, atol=1e-5)
    both = expected(model, context=in_turn, label=0)
    assert np.allclose(drawn(folder, out, "--conditions", given, "--label", "0"), both, atol=1e-5)
    by_name = drawn(folder, out, "--conditions", "context=1,0,0", "label=1")
    context = torch.tensor([[1.0, 0.0, 0.0]]).expand(5, 3)
    assert np.allclose(by_name, expected(model, label=1, context=context), atol=1e-5)


def test_guided_samples_in_parts(run, tmp_path, capsys):
    folder, _ = run
    model = sd.load(folder)
    context = torch.tensor([[1.0, 0.0, 0.0]]).expand(5, 3)
    guided = sd.Guided(model.given(context=context), 2.0)
    wanted = model.scale.decode(sd.sample(guided, 5, steps=5, seed=0)).numpy()
    argv = ["--conditions", "context=1,0,0", "--guidance", "2", "--batch-size", "3"]
    assert np.allclose(drawn(folder, tmp_path / "a.npz", *argv), wanted, atol=1e-5)
    out = tmp_path / "a.shards"
    begin = ["sample", folder, "--n", "2", "--steps", "3", "--out", out, "--conditions"]
    assert main([str(part) for part in [*begin, "context=1,0,0"]]) == 0
    assert "conditions" in error(capsys, *begin, "context=1,0,1")


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        (["contxt=1,0,0"], "gives 'contxt'; the conditions of this model are label, context; did"),
        (["context=1,0"], "context values of shape (2,), and the model was trained with (3,)"),
        (["context=a,b,c"], "has neither numbers with commas between them, such as context=0.5,-1"),
        (["context=nan,0,0"], "has values that are NaN"),
        (
            ["context"],
            "takes NAME=NUMBERS, such as context=0.5,-1, NAME=FILE.npy, or FILE.npz; not",
        ),
        (["context=1,0,0", "context=1,0,0"], "--conditions gives context twice"),
        (["context=none.npy"], "none.npy cannot be read as a .npy file"),
        (["none.npz"], "none.npz cannot be read as a .npz file"),
        (["context=1,0,0", "label=2"], "--conditions label has 2; the classes of this model are"),
    ],
)
def test_which_values_are_refused(run, tmp_path, capsys, conditions, said):
    argv = ["sample", run[0], "--out", tmp_path / "a.npz", "--conditions", *conditions]
    assert said in error(capsys, *argv)
    assert not list(tmp_path.iterdir())


def test_files_without_the_conditions(run, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", other=np.ones(3))
    np.save(tmp_path / "b.npy", np.ones((0, 3)))
    argv = ["sample", run[0], "--out", tmp_path / "c.npz", "--conditions"]
    assert "holds other, and the conditions of this model are label, context" in error(
        capsys, *argv, tmp_path / "a.npz"
    )
    assert "gives no value of context" in error(capsys, *argv, f"context={tmp_path}/b.npy")


def mean_in(line):
    return float(line.split(" ±")[0].split()[-1])


def test_likelihoods_given_conditions(run, tmp_path, capsys):
    folder, source = run
    model = sd.load(folder)
    own = {"label": source.test_labels[:8], "context": source.test_conditions["context"][:8]}
    fixed = torch.tensor([[1.0, 0.0, 0.0]]).expand(8, 3)
    value = ["--conditions", "context=1,0,0"]
    cases = (
        ([], own, "this is log p(x | label, context), each sample with its own label and context"),
        (value, own | {"context": fixed}, "each sample with its own label"),
        ([*value, "label=1"], {"label": 1, "context": fixed}, "with the values of --conditions"),
        (["--unconditional"], {}, "log p(x), of samples without their labels and context"),
    )
    for argv, conditions, said in cases:
        assert main(["likelihood", str(folder), *ESTIMATE, "--batch-size", "3", *argv]) == 0
        mean, _, last = capsys.readouterr().out.splitlines()
        given = model.given(**conditions)
        nats = measured(given, model.scale, source.test[:8], Estimate(tolerance=1e-2))
        assert mean_in(mean) == pytest.approx(float(nats.value.mean()), abs=2e-4)
        assert last.endswith(said)
    other = simulated(tmp_path / "b.npz", test_theta=None)
    argv = ["likelihood", folder, *ESTIMATE, "--data", other]
    assert "has no array test_theta, which is to be a condition of its test" in error(capsys, *argv)
    assert main([str(part) for part in [*argv, *value]]) == 0
    assert "--unconditional uses none: leave out" in error(capsys, *argv, *value, "--unconditional")


@pytest.mark.usefixtures("quick_reports")
def test_a_report_with_conditions(run):
    folder, source = run
    model = sd.load(folder)
    argv = ["--samples", "24", "--steps", "5", "--tolerance", "1e-2", "--guidance", "2"]
    assert main(["report", str(folder), *argv]) == 0
    found = json.loads((folder / "report.json").read_text())
    held = {"label": source.test_labels, **source.test_conditions}
    nats = measured(model.given(**held), model.scale, source.test, Estimate(tolerance=1e-2))
    assert found["likelihood"]["mean"] == pytest.approx(float(nats.value.mean()), abs=1e-5)
    where = "of the held-out sample"
    assert found["conditions"] == {"label": where, "context": where}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "the label of the held-out sample and the context of the held-out sample, at g" in page
    assert "Each sample is given its label and context, without guidance." in page
    assert (folder / "classes.png").exists()
    assert main(["report", str(folder), *argv, "--conditions", "context=1,0,0"]) == 0
    found = json.loads((folder / "report.json").read_text())
    assert found["conditions"] == {"label": where, "context": "of --conditions"}


def test_pictures_have_conditions_of_their_class(run, tmp_path, monkeypatch):
    _, source = run
    model = sd.load(run[0])
    shown = []
    kept = measurements.picture
    monkeypatch.setattr(measurements, "picture", lambda x, *rest: shown.append(x) or kept(x, *rest))
    for label, name in ((source.labels, "label"), (None, None)):
        data = sd.data.Dataset(**vars(source) | {"labels": label})
        ((_, pictures),) = measurements.Measurements(sample_every=7).measures(
            data, sd.Recipe(), tmp_path, name
        )
        pictures(model, 7)
    members = torch.cat(
        [(source.labels == k).nonzero()[:, 0][torch.arange(200) % 45] for k in (0, 1)]
    )
    assert len(members) == 400
    conditions = {"label": source.labels[members], "context": source.conditions["context"][members]}
    of_classes = sd.sample(model.given(**conditions), 400, seed=0, steps=20)
    assert torch.equal(shown[0], model.scale.decode(of_classes))
    context = source.test_conditions["context"][torch.arange(36) % 20]
    of_contexts = sd.sample(model.given(context=context), 36, seed=0, steps=20)
    assert torch.equal(shown[1], model.scale.decode(of_contexts))


def images(path):
    """Images of 4 x 4 pixels, their coarse versions and their brightness."""
    x = np.random.default_rng(0).integers(0, 256, (40, 4, 4)).astype(np.uint8)
    coarse = x.reshape(40, 2, 2, 2, 2).mean((2, 4)).repeat(2, 1).repeat(2, 2).astype(np.uint8)
    brightness = x.mean((1, 2)) / 255
    np.savez(path, train=x, coarse=coarse, brightness=brightness, wrong=coarse[:, :2])
    return str(path)


@pytest.mark.parametrize("network", ["UNet", "DiT"])
def test_images_and_vectors_of_image_networks(tmp_path, network, capsys):
    data = images(tmp_path / "a.npz")
    argv = ["train", str(tmp_path / "run"), "--data", data, "--network", network, "--width", "8"]
    argv += [] if network == "UNet" else ["--heads", "2", "--depth", "1", "--patch", "2"]
    given = ["--conditions", "image=coarse", "context=brightness", "--sample-every", "12"]
    assert main([*argv, *TRAIN, *given]) == 0
    model = sd.load(tmp_path / "run")
    assert model.net.config.items() >= {"context": 1, "image": 1}.items()
    source = sd.data.load(data, conditions={"image": "coarse", "context": "brightness"})
    np.save(tmp_path / "image.npy", np.load(data)["coarse"][:1])
    values = ["--conditions", f"image={tmp_path}/image.npy", "context=0.5"]
    made = drawn(tmp_path / "run", tmp_path / "b.npz", *values)
    image = (torch.from_numpy(np.load(data)["coarse"][:1, None]).float() + 0.5) / 128 - 1
    conditions = {"image": image.expand(5, 1, 4, 4), "context": torch.full((5, 1), 0.5)}
    assert np.abs(made.astype(int) - expected(model, **conditions).astype(int)).max() <= 1
    assert main(["likelihood", str(tmp_path / "run"), "--n", "2", "--tolerance", "1e-1"]) == 0
    assert "each sample with its own image and context" in capsys.readouterr().out
    assert (tmp_path / "run" / "progress" / "00000012.png").exists()
    assert source.test_conditions["image"].shape[1:] == (1, 4, 4)
    argv[1] = str(tmp_path / "other")
    assert "image has shape (1, 1, 2, 4), but this" in error(
        capsys, *argv, *TRAIN, "--conditions", "image=wrong"
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--conditions", "phi"], "has no array phi, which is to be a condition of its samples"),
        (
            ["--conditions", "theta"],
            "MLP takes no condition 'theta': its conditions are context, as ",
        ),
        (["--conditions", "image=theta"], "MLP takes no condition 'image'"),
        (["--conditions", "context="], "takes the names of conditions, each once"),
        (["--conditions", "context=theta", "context=mass"], "each once, such as context"),
        (["--conditions", "label=none"], "has no array none"),
    ],
)
def test_what_train_refuses(tmp_path, capsys, argv, said):
    data = simulated(tmp_path / "a.npz")
    found = error(capsys, "train", tmp_path / "run", "--data", data, *SMALL, *TRAIN, *argv)
    assert said in found
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quick_reports")
def test_labels_of_another_name(tmp_path):
    """Which likelihood and report find again."""
    data = simulated(tmp_path / "a.npz", kind=np.arange(90) % 3, test_kind=np.arange(20) % 3)
    argv = ["train", str(tmp_path / "run"), "--data", data, *SMALL, *TRAIN]
    assert main([*argv, "--conditions", "label=kind"]) == 0
    model = sd.load(tmp_path / "run")
    assert model.net.config["classes"] == 3
    assert main(["likelihood", str(tmp_path / "run"), *ESTIMATE]) == 0
    assert main(["report", str(tmp_path / "run"), "--samples", "4", "--steps", "2"]) == 0
    plain = simulated(tmp_path / "plain.npz")  # without the column
    argv = ["likelihood", str(tmp_path / "run"), *ESTIMATE, "--data", plain]
    assert main(argv) == 2
    assert main([*argv, "--unconditional"]) == 0
    assert main([*argv, "--conditions", "label=1"]) == 0
    label = torch.tensor([2, 0, 2, 0, 2])
    made = drawn(tmp_path / "run", tmp_path / "b.npz", "--label", "2", "0")
    assert np.allclose(made, expected(model, label=label), atol=1e-5)


def test_models_that_know_samples_with_conditions_only(tmp_path, capsys):
    run = tmp_path / "run"
    data = simulated(tmp_path / "a.npz")
    argv = ["train", str(run), "--data", data, *SMALL, *TRAIN, "--conditions", "context=theta"]
    assert main([*argv, "--drop", "0"]) == 0
    value = ["--conditions", "context=0,1"]
    for command in (
        ["sample", run],
        ["sample", run, *value, "--guidance", "2"],
        ["likelihood", run, "--unconditional"],
        ["report", run, "--guidance", "2"],
        ["explore", run],
    ):
        assert "trained with drop = 0 for context and knows samples with it only" in error(
            capsys, *command
        )
    drawn(run, tmp_path / "b.npz", *value)
    sliders = ["--steps", "3", "--eta", "0", "--times", "2", "--n", "4"]
    assert main(["explore", str(run), *value, *sliders]) == 0
    assert "are those of a run: leave them out with --mixture" in error(
        capsys, "explore", "--mixture", "moons", *value
    )
    capsys.readouterr()
    assert main(["likelihood", str(run), *ESTIMATE]) == 0
    assert capsys.readouterr().out.endswith("(x | context), each sample with its own context\n")


def test_models_from_python_need_their_conditions(tmp_path, capsys):
    """Whose notes have no names of columns: those of the network are used."""
    data = simulated(tmp_path / "a.npz", context=np.ones((90, 2)), test_context=np.ones((20, 2)))
    scale = sd.data.load(data).scale
    model = sd.ScoreModel(sd.nets.MLP((2,), 8, 1, context=2), "vp", shape=(2,), scale=scale)
    sd.save(model, tmp_path / "run", {"data": {"name": data}})
    assert main(["likelihood", str(tmp_path / "run"), *ESTIMATE]) == 0
    assert "log p(x | context)" in capsys.readouterr().out
    other = simulated(tmp_path / "b.npz")
    argv = ["likelihood", tmp_path / "run", *ESTIMATE, "--data", other]
    assert "has no array context" in error(capsys, *argv)
    assert main([str(part) for part in [*argv, "--unconditional"]]) == 0

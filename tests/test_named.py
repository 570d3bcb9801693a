"""Networks that the user names: runs whose network no checkpoint can name, from Python and from the
command line.
"""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

from sdekit_diffusion import (
    CheckpointError,
    Recipe,
    ScoreModel,
    data,
    fit,
    from_diffusers,
    load,
    sample,
    save,
)
from sdekit_diffusion.__main__ import main

RECIPE = Recipe(steps=4, batch_size=8, warmup=2)
OPTIONS = ["--data", "digits", "--steps", "4", "--batch-size", "8", "--warmup", "2"]
OWN = ["--network", "own_networks:Own"]
MADE = ["--network", "own_networks:Made.model"]
CONVENTIONS = ["--sde", "vp", "--predicts", "noise", "--conditioning", "time"]
SOURCE = """
import torch
from torch import nn

from sdekit_diffusion import ScoreModel


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.layer(x)


class Made:
    @staticmethod
    def model():
        return ScoreModel(Own(), "vp", "noise", shape=(1, 8, 8))


def plain():
    return ScoreModel(lambda x, t: x, "vp")


ready, nothing, number = Own(), None, lambda: 3
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A module of a user's."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "own_networks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "src")
    yield
    sys.modules.pop("own_networks", None)


def refused(capsys, *argv):
    assert main([str(part) for part in argv]) == 2
    return capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]


def few_digits(folder):
    """A file of the first digits, without labels: a report trains no classifier."""
    source = data.load("digits")
    file = folder / "few.npz"
    np.savez(file, train=source.train[:40].numpy(), test=source.test[:10].numpy())
    return str(file)


def equal(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_a_network_of_your_own_comes_back_by_one_argument(tmp_path):
    from own_networks import Made, Own

    model = Made.model()
    with torch.no_grad():
        model.net.layer.bias.fill_(3.0)
    save(model, tmp_path / "run")
    with pytest.raises(
        CheckpointError,
        match=r"'Own' is not one of .*load\(\.\.\., net=\.\.\.\); "
        r"on the command line name it by --network",
    ):
        load(tmp_path / "run")
    for net in (
        Own(),
        Made.model(),
        "own_networks:Own",
        "own_networks:Made.model",
        "own_networks:ready",
    ):
        again = load(tmp_path / "run", net=net)
        assert equal(again, model)
        assert (again.predicts, again.shape) == ("noise", (1, 8, 8))


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (
            "Own",
            ValueError,
            "unknown network 'Own'; choose one of MLP.* the folder of a network of diffusers, or "
            "package.module",
        ),
        ("MLP", ValueError, "the library's MLP names it itself: leave net, or --network, out"),
        ("own_networks:", ValueError, "unknown network"),
        (
            "no_such_module:f",
            ImportError,
            "No module named 'no_such_module'; put its folder on PYTHONPATH",
        ),
        (
            "own_networks:absent",
            ValueError,
            "has no attribute 'absent'; name a function of own_networks",
        ),
        (
            "own_networks:nothing",
            TypeError,
            "gives a NoneType; it must make a torch.nn.Module or a ScoreModel",
        ),
        ("own_networks:number", TypeError, "gives a int; it must make"),
        ("own_networks:plain", TypeError, "plain function and takes no weights"),
    ],
)
def test_names_of_no_network(tmp_path, name, error, said):
    save(ScoreModel(nn.Bilinear(2, 1, 2), "vp", shape=(2,)), tmp_path)
    with pytest.raises(error, match=said):
        load(tmp_path, net=name)


def test_a_checkpoint_names_no_code(tmp_path):
    """A crafted config, checksum and all: the class is a word, and nothing is imported."""
    from test_checkpoint import reseal

    save(ScoreModel(nn.Bilinear(2, 1, 2), "vp", shape=(2,)), tmp_path)
    for config in ({}, None):
        reseal(tmp_path, net={"class": "own_networks:Own", "config": config})
        with pytest.raises(CheckpointError, match="pass it as load"):
            load(tmp_path)
    assert "own_networks" not in sys.modules


def test_a_run_with_a_network_of_your_own_goes_on_by_the_same_command(tmp_path, capsys):
    """A module with the conventions of the options; samples are those of its model."""
    options = [*OPTIONS, *OWN, *CONVENTIONS]
    whole = tmp_path / "whole"
    run = tmp_path / "run"
    assert main(["train", str(whole), *options]) == 0
    assert main(["train", str(run), *options, "--minutes", "1e-9"]) == 0
    assert "1 of 4 updates are done" in capsys.readouterr().out
    again = ["train", run, *OPTIONS, *OWN, "--predicts", "data", "--resume"]
    assert "was begun with predicts = noise, not data" in refused(capsys, *again)
    again = ["train", run, *options, "--resume"]
    assert "--width is not an option of own_networks:Own" in refused(capsys, *again, "--width", "3")
    again[again.index("noise")] = "epsilon"  # another name of the same
    assert main([str(part) for part in again]) == 0
    assert equal(load(run, net="own_networks:Own"), load(whole, net="own_networks:Own"))
    assert "--network" in refused(capsys, "sample", run, "--n", 2)
    for named in MADE, OWN:
        assert main(["sample", str(run), "--n", "2", "--steps", "3", *named]) == 0
    made = np.load(run / "samples.npz")["samples"]
    model = load(run, net="own_networks:Own")
    assert np.array_equal(made, model.scale.decode(sample(model, 2, steps=3, seed=0)).numpy())


def test_the_command_line_trains_a_model_of_your_own_with_its_conventions(tmp_path, capsys):
    """Options of other networks, and of what the model itself says, are refused."""
    run = tmp_path / "run"
    options = [*OPTIONS, *OWN, *CONVENTIONS]
    assert "--width is not an option of own_networks:Own" in refused(
        capsys, "train", run, *options, "--width", "3"
    )
    assert "--predicts is not an option of" in refused(
        capsys, "train", run, *OPTIONS, *MADE, "--predicts", "data"
    )
    assert "for samples of shape (1, 8, 8)" in refused(
        capsys, "train", run, "--data", "moons", *MADE
    )
    assert not run.exists()
    assert main(["train", str(run), *OPTIONS, *MADE]) == 0
    assert json.loads((run / "config.json").read_text())["sde"]["name"] == "vp"


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers")


def unet_of(diffusers, seed=0):
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
    )


def saved_pipeline(diffusers, folder):
    """The scheduler of a pipeline of diffusers that is saved in `pipeline`, its network also in
    `unet`.
    """
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, beta_end=0.2)
    unet = unet_of(diffusers)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder / "pipeline")
    unet.save_pretrained(folder / "unet")
    return scheduler


def trained_from_diffusers(pipeline, run, minutes=None):
    """The folder of a run on digits that began with the pipeline."""
    source = data.load("digits")
    model = from_diffusers(pipeline)
    model.scale = source.scale
    fit(
        model,
        source.train,
        RECIPE,
        transform=source.scale.encode,
        folder=run,
        minutes=minutes,
        progress=False,
        notes={"data": {"name": "digits"}},
    )
    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.usefixtures("quick_reports")
def test_a_run_from_diffusers_reloads_by_one_argument(diffusers, tmp_path, capsys):
    """Begun in Python, stopped, resumed and used from the command line; `load` takes what
    `from_diffusers` took.
    """
    scheduler = saved_pipeline(diffusers, tmp_path)
    whole = trained_from_diffusers(tmp_path / "pipeline", tmp_path / "whole")
    run = trained_from_diffusers(tmp_path / "pipeline", tmp_path / "run", minutes=1e-9)
    with pytest.raises(
        CheckpointError,
        match=r"load\(\.\.\., net=\.\.\.\); on the command line name it by --network",
    ):
        load(run)
    stopped = load(run, net=tmp_path / "pipeline")
    for net in (
        unet_of(diffusers, 1),
        from_diffusers(unet_of(diffusers, 1), scheduler.config),
        str(tmp_path / "unet"),
    ):
        assert equal(load(run, net=net), stopped)
    shutil.copytree(run, tmp_path / "stopped")
    network = ["--network", str(tmp_path / "pipeline")]
    # Of the newest checkpoint.
    assert main(["sample", str(run), "--n", "2", "--steps", "3", *network]) == 0
    assert main(["train", str(run), *OPTIONS, *network, "--resume"]) == 0
    assert equal(load(run, net=unet_of(diffusers)), load(whole, net=unet_of(diffusers)))
    assert main(["sample", str(run), "--n", "3", "--steps", "3", *network]) == 0
    assert np.load(run / "samples.npz")["samples"].shape == (3, 1, 8, 8)
    rough = ["--tolerance", "1e-1", "--probes", "1", "--draws", "1"]
    unet = ["--network", str(tmp_path / "unet")]
    assert main(["likelihood", str(run), "--n", "2", *rough, *unet]) == 0
    assert "bits/dim" in capsys.readouterr().out
    few = ["--data", few_digits(tmp_path), "--samples", "4", "--steps", "2"]
    assert main(["report", str(run), *few, *rough[:4], *network]) == 0
    assert json.loads((run / "report.json").read_text())["model"]["sde"].startswith("DDPM")
    assert "--network" in refused(capsys, "report", run)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_folder_of_diffusers_is_trained_under_its_own_scheduler(diffusers, tmp_path, capsys):
    diffusers.DDPMPipeline(
        unet_of(diffusers), diffusers.DDPMScheduler(num_train_timesteps=100, beta_end=0.2)
    ).save_pretrained(tmp_path / "p")
    argv = ["train", tmp_path / "run", *OPTIONS, "--network", tmp_path / "p"]
    assert "--sde is not an option of" in refused(capsys, *argv, "--sde", "vp")
    assert main([str(part) for part in argv]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["sde"]["name"], config["conditioning"], config["data_range"]) == (
        "ddpm",
        [100.0, -1.0],
        [-1.0, 1.0],
    )
    assert config["scale"]["levels"] == 17


@pytest.mark.usefixtures("quick_reports")
def test_a_model_saved_from_python_is_sampled_from_the_command_line(tmp_path, capsys):
    """The data have no name there: sampling needs none, and the likelihood and the report receive
    one.
    """
    from own_networks import Made

    model = Made.model()
    model.scale = data.load("digits").scale
    save(model, tmp_path / "run")
    own = ["--network", "own_networks:Own"]
    assert main(["sample", str(tmp_path / "run"), "--n", "2", "--steps", "3", *own]) == 0
    for command in ("likelihood", "report"):
        assert "does not say what data the model is for; name them by --data" in refused(
            capsys, command, tmp_path / "run", *own
        )
    argv = ["--data", "digits", "--tolerance", "1e-1", "--probes", "1", "--draws", "1", "--n", "2"]
    assert main(["likelihood", str(tmp_path / "run"), *own, *argv]) == 0
    few = ["--data", few_digits(tmp_path), "--samples", "4", "--steps", "2"]
    assert main(["report", str(tmp_path / "run"), *own, *few]) == 0

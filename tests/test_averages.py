"""Averages of power functions: their formulas, and averages of any width after a training run."""

import itertools
import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sdekit_diffusion import Log, Recipe, ScoreModel, Training, fit, load, nets, save
from sdekit_diffusion._models.checkpoint import CheckpointError
from sdekit_diffusion._training.clear import clear
from sdekit_diffusion._training.profiles import (
    LARGEST_WIDTH,
    Profile,
    combination,
    exponent,
    misfit,
)
from sdekit_diffusion._training.snapshots import FOLDER

DATA = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
RECIPE = Recipe(steps=100, batch_size=10, warmup=3, schedule="constant", widths=(0.05, 0.1))
LOG = Log(log_every=25, save_every=30, snapshots=25)


def model():
    torch.manual_seed(0)
    return ScoreModel(nets.MLP(shape=(2,), width=8, depth=1), "vp", shape=(2,))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that went through, and its records."""
    run = tmp_path_factory.mktemp("averages") / "run"
    return run, fit(model(), DATA, RECIPE, folder=run, log=LOG, progress=False)


class Tied(nn.Module):
    """Uses a weight twice, and has statistics of its batches."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x, t):
        return self.norm(self.second(torch.tanh(self.first(x)))) * t[:, None]


def flat(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_exponents_are_as_published():
    """Karras et al. 2024, arXiv 2312.02696: gamma = 16.97 and 6.94 for 0.05 and 0.1."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.1) == pytest.approx(6.94, abs=0.005)
    assert exponent(LARGEST_WIDTH) == pytest.approx(0.0, abs=1e-9)
    tau = np.linspace(0, 1, 200_001)
    for width in (0.02, 0.07, 0.2):
        p = tau ** exponent(width)
        p /= np.trapezoid(p, tau)
        mean = np.trapezoid(p * tau, tau)
        assert np.trapezoid(p * (tau - mean) ** 2, tau) ** 0.5 == pytest.approx(width, rel=1e-4)
    for wrong in (0.0, -0.1, 0.3, float("nan")):
        with pytest.raises(ValueError, match=r"above 0 and at most 0\.2887"):
            exponent(wrong)
        with pytest.raises(ValueError, match="the relative width"):
            Recipe(widths=(0.05, wrong))


def test_an_average_weighs_updates_by_a_power_of_their_number():
    """Of the weights after update n of t: (n^(gamma + 1) - (n - 1)^(gamma + 1)) / t^(gamma + 1)."""
    training = Training(model().double(), DATA.double(), RECIPE)
    path = [flat(training.model) for record in itertools.islice(training, 20)]
    n = torch.arange(21, dtype=torch.float64)
    for i, width in enumerate(RECIPE.widths):
        weights = (n / 20).pow(exponent(width) + 1).diff()
        found = torch.cat([value.flatten() for value in training.average(1 + i).values()])
        torch.testing.assert_close(found, weights @ torch.stack(path))


def test_combinations_of_averages():
    """The coefficients of a member are one and zeros; of others they sum to 1, and the combined
    function of time is near the wanted one; more snapshots are nearer.
    """
    tau = np.linspace(0, 1000, 100_001)[1:]

    def density(profile):
        p = (profile.gamma + 1) * (tau / profile.step) ** profile.gamma / profile.step
        return np.where(tau <= profile.step, p, 0.0)

    errors = []
    for count in (10, 40):
        steps = [1000 * (i + 1) // count for i in range(count)]
        profiles = [Profile(exponent(w), step) for step in steps for w in (0.05, 0.1)]
        member = combination(profiles, profiles[-2])
        assert np.allclose(member, np.arange(len(profiles)) == len(profiles) - 2, atol=1e-6)
        for width in (0.07, 0.15):
            target = Profile(exponent(width), 1000)
            x = combination(profiles, target)
            assert x.sum() == pytest.approx(1, abs=1e-6)
            difference = sum(c * density(p) for c, p in zip(x, profiles, strict=True))
            difference = difference - density(target)
            errors.append(np.abs(difference).mean() * 1000)  # of an integral of 1
            size = np.sqrt((difference**2).mean() / (density(target) ** 2).mean())
            assert misfit(profiles, x, target) == pytest.approx(size, rel=0.02)
    assert errors[2] < 0.1 * errors[0]
    assert errors[3] < 0.1 * errors[1]
    assert max(errors[2:]) < 3e-3


def test_an_average_of_any_width_after_the_run(finished):
    """Against averages that another run of the same weights tracks. The measure is the distance
    of the average from the last weights.
    """
    widths = (0.05, 0.1, 0.03, 0.07, 0.15, 0.2)
    run, records = finished
    plain = Recipe(**{**vars(RECIPE), "widths": (), "steps": 20})
    same = fit(model(), DATA, plain, progress=False)
    assert [r.loss for r in records[:20]] == [r.loss for r in same]  # averages change nothing
    training = Training(model(), DATA, Recipe(**{**vars(RECIPE), "widths": widths}))
    for _ in range(100):
        next(training)
    last = flat(training.model)
    for i, (width, bound) in enumerate(
        zip(widths, (1e-5, 1e-5, 0.2, 5e-3, 5e-3, 0.05), strict=True)
    ):
        direct = torch.cat([value.flatten() for value in training.average(1 + i).values()])
        found = flat(load(run, width=width))
        assert (found - direct).norm() < bound * (last - direct).norm(), width
        assert (found - direct).norm() < 0.2 * (flat(load(run)) - direct).norm()


def test_a_width_that_the_snapshots_do_not_represent_is_warned_of(finished):
    """At a width of 0.01 the error is about as large as the effect of averaging."""
    run, _ = finished
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(run, width=0.03)
    with pytest.warns(UserWarning, match=r"is near that of width 0\.01: the") as caught:
        load(run, width=0.01)
    assert caught[0].filename == __file__


class Stop(BaseException):
    """What ends a run too soon."""


def test_snapshots_of_a_run_that_was_interrupted(finished, tmp_path):
    """Bit-identical, also where it stopped after later snapshots than the checkpoint."""

    def names(run):
        return sorted(path.name for path in (run / FOLDER).iterdir())

    whole, _ = finished
    run = tmp_path / "run"
    assert [int(name[:8]) for name in names(whole)] == list(range(4, 101, 4))

    def stop(record):
        if record.step == 55:
            raise Stop

    with pytest.raises(Stop):
        fit(model(), DATA, RECIPE, folder=run, log=LOG, callback=stop, progress=False)
    assert len(names(run)) == 13
    last = (run / FOLDER) / names(run)[-1]
    (last.parent / "mine.txt").write_text("mine")
    at = load(run, width=0.07)
    half = Training(model(), DATA, Recipe(**{**vars(RECIPE), "widths": (0.07,)}))
    for _ in range(52):
        next(half)
    torch.testing.assert_close(
        flat(at),
        torch.cat([value.flatten() for value in half.average(1).values()]),
        rtol=1e-3,
        atol=1e-4,
    )
    # Of updates after the checkpoint, as another device might have rounded them, and cut short.
    stale = f"{last.name[:8]}-{'0' * 12}.safetensors"
    shutil.copy(last, last.parent / stale)
    for part in (stale, stale.replace(stale[:8], "00000004")):
        (last.parent / f".{part}.part").write_bytes(b"half")
    records = fit(model(), DATA, RECIPE, folder=run, log=LOG, resume=True, progress=False)
    assert records[0].step == 31
    assert names(run) == [*names(whole), "mine.txt"]
    (last.parent / "mine.txt").unlink()
    assert torch.equal(flat(load(run, width=0.2)), flat(load(whole, width=0.2)))


def test_weights_that_are_used_twice_and_statistics(tmp_path):
    torch.manual_seed(0)
    tied = ScoreModel(Tied(), "vp", shape=(2,))
    recipe = Recipe(**{**vars(RECIPE), "steps": 40})
    fit(tied, DATA, recipe, folder=tmp_path, log=Log(snapshots=4), progress=False)
    found = load(tmp_path, net=Tied(), width=0.1)
    assert found.net.first.weight is found.net.second.weight
    assert torch.equal(found.net.norm.running_mean, tied.net.norm.running_mean)
    assert not torch.equal(found.net.first.weight, tied.net.first.weight)


def test_clearing_a_run_removes_its_snapshots_alone(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    kept = tmp_path / "kept"
    shutil.copytree(run / FOLDER, kept)
    (run / FOLDER / "00000004.safetensors").write_text("mine")
    clear(run)
    assert [path.name for path in (run / FOLDER).iterdir()] == ["00000004.safetensors"]
    shutil.copytree(finished[0], run, dirs_exist_ok=True)
    (run / FOLDER / "00000004.safetensors").unlink()
    clear(run)
    assert not (run / FOLDER).exists()
    fit(model(), DATA, Recipe(steps=2), folder=run, progress=False)
    (run / FOLDER).symlink_to(kept)
    clear(run)
    assert not (run / FOLDER).exists()
    assert len(list(kept.iterdir())) == 25


def test_what_is_refused(finished, tmp_path):
    with pytest.raises(ValueError, match="give one of them"):
        load(save(model(), tmp_path / "saved"), ema=0.9, width=0.1)
    with pytest.raises(CheckpointError, match="holds no snapshots of averages: train with Recipe"):
        load(tmp_path / "saved", width=0.1)
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    with pytest.raises(ValueError, match=r"at most 0\.2887"):
        load(run, width=0.5)
    path = next((run / FOLDER).iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="not as it was written"):
        load(run, width=0.07)
    with pytest.raises(ValueError, match="snapshots are whole numbers"):
        Log(snapshots=0)

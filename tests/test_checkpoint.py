"""Checkpoints: what comes back, that nothing wrong does, and that the old or the new one is always
there.
"""

import errno
import hashlib
import itertools
import json
import math
import os
import shutil
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import nn
from torch.overrides import TorchFunctionMode

from sdekit_diffusion import (
    NCSN,
    VESDE,
    VPSDE,
    CheckpointError,
    Log,
    Recipe,
    ScoreModel,
    SubVPSDE,
    fit,
    load,
    nets,
    sample,
    save,
)
from sdekit_diffusion._storage.atomic import exclusive


def model(sde="vp", seed=0, **settings):
    torch.manual_seed(seed)
    return ScoreModel(nets.MLP(shape=(2,), width=16, depth=1), sde, shape=(2,), **settings)


def weights(folder):
    (path,) = folder.glob("weights-*.safetensors")
    return path


def reseal(folder, **changes):
    """Changes a config as its writer could have, checksum and all."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    del config["sha256"]
    config["sha256"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(config))


def replace_weights(folder, content):
    path = weights(folder)
    path.write_bytes(content)
    reseal(
        folder,
        files={"weights": {"name": path.name, "sha256": hashlib.sha256(content).hexdigest()}},
    )


def test_a_diffusion_of_your_own_needs_a_name_to_be_saved(tmp_path):
    class Mine(VPSDE):
        pass

    own = model(Mine())
    with pytest.raises(TypeError, match=r"DIFFUSIONS\['mine'\] = Mine"):
        save(own, tmp_path)


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path):
    """Two that save into one folder at once would remove each other's weights."""
    save(model(), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with exclusive(tmp_path / "run"), pytest.raises(OSError, match="another process is at work"):
        save(model(predicts="data"), tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_round_trip(tmp_path, dtype):
    a = model(SubVPSDE(0.2, 10.0), predicts="velocity", conditioning="log_snr", data_std=0.7).to(
        dtype
    )
    save(a, tmp_path / "run", {"data": "toy"})
    b = load(tmp_path / "run")
    assert (b.sde, b.predicts, b.conditioning, b.shape, b.data_std) == (
        a.sde,
        "velocity",
        "log_snr",
        (2,),
        0.7,
    )
    assert b.place()[0] == dtype
    assert torch.equal(sample(a, 3, seed=1, steps=3), sample(b, 3, seed=1, steps=3))
    assert sorted((tmp_path / "run").iterdir()) == [
        tmp_path / "run" / "config.json",
        weights(tmp_path / "run"),
    ]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["notes"] == {"data": "toy"}


@pytest.mark.filterwarnings("error")
class Mixed(nn.Module):
    """Layers in two dtypes and constants in others."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 4, dtype=torch.bfloat16)
        self.second = nn.Linear(4, 2)
        self.register_buffer("nodes", torch.linspace(0, 1, 3, dtype=torch.float64) / 3)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("fixed", torch.tensor(1 / 3, dtype=torch.float64), persistent=False)

    def forward(self, x, t):
        hidden = self.first(x.to(torch.bfloat16)).to(x.dtype)
        return self.second(hidden.to(self.second.weight.dtype)) * self.fixed.to(x)


@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32])
def test_every_tensor_comes_back_in_its_dtype(tmp_path, first):
    """Of a network with several, also into one that is made in others."""
    torch.manual_seed(0)
    net = Mixed()
    net.first.to(first)
    save(ScoreModel(net, "vp", shape=(2,)), tmp_path)
    torch.manual_seed(1)
    loaded = load(tmp_path, net=Mixed()).net
    for name, value in net.state_dict().items():
        again = loaded.state_dict()[name]
        assert again.dtype == value.dtype, name
        assert torch.equal(again, value), name
    assert loaded.first.weight.requires_grad
    # What is not saved is converted only with the whole network.
    assert loaded.fixed.dtype == (torch.float64 if first == torch.bfloat16 else first)


@pytest.mark.parametrize("of_last_version", [False, True])
def test_a_compiled_network_is_saved_as_the_network_that_was_compiled(tmp_path, of_last_version):
    compiled = model()
    compiled = compiled.with_network(torch.compile(compiled.net, backend="eager"))
    recipe = Recipe(steps=2, batch_size=4)
    fit(compiled, torch.randn(8, 2), recipe, folder=tmp_path / "run", progress=False)
    folder = save(compiled, tmp_path / "saved")
    other = torch.compile(nets.MLP(shape=(2,), width=16, depth=1), backend="eager")
    if of_last_version:
        path = weights(folder)
        old = load_file(path)
        for name in compiled.net.state_dict():  # with the prefix
            old[name] = old.pop(name.removeprefix("_orig_mod."))
        replace_weights(folder, serialised(old))
    else:
        assert type(load(folder).net) is nets.MLP
    plain = nets.MLP(shape=(2,), width=16, depth=1)
    expected = sample(compiled, 3, steps=2, seed=0)
    for loaded in (load(folder, net=plain), load(folder, net=other), load(tmp_path / "run")):
        assert torch.equal(sample(loaded, 3, steps=2, seed=0), expected)
    assert type(load(tmp_path / "run", ema=0).net) is nets.MLP


def block_compiled(net):
    net.blocks[0] = torch.compile(net.blocks[0], backend="eager")
    return net


WRAPPERS = {
    "block": block_compiled,
    "parallel": nn.DataParallel,
    "compiled parallel": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
    "parallel compiled": lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_network_with_wrappers_is_saved_without_them(tmp_path, wrapper):
    """And loaded into one with or without them, also from files with their names."""
    original = model()
    expected = sample(original, 3, steps=2, seed=0)
    wrapped = original.with_network(WRAPPERS[wrapper](original.net))
    folder = save(wrapped, tmp_path / "saved")
    names = set(model().net.state_dict())
    assert set(load_file(weights(folder))) == names
    fresh = lambda: nets.MLP(shape=(2,), width=16, depth=1)  # noqa: E731
    other = WRAPPERS[wrapper](fresh())
    for loaded in (load(folder), load(folder, net=fresh()), load(folder, net=other)):
        assert torch.equal(sample(loaded, 3, steps=2, seed=0), expected)
    replace_weights(folder, serialised(dict(wrapped.net.state_dict())))
    again = load(folder, net=WRAPPERS[wrapper](fresh()))
    assert torch.equal(sample(again, 3, steps=2, seed=0), expected)


# Of torch itself, while it compiles.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("wrapper", ["block", "parallel"])
def test_averages_of_a_network_with_wrappers(tmp_path, wrapper):
    trained = model()
    trained = trained.with_network(WRAPPERS[wrapper](trained.net))
    recipe = Recipe(steps=2, batch_size=4, widths=(0.1,))
    fit(trained, torch.randn(8, 2), recipe, folder=tmp_path, log=Log(snapshots=2), progress=False)
    found = [load(tmp_path, ema=0), load(tmp_path, width=0.1)]
    assert [type(loaded.net) for loaded in found] == [nets.MLP] * 2
    assert not torch.equal(*(next(loaded.parameters()) for loaded in found))


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


def test_extra_state_that_is_no_tensor_is_refused(tmp_path):
    net = nets.MLP(shape=(2,), width=16, depth=1)
    net.extra = Extra(2, 2)
    own = ScoreModel(net, "vp", shape=(2,))
    with pytest.raises(TypeError, match=r"extra\._extra_state in the state .* is \{'a': 1\}"):
        save(own, tmp_path / "saved")
    with pytest.raises(TypeError, match=r"extra\._extra_state"):
        fit(own, torch.randn(8, 2), Recipe(steps=2), folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "saved").exists()
    assert not list((tmp_path / "run").rglob("*.safetensors"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_warned_of(tmp_path, value):
    """Buffers may be infinite, as masks of attention are."""
    diverged = model().to(torch.bfloat16)
    diverged.net.register_buffer("mask", torch.tensor(-math.inf))
    folder = save(diverged, tmp_path)
    count = len(list(diverged.parameters()))
    net = nets.MLP(shape=(2,), width=16, depth=1)
    net.register_buffer("mask", torch.tensor(0.0))
    load(folder, net=net)
    names = [name for name, _ in diverged.net.named_parameters()]
    with torch.no_grad():
        for name in names[1:3]:
            diverged.net.get_parameter(name).view(-1)[-1] = value
    said = f"infinite numbers in 2 of its {count} weights, the first of them {names[1]}: "
    with pytest.warns(UserWarning, match=said) as warned:
        save(diverged, tmp_path)
    with pytest.warns(UserWarning, match=said) as warned_again:
        load(tmp_path, net=net)
    assert [found.filename for found in (*warned, *warned_again)] == [__file__] * 2


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path):
    net = nets.MLP(shape=(np.int64(2),), width=np.int32(8), depth=1)
    own = ScoreModel(net, VPSDE(np.float32(0.25)), shape=(2,), data_std=np.float32(0.5))
    loaded = load(save(own, tmp_path / "run", {"seed": np.int64(3)}))
    assert (loaded.sde.beta_min, loaded.data_std) == (0.25, 0.5)
    with pytest.raises(TypeError, match="notes must be what JSON can represent, not tensor"):
        save(own, tmp_path / "run", {"x": torch.zeros(2)})


def test_a_loaded_model_is_in_evaluation_mode(tmp_path):
    """Every module of it, also of a network that is given in training mode."""
    save(model(), tmp_path / "run")
    own = lambda: nn.Sequential(nn.Dropout(0.3))  # noqa: E731
    save(ScoreModel(own(), "vp", shape=(2,)), tmp_path / "own")
    for loaded in (load(tmp_path / "run"), load(tmp_path / "own", net=own())):
        assert not any(module.training for module in loaded.modules())


def test_unet_and_own_networks(tmp_path):
    unet = ScoreModel(
        nets.UNet(channels=1, width=8, multipliers=(1, 2)), VESDE(exact=False), shape=(1, 8, 8)
    )
    save(unet, tmp_path / "unet")
    again = load(tmp_path / "unet")
    assert again.sde == VESDE(exact=False)
    x = torch.zeros(2, 1, 8, 8)
    assert torch.equal(again.denoise(0.5, x), unet.eval().denoise(0.5, x))
    own = ScoreModel(nn.Bilinear(2, 1, 2), "vp", shape=(2,))
    save(own, tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"pass it as load\(..., net=...\)"):
        load(tmp_path / "own")
    filled = load(tmp_path / "own", net=nn.Bilinear(2, 1, 2))
    assert torch.equal(filled.net.weight, own.net.weight)
    with pytest.raises(TypeError, match="plain function"):
        save(ScoreModel(lambda x, t: x, "vp"), tmp_path / "function")
    for net, given in ((nn.Bilinear, "the class Bilinear"), (3, "not 3")):
        with pytest.raises(TypeError, match=f"net is a network, such as Net.*{given}"):
            load(tmp_path / "own", net=net)


class Doubled(nn.Bilinear):
    """Of the same weights, and of a class that computes something else."""

    def forward(self, x, t):
        return 2 * super().forward(x, t[:, None])


def test_a_network_of_another_class_or_other_arguments_is_warned_of(tmp_path):
    save(ScoreModel(Doubled(2, 1, 2), "vp", shape=(2,)), tmp_path / "own")
    with pytest.warns(UserWarning, match="of class Doubled, and net is of Bilinear: .* wrong"):
        load(tmp_path / "own", net=nn.Bilinear(2, 1, 2))
    load(tmp_path / "own", net=type("Derived", (Doubled,), {})(2, 1, 2))
    other = Doubled(2, 1, 2)
    other.config = {("a", "b"): 1}
    load(tmp_path / "own", net=other)
    save(ScoreModel(nets.MLP(shape=(2,), width=8), "vp", shape=(2,)), tmp_path / "own")
    load(tmp_path / "own", net=nets.MLP(shape=(2,), width=8))
    other = nets.MLP(shape=(2,), width=8)
    other.config = other.config | {"activation": "relu"}
    with pytest.warns(UserWarning, match=r"MLP\(.*and net is MLP\(.*relu"):
        load(tmp_path / "own", net=other)
    load(tmp_path / "own", net=nets.MLP(shape=(np.int64(2),), width=np.int64(8)))
    for unknown in ({("a", "b"): 1}, {"width": torch.ones(2)}):
        other.config = unknown
        load(tmp_path / "own", net=other)


@pytest.mark.parametrize(
    "change",
    [
        {"conditioning": [math.nan, 1.0]},
        {"shape": [2.5]},
        {"shape": [2**20, 2**20]},
        {"data_range": [0.0]},
        {"scale": {"levels": 2.5}},
    ],
)
def test_a_config_with_values_that_are_none(tmp_path, change):
    save(model(), tmp_path)
    reseal(tmp_path, **change)
    with pytest.raises(CheckpointError, match="does not describe a model"):
        load(tmp_path)


@pytest.mark.parametrize(
    "net",
    [nets.NCSNv2(1, 4, (1, 2), (1, 2)), nets.NCSN(1, 4, (1, 2), (1, 1), levels=3)],
    ids=["v2", "v1"],
)
def test_refinenets_labels_and_ranges(tmp_path, net):
    a = ScoreModel(
        net,
        NCSN([10.0, 1.0, 0.1]),
        "noise",
        shape=(1, 8, 8),
        conditioning=(2, 3),
        data_range=(-1, 1),
    ).eval()
    save(a, tmp_path / "run")
    b = load(tmp_path / "run")
    assert (b.sde, b.conditioning, b.data_range, b.net.config) == (
        a.sde,
        (2.0, 3.0),
        (-1.0, 1.0),
        net.config,
    )
    assert torch.equal(sample(a, 2, seed=1, steps=3), sample(b, 2, seed=1, steps=3))


def damage(path, what):
    if what == "missing":
        path.unlink()
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif what == "garbage":
        path.write_bytes(b"\x80\x04garbage" * 20)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("file", ["config.json", "weights-*.safetensors"])
@pytest.mark.parametrize("what", ["missing", "truncated", "garbage", "empty", "flipped"])
def test_damaged_checkpoints_say_so(tmp_path, file, what):
    save(model(), tmp_path)
    (path,) = tmp_path.glob(file)
    damage(path, what)
    with pytest.raises(CheckpointError, match=path.name):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"sde": {"name": "ddim"}},
        {"sde": {"name": "ddpm", "betas": [0.1, 2.0]}},
        {"sde": {"name": "vp", "gamma": 1}},
        {"net": {"class": "MLP", "config": {"wdth": 3}}},
        {"net": {"class": "os.system", "config": {}}},
        {"dtype": "int8"},
        {"predicts": "nothing"},
        {"shape": 3},
        {"data_range": [1.0]},
    ],
)
def test_foreign_configs_say_so(tmp_path, change):
    save(model(), tmp_path)
    reseal(tmp_path, **change)
    with pytest.raises(CheckpointError):
        load(tmp_path)


class Largest(TorchFunctionMode):
    """The most numbers that a constructor asked for at once, and how often it asked."""

    def __init__(self):
        super().__init__()
        self.numbers = 0
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.empty, torch.randn):
            sizes = args[0] if isinstance(args[0], tuple) else args
            self.numbers = max(
                self.numbers, math.prod(size for size in sizes if isinstance(size, int))
            )
            self.calls += 1
        return func(*args, **(kwargs or {}))


UNET = nets.UNet(1, 8, (1, 2))


@pytest.mark.parametrize(
    ("net", "change"),
    [
        (None, {"depth": 10**6}),
        (None, {"depth": 10**12}),
        (None, {"width": 20_000}),
        (None, {"shape": [10**7]}),
        (None, {"shape": [2.5]}),
        (UNET, {"blocks": 10**9}),
        (UNET, {"multipliers": [1, 10**4]}),
        (nets.NCSN(1, 4, (1,), (1,), levels=3), {"levels": 10**9}),
        (nets.DiT(1, (1, 1), 1, 4, 1, 1), {"size": [3000, 3000]}),
        (nets.DiT(1, (1, 1), 1, 4, 1, 1), {"size": [10**12, 1]}),
    ],
)
def test_networks_larger_than_their_weights_are_refused_before_memory_is_used(
    tmp_path, net, change
):
    """By counting: no more than some thousand tensors are asked for, none of them larger than 64
    MB.
    """
    a = model() if net is None else ScoreModel(net, "vp", shape=(1, 8, 8))
    save(a, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["net"]
    reseal(tmp_path, net=config | {"config": config["config"] | change})
    with pytest.raises(CheckpointError, match="does not describe a model"), Largest() as seen:
        load(tmp_path)
    assert seen.numbers <= 2**24
    assert seen.calls < 5000


@pytest.mark.parametrize(
    "shape", [[2.5], [2.0], [0], [-1], [True], ["2"], [2**16, 2**16], {"2": 2}, 2]
)
def test_shapes_are_lists_of_sizes(tmp_path, shape):
    save(model(), tmp_path)
    reseal(tmp_path, shape=shape)
    with pytest.raises(CheckpointError, match=r"shape|numbers or more"):
        load(tmp_path)


def test_weights_of_another_network(tmp_path):
    save(model(), tmp_path / "a")
    torch.manual_seed(0)
    save(ScoreModel(nets.MLP(shape=(2,), width=24, depth=1), "vp", shape=(2,)), tmp_path / "b")
    with pytest.raises(CheckpointError, match="weights of another network"):
        load(tmp_path / "a", net=nets.MLP(shape=(2,), width=24, depth=1))
    replace_weights(tmp_path / "a", weights(tmp_path / "b").read_bytes())
    with pytest.raises(CheckpointError, match="weights of another network"):
        load(tmp_path / "a")


def test_pickles_are_never_loaded(tmp_path):
    save(model(), tmp_path)
    torch.save({"a": torch.zeros(2)}, tmp_path / "pickle")
    replace_weights(tmp_path, (tmp_path / "pickle").read_bytes())
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(tmp_path)


def test_saving_again_replaces(tmp_path):
    """One file of weights stays, and what other programs put there."""
    save(model(), tmp_path)
    (tmp_path / "report.html").write_text("mine")
    save(model(seed=1), tmp_path, {"n": 2})
    assert sorted(tmp_path.iterdir()) == sorted(
        [tmp_path / "config.json", tmp_path / "report.html", weights(tmp_path)]
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(load(tmp_path).parameters(), model(seed=1).parameters(), strict=True)
    )


def test_saving_removes_the_files_of_the_checkpoint_before_and_no_others(tmp_path):
    """Weights under names like ours, a model of another folder among them, are somebody's, and
    stay.
    """
    save(model(seed=2), tmp_path / "other")
    mine = {
        "weights-mine.safetensors": b"mine",
        "training-0123456789ab.safetensors": b"mine",
        weights(tmp_path / "other").name: weights(tmp_path / "other").read_bytes(),
    }
    run = tmp_path / "run"
    run.mkdir()
    for name, content in mine.items():
        (run / name).write_bytes(content)
    for seed in (0, 1, 0):
        save(model(seed=seed), run)
        ours = json.loads((run / "config.json").read_text())["files"]["weights"]["name"]
        assert sorted(path.name for path in run.iterdir()) == sorted(["config.json", ours, *mine])
    assert {name: (run / name).read_bytes() for name in mine} == mine


@pytest.mark.parametrize(
    "text",
    [
        '{"model_type": "bert"}',
        "[]",
        "lr: 3",
        '{"format": "sdekit-diffusion 1"}',
        '{"format": "sdekit-diffusion 2"}',
    ],
)
@pytest.mark.parametrize("into", ["save", "fit"])
def test_a_config_of_something_else_is_not_overwritten(tmp_path, text, into):
    """Nor one of another version, nor a damaged one; nothing is written, and no training run
    begins.
    """
    (tmp_path / "config.json").write_text(text)
    steps = []
    options = {"folder": tmp_path, "progress": False, "callback": steps.append}
    written = (
        (lambda: save(model(), tmp_path))
        if into == "save"
        else (lambda: fit(model(), DATA, RECIPE, **options))
    )
    with pytest.raises(
        CheckpointError,
        match=r"config\.json .*it stays as it is: choose another "
        r"folder, or remove that file",
    ):
        written()
    assert (tmp_path / "config.json").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert steps == []


def test_a_config_that_names_files_of_others_removes_none(tmp_path):
    """A crafted one, checksum and all."""
    save(model(), tmp_path / "run")
    (tmp_path / "thesis.safetensors").write_bytes(b"mine")
    (tmp_path / "run" / "thesis.safetensors").write_bytes(b"mine")
    names = ["thesis.safetensors", "../thesis.safetensors", "config.json"]
    reseal(
        tmp_path / "run",
        files={name: {"name": name, "sha256": ""} for name in names},
        replaces=[*names, 3, None],
    )
    save(model(seed=1), tmp_path / "run")
    assert (tmp_path / "thesis.safetensors").exists()
    assert (tmp_path / "run" / "thesis.safetensors").exists()
    assert load(tmp_path / "run")


def test_saving_through_links_leaves_what_they_lead_to(tmp_path):
    """The weights, or the config, of a checkpoint that lie on another disk."""
    save(model(), tmp_path)
    away = tmp_path / "away"
    away.mkdir()
    for path in (weights(tmp_path), tmp_path / "config.json"):
        path.rename(away / path.name)
        path.symlink_to(away / path.name)
    before = {path.name: path.read_bytes() for path in away.iterdir()}
    save(model(seed=1), tmp_path)
    assert {path.name: path.read_bytes() for path in away.iterdir()} == before
    assert not (tmp_path / "config.json").is_symlink()
    assert sorted(tmp_path.iterdir()) == sorted([away, tmp_path / "config.json", weights(tmp_path)])


class Crash(BaseException):
    """What nothing handles, as a loss of power would not be."""


def failing_at(k, fault, *, before):
    """A wrapper of functions: the k-th call of any of them fails, before or after it was done."""
    count = itertools.count()

    def wrapped(real):
        def operation(*arguments, **options):
            if next(count) != k:
                return real(*arguments, **options)
            if not before:
                real(*arguments, **options)
            raise fault

        return operation

    return wrapped


@pytest.mark.parametrize(
    "fault",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only"), Crash()],
)
@pytest.mark.parametrize("before", [False, True])
def test_faults_at_every_operation_leave_the_old_or_the_new_checkpoint(
    tmp_path, monkeypatch, fault, before
):
    """Each write, fsync, rename and removal of a save fails in turn, before or after it was done;
    the next save succeeds.
    """
    operations = [
        (os, "fsync"),
        (os, "replace"),
        (os, "unlink"),
        (type(tmp_path), "write_bytes"),
        (type(tmp_path), "write_text"),
    ]
    old = model()
    new = model(seed=1)
    outcomes = []
    for k in itertools.count():
        folder = tmp_path / f"{k}"
        save(old, folder, {"which": "old"})
        failing = failing_at(k, fault, before=before)
        with monkeypatch.context() as patch:
            for owner, name in operations:
                patch.setattr(owner, name, failing(getattr(owner, name)))
            try:
                save(new, folder, {"which": "new"})
                failed = False
            except type(fault):
                failed = True
        which = json.loads((folder / "config.json").read_text())["notes"]["which"]
        expected = {"old": old, "new": new}[which]
        assert all(
            torch.equal(a, b)
            for a, b in zip(load(folder).parameters(), expected.parameters(), strict=True)
        )
        save(new, folder)
        assert sorted(folder.iterdir()) == [folder / "config.json", weights(folder)]
        if not failed:
            break
        outcomes.append(which)
    assert outcomes[0] == "old"
    assert outcomes == sorted(outcomes, reverse=True)
    assert len(outcomes) >= 8


def test_what_a_killed_save_left_goes_with_the_next_one(tmp_path, monkeypatch):
    """From each operation on all fail, as when a process is killed and cleans nothing up; the next
    save is of another model.
    """
    operations = [(os, "fsync"), (os, "replace"), (os, "unlink"), (type(tmp_path), "write_bytes")]
    operations += [(type(tmp_path), "write_text")]
    for k in range(1, 40):
        folder = tmp_path / f"{k}"
        count = itertools.count(1)
        save(model(), folder)
        (folder / "weights-mine.safetensors").write_bytes(b"mine")

        def dying(real, k=k, count=count):
            def operation(*arguments, **options):
                if next(count) >= k:
                    raise Crash
                return real(*arguments, **options)

            return operation

        with monkeypatch.context() as patch, suppress(Crash):
            for owner, name in operations:
                patch.setattr(owner, name, dying(getattr(owner, name)))
            save(model(seed=5), folder, state={"a": torch.zeros(3)})
        load(folder)  # the old or the new one
        save(model(seed=1), folder)
        ours = json.loads((folder / "config.json").read_text())["files"]["weights"]["name"]
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            ["config.json", "weights-mine.safetensors", ours]
        )
        if next(count) <= k:
            break
    assert 10 < k < 39


def test_a_full_disk_is_an_error_and_leaves_no_litter(tmp_path, monkeypatch):
    save(model(), tmp_path)
    before = sorted(tmp_path.iterdir())

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save(model(seed=1), tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_fills_up_meanwhile_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    """The second file does not fit: the first one goes; the message names the file."""
    save(model(), tmp_path, state={"a": torch.zeros(3)})
    before = sorted(tmp_path.iterdir())
    real = type(tmp_path).write_bytes

    def filling(path, content):
        if "training" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(type(tmp_path), "write_bytes", filling)
    with pytest.raises(OSError, match=r"training-.* cannot be written: No space left"):
        save(model(seed=1), tmp_path, state={"a": torch.ones(3)})
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["read_text", "read_bytes"])
def test_a_file_that_may_not_be_read_is_not_damaged(run, monkeypatch, name):
    def denied(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(run), name, denied)
    with pytest.raises(PermissionError):
        fit(model(), DATA, RECIPE, folder=run, resume=True, progress=False)


# Checkpoints of a run


RECIPE = Recipe(steps=40, batch_size=8, warmup=3, ema=(0.9, 0.5))
DATA = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(tmp_path):
    fit(model(), DATA, RECIPE, folder=tmp_path, log=Log(save_every=10), progress=False)
    return tmp_path


def test_the_newest_are_kept_and_the_best(tmp_path):
    """Three of four, and that of the least validation loss where it would go."""
    losses = iter([4.0, 1.0, 3.0, 2.0, 5.0])
    fit(
        model(),
        DATA,
        Recipe(steps=50, batch_size=8),
        folder=tmp_path,
        log=Log(save_every=10, keep=2),
        progress=False,
        measures=[(10, lambda model, step: {"validation_loss": next(losses)})],
    )
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "00000020",
        "00000040",
        "00000050",
    ]


def test_a_damaged_checkpoint_is_warned_of_and_the_one_before_is_used(run):
    final = load(run)
    damage(next((run / "checkpoints" / "00000040").glob("training-*")), "truncated")
    damage(run / "checkpoints" / "00000030" / "config.json", "flipped")
    with pytest.warns(RuntimeWarning, match="the one before it is used") as warned:
        records = fit(
            model(), DATA, RECIPE, folder=run, resume=True, log=Log(save_every=10), progress=False
        )
    assert len([w for w in warned if "the one before" in str(w.message)]) == 2
    assert [record.step for record in records] == list(range(21, 41))
    assert all(
        torch.equal(a, b) for a, b in zip(load(run).parameters(), final.parameters(), strict=True)
    )


def test_a_damaged_checkpoint_takes_no_sound_ones_place(run):
    """The run resumes from 30, saves at 35 with keep = 1: that one stays, and not 40."""

    def stop(record):
        if record.step == 36:
            raise Crash

    damage(next((run / "checkpoints" / "00000040").glob("training-*")), "truncated")
    with pytest.warns(RuntimeWarning, match="the one before"), pytest.raises(Crash):
        fit(
            model(),
            DATA,
            RECIPE,
            folder=run,
            resume=True,
            log=Log(save_every=5, keep=1),
            callback=stop,
            progress=False,
        )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00000035"]


def test_a_checkpoint_that_goes_while_it_is_read_is_passed_over(run, monkeypatch):
    """As when a training goes on meanwhile: no warning, and the newest of those that are there
    then.
    """
    (run / "config.json").unlink()
    real = type(run).read_bytes
    gone = run / "checkpoints" / "00000040"

    def read(path):
        if gone in path.parents and gone.exists():
            shutil.rmtree(gone)
        return real(path)

    monkeypatch.setattr(type(run), "read_bytes", read)
    state = load_file(next((run / "checkpoints" / "00000030").glob("training-*")))
    assert all(
        torch.equal(state["average.0." + name], value)
        for name, value in load(run).named_parameters()
    )


def test_what_others_put_among_the_checkpoints_stays(run):
    """Samples in the folder of a checkpoint, numbered folders of other programs, links: when a run
    goes on, and prunes.
    """
    steps = run / "checkpoints"
    (steps / "00000020" / "samples.npz").write_bytes(b"mine")
    for name in ("7", "00000007", "00000001"):
        (steps / name).mkdir()
        (steps / name / "mine.txt").write_text("mine")
    (steps / "00000001" / "config.json").write_text('{"model_type": "bert"}')
    shutil.copytree(steps / "00000030", run / "archive")
    shutil.rmtree(steps / "00000030")
    (steps / "00000030").symlink_to(run / "archive")
    before = sorted(path.name for path in (run / "archive").iterdir())
    for path in (steps / "00000040").iterdir():
        path.unlink()
    fit(
        model(),
        DATA,
        RECIPE,
        folder=run,
        resume=True,
        log=Log(save_every=10, keep=1),
        progress=False,
    )
    assert sorted(path.name for path in steps.iterdir()) == [
        "00000001",
        "00000007",
        "00000020",
        "00000040",
        "7",
    ]
    assert [path.name for path in (steps / "00000020").iterdir()] == ["samples.npz"]
    assert sorted(path.name for path in (steps / "00000001").iterdir()) == [
        "config.json",
        "mine.txt",
    ]
    assert (steps / "7" / "mine.txt").exists()
    assert sorted(path.name for path in (run / "archive").iterdir()) == before


def test_metrics_of_something_else_are_not_overwritten(tmp_path):
    """Lines of a run that was killed before its first checkpoint are, and be it within the first
    line.
    """
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1, "step": 10, "seconds": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl was not written by a training run"):
        fit(model(), DATA, RECIPE, folder=tmp_path, progress=False)
    assert path.read_text() == '{"epoch": 1, "step": 10, "seconds": 3}\n'
    for left in ('{"step": 10, "lo', '{"step": 10, "loss": 1.0, "lr": 0.1, "seconds": 2.0}\n{"st'):
        path.write_text(left)
        fit(model(), DATA, Recipe(steps=2, batch_size=8), folder=tmp_path, progress=False)
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2]
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


def test_no_sound_checkpoint_is_an_error(run):
    for path in (run / "checkpoints").iterdir():
        damage(path / "config.json", "truncated")
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match="all checkpoints"):
        fit(model(), DATA, RECIPE, folder=run, resume=True, progress=False)


def test_a_checkpoint_that_was_never_finished_is_none(run):
    """The config is written last: without it a folder is not looked at, and goes with the next
    checkpoint.
    """
    litter = run / "checkpoints" / "00000035"
    litter.mkdir()
    (litter / "weights-0.safetensors").write_bytes(b"half")
    fit(model(), DATA, RECIPE, folder=run, resume=True, progress=False)
    (run / "config.json").unlink()
    assert load(run).place()[0] == torch.float32


def test_a_run_that_is_not_over_loads_its_newest_checkpoint_and_any_average(run):
    state = load_file(next((run / "checkpoints" / "00000040").glob("training-*")))
    for ema, prefix in (
        (0.9, "average.0."),
        (0.5, "average.1."),
        (0, "model."),
        (None, "average.0."),
    ):
        loaded = load(run, ema=ema)
        assert all(
            torch.equal(state[prefix + name], value) for name, value in loaded.named_parameters()
        )
    with pytest.raises(
        CheckpointError,
        match=r"no average of decay 0.7; choose one of 0.9, 0.5, "
        r"or 0",
    ):
        load(run, ema=0.7)
    (run / "config.json").unlink()
    (run / "checkpoints" / "00000040" / "config.json").unlink()
    state = load_file(next((run / "checkpoints" / "00000030").glob("training-*")))
    assert all(
        torch.equal(state["average.0." + name], value)
        for name, value in load(run).named_parameters()
    )


def test_a_checkpoint_holds_config_and_versions(run):
    config = json.loads((run / "checkpoints" / "00000040" / "config.json").read_text())
    assert config["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (
        config["notes"]["recipe"]["steps"],
        config["notes"]["step"],
        config["notes"]["decays"],
    ) == (40, 40, [0.9, 0.5])

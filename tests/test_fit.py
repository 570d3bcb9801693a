"""A training run to its end: that it resumes bit-identical, alone and with others, and what it
writes and measures.
"""

import dataclasses
import errno
import importlib.metadata
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch import distributed, nn

from sdekit_diffusion import (
    CheckpointError,
    Log,
    Recipe,
    ScoreModel,
    Training,
    dsm_loss,
    fit,
    load,
    nets,
    save,
    validation_loss,
)
from sdekit_diffusion.__main__ import main
from sdekit_diffusion._training import interrupt
from sdekit_diffusion.data._batches import AbstractSource, Shuffled

RECIPE = Recipe(steps=24, batch_size=10, warmup=3, ema=(0.9, 0.5))
DATA = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
LOG = Log(log_every=4, save_every=6)
RUN = "sdekit_diffusion._training.run"


def together(target, *arguments):
    """Two processes to their end."""
    torch.multiprocessing.start_processes(target, arguments, nprocs=2, start_method="forkserver")


class Dropping(nn.Module):
    """An MLP with dropout, in which torch's own generator has a say."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Dropout(0.3), nn.Linear(16, 2))

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], dim=1))


class Odd(nn.Module):
    """Shares a weight, freezes another, never uses a third, and has statistics of its batches."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.frozen, self.unused = (nn.Linear(3, 3) for _ in range(4))
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)
        self.last = nn.Linear(3, 2)

    def forward(self, x, t):
        return self.last(
            self.norm(self.second(torch.tanh(self.first(torch.cat([x, t[:, None]], dim=1)))))
            + self.frozen.bias
        )


def model(net=Dropping, sde="vp", predicts="noise"):
    torch.manual_seed(0)
    return ScoreModel(net(), sde, predicts, shape=(2,))


def mlp():
    return nets.MLP(shape=(2,), width=16, depth=1)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def lines(folder):
    """metrics.jsonl but for the seconds."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


# Going on


@pytest.mark.parametrize("step", [0, 1, 7, 24])
def test_a_state_goes_on_bit_for_bit(step):
    """After any update, dropout and several averages included; what torch's generator does in
    between does not matter.
    """
    whole = model()
    stopped = model()
    other = model()
    losses = [record.loss for record in Training(whole, DATA, RECIPE)]
    training = Training(stopped, DATA, RECIPE)
    for _ in range(step):
        next(training)
    state = training.state_dict()
    torch.manual_seed(77)
    going = Training(other, DATA, RECIPE)
    going.load_state_dict(state)
    assert going.step == step
    rest = [record.loss for record in going]
    assert torch.equal(torch.stack(losses), torch.stack([*losses[:step], *rest]))
    assert equal(other, whole)
    assert not other.training


def test_states_of_other_trainings_are_refused():
    training = Training(model(), DATA, RECIPE)
    next(training)
    state = training.state_dict()
    with pytest.raises(ValueError, match="not of such a training"):
        Training(model(mlp), DATA, RECIPE).load_state_dict(state)
    with pytest.raises(ValueError, match=r"average\.2"):
        Training(model(), DATA, Recipe(ema=(0.9, 0.5, 0.1))).load_state_dict(state)
    with pytest.raises(ValueError, match="more than 1 averages"):
        Training(model(), DATA, Recipe(ema=0.9)).load_state_dict(state)
    list(training)
    with pytest.raises(ValueError, match="the training is over"):
        training.state_dict()


class Stop(BaseException):
    """What ends a run too soon."""


@pytest.mark.parametrize("at", [3, 6, 11, 23])
def test_a_run_goes_on_from_its_newest_checkpoint(tmp_path, at):
    """Weights, lines and checkpoints are those of a run without a break; a line that was cut in two
    is dropped.
    """
    fit(model(), DATA, RECIPE, folder=tmp_path / "whole", log=LOG, progress=False)

    def stop(record):
        if record.step == at:
            raise Stop

    run = tmp_path / "stopped"
    with pytest.raises(Stop):
        fit(model(), DATA, RECIPE, folder=run, log=LOG, callback=stop, progress=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    trained = model()
    records = fit(trained, DATA, RECIPE, folder=run, resume=True, log=LOG, progress=False)
    assert records[0].step == (at - 1) // 6 * 6 + 1
    assert lines(run) == lines(tmp_path / "whole")
    for part in ("", "checkpoints/00000024", "checkpoints/00000012"):
        ours, theirs = (
            sorted(p.name for p in (folder / part).glob("*.safetensors"))
            for folder in (run, tmp_path / "whole")
        )
        assert ours == theirs  # named by their content
    assert equal(load(run, net=Dropping()), trained)
    seconds = [
        json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    assert seconds == sorted(seconds)


def test_runs_that_differ_are_refused(tmp_path):
    fit(model(), DATA, RECIPE, folder=tmp_path, log=LOG, progress=False)
    with pytest.raises(ValueError, match="checkpoints of a run; continue it with resume=True"):
        fit(model(), DATA, RECIPE, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"begun with lr = 0\.002, not 0\.1"):
        fit(
            model(),
            DATA,
            Recipe(steps=24, batch_size=10, warmup=3, ema=(0.9, 0.5), lr=0.1),
            folder=tmp_path,
            resume=True,
        )
    other = DATA.clone()
    other[7] = 0.0
    for data in (DATA[1:], other):
        with pytest.raises(ValueError, match="on other data"):
            fit(model(), data, RECIPE, folder=tmp_path, resume=True)
    for trained, what in [
        (model(sde="subvp"), r"sde = .*'vp'.*, not .*'subvp'"),
        (model(predicts="data"), "predicts = noise, not data"),
        (model().double(), "dtype = float32, not float64"),
        (model(mlp), "net = "),
    ]:
        with pytest.raises(ValueError, match=f"begun with {what}"):
            fit(trained, DATA, RECIPE, folder=tmp_path, resume=True)
    assert equal(
        load(tmp_path, net=Dropping()), load(tmp_path / "checkpoints" / "00000024", net=Dropping())
    )
    shutil.rmtree(tmp_path / "checkpoints")
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds a model, and no checkpoints"):
            fit(model(), DATA, RECIPE, folder=tmp_path, resume=resume)
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match="start at 1"):
            Log(save_every=wrong)


def signalling(number, at):
    """A callback that sends this process a signal after an update."""

    def callback(record):
        if record.step == at:
            signal.raise_signal(number)

    return callback


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def interruptible():
    """Signals act as Python has it, also where a shell has started the tests in the background, or
    with nohup.
    """
    usual = (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL)
    before = [signal.signal(*each) for each in zip(SIGNALS, usual, strict=True)]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number", "at"), [("SIGINT", 1), ("SIGINT", 11), ("SIGTERM", 3), ("SIGHUP", 18)]
)
def test_a_signal_ends_a_run_with_a_checkpoint(tmp_path, number, at):
    """Ctrl-C before the first checkpoint, at one, between two: nothing is lost, weights and lines
    are those of a whole run.
    """
    fit(model(), DATA, RECIPE, folder=tmp_path / "whole", log=LOG, progress=False)
    run = tmp_path / "run"
    trained = model()
    before = [signal.getsignal(n) for n in SIGNALS]
    callback = signalling(getattr(signal, number), at)
    with pytest.raises(
        KeyboardInterrupt,
        match=rf"at update {at} of 24; the checkpoint is saved: "
        rf".* resume=True.*/{at:08d}",
    ) as caught:
        fit(model(), DATA, RECIPE, folder=run, log=LOG, progress=False, callback=callback)
    assert interrupt.number_of(caught.value) == getattr(signal, number)
    assert [signal.getsignal(n) for n in SIGNALS] == before
    records = fit(trained, DATA, RECIPE, folder=run, log=LOG, resume=True, progress=False)
    assert records[0].step == at + 1
    assert equal(load(run, net=Dropping()), load(tmp_path / "whole", net=Dropping()))
    assert lines(run) == lines(tmp_path / "whole")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    ("writer", "minutes", "said"),
    [
        ("save", 1e-9, "interrupted at update 1 of 24; the checkpoint is saved: .* resume=True"),
        ("write", None, "interrupted when the training run was complete; the model is in"),
    ],
)
def test_a_signal_while_the_end_is_written_is_heard(
    tmp_path, monkeypatch, number, writer, minutes, said
):
    original = getattr(importlib.import_module(RUN), writer)

    def interrupted(*given, **more):
        signal.raise_signal(getattr(signal, number))
        return original(*given, **more)

    monkeypatch.setattr(f"{RUN}.{writer}", interrupted)
    with pytest.raises(KeyboardInterrupt, match=said):
        fit(model(), DATA, RECIPE, folder=tmp_path, log=LOG, minutes=minutes, progress=False)
    monkeypatch.undo()
    records = fit(model(), DATA, RECIPE, folder=tmp_path, log=LOG, resume=True, progress=False)
    assert len(records) == (23 if minutes else 0)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_that_nobody_looked_for_acts_after_the_block():
    with pytest.raises(KeyboardInterrupt), interrupt.remember_signals():
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("where", ["callback", "measure"])
def test_an_interruption_after_an_update_loses_nothing(tmp_path, where):
    """In a debugger, or by a second Ctrl-C while something is measured."""
    fit(model(), DATA, RECIPE, folder=tmp_path / "whole", log=LOG, progress=False)

    def callback(record):
        if where == "callback" and record.step == 8:
            raise KeyboardInterrupt

    def measure(model, step):
        if where == "measure" and step == 8:
            raise KeyboardInterrupt
        return {}

    run = tmp_path / "run"
    with pytest.raises(
        KeyboardInterrupt, match="interrupted at update 8 of 24; the checkpoint is saved"
    ):
        fit(
            model(),
            DATA,
            RECIPE,
            folder=run,
            log=LOG,
            progress=False,
            callback=callback,
            measures=[(8, measure)],
        )
    assert fit(model(), DATA, RECIPE, folder=run, log=LOG, resume=True, progress=False)[0].step == 9
    assert lines(run) == lines(tmp_path / "whole")
    assert equal(load(run, net=Dropping()), load(tmp_path / "whole", net=Dropping()))


@pytest.mark.parametrize("where", ["callback", "measure"])
@pytest.mark.parametrize("at", [5, 10, 20, 24])
def test_an_interruption_before_a_measurement_loses_none(tmp_path, where, at):
    """What was due is measured when the run resumes: lines and checkpoints are those of a whole
    run.
    """
    interrupts = []

    def interrupt_at(place, step):
        if place == where and step == at and interrupts:
            raise interrupts.pop()

    def measure(model, step):
        interrupt_at("measure", step)
        return validation_loss(DATA[:20])(model, step)

    def run(folder, **options):
        fit(
            model(),
            DATA,
            RECIPE,
            folder=tmp_path / folder,
            log=LOG,
            progress=False,
            callback=lambda record: interrupt_at("callback", record.step),
            measures=[(5, measure)],
            **options,
        )

    run("whole")
    interrupts.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt, match=f"update {at} of 24; the checkpoint is saved"):
        run("run")
    run("run", resume=True)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    checkpoints = [
        sorted(path.name for path in (tmp_path / folder / "checkpoints").iterdir())
        for folder in ("run", "whole")
    ]
    assert checkpoints[0] == checkpoints[1]


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_ends_an_update_and_saves_no_half_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(
        interrupt, "_SAME_SIGNAL_SECONDS", -1.0
    )  # else signals within a second are one
    fit(model(), DATA, RECIPE, folder=tmp_path / "whole", log=LOG, progress=False)
    trained = model()
    calls = itertools.count(1)

    def twice(module, given):
        if next(calls) == 9:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    trained.net.register_forward_pre_hook(twice)
    run = tmp_path / "run"
    with pytest.raises(
        KeyboardInterrupt,
        match=r"interrupted at update 8 of 24; the checkpoint of update 6 is "
        r"saved: .*/00000006",
    ):
        fit(trained, DATA, RECIPE, folder=run, log=LOG, progress=False)
    assert fit(model(), DATA, RECIPE, folder=run, log=LOG, resume=True, progress=False)[0].step == 7
    assert lines(run) == lines(tmp_path / "whole")


def test_handlers_of_others_stay(tmp_path):
    """Where a program has its own, and in threads, which have none."""
    came = []
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        options = {"log": LOG, "progress": False}
        assert (
            len(
                fit(
                    model(),
                    DATA,
                    RECIPE,
                    folder=tmp_path / "a",
                    callback=signalling(signal.SIGINT, 3),
                    **options,
                )
            )
            == 24
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [signal.SIGINT]
    thread = threading.Thread(
        target=lambda: came.extend(fit(model(), DATA, RECIPE, folder=tmp_path / "b", **options))
    )
    thread.start()
    thread.join()
    assert len(came) == 25


def test_a_run_ends_when_its_time_is_over_and_goes_on(tmp_path, capsys):
    """An update at least is made in each call; the model and what is loaded have the averaged
    weights.
    """
    recipe = dataclasses.replace(RECIPE, steps=9)
    fit(model(), DATA, recipe, folder=tmp_path / "whole", log=LOG, progress=False)
    run = tmp_path / "run"
    steps = []
    while not steps or steps[-1] < 9:
        trained = model()
        records = fit(
            trained,
            DATA,
            recipe,
            folder=run,
            log=LOG,
            resume=True,
            minutes=1e-9,
            progress=not steps,
        )
        steps += [record.step for record in records]
        assert equal(trained, load(run, net=Dropping()))
        assert not trained.training
    assert steps == list(range(1, 10))
    assert (
        "minutes are over at update 1 of 9: the same call with resume=True"
        in capsys.readouterr().err
    )
    assert lines(run) == lines(tmp_path / "whole")
    assert (
        len(fit(model(), DATA, RECIPE, folder=tmp_path / "long", minutes=10.0, progress=False))
        == 24
    )
    assert equal(load(run, net=Dropping()), load(tmp_path / "whole", net=Dropping()))
    for minutes in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a number above 0"):
            fit(model(), DATA, recipe, folder=tmp_path / "none", minutes=minutes)
    with pytest.raises(ValueError, match="give its folder= too"):
        fit(model(), DATA, recipe, minutes=1.0)


def stopping(at):
    def stop(record):
        if record.step == at:
            raise Stop

    return stop


def test_networks_of_every_kind_go_on(tmp_path, monkeypatch):
    """Weights that are shared, frozen or unused, and statistics, which a trial of the compiler
    leaves as they were.
    """
    monkeypatch.setattr(torch, "compile", lambda net: net)
    recipe = dataclasses.replace(RECIPE, compile=True)
    whole = model(Odd)
    stopped = model(Odd)
    fit(whole, DATA, recipe, folder=tmp_path / "whole", log=LOG, progress=False)
    with pytest.raises(Stop):
        fit(
            model(Odd),
            DATA,
            recipe,
            folder=tmp_path / "run",
            log=LOG,
            callback=stopping(9),
            progress=False,
        )
    fit(stopped, DATA, recipe, folder=tmp_path / "run", log=LOG, resume=True, progress=False)
    plain = model(Odd)
    fit(plain, DATA, RECIPE, progress=False)
    for other in (
        stopped,
        plain,
        load(tmp_path / "run", net=Odd()),
        load(tmp_path / "run", net=Odd(), ema=0.9),
    ):
        assert all(
            torch.equal(value, whole.state_dict()[name])
            for name, value in other.state_dict().items()
        )


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left on device"), Stop()], ids=["full", "gone"]
)
def test_faults_at_every_operation_of_a_run_lose_one_interval_at_most(tmp_path, monkeypatch, fault):
    """Each write, fsync, rename and removal fails in turn; the run then goes on to the same weights
    and lines.
    """
    recipe = dataclasses.replace(RECIPE, steps=4, ema=0.9)
    log = Log(log_every=1, save_every=2, keep=1)
    whole = model()
    fit(whole, DATA, recipe, folder=tmp_path / "whole", log=log, progress=False)
    operations = [(os, "fsync"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")]
    operations += [(type(tmp_path), "write_bytes"), (type(tmp_path), "write_text")]
    for k in itertools.count():
        run = tmp_path / f"{k}"
        count = itertools.count()
        steps = []

        def failing(real, k=k, count=count):
            def operation(*arguments, **options):
                if next(count) == k:
                    raise fault
                return real(*arguments, **options)

            return operation

        with monkeypatch.context() as patch:
            for owner, name in operations:
                patch.setattr(owner, name, failing(getattr(owner, name)))
            try:
                fit(
                    model(),
                    DATA,
                    recipe,
                    folder=run,
                    log=log,
                    progress=False,
                    callback=steps.append,
                )
                failed = False
            except type(fault):
                failed = True
        trained = model()
        done = steps[-1].step if steps else 0
        records = fit(trained, DATA, recipe, folder=run, log=log, resume=True, progress=False)
        assert len(records) <= 4 - (done - 1) // 2 * 2
        assert equal(trained, whole)
        assert equal(load(run, net=Dropping()), whole)
        assert lines(run) == lines(tmp_path / "whole")
        assert max(path.name for path in (run / "checkpoints").iterdir()) == "00000004"
        if not failed:
            break
    assert k > 35


def test_lines_that_are_not_ours_are_dropped(tmp_path):
    """What a loss of power may leave."""
    fit(model(), DATA, RECIPE, folder=tmp_path, log=LOG, progress=False)
    found = lines(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'3\n[]\n{}\n{"step": null}\n\x00\x00\xff\xfe\n{"st')
    fit(model(), DATA, RECIPE, folder=tmp_path, log=LOG, resume=True, progress=False)
    assert lines(tmp_path) == found


def test_one_training_at_a_time_writes_to_a_folder(tmp_path):
    def another(record):
        if record.step == 7:
            fit(model(), DATA, RECIPE, folder=tmp_path, log=LOG, resume=True, progress=False)

    with pytest.raises(OSError, match="another process is at work in"):
        fit(model(), DATA, RECIPE, folder=tmp_path, log=LOG, callback=another, progress=False)
    assert (
        fit(model(), DATA, RECIPE, folder=tmp_path, log=LOG, resume=True, progress=False)[0].step
        == 7
    )


def test_the_checkpoint_that_is_best_is_kept_wherever_it_is(tmp_path):
    """Between two others, and with the loss that was measured of it; one that was not measured is
    not taken for it.
    """
    losses = iter([3.0, 1.0, 2.0])
    fit(
        model(),
        DATA,
        RECIPE,
        folder=tmp_path,
        log=Log(save_every=6, keep=1),
        progress=False,
        measures=[(8, lambda model, step: {"validation_loss": torch.tensor(next(losses))})],
    )
    found = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in found] == ["00000016", "00000024"]
    assert [
        json.loads((path / "config.json").read_text())["notes"]["validation_loss"] for path in found
    ] == [1.0, 2.0]
    weights = [
        next(load(path, net=model().net, **which).parameters())
        for path, which in ((found[0], {}), (tmp_path, {"best": True}), (tmp_path, {}))
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with pytest.raises(ValueError, match="ema, width and best each name other weights"):
        load(tmp_path, net=model().net, ema=0.0, best=True)


def test_a_run_without_a_validation_loss_has_no_best_checkpoint(tmp_path):
    fit(model(), DATA, RECIPE, folder=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="no checkpoint with a validation loss"):
        load(tmp_path, best=True)


def test_other_files_among_the_checkpoints_stay(tmp_path):
    def mine(record):
        if record.step == 7:
            shutil.copytree(
                tmp_path / "checkpoints" / "00000006", tmp_path / "checkpoints" / "mine"
            )
            (tmp_path / "checkpoints" / "notes.txt").write_text("mine")

    fit(
        model(),
        DATA,
        RECIPE,
        folder=tmp_path,
        log=Log(save_every=6, keep=1),
        callback=mine,
        progress=False,
    )
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "00000024",
        "mine",
        "notes.txt",
    ]
    assert fit(model(), DATA, RECIPE, folder=tmp_path, resume=True, progress=False) == []


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """The gradient of sqrt at 0 is infinite, and the loss is not."""

    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x, t):
            return x + self.weight.sqrt()

    with pytest.raises(ArithmeticError, match="weights are not finite after update 1"):
        fit(model(Steep), DATA, RECIPE, folder=tmp_path, log=Log(save_every=1), progress=False)
    assert not (tmp_path / "checkpoints").exists()


def written(run):
    """Bytes of metrics.jsonl."""
    path = run / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def train(run, *argv, steps=300):
    """The command that is killed."""
    return [
        *(
            "train",
            str(run),
            "--data",
            "moons",
            "--width",
            "16",
            "--depth",
            "1",
            "--steps",
            str(steps),
            "--batch-size",
            "16",
        ),
        *("--save-every", "20", "--keep", "2", *argv),
    ]


def command(argv, said=os.devnull):
    """A process that trains, on one thread; what it writes on stderr goes into a file."""
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), sys.stderr.fileno())
    torch.set_num_threads(1)
    sys.exit(main(argv))


def test_killed_runs_go_on_to_the_same_weights(context, tmp_path):
    """SIGKILL at a random moment: nothing before the last checkpoint is lost, nothing at the end
    differs. `benchmarks/kill.py` does it twenty times.
    """
    assert main(train(tmp_path / "whole", steps=160)) == 0
    draw = random.Random(0)  # noqa: S311
    run = tmp_path / "killed"
    argv = train(run, "--resume", steps=160)
    process = context.Process(target=command, args=(argv,))
    process.start()
    goal = written(run) + draw.uniform(0.05, 0.3) * written(tmp_path / "whole")
    deadline = time.monotonic() + 300
    while written(run) < goal:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.03))
    process.kill()
    process.join()
    assert main(argv) == 0
    assert equal(load(run), load(tmp_path / "whole"))
    assert lines(run) == lines(tmp_path / "whole")


# Several processes


def gradients(recipe, dtype=torch.float64):
    """Of the first update, and its loss."""
    trained = model(mlp).to(dtype)
    record = next(Training(trained, DATA.to(dtype), recipe))
    return [weight.grad.clone() for weight in trained.parameters()], record.loss


def worker(number, folder, recipes):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2
    )
    torch.set_num_threads(1)
    found = [gradients(recipe) for recipe in recipes]
    trained = model(mlp).double()
    records = fit(
        trained, DATA.double(), recipes[0], folder=f"{folder}/run", log=LOG, progress=False
    )
    with pytest.raises(RuntimeError, match="do not see the same checkpoints"):
        fit(
            model(mlp).double(),
            DATA.double(),
            recipes[0],
            folder=f"{folder}/{['run', 'else'][number]}",
            resume=True,
        )
    torch.save(
        {"gradients": found, "losses": [r.loss for r in records], "weights": trained.state_dict()},
        f"{folder}/{number}",
    )
    distributed.destroy_process_group()


@pytest.mark.usefixtures("context")
def test_two_processes_train_as_one(tmp_path):
    """Gradients and losses to rounding, with a batch that cannot be halved and in parts too; both
    end with the same weights.
    """
    recipes = [
        Recipe(steps=12, batch_size=9, warmup=3, accumulate=accumulate, weighting=weighting)
        for accumulate, weighting in [(1, "plain"), (2, "plain"), (3, "likelihood")]
    ]
    together(worker, str(tmp_path), recipes)
    first, second = (torch.load(tmp_path / str(i), weights_only=True) for i in range(2))
    for recipe, *found in zip(recipes, first["gradients"], second["gradients"], strict=True):
        expected = gradients(recipe)
        for ours, loss in found:
            torch.testing.assert_close(loss, expected[1], rtol=1e-12, atol=0)
            torch.testing.assert_close(ours, expected[0], rtol=1e-12, atol=1e-15)
    assert all(
        torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"]
    )
    alone = model(mlp).double()
    records = fit(alone, DATA.double(), recipes[0], progress=False)
    torch.testing.assert_close([r.loss for r in records], first["losses"], rtol=1e-9, atol=0)
    assert all(
        torch.equal(value, first["weights"][name])
        for name, value in load(tmp_path / "run").state_dict().items()
    )
    assert [line["step"] for line in lines(tmp_path / "run")] == [4, 6, 8, 12]


def stopped(number, folder):
    """Two processes, one of which has a signal, then less time."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2
    )
    torch.set_num_threads(1)
    recipe = dataclasses.replace(RECIPE, batch_size=8)
    run = f"{folder}/run"

    def going(minutes=None, callback=None, run=run):
        options = {"minutes": minutes, "callback": callback, "progress": False}
        return [
            r.step for r in fit(model(), DATA, recipe, folder=run, log=LOG, resume=True, **options)
        ]

    steps = [going(run=f"{folder}/whole")]
    with pytest.raises(KeyboardInterrupt, match="interrupted at update 3 of 24"):
        going(callback=signalling(signal.SIGTERM, 3) if number == 1 else None)
    steps += [going(minutes=[1e-9, 60.0][number]), going(minutes=[60.0, 1e-9][number]), going()]
    torch.save(steps, f"{folder}/{number}")
    distributed.destroy_process_group()


@pytest.mark.usefixtures("context")
def test_processes_stop_after_the_same_update(tmp_path):
    together(stopped, str(tmp_path))
    for number in range(2):
        steps = [(found[0], found[-1]) for found in torch.load(tmp_path / str(number))]
        assert steps == [(1, 24), (4, 4), (5, 5), (6, 24)]
    assert equal(load(tmp_path / "run", net=Dropping()), load(tmp_path / "whole", net=Dropping()))
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


@pytest.mark.parametrize("accumulate", [2, 3, 9])
def test_parts_of_a_batch_add_up(accumulate):
    whole = gradients(Recipe(batch_size=9))
    parts = gradients(Recipe(batch_size=9, accumulate=accumulate))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-15)
    with pytest.raises(ValueError, match="cannot be taken in 10 parts"):
        Training(model(), DATA, Recipe(batch_size=9, accumulate=10))


# The order of samples


@pytest.mark.parametrize(("n", "size"), [(50, 7), (3, 8), (1, 4)])
def test_samples_come_in_the_order_of_the_seed(n, size):
    """Each epoch a permutation, not the same twice; from any number on, in any batches, in any
    parts: the same order.
    """
    source = Shuffled(torch.arange(n))
    total = 4 * n + size

    def seen(size, first=0, part=slice(None), seed=0):
        batches = source.batches(size, seed=seed, first=first, part=part)
        found = []
        while len(found) * size < total:
            found.append(next(batches))
        return torch.stack(found)

    order = seen(1).flatten()
    epochs = order[: 4 * n].reshape(4, n)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(n).expand(4, n))
    assert n < 50 or len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    assert torch.equal(seen(size).flatten()[:total], order[:total])
    assert torch.equal(seen(1, first=n + 1).flatten()[: 2 * n], order[n + 1 : 3 * n + 1])
    halves = [seen(size, part=part) for part in (slice(0, size // 2), slice(size // 2, size))]
    assert torch.equal(torch.cat(halves, dim=1), seen(size))
    assert n < 50 or not torch.equal(seen(1, seed=1).flatten(), order)


class Counting(AbstractSource):
    """A stream of points that has no end and no length."""

    def batches(self, size, *, seed=0, first=0, part=slice(None)):
        while True:
            yield torch.arange(first, first + size)[part, None] / torch.tensor([100.0, -100.0])
            first += size


def test_other_sources_and_rows_train(tmp_path):
    assert len(fit(model(), Counting(), RECIPE, progress=False)) == 24

    class Squares:
        def __len__(self):
            return 50

        def __getitem__(self, rows):
            return DATA[rows]

    np.save(tmp_path / "data.npy", DATA.numpy())
    whole = model()
    fit(whole, DATA, RECIPE, progress=False)
    for rows in (Squares(), DATA.numpy(), np.load(tmp_path / "data.npy", mmap_mode="r")):
        trained = model()
        fit(trained, rows, RECIPE, progress=False)
        assert equal(trained, whole)


# What is measured and how it is computed


def test_measures_see_the_averaged_weights_and_change_nothing(tmp_path):
    seen = []

    def measure(averaged, step):
        assert not averaged.training
        torch.rand(3)
        seen.append((step, [weight.clone() for weight in averaged.parameters()]))
        return {"found": step / 2}

    measured = model()
    plain = model()
    measures = [(10, measure), (24, validation_loss(DATA, RECIPE))]
    fit(measured, DATA, RECIPE, measures=measures, folder=tmp_path, log=LOG, progress=False)
    fit(plain, DATA, RECIPE, progress=False)
    assert equal(measured, plain)
    assert [step for step, _ in seen] == [10, 20, 24]
    assert all(torch.equal(a, b) for a, b in zip(seen[-1][1], measured.parameters(), strict=True))
    assert [line.get("found") for line in lines(tmp_path) if line["step"] in (10, 12, 20, 24)] == [
        5.0,
        None,
        10.0,
        12.0,
    ]
    with torch.no_grad():
        expected = float(dsm_loss(measured, DATA, seed=0).mean())
    assert lines(tmp_path)[-1]["validation_loss"] == pytest.approx(expected, rel=1e-6)
    config = json.loads((tmp_path / "checkpoints" / "00000024" / "config.json").read_text())
    assert config["notes"]["validation_loss"] == lines(tmp_path)[-1]["validation_loss"]


def test_measures_are_refused():
    with pytest.raises(ValueError, match="of a measure must be a positive integer; not 0"):
        fit(model(), DATA, RECIPE, measures=[(0, lambda model, step: {})], progress=False)
    with pytest.raises(ValueError, match="names loss, lr, seconds, step are the training's own"):
        fit(
            model(), DATA, RECIPE, measures=[(2, lambda model, step: {"loss": 1.0})], progress=False
        )
    with pytest.raises(ValueError, match="no samples to find a validation loss of"):
        validation_loss(DATA[:0])


@pytest.mark.parametrize(
    ("options", "recipe", "name"),
    [
        ({"resume": True}, RECIPE, "resume=True"),
        ({"log": Log()}, RECIPE, "log="),
        ({"notes": {"a": 1}}, RECIPE, "notes="),
        ({}, dataclasses.replace(RECIPE, widths=(0.1,)), "Recipe(widths=)"),
    ],
)
def test_what_only_a_stored_run_has_needs_a_folder(options, recipe, name):
    with pytest.raises(ValueError, match=re.escape(f"give its folder= too, or leave {name} out")):
        fit(model(), DATA, recipe, progress=False, **options)


def test_values_of_measures_need_a_folder():
    steps = []
    silent = [(2, lambda model, step: steps.append(step) or {})]
    short = dataclasses.replace(RECIPE, steps=4)
    fit(model(), DATA, short, measures=silent, progress=False)
    assert steps == [2, 4]
    with pytest.raises(ValueError, match=r"gives 'validation_loss', .* give folder= too"):
        fit(model(), DATA, short, measures=[(2, validation_loss(DATA))], progress=False)
    done = []
    with pytest.raises(ValueError, match="give folder= too"):
        fit(
            model(),
            DATA,
            RECIPE,
            measures=[(8, validation_loss(DATA))],
            callback=done.append,
            progress=False,
        )
    assert not done  # refused before the first update


@pytest.mark.parametrize("measures", [[validation_loss(DATA)], [(2, 3)], validation_loss(DATA)])
def test_measures_are_pairs(measures, tmp_path):
    with pytest.raises(TypeError, match=r"pairs \(every, function\), such as"):
        fit(model(), DATA, RECIPE, measures=measures, folder=tmp_path, progress=False)


@pytest.mark.parametrize("recipe", [torch.zeros(4), np.zeros(4), 30, {"steps": 30}])
def test_what_is_no_recipe_is_refused(recipe):
    for call in (
        lambda: fit(model(), DATA, recipe, progress=False),
        lambda: Training(model(), DATA, recipe),
        lambda: validation_loss(DATA, recipe),
    ):
        with pytest.raises(TypeError, match=r"recipe is a Recipe, .* fit\(model, \(X, y\)\)"):
            call()


def test_two_measures_of_one_name_are_refused(tmp_path):
    """Also where they are not due together; one function may be given twice."""
    short = dataclasses.replace(RECIPE, steps=9)
    first, second = validation_loss(DATA), validation_loss(DATA + 1)
    for every in (2, 3):
        measures = [(2, first), (every, second)]
        done = []
        options = {"measures": measures, "callback": done.append, "progress": False}
        with pytest.raises(ValueError, match="two measures give 'validation_loss'"):
            fit(model(), DATA, short, folder=tmp_path / str(every), **options)
        assert len(done) == every
    twice = [(2, first), (3, first)]
    fit(model(), DATA, short, folder=tmp_path / "twice", measures=twice, progress=False)


class Labelled(nn.Module):
    """A network whose output depends on a label per sample."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, t, y=0.0, scale=1.0):
        return scale * (self.layer(x) + torch.as_tensor(y).reshape(-1, 1))


@pytest.mark.parametrize("y", [torch.arange(10.0), list(range(10)), {"labels": torch.arange(10.0)}])
@pytest.mark.parametrize("folder", [False, True])
def test_labels_do_not_meet_shuffled_rows(tmp_path, y, folder):
    """As many labels as rows in a batch: every update would have given them to other rows."""
    conditioned = model(Labelled).given(y=y)
    before = list(tmp_path.iterdir())
    with pytest.raises(
        ValueError,
        match=r"given y, .* training shuffles .* fit\(model, \{'x': x, 'y': y\}\)",
    ):
        Training(conditioned, DATA, RECIPE)
    with pytest.raises(ValueError, match="training shuffles"):
        fit(conditioned, DATA, RECIPE, progress=False, **({"folder": tmp_path} if folder else {}))
    assert list(tmp_path.iterdir()) == before


def test_single_values_are_trained_with(tmp_path):
    """One value for all samples; but nothing is written that would forget it."""
    plain = model(Labelled)
    doubled = model(Labelled).given(scale=torch.tensor(2.0), y=0.0)
    fit(plain, DATA, RECIPE, progress=False)
    fit(doubled, DATA, RECIPE, progress=False)
    assert not equal(plain, doubled)
    with pytest.raises(
        ValueError,
        match=r"given scale, y, which a checkpoint does not hold: .* call "
        r"given\(scale=\.\.\., y=\.\.\.\)",
    ):
        fit(doubled, DATA, RECIPE, folder=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="a checkpoint does not hold"):
        save(doubled, tmp_path / "saved")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_validation_loss_gives_labels_to_their_samples():
    """300 samples, more than are evaluated together; the loss of each alone, with its own label."""
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.linspace(-3, 3, 300)
    conditioned = model(Labelled).given(y=labels)
    found = validation_loss(x)(conditioned, 0)["validation_loss"]
    with torch.no_grad():
        alone = [
            dsm_loss(conditioned.given(y=labels[i : i + 1]), x[i : i + 1], seed=0, first=i)
            for i in range(300)
        ]
    assert found == pytest.approx(float(torch.cat(alone).mean()), rel=1e-5)
    with pytest.raises(ValueError, match="250 entries for 300 samples"):
        validation_loss(x)(conditioned.given(y=labels[:250]), 0)


def test_a_validation_loss_is_of_images_as_they_are():
    """Also where the training run mirrors them."""
    images = torch.randn(40, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    identity = ScoreModel(lambda x, t: x, "vp", shape=(1, 2, 3))
    found = validation_loss(images, Recipe(flip=True, seed=3))(identity, 0)["validation_loss"]
    assert found == pytest.approx(float(dsm_loss(identity, images, seed=3).mean()), rel=1e-6)


def test_validation_dequantises():
    levels = torch.randint(0, 4, (300, 2), generator=torch.Generator().manual_seed(0))
    recipe = Recipe(seed=3)
    seen = []

    def transform(rows, u):
        seen.append(u)
        return (rows + u) / 4

    measure = validation_loss(levels, recipe, transform=transform)
    first = measure(model().eval(), 1)
    second = measure(model().eval(), 2)
    assert first == second
    assert [len(u) for u in seen[:2]] == [250, 50]
    assert torch.cat(seen[:2]).unique().numel() == 600


def test_validation_refuses_levels_without_their_scale():
    """As `fit` and `dsm_loss` do; the loss of bytes was 50 times that of the model's inputs."""
    levels = torch.randint(0, 17, (30, 2), dtype=torch.uint8)
    for data in (levels, (levels, levels[:, 0]), {"x": levels, "label": levels[:, 0]}):
        with pytest.raises(
            TypeError, match=r"data of torch.uint8 need transform=, .*scale\.encode"
        ):
            validation_loss(data, RECIPE)


def test_schedules():
    for schedule, middle in (("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)):
        recipe = Recipe(steps=110, warmup=10, lr=2.0, schedule=schedule)
        assert recipe.rate(0) == pytest.approx(0.2)
        assert recipe.rate(60) == pytest.approx(2 * middle)
    linear = Recipe(steps=110, warmup=10, lr=2.0, schedule="linear")
    assert linear.rate(35) == pytest.approx(1.5)
    for bad in ({"schedule": "step"}, {"precision": "half"}):
        with pytest.raises(ValueError, match="must be one of"):
            Recipe(**bad)
    with pytest.raises(ValueError, match="ema = "):
        Recipe(ema=())


def test_half_precision_is_of_the_products_alone():
    """bfloat16 within the network, weights and averages in float32, and a loss that differs by its
    rounding.
    """
    kinds = []
    trained = model()
    trained.net.layers[0].register_forward_hook(lambda module, given, out: kinds.append(out.dtype))
    recipe = Recipe(steps=24, batch_size=10, warmup=3, precision="bfloat16")
    half = torch.stack([record.loss for record in Training(trained, DATA, recipe)])
    full = torch.stack(
        [
            record.loss
            for record in Training(model(), DATA, Recipe(steps=24, batch_size=10, warmup=3))
        ]
    )
    assert set(kinds) == {torch.bfloat16}
    with pytest.raises(ValueError, match="products of float64 are not taken in bfloat16"):
        Training(model().double(), DATA, recipe)
    with pytest.raises(ValueError, match=r"vanish in weights of torch\.bfloat16"):
        Training(model().bfloat16(), DATA, recipe)
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0)


def test_what_cannot_be_compiled_is_trained_all_the_same(monkeypatch):
    def broken(net):
        def call(*arguments):
            raise RuntimeError("no compiler\nand more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    compiled = model()
    plain = model()
    with pytest.warns(
        RuntimeWarning,
        match=r"torch.compile failed \(no compiler\); training continues without it",
    ):
        fit(compiled, DATA, Recipe(steps=5, compile=True), progress=False)
    fit(plain, DATA, Recipe(steps=5), progress=False)
    assert equal(compiled, plain)


def test_compiled_networks_train_the_same_weights(monkeypatch):
    """Through the compiled call, which here notes that it was made."""
    calls = []

    def noting(net):
        return lambda x, t: (calls.append(1), net(x, t))[1]

    monkeypatch.setattr(torch, "compile", noting)
    compiled = model()
    plain = model()
    fit(compiled, DATA, Recipe(steps=5, compile=True), progress=False)
    fit(plain, DATA, Recipe(steps=5), progress=False)
    assert len(calls) == 6
    assert equal(compiled, plain)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_training_loop_ends_a_command_with_a_message(
    tmp_path, monkeypatch, capsys, number
):
    monkeypatch.setattr("sdekit_diffusion.data.load", lambda *_, **__: signal.raise_signal(number))
    assert main(train(tmp_path / "run", steps=40)) == 128 + number
    assert capsys.readouterr().err == "error: interrupted; nothing is left running\n"
    assert [signal.getsignal(n) for n in SIGNALS[1:]] == [signal.SIG_DFL] * 2


FAILS_AT_TORCH = """
import sys
class Fails:
    def find_spec(self, name, *rest):
        if name == "torch": raise {error}
sys.meta_path.insert(0, Fails())
sys.excepthook = lambda *raised: sys.stderr.write("an earlier hook")
"""


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        (["sdekit-diffusion"], True),
        (["-m", "sdekit_diffusion", "train"], True),
        (["-msdekit_diffusion.__main__"], True),
        (["-m", "other", "-m", "sdekit_diffusion"], False),
        (["other/__init__.py"], False),
    ],
)
def test_an_interruption_while_the_command_line_is_imported(tmp_path, command, ours):
    """Ctrl-C at the import of torch, which takes long: in one line, but not in programs of others,
    nor for other errors.
    """
    (tmp_path / "other").mkdir()
    for script in ("sdekit-diffusion", "other/__init__.py"):
        (tmp_path / script).write_text("import sdekit_diffusion")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    for error in (KeyboardInterrupt, ArithmeticError) if ours else (KeyboardInterrupt,):
        (tmp_path / "sitecustomize.py").write_text(FAILS_AT_TORCH.format(error=error.__name__))
        ended = subprocess.run(  # noqa: S603
            [sys.executable, *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path},
        )
        interrupted = error is KeyboardInterrupt
        assert ended.returncode == (-signal.SIGINT if interrupted else 1)
        assert ended.stderr == (
            "error: interrupted; nothing is left running\n"
            if ours and interrupted
            else "an earlier hook"
        )


def test_the_command_line_stops_with_a_checkpoint(context, tmp_path, capsys):
    """When its time is over, and by a signal."""
    run = tmp_path / "run"
    assert main(train(run, "--minutes", "1e-9", steps=40)) == 0
    assert (
        "1 of 40 updates are done; the same command with --resume continues it"
        in capsys.readouterr().out
    )
    argv = train(run, "--resume", steps=10**6)
    assert main(argv) == 2
    assert "begun with steps = 40" in capsys.readouterr().err
    shutil.rmtree(run)
    process = context.Process(target=command, args=(argv, tmp_path / "said"), daemon=True)
    process.start()
    deadline = time.monotonic() + 300
    while not written(run):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    process.join(300)
    assert process.exitcode == 128 + signal.SIGTERM
    said = (tmp_path / "said").read_text()
    found = re.search(
        r"error: interrupted at update (\d+) of 1000000; the checkpoint is saved: "
        r".*--resume",
        said,
    )
    assert (run / "checkpoints" / f"{int(found[1]):08d}" / "config.json").exists()
    assert load(run)


def test_the_command_line_measures_and_goes_on(tmp_path, capsys):
    argv = train(
        tmp_path / "run",
        "--validate-every",
        "10",
        "--bits-every",
        "20",
        "--sample-every",
        "20",
        "--ema",
        "0.9",
        "0.99",
        steps=20,
    )
    assert main(argv) == 0
    found = lines(tmp_path / "run")
    assert {"validation_loss", "nats"} <= set(found[-1])
    assert "validation_loss" in found[0]
    assert (tmp_path / "run" / "progress" / "00000020.png").exists()
    assert main(argv) == 2
    assert "--resume to continue" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    assert lines(tmp_path / "run") == found
    assert main([*argv, "--resume", "--lr", "0.5"]) == 2
    assert "begun with lr" in capsys.readouterr().err
    assert main([*argv, "--overwrite", "--accumulate", "17"]) == 2
    assert "cannot be taken in 17 parts" in capsys.readouterr().err
    assert load(tmp_path / "run", ema=0.99)  # as it was
    assert main([*argv, "--overwrite", "--tensorboard"]) == 0
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_run_is_not_made_longer_and_its_model_is(tmp_path):
    """As the message and docs/training.md say."""
    run = tmp_path / "run"
    fit(model(mlp), DATA, RECIPE, folder=run, progress=False)
    longer = dataclasses.replace(RECIPE, steps=30)
    with pytest.raises(
        ValueError, match=r"steps = 24, not 30; .* fit\(sdekit_diffusion\.load\(run"
    ):
        fit(model(mlp), DATA, longer, folder=run, resume=True, progress=False)
    records = fit(load(run), DATA, RECIPE, folder=tmp_path / "longer", progress=False)
    assert len(records) == RECIPE.steps


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    fit(model(mlp), DATA, RECIPE, folder=tmp_path / "run", progress=False)
    config = tmp_path / "run" / "config.json"
    message = (
        rf"{re.escape(str(config))} is not a folder; .* such as {re.escape(str(config.parent))}"
    )
    with pytest.raises(CheckpointError, match=message):
        load(config)
    for folder in (config, config / "below"):
        with pytest.raises(FileExistsError, match=r"config\.json is a file, and a folder is to be"):
            fit(model(mlp), DATA, RECIPE, folder=folder, progress=False)

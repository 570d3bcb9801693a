"""Threads that share a model in training mode: each gets the samples that it would get alone, and
none waits for another.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from sdekit_diffusion import ScoreModel, encode, log_likelihood, sample
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._models.evaluating import evaluating

PATIENCE = 30.0  # seconds until a thread gives up, so that a failure does not hang


class Meeting(nn.Module):
    """A network with dropout that calls `on_way` before each evaluation."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(2, 2)
        self.on_way = lambda: None
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.5, 0.2], [-0.1, 0.4]]))

    def forward(self, x, t):
        self.on_way()
        return self.linear(self.dropout(x))


def model():
    return ScoreModel(Meeting(), "vp", "noise", shape=(2,)).train()


def run(shared, seed):
    return sample(shared, 16, method="ddim", steps=4, seed=seed)


def test_a_thread_that_ends_does_not_switch_dropout_on_in_another():
    """The second thread is in the middle of its solve when the first one, which came earlier, has
    ended.
    """
    shared = model()
    expected = [run(shared, seed) for seed in (0, 1)]
    began = threading.Event()
    joined = threading.Event()
    ended = threading.Event()
    results = []

    def early():
        results.append(run(shared, 0))
        ended.set()

    def on_way():
        if threading.current_thread() is first:
            began.set()
            assert joined.wait(PATIENCE)
        else:
            joined.set()
            assert ended.wait(PATIENCE)

    first = threading.Thread(target=early)
    shared.net.on_way = on_way
    first.start()
    assert began.wait(PATIENCE)
    late = run(shared, 1)
    first.join(PATIENCE)
    assert torch.equal(results[0], expected[0])
    assert torch.equal(late, expected[1])
    assert all(module.training for module in shared.modules())


def test_calls_run_in_parallel():
    """All threads are within their networks at once: a lock around the solve would break the
    barrier.
    """
    shared = model()
    barrier = threading.Barrier(4)
    expected = [run(shared, seed) for seed in range(4)]
    shared.net.on_way = lambda: barrier.wait(PATIENCE)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: run(shared, seed), range(4)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(module.training for module in shared.modules())


def test_what_fails_in_one_thread_leaves_the_others_alone():
    shared = model()
    barrier = threading.Barrier(2)
    expected = run(shared, 1)

    def on_way():
        # A call that fails is repeated with its arguments exchanged, which has no partner.
        if not barrier_gone.is_set():
            barrier.wait(PATIENCE)
        if threading.current_thread().name == "failing":
            barrier_gone.set()
            raise LookupError("on purpose")
        assert barrier_gone.wait(PATIENCE)
        failing.join(PATIENCE)
        shared.net.on_way = lambda: None

    barrier_gone = threading.Event()
    raised = []

    def fails():
        with pytest.raises(LookupError):
            run(shared, 0)
        raised.append(True)

    failing = threading.Thread(target=fails, name="failing")
    shared.net.on_way = on_way
    failing.start()
    assert torch.equal(run(shared, 1), expected)
    assert raised
    assert all(module.training for module in shared.modules())


def test_only_modules_in_training_mode_are_restored():
    shared = model()
    shared.net.dropout.eval()
    run(shared, 0)
    assert shared.training
    assert not shared.net.dropout.training
    shared.eval()
    run(shared, 0)
    assert not any(module.training for module in shared.modules())


class Assigned(nn.Module):
    """Remembers what is assigned to `training`."""

    def __init__(self):
        self.__dict__["seen"] = []
        super().__init__()

    def __setattr__(self, name, value):
        if name == "training":
            self.seen.append(value)
        super().__setattr__(name, value)

    def forward(self, x, t):
        return 0.5 * x


class Computed(Assigned):
    """Whose `training` is a property."""

    __setattr__ = nn.Module.__setattr__

    @property
    def training(self):
        return self.seen[-1]

    @training.setter
    def training(self, value):
        self.seen.append(value)


@pytest.mark.parametrize("kind", [Assigned, Computed])
def test_modules_with_a_mode_of_their_own_are_told(kind):
    net = kind()
    run(ScoreModel(net, "vp", "data", shape=(2,), data_std=1.0), 0)
    assert net.seen[-2:] == [False, True]


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
def test_many_threads_of_all_kinds():
    """Random interleavings; each is compared with the result alone."""
    shared = model()
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    works = [
        lambda: run(shared, 0),
        lambda: run(shared, 1),
        lambda: encode(shared, x),
        lambda: log_likelihood(shared, x).value,
        lambda: sample(shared, 8, method="euler_maruyama", steps=5, seed=2),
    ]
    expected = [work() for work in works]
    shared.net.on_way = lambda: time.sleep(1e-4)
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda work: work(), works * 4))
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 4, strict=True))
    assert all(module.training for module in shared.modules())


@pytest.mark.parametrize(
    "wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel]
)
def test_calls_with_wrappers_of_one_model_share_its_flags(wrap):
    """The first of two calls ends while the second is on its way; each has a wrapper of the network
    of its own.
    """
    shared = model()
    wrapped = wrap(shared)
    calls = [evaluating(as_model(wrapped, None)[0], 1) for _ in range(2)]
    for call in calls:
        call.__enter__()
    calls[0].__exit__(None, None, None)
    assert not any(module.training for module in shared.net.modules())
    calls[1].__exit__(None, None, None)
    assert all(module.training for module in shared.modules())
    shared.eval()
    with evaluating(as_model(wrapped, None)[0], 1):
        pass
    assert not any(module.training for module in shared.net.modules())

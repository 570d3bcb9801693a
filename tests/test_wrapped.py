"""Wrappers of a ScoreModel: taken for the model that they hold, or refused by name."""

import copy
import functools

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from sdekit_diffusion import (
    Guided,
    Recipe,
    ScoreModel,
    check_model,
    encode,
    fit,
    log_likelihood,
    nets,
    sample,
    save,
)
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._models.wrapped import unwrapped


def model():
    torch.manual_seed(0)
    return ScoreModel(
        nets.MLP((2,), width=16, depth=1), "vp", "velocity", shape=(2,), conditioning="log_snr"
    )


def compiled(module):
    """Compiled, and the number of graphs that have been made so far."""
    graphs = []
    torch.compiler.reset()  # the number of graphs of one function in a process is bounded

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    return torch.compile(module, backend=backend), graphs


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile looks at it
def test_a_compiled_model_gives_the_same_samples_and_stays_compiled():
    """As torch.compile made it: its standard deviation was 300 to 1,500."""
    own = model()
    wrapped, graphs = compiled(own)
    expected = sample(own, 5, seed=0, steps=8)
    assert not graphs
    torch.testing.assert_close(sample(wrapped, 5, seed=0, steps=8), expected)
    made = len(graphs)
    assert made > 0
    sample(wrapped, 5, seed=1, steps=8)
    assert len(graphs) == made  # the second call compiles nothing
    z = encode(own, expected)
    torch.testing.assert_close(encode(wrapped, expected), z)
    torch.testing.assert_close(
        log_likelihood(wrapped, expected).value, log_likelihood(own, expected).value
    )


def test_a_compiled_model_keeps_its_conditions():
    class Shifted(nn.Module):
        def forward(self, x, t, y):
            return x + y[:, None]

    own = ScoreModel(Shifted(), "vp", "noise", shape=(2,), data_std=1.0).given(y=torch.arange(3.0))
    wrapped, graphs = compiled(own)
    torch.testing.assert_close(sample(wrapped, 3, seed=0, steps=4), sample(own, 3, seed=0, steps=4))
    assert graphs


def test_parallel_models():
    own = model()
    expected = sample(own, 5, seed=0, steps=8)
    torch.testing.assert_close(sample(DataParallel(own), 5, seed=0, steps=8), expected)
    torch.testing.assert_close(
        sample(DataParallel(torch.compile(own, backend="eager")), 5, seed=0, steps=8), expected
    )


def test_distributed_models(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        own = model()
        torch.testing.assert_close(
            sample(DistributedDataParallel(own), 5, seed=0, steps=8),
            sample(own, 5, seed=0, steps=8),
        )
    finally:
        distributed.destroy_process_group()


def test_devices_of_a_parallel_model_run_its_network():
    """Without a GPU there is nothing to run on; what is made of it is looked at."""
    wrapped = DataParallel(model())
    wrapped.device_ids = [0]
    wrapped.output_device = 0
    wrapped.dim = 0
    found, _ = as_model(wrapped, None)
    assert isinstance(found, ScoreModel)
    assert isinstance(found.net, DataParallel)
    assert found.net.module is wrapped.module.net


class Holder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, t):
        return self.inner(x, t)


class Deep(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.parts = nn.ModuleList([nn.Identity(), inner])

    def forward(self, x, t):
        return self.parts[1](x, t)


@pytest.mark.parametrize(
    "wrapper", [Holder, Deep, AveragedModel, lambda m: torch.compile(Holder(m), backend="eager")]
)
def test_other_wrappers_are_refused_by_name(wrapper):
    wrapped = wrapper(model())
    name = type(wrapped).__name__
    for run in (
        lambda: sample(wrapped, 4, steps=4),
        lambda: sample(wrapped, 4, sde="vp", shape=(2,), steps=4),
        lambda: encode(wrapped, torch.zeros(4, 2), sde="vp"),
        lambda: check_model(wrapped, torch.randn(64, 2), sde="vp"),
    ):
        with pytest.raises(TypeError, match=rf"{name} wraps a model.*ScoreModel\({name}\(net\)"):
            run()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_model_is_refused():
    own = ScoreModel(nn.Linear(2, 2), "vp", "noise", shape=(2,))
    own.net.forward = lambda x, t: 0.5 * x
    traced = torch.jit.trace(own, (torch.zeros(3, 2), torch.zeros(3)))
    with pytest.raises(TypeError, match="wraps a model and its output is not a score"):
        sample(traced, 4, sde="vp", shape=(2,), steps=4)


def test_a_model_is_no_network():
    for net in (model(), torch.compile(model(), backend="eager"), DataParallel(model())):
        with pytest.raises(TypeError, match="a model with a diffusion of its own"):
            ScoreModel(net, "vp", "data", shape=(2,))


def test_a_score_computed_with_a_model_goes_as_a_function():
    """The way out that the message names."""

    class Guided(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, t):
            return self.inner.score(t, x)

    own = model()
    guided = Guided(own)
    found = sample(
        lambda x, t: guided(x, t), 4, sde="vp", shape=(2,), method="ddim", steps=4, seed=0
    )
    assert torch.isfinite(found).all()


def test_partials_of_a_model_are_refused():
    own = model()
    for score in (functools.partial(own), functools.partial(functools.partial(own))):
        with pytest.raises(
            TypeError,
            match=r"partial of a ScoreModel, whose output is not a "
            r"score; pass the model itself",
        ):
            sample(score, 4, sde="vp", shape=(2,), steps=4)
    with pytest.raises(
        TypeError,
        match=r"Holder wraps a model.*only a module that returns "
        r"model.score",
    ):
        sample(functools.partial(Holder(own)), 4, sde="vp", shape=(2,), steps=4)


def test_methods_of_a_model_are_refused():
    own = model()
    for method in (own.forward, own.denoise, own.score, functools.partial(own.score), own.__call__):
        with pytest.raises(
            TypeError,
            match=r"of a ScoreModel, not a score \(x, t\) of its own; "
            r"pass the ScoreModel itself",
        ):
            sample(method, 4, sde="vp", shape=(2,), steps=4)


@pytest.mark.parametrize("given", [nn.Linear(2, 2), torch.randn(8, 2)], ids=["network", "data"])
def test_training_asks_for_a_model_made_of_the_network(given):
    with pytest.raises(TypeError, match=r"make one of a network, as in ScoreModel\(net, 'vp', "):
        fit(given, torch.randn(8, 2), progress=False)


@pytest.mark.parametrize(
    "wrapper", [DataParallel, lambda m: torch.compile(m, backend="eager"), Holder]
)
def test_training_and_saving_refuse_wrappers(wrapper, tmp_path):
    wrapped = wrapper(copy.deepcopy(model()))
    with pytest.raises(
        TypeError,
        match=r"must be a ScoreModel, not .*pass the model that is inside the "
        r"wrapper.*Recipe\(compile=True\)",
    ):
        fit(wrapped, torch.randn(8, 2), progress=False)
    with pytest.raises(
        TypeError,
        match=r"must be a ScoreModel, not .*pass the model that is "
        r"inside the wrapper: compiled",
    ):
        save(wrapped, tmp_path / "run")


def test_training_and_saving_name_the_model_that_another_was_made_from(tmp_path):
    guided = Guided(model(), 2.0, by=model())
    with pytest.raises(TypeError, match="not Guided; pass the model that it was made from"):
        fit(guided, torch.randn(8, 2), progress=False)
    with pytest.raises(TypeError, match="not Guided; pass the model that it was made from"):
        save(guided, tmp_path / "run")


def test_a_compiled_network_within_a_model_stays_as_it_is():
    own = model()
    net, graphs = compiled(own.net)
    torch.testing.assert_close(
        sample(own.with_network(net), 5, seed=0, steps=8), sample(own, 5, seed=0, steps=8)
    )
    assert graphs


class Shifted(ScoreModel):
    """A model with a prediction of its own."""

    def predict_data(self, l, u):
        return super().predict_data(l, u) + 100.0

    def predict_noise(self, l, u):
        return super().predict_noise(l, u) + 100.0


def test_compiled_training_is_of_the_subclass(monkeypatch):
    """The loss was that of a plain ScoreModel."""
    monkeypatch.setattr(torch, "compile", lambda net: net)
    losses = []
    for choice in (False, True):
        own = Shifted(model().net, "vp", "velocity", shape=(2,))
        recipe = Recipe(steps=1, batch_size=8, compile=choice)
        losses += [
            float(record.loss)
            for record in fit(
                own, torch.ones(16, 2) + torch.arange(16)[:, None], recipe, progress=False
            )
        ]
    assert losses[0] > 100
    assert losses[1] == losses[0]


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_another_network_leaves_the_class_and_the_model_as_they_are():
    plain = model()
    own = Shifted(plain.net, plain.sde, shape=plain.shape, data_std=2.0).eval()
    net, _ = compiled(own.net)
    for other in (own.with_network(net), unwrapped(torch.compile(own, backend="eager"), Shifted)):
        assert type(other) is Shifted
        assert not other.training
        assert other.net is not own.net
        x = torch.zeros(3, *plain.shape)
        torch.testing.assert_close(other.predict_data(0.5, x), own.predict_data(0.5, x))
        other.data_std = 3.0
    assert own.net is plain.net
    assert own.data_std == 2.0
    assert own.with_network(lambda x, t: -x).net is not plain.net
    with pytest.raises(TypeError, match="net is a Shifted, a model with a diffusion of its own"):
        plain.with_network(own)


DROPPED = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
HIDING = {
    "a variable of the module": lambda net: lambda x, t: DROPPED(x),
    "a variable of the function around": lambda net: lambda x, t: net(x),
    "a partial": lambda net: functools.partial(lambda held, x, t: held(x), net),
    "a method": lambda net: functools.partial(Method(net).of, more=0.0),
    "a method of a plain object": lambda net: Plain(net).of,
    "a method of an object that is not callable": lambda net: Owner(net).of,
    "a callable object": lambda net: Plain(net),
    "a dict": lambda net: (lambda held: lambda x, t: held["net"](x))({"net": net}),
    "a list of a callable object": lambda net: Plain([net]),
    "a decorated function": lambda net: torch.no_grad()(lambda x, t: net(x)),
    "a function in a function": lambda net: (lambda held: lambda x, t: held(x, t))(Plain(net).of),
    "a partial in a function": lambda net: (lambda held: lambda x, t: held(x))(
        functools.partial(Plain(net).of, t=None)
    ),
    "a function that another of the module calls": lambda net: lambda x, t: dropped(x, t),
    "a function that calls itself": lambda net: recursive(net),
    "lists in lists": lambda net: (lambda held: lambda x, t: held[0][0](x))([[net]]),
}


def dropped(x, t):
    return DROPPED(x)


def recursive(net):
    """A function that uses itself, and a variable without a value."""

    def score(x, t, again=True):
        return score(x, t, again=False) if again else net(x) if net else unused

    if net is None:
        unused = None
    return score


class Owner:
    def __init__(self, net):
        self.net = net

    def of(self, x, t):
        return (self.net[0] if isinstance(self.net, list) else self.net)(x)


class Plain(Owner):
    __call__ = Owner.of


class Method(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def of(self, x, t, more):
        return self.net(x) + more


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("hidden", HIDING)
def test_networks_within_functions_are_in_evaluation_mode(hidden, plain):
    """Two calls with one seed agree, and the network is in training mode afterwards."""
    net = DROPPED if hidden.endswith("module") else copy.deepcopy(DROPPED)
    function = HIDING[hidden](net.train())
    own = function if plain else ScoreModel(function, "vp", shape=(2,), data_std=1.0)
    more = {"sde": "vp", "shape": (2,)} if plain else {}
    a, b = (sample(own, 16, steps=4, method="ddim", seed=0, **more) for _ in range(2))
    assert torch.equal(a, b)
    assert all(module.training for module in net.modules())


def test_scripted_networks_are_in_evaluation_mode():
    """Their flag is not an attribute of the object in Python."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    scripted = torch.jit.script(net).train()
    model = ScoreModel(lambda x, t: scripted(x), "vp", shape=(2,), data_std=1.0)
    before = scripted.state_dict()["1.running_mean"].clone()
    a, b = (sample(model, 16, steps=4, method="ddim", seed=0) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(scripted.state_dict()["1.running_mean"], before)
    assert scripted.training
    assert not scripted.eval().training


def test_a_network_set_in_a_copy_is_not_that_of_the_model():
    first, second = (nn.Linear(2, 2) for _ in range(2))
    model = ScoreModel(lambda x, t: first(x), "vp", shape=(2,))
    model.net = first
    copied = model.given()
    assert copied.net is first
    copied.net = second
    assert model.net is first
    assert copied.net is second

"""What is computed at once for a grid is what the model predicts level by level."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdekit import AdamsMoulton, ReverseSDE
from sdekit._solve.counted import Counted
from sdekit.elementary import softplus, sqrt
from sdekit_diffusion import (
    DIFFUSIONS,
    VPSDE,
    AbstractModel,
    GaussianMixture,
    OnClock,
    ScoreModel,
    sample,
)
from sdekit_diffusion._models import affine
from sdekit_diffusion._sampling.clock import on_clock
from sdekit_diffusion._sampling.coordinates import Coordinates
from sdekit_diffusion._sampling.in_time import _Score
from sdekit_diffusion._sampling.probability_flow import ProbabilityFlowOnClock

L = torch.linspace(-3.0, 5.0, 5, dtype=torch.float64)
U = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
SDES = ["vp", "ve", "subvp", "flow", "edm"]


class Net(nn.Module):
    """Nonlinear in the point and in the label."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x, t):
        return torch.sin(self.weight * x) * (1 + t[:, None]) + x * torch.cos(t)[:, None]


def model(sde, predicts, conditioning, mean):
    return ScoreModel(
        Net(), sde, predicts, conditioning=conditioning, shape=(3,), data_mean=mean, data_std=1.7
    )


def same(a, b, case=""):
    named = lambda message: f"{case}: {message}"  # noqa: E731
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=named)


MEANS = [0.0, -0.4, MEAN]  # none, a number, a vector
PREDICTIONS = ["noise", "data", "score", "velocity", "flow", "reverse_flow"]
CONDITIONINGS = ["time", "log_snr", "sigma", (999.0, -1.0)]


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("sde", SDES)
def test_functions_of_a_grid_are_the_predictions(sde, predicts):
    """With one of the means by turns, so that each meets every pair of the others."""
    turn = PREDICTIONS.index(predicts) + SDES.index(sde)
    for i, conditioning in enumerate(CONDITIONINGS):
        own = model(sde, predicts, conditioning, MEANS[(turn + i) % 3])
        coordinates = Coordinates.of(own, own.sde)
        for one in (own, coordinates.standardised(own)):
            for what, predict in (("data", one.predict_data), ("noise", one.predict_noise)):
                functions = one.network_call().functions(one.affine(L, what).rows(len(L)))
                for l, function in zip(L.tolist(), functions, strict=True):
                    same(function(U), predict(l, U), (conditioning, what))


def test_points_that_differ_from_the_state_by_rounding_are_the_state():
    """And others are not: the factor is exactly 1, or what it was."""
    eps = torch.finfo(torch.float64).eps
    factors = torch.tensor([1 + eps, 1 - eps, 1 + 100 * eps, 1.0, 0.5], dtype=torch.float64)
    one = affine.Affine(torch.zeros(5), factors, 0.0, 1.0)
    assert [row[1] for row in one.rows(5)] == [1.0, 1.0, 1 + 100 * eps, 1.0, 0.5]


def test_labels_are_those_of_each_batch():
    """Also where functions of one grid are called with batches of other sizes and dtypes."""
    seen = []

    def net(x, t):
        seen.append(t)
        return x * t[:, None]

    own = ScoreModel(net, "vp", "data", shape=(3,), data_std=1.0)
    functions = own.network_call().functions(own.affine(L, "data").rows(len(L)))
    for u in (U, U[:2], U[:2].float(), U):
        for l, function in zip(L.tolist(), functions, strict=True):
            torch.testing.assert_close(function(u), own.predict_data(l, u))
            given, expected = seen[-2:]
            assert given.dtype == u.dtype
            torch.testing.assert_close(given, expected.to(u.dtype))


def test_labels_are_numbers_of_their_own_in_any_order_and_mode(monkeypatch):
    """Not views of one number, whose functions round in another way; in blocks of levels; and a
    solve may go on outside the inference mode in which it began.
    """
    monkeypatch.setattr(affine, "_BLOCK", 8)  # two levels of four samples
    values = [0.5, 0.25, 0.75, -1.0, 3.0]
    labels = affine._Labels(values, torch.float32, U.device)
    for i in (0, 1, 2, 4, 3, 0, 4):
        label = labels.at(i, U)
        assert label.tolist() == [values[i]] * 4
        assert label.is_contiguous()
    with torch.inference_mode():
        assert labels.at(1, U).is_inference()
    assert not labels.at(1, U).is_inference()
    assert labels.at(1, U[:0]).shape == (0,)


def test_threads_share_labels(monkeypatch):
    """As those that branch from one stepper do; also with batches of two sizes."""
    monkeypatch.setattr(affine, "_BLOCK", 8)
    values = [float(i) for i in range(40)]
    labels = affine._Labels(values, torch.float32, U.device)

    def wrong(n):
        x = torch.zeros(n, 1)
        asked = [(i, labels.at(i, x)) for _ in range(50) for i in range(40)]
        return sum(label.tolist() != [values[i]] * n for i, label in asked)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(wrong, (1, 3, 3, 5))) == 0
    finally:
        sys.setswitchinterval(interval)


def test_the_numbers_of_long_grids_are_not_kept():
    own = ScoreModel(lambda x, t: -x, "vp", "score", shape=(3,), data_std=1.0)
    affine._CACHE.clear()
    for levels, size in ((2000, 1), (2001, 1)):
        l = torch.linspace(-3.0, 5.0, levels, dtype=torch.float64)
        affine.prepared(own, ("a grid", levels), levels, lambda l=l: own.affine(l, "data"))
        assert len(affine._CACHE) == size


@pytest.mark.parametrize("predicts", ["noise", "data", "velocity"])
@pytest.mark.parametrize("sde", SDES)
def test_the_stages_of_an_adaptive_step_are_the_drift(sde, predicts):
    """With one of the means by turns, so that each meets every pair of the others."""
    turn = PREDICTIONS.index(predicts) + SDES.index(sde)
    for i, conditioning in enumerate(("time", "log_snr", (999.0, -1.0))):
        own = model(sde, predicts, conditioning, MEANS[(turn + i) % 3])
        flow = ProbabilityFlowOnClock(Coordinates.of(own, own.sde).standardised(own))
        times = torch.linspace(0.02, 1.7, 12, dtype=torch.float64).reshape(3, 4)
        problem = Counted(flow)
        for t, drift in zip(times, problem.drifts(list(times), U), strict=True):
            same(drift(U), flow.drift(t, U), conditioning)
        assert problem.evaluations == 3
        assert flow.drifts(list(times), U.float())[0](U.float()).dtype == torch.float32


def test_stages_of_images_and_of_models_without_a_network():
    own = ScoreModel(Net(), "vp", "data", shape=(1, 2, 2), data_mean=0.3, data_std=2.0)
    own.net.forward = lambda x, t: torch.sin(x) * (1 + t[:, None, None, None])
    flow = ProbabilityFlowOnClock(Coordinates.of(own, own.sde).standardised(own))
    times = torch.linspace(0.02, 1.7, 8, dtype=torch.float64).reshape(2, 4)
    x = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t, drift in zip(times, flow.drifts(list(times), x), strict=True):
        same(drift(x), flow.drift(t, x))
    law = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    assert ProbabilityFlowOnClock(law).drifts(list(times), x) is None


@pytest.mark.parametrize("mean", [0.0, MEAN], ids=["none", "vector"])
@pytest.mark.parametrize(
    ("eta", "integrand"), [(0.0, "data"), (0.7, "data"), (0.0, "noise"), (0.0, "velocity")]
)
def test_slopes_on_the_clock_are_the_drift(eta, integrand, mean):
    own = model("vp", "velocity", "time", mean)
    coordinates = Coordinates.of(own, own.sde)
    problem = on_clock(coordinates.standardised(own), eta, integrand)
    ts = problem.time(L).tolist()
    slopes = problem.tabulated(ts).slopes
    assert list(slopes) == ts
    for t in ts:
        y = U / problem.scale(problem.parameter(t))
        drift = problem.drift(t, y)
        torch.testing.assert_close(slopes[t](y), drift, rtol=1e-9, atol=1e-9)
        advanced = slopes[t](y, -0.3, U)
        torch.testing.assert_close(advanced, U - 0.3 * drift, rtol=1e-9, atol=1e-9)
        same(problem.drift_at(t)(y, -0.3, U), U - 0.3 * drift)


@pytest.mark.parametrize("mean", [0.0, MEAN], ids=["none", "vector"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("predicts", ["velocity", "data", "noise"])
def test_drifts_of_a_step_on_the_clock_are_those_of_samples_at_their_times(predicts, eta, mean):
    own = model("vp", predicts, "time", mean)
    coordinates = Coordinates.of(own, own.sde)
    problem = on_clock(coordinates.standardised(own), eta)
    levels = torch.linspace(-2.0, 2.0, 2 * len(U), dtype=torch.float64).reshape(2, -1)
    times = list(problem.time(levels))
    for t, drift in zip(times, problem.drifts(times, U), strict=True):
        torch.testing.assert_close(drift(U), problem.drift(t, U), rtol=1e-9, atol=1e-9)
    law = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    assert on_clock(law, eta).drifts(times, U) is None


@pytest.mark.parametrize("mean", [0.0, MEAN], ids=["none", "vector"])
@pytest.mark.parametrize("sde", SDES)
def test_slopes_in_time_are_the_drift(sde, mean):
    own = model(sde, "velocity", "time", mean)
    kernel = DIFFUSIONS[sde]()
    coordinates = Coordinates.of(own, kernel)
    score = _Score(coordinates.standardised(own), coordinates)
    ts = torch.as_tensor(coordinates.time(L)).tolist()
    tabulated = score.tabulated(ts)
    for factor, eta in ((0.5, 0.0), (1.0, 1.0)):
        problem = ReverseSDE(kernel, score, eta)
        slopes = score.slopes(factor, ts)
        for t in ts:
            x = coordinates.physical(t, U)
            drift = problem.drift(t, x)
            torch.testing.assert_close(slopes[t](x), drift, rtol=1e-8, atol=1e-8)
            advanced = slopes[t](x, -0.3, U)
            torch.testing.assert_close(advanced, U - 0.3 * drift, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(tabulated(t, x), own.score(t, x), rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
def test_numbers_are_those_of_each_model():
    """What is remembered of one model is not taken for another that differs in anything."""

    class Faster(VPSDE):  # no dataclass of its own: fields do not tell it from VPSDE
        def alpha(self, t):
            return super().alpha(t) ** 2

        def sigma(self, t):
            return sqrt(1 - self.alpha(t) ** 2)

        def time(self, l):
            return self.inverse(0.5 * softplus(-2 * l))

    nets = [
        model(sde, predicts, conditioning, mean)
        for sde in ("vp", "subvp", Faster())
        for predicts in ("noise", "velocity")
        for conditioning in ("time", "log_snr")
        for mean in (0.0, MEAN)
    ]
    nets.append(ScoreModel(Net(), "vp", "noise", shape=(3,), data_std=0.6))
    for method in ("default", "ddim", "euler_maruyama"):
        for sde in ("vp", VPSDE(0.1, 10.0)):
            draw = partial(sample, n=2, sde=sde, method=method, steps=4, seed=0)
            affine._CACHE.clear()
            together = [draw(net) for net in nets]
            for net, found in zip(nets, together, strict=True):
                affine._CACHE.clear()
                assert torch.equal(found, draw(net))


@pytest.mark.parametrize("method", ["default", "ddim", "heun", "ancestral", "ode"])
@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
def test_subclasses_are_asked_by_their_own_predictions(method):
    """Not by the network's output, whose samples reach 2.98 where the clipped ones have noise."""

    class Clipped(ScoreModel):
        def predict_data(self, l, u):
            return super().predict_data(l, u).clamp(-1, 1)

        def predict_noise(self, l, u):
            return AbstractModel.predict_noise(self, l, u)

    clipped = Clipped(lambda x, t: 3 * torch.tanh(x), "vp", "data", shape=(3,), data_std=1.0)
    steps = None if method == "ode" else 20
    assert sample(clipped, 8, method=method, steps=steps, seed=0).abs().max() < 2


def test_hooks_of_a_model_are_called():
    own = model("vp", "noise", "time", 0.0)
    calls = []
    own.register_forward_hook(lambda *_: calls.append(1))
    sample(own, 2, method="ddim", steps=4, seed=0)
    assert len(calls) == 4


def test_models_that_are_no_such_function_are_asked_as_they_are():
    law = GaussianMixture([1.0], torch.zeros(1, 3, dtype=torch.float64), [1.0])
    coordinates = Coordinates.of(law, DIFFUSIONS["vp"]())
    standardised = coordinates.standardised(law)
    assert standardised.network_call() is None
    problem = on_clock(standardised)
    ts = problem.time(L).tolist()
    assert not problem.tabulated(ts).slopes
    assert math.isclose(problem.tabulated(ts).table[ts[0]][0], float(L[0]))


class Labels(nn.Module):
    """Keeps what it receives; with a parameter or without one, or as a function."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t):
        self.seen.append((x, t))
        return torch.sin(x) * t[:, None]


@pytest.mark.parametrize("method", ["ddim", "euler_maruyama", "ode"])
@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
def test_functions_without_parameters_get_labels_like_their_points(method):
    """Labels in float32 would be wrong in float64 by 1e-8, and more than a tolerance of 1e-12."""
    net = Labels()
    own = ScoreModel(net, "vp", "noise", shape=(2,), data_std=1.0)
    sample(own, 3, method=method, seed=0, dtype=torch.float64, steps=None if method == "ode" else 4)
    times = torch.cat([t for _, t in net.seen])
    assert times.dtype == torch.float64
    assert (times != times.float()).any()
    assert all(t.shape == x.shape[:1] for x, t in net.seen)


@pytest.mark.parametrize("method", ["ddim", "ode"])
def test_functions_may_compute_in_a_wider_dtype(method):
    own = ScoreModel(lambda x, t: torch.sin(x).double(), "vp", "noise", shape=(2,), data_std=1.0)
    assert sample(own, 3, method=method, seed=0).dtype == torch.float32


@dataclass(frozen=True)
class Learned(VPSDE):
    """Times are numbers or `(batch,)`, as a schedule that a network computes takes them."""

    def time(self, l):
        if isinstance(l, torch.Tensor) and l.ndim:
            assert l.ndim == 1
        return VPSDE.time(self, l)


def test_diffusions_get_one_time_a_sample_from_the_stages_of_a_step():
    own = ScoreModel(Net(), Learned(), "noise", shape=(3,), data_std=1.0)
    same_law = ScoreModel(Net(), VPSDE(), "noise", shape=(3,), data_std=1.0)
    assert torch.equal(*(sample(m, 3, method="ode", seed=0) for m in (own, same_law)))


def test_states_alone_may_be_mapped():
    """The network's output is then one tensor, to which a state's is not added in place."""
    rows = [(0.5, 1.0, 2.0, 3.0, 0.0, 0.0)]
    call = affine.NetworkCall(lambda x, t: torch.ones(x.shape), None, None, None)
    predict = call.functions(rows)[0]
    u = torch.arange(24.0).reshape(4, 3, 2)
    assert torch.equal(torch.func.vmap(predict)(u), 2 * u + 3)
    assert torch.equal(predict(u[0]), 2 * u[0] + 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_of_a_network_are_not_changed(dtype):
    rows = [(0.5, 1.0, 2.0, 1.0, 0.0, 0.0)]
    outputs = torch.ones(3, 2, dtype=dtype)
    call = affine.NetworkCall(lambda x, t: outputs, None, None, None)
    u = torch.full((3, 2), 2.0, dtype=dtype)
    onto = torch.full((3, 2), 5.0, dtype=dtype)
    predict = call.functions(rows)[0]
    assert predict(u).tolist() == [[5.0, 5.0]] * 3
    assert predict(u, 2.0, onto).tolist() == [[15.0, 15.0]] * 3
    assert (outputs.unique(), u.unique(), onto.unique()) == (1.0, 2.0, 5.0)


class Operations(TorchDispatchMode):
    """The names of torch's operations, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mean", [0.0, MEAN], ids=["none", "vector"])
@pytest.mark.parametrize("out", [-0.7, 1.0, 0.0])
def test_a_prediction_in_its_unit_takes_one_operation_less(out, mean):
    rows = [(0.5, 1.0, -0.3, out, 0.0, 0.25 if isinstance(mean, torch.Tensor) else 0.0)]
    outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    kept = outputs.clone()
    u = outputs.flip(0) + 2
    call = affine.NetworkCall(lambda x, t: outputs, None, None, None, mean)
    predict = call.functions(rows)[0]
    assert predict.unit == (1 / out if out else 1.0)
    expected = -0.3 * u + out * outputs + (0.25 * MEAN.to(u) if rows[0][5] else 0.0)
    torch.testing.assert_close(predict(u), expected)
    torch.testing.assert_close(predict(u, predict.unit), predict.unit * expected)
    torch.testing.assert_close(predict(u, 2.0, kept), kept + 2 * expected)
    torch.testing.assert_close(predict(u, predict.unit, kept), kept + predict.unit * expected)
    assert torch.equal(outputs, kept)
    counts = []
    for h in (predict.unit, 2.0):
        with Operations() as operations:
            predict(u, h)
        counts.append(sum(name in ("add", "add_") for name in operations.names))
    assert counts[1] - counts[0] == (out != 0)


def test_flows_take_one_sum_a_value_and_one_for_the_slope():
    """The default alone, whose rule adds five values in later steps."""
    own = ScoreModel(lambda x, t: 0.5 * x, VPSDE(), "noise", shape=(2,), data_std=1.0)
    counts = []
    for steps in (30, 31):
        with Operations() as operations:
            sample(own, 4, method=OnClock(AdamsMoulton(4), integrand="velocity"), steps=steps)
        counts.append(sum(name in ("add", "add_") for name in operations.names))
    assert counts[1] - counts[0] == 6

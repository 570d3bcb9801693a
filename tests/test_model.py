"""Models: what a network is given, labels, dtypes, and what is refused; its conventions are in
test_schedules.py.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import sdekit
from sdekit_diffusion import (
    DDPM,
    NCSN,
    VESDE,
    VPSDE,
    AbstractModel,
    EmpiricalMixture,
    GaussianMixture,
    Guided,
    ScoreModel,
    nets,
    noise_scale,
    sample,
    signal_scale,
)
from sdekit_diffusion._models.as_model import as_model
from sdekit_diffusion._models.model import solved_like

MIXTURE = GaussianMixture(
    [0.3, 0.7], [[1.0, 2.0], [-1.0, 0.5]], torch.tensor([0.3, 0.2], dtype=torch.float64)
)
X = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_network_sees_its_own_time_and_scale():
    seen = []

    def net(x, t):
        seen.append((x, t))
        return x

    model = ScoreModel(net, VPSDE())
    model.denoise(0.4, X)
    torch.testing.assert_close(seen[0][0], X, rtol=1e-14, atol=0)
    torch.testing.assert_close(seen[0][1], torch.full_like(X[:, 0], 0.4), rtol=1e-14, atol=0)
    model.denoise(0.4, X, VESDE())
    l = VESDE().log_snr(0.4)
    assert seen[1][1][0].item() == pytest.approx(VPSDE().time(l))
    torch.testing.assert_close(seen[1][0], X * VPSDE().alpha(VPSDE().time(l)))


def test_times_per_sample_in_any_shape_that_solve_hands_over():
    """In adaptive steps of `sdekit.solve` functions receive t of shape (batch, 1, ...)."""
    net = ScoreModel(lambda x, t: x * t[:, None], VPSDE())
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    for model, sde in ((net, None), (MIXTURE, "vp")):
        for method in (model.score, model.denoise):
            expected = method(t, X, sde)
            for shape in ((7, 1), (7, 1, 1)):
                assert torch.equal(method(t.reshape(shape), X, sde), expected)
            assert torch.equal(method(t[:1], X, sde), method(t[0], X, sde))
            for wrong in (t[:3], t[None], t[:, None].expand(7, 2)):
                with pytest.raises(ValueError, match=r"one for each sample, \(7,\)"):
                    method(wrong, X, sde)
            with pytest.raises(ValueError, match=r"one for each sample, \(1,\)"):
                method(t, X[:1], sde)


def test_the_score_of_a_network_in_an_equation_with_adaptive_steps():
    net = ScoreModel(lambda x, t: -x * t[:, None], VPSDE())
    settings = {
        "solver": sdekit.Tsit5(),
        "control": sdekit.PIDController(rtol=1e-6, atol=1e-6),
    }
    own = sdekit.ODE(lambda t, x: -0.5 * VPSDE().beta(t) * (x + net.score(t, x)))
    flow = sdekit.ProbabilityFlow(VPSDE(), net.score)
    ends = [sdekit.solve(f, X, [0.9, 0.1], **settings).x for f in (own, flow)]
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


LABELS = {
    "steps": (DDPM([0.1, 0.2, 0.3]), (3, -1), lambda t: 3 * t - 1),
    "levels from the noisiest": (NCSN([0.1, 1.0, 10.0]), (-2, 2), lambda t: 2 - 2 * t),
    "sigma": (NCSN([0.1, 1.0, 10.0]), "sigma", lambda t: 0.1 * 100**t),
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize(
    "t", [0.4, torch.linspace(0.3, 0.6, 7, dtype=torch.float64)], ids=["float", "tensor"]
)
def test_labels(name, t):
    """a t + b or sigma(t), with t the network's own, under another diffusion too."""
    seen = []

    def net(x, label):
        seen.append(label)
        return x

    sde, conditioning, label = LABELS[name]
    model = ScoreModel(net, sde, conditioning=conditioning)
    model.denoise(t, X)
    expected = torch.as_tensor(label(t), dtype=torch.float64).expand(7)
    torch.testing.assert_close(seen[0], expected)
    other = VESDE(0.05, 20.0)
    model.score(other.time(sde.log_snr(t)), X, other)
    torch.testing.assert_close(seen[1], expected)


def test_a_network_that_ignores_the_level_has_the_score_minus_its_output_over_sigma():
    """Technique 3 of Song and Ermon (2020) but for the sign: at every level, under the diffusion of
    its levels.
    """
    torch.manual_seed(0)
    net = nets.NCSNv2(1, 4, (1, 2), (1, 1)).double()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    torch.nn.init.normal_(net.last.conv.weight)
    sde = NCSN([50.0, 5.0, 0.5, 0.01])
    model = ScoreModel(net, sde, "noise", shape=(1, 8, 8))
    for i, sigma in enumerate(sde.sigmas):
        torch.testing.assert_close(model.score(i / 3, x), -net(x, torch.zeros(3)) / sigma)
    times = torch.tensor([0.0, 1 / 3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        model.score(times, x), -net(x, times) / torch.tensor([0.01, 0.5, 50.0])[:, None, None, None]
    )


def test_a_network_of_levels_reads_its_own():
    """nets.NCSN under NCSN(sigmas) at the sigma of a level: the rows of that level, whatever
    diffusion asks.
    """
    torch.manual_seed(0)
    net = nets.NCSN(1, 4, (1, 2), (1, 1), levels=4).double()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    torch.nn.init.normal_(net.last.conv.weight)
    sde = NCSN([50.0, 5.0, 0.5, 0.01])
    other = VESDE(0.001, 100.0)
    model = ScoreModel(net, sde, "score")
    for i, sigma in enumerate(sde.sigmas):
        out = net(x, torch.full((3,), i / 3))
        torch.testing.assert_close(model.score(i / 3, x), out)
        torch.testing.assert_close(model.score(other.time(-math.log(sigma)), x, other), out)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_network_runs_in_its_dtype_and_the_state_keeps_its_own(dtype):
    net = nn.Linear(2, 2).to(dtype)
    model = ScoreModel(lambda x, t: net(x), "vp")
    model.net_ = net
    out = model.denoise(0.5, X.float())
    assert out.dtype == torch.float32
    assert model.place()[0] == dtype


def test_a_parameter_of_a_subclass_decides_the_dtype_too():
    class Own(ScoreModel):
        def __init__(self):
            super().__init__(lambda x, t: x, "vp", shape=(2,))
            self.scale_of_own = nn.Parameter(torch.ones((), dtype=torch.float64))

    assert Own().place()[0] == torch.float64


HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


class Steps(nn.Module):
    """Remembers its points and labels; its first floating parameter is not its first."""

    def __init__(self, dtype, first=torch.complex64):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1, dtype=first), requires_grad=False)
        self.second = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.seen = []

    def forward(self, x, t):
        self.seen.append((x, t))
        return x + self.second


@HALF
@pytest.mark.parametrize("method", ["ddim", "euler_maruyama", "ode"])
@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
def test_labels_of_a_network_in_half_precision_are_not_rounded(dtype, method):
    """Step 541 of a thousand would be 540 in bfloat16, and 541.35 be 541.5 in float16."""
    net = Steps(dtype)
    model = ScoreModel(net, DDPM(), shape=(2,), conditioning=(1000, -1), data_std=1.0)
    for t in (0.542, torch.full((7,), 0.542)):
        model.denoise(t, X)
        assert net.seen[-1][1].tolist() == [541.0] * 7
    sample(model, 3, seed=0, method=method, steps=None if method == "ode" else 7)
    assert {x.dtype for x, _ in net.seen} == {dtype}
    assert {t.dtype for _, t in net.seen} == {torch.float32}
    labels = torch.cat([t for _, t in net.seen])
    assert (labels != labels.to(dtype)).any()


@pytest.mark.parametrize("first", [torch.complex64, torch.int64], ids=str)
def test_the_first_floating_parameter_decides_the_dtype(first):
    net = Steps(torch.float64, first)
    model = ScoreModel(net, "vp", shape=(2,), data_std=1.0)
    assert model.place()[0] == torch.float64
    assert model.denoise(0.5, X.float()).dtype == torch.float32
    assert sample(model, 3, steps=3, seed=0).dtype == torch.float64
    for value in (part for seen in net.seen for part in seen):
        assert value.dtype == torch.float64


@HALF
def test_a_network_that_needs_labels_in_half_precision_is_told_what_to_cast(dtype):
    class Narrow(nn.Linear):
        def forward(self, x, t):
            return super().forward(torch.cat([x, t[:, None]], dim=1))

    class Cast(Narrow):
        def forward(self, x, t):
            return super().forward(x, t.to(x.dtype))

    refused = ScoreModel(Narrow(3, 2).to(dtype), "vp", shape=(2,), data_std=1.0)
    for call in (lambda: refused.denoise(0.5, X), lambda: sample(refused, 3, steps=2, seed=0)):
        with pytest.raises(TypeError, match=r"labels t in torch.float32.*embedding.to\(x.dtype\)"):
            call()
    right = ScoreModel(Cast(3, 2).to(dtype), "vp", shape=(2,), data_std=1.0)
    assert sample(right, 3, steps=2, seed=0).isfinite().all()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ScoreModel(Cast(4, 2).to(dtype), "vp").denoise(0.5, X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_labels_of_whole_steps_are_whole(dtype):
    """170 of 1,000 labels were those of the step before, cut off, for times in float32. Next to
    powers of two labels are finer than the times; there, rounding gives the step.
    """
    net = Steps(torch.float32)
    model = ScoreModel(net, DDPM(), conditioning=(1000, -1))
    steps = torch.arange(1000)
    model.denoise(((steps + 1) / torch.tensor(1000, dtype=dtype)), torch.zeros(1000, 2))
    labels = net.seen[-1][1]
    assert torch.equal(labels.round().long(), steps)
    assert (labels.long() != steps).sum() <= (0 if dtype == torch.float64 else 10)


def test_what_is_refused():
    with pytest.raises(
        ValueError, match="predicts = 'epsilons' is not one of noise, data, score, velocity, flow"
    ):
        ScoreModel(lambda x, t: x, "vp", "epsilons")
    for conditioning in ("snr", (1.0, 2.0, 3.0)):
        with pytest.raises(
            ValueError,
            match=r"conditioning = .* is not 'time', 'log_snr', 'standardised', 'sigma' "
            r"or a pair",
        ):
            ScoreModel(lambda x, t: x, "vp", conditioning=conditioning)
    with pytest.raises(
        ValueError, match=r"data_range = \(1, 1\) is not a least and a largest value"
    ):
        ScoreModel(lambda x, t: x, "vp", data_range=(1, 1))
    for data_std in (0.0, -1.0, math.inf):
        with pytest.raises(
            ValueError, match="is not a positive number; it is the standard deviation"
        ):
            ScoreModel(lambda x, t: x, "vp", data_std=data_std)
    with pytest.raises(ValueError, match="unknown sde"):
        ScoreModel(lambda x, t: x, "ddim")
    with pytest.raises(
        ValueError, match=r"network returned shape \(7, 1\) for x of shape \(7, 2\)"
    ):
        ScoreModel(lambda x, t: x[:, :1], "vp").denoise(0.5, X)
    with pytest.raises(TypeError, match="the model must be"):
        as_model("model", "vp")
    with pytest.raises(ValueError, match="plain score function needs the diffusion"):
        as_model(lambda x, t: x, None)
    with pytest.raises(ValueError, match="GaussianMixture has no diffusion of its own"):
        as_model(MIXTURE, None)


@pytest.mark.parametrize("t", [-0.1, 1.5, torch.linspace(0.5, 1.5, 7)], ids=str)
def test_times_outside_are_refused(t):
    model = ScoreModel(lambda x, t: x, "vp", shape=(2,))
    for sde in (None, "vp", "ve"):
        for call in (model.denoise, model.score):
            with pytest.raises(ValueError, match="outside the range"):
                call(t, X, sde)
    with pytest.raises(ValueError, match="where sigma = 0"):
        model.score(0.0, X)
    with pytest.raises(TypeError, match="returned NoneType"):
        ScoreModel(lambda x, t: None, "vp").denoise(0.5, X)


def test_conditions_are_added_to_those_that_are_given_already():
    model = ScoreModel(lambda x, t, **conditions: x, "vp", shape=(2,)).given(a=1)
    assert model.given(b=2).conditions == {"a": 1, "b": 2}
    assert model.given(b=2).given(a=3).conditions == {"a": 3, "b": 2}
    assert model.conditions == {"a": 1}


def test_arrays_of_numpy_are_no_conditions():
    """They would not be split into batches. Numbers and lists are for all samples."""
    model = ScoreModel(lambda x, t, a=None: x, "vp", shape=(2,))
    with pytest.raises(TypeError, match=r"a is an array of numpy.*torch.as_tensor\(a\)"):
        model.given(a=np.arange(4))
    with pytest.raises(TypeError, match=r"conditions by name, .* sample_posterior\(model, obs"):
        model.given(torch.zeros(2))
    for value in (np.array(1.0), np.float64(1.0), [1, 2], torch.arange(4)):
        assert model.given(a=value).conditions["a"] is value


def _clipped(model: type[AbstractModel]) -> type[AbstractModel]:
    class Clipped(model):
        def predict_data(self, l, u):
            return super().predict_data(l, u).clamp(-0.1, 0.1)

    return Clipped


@pytest.mark.parametrize(
    "model",
    [
        _clipped(ScoreModel)(lambda x, t: 0.5 * x, "vp", "noise", shape=(2,), data_std=1.0),
        _clipped(Guided)(MIXTURE, by=MIXTURE, scale=3.0),
        _clipped(GaussianMixture)([1.0], [[1.0, 2.0]], [0.3]),
        _clipped(EmpiricalMixture)(X, std=0.1),
    ],
    ids=["network", "guided", "mixture", "empirical"],
)
def test_a_class_that_changes_the_data_alone_changes_the_noise_with_them(model):
    """The noise of the base class would be that of other data."""
    for l in (-1.0, 0.5):
        data = model.predict_data(l, X)
        assert float(data.abs().max()) == pytest.approx(0.1)
        noise = (X - signal_scale(l) * data) / noise_scale(l)
        torch.testing.assert_close(model.predict_noise(l, X), noise)
    for method in ("ddim", "heun", "euler_maruyama", "ode"):
        assert float(sample(model, 100, sde="ve", method=method, seed=0).abs().max()) < 0.15


def test_a_class_that_changes_both_predictions_keeps_both():
    class Both(GaussianMixture):
        def predict_data(self, l, u):
            return 0 * u

        def predict_noise(self, l, u):
            return 2 * u

    assert torch.equal(Both([1.0], [[0.0, 0.0]], [1.0]).predict_noise(0.0, X), 2 * X)


def test_the_noise_of_a_mixin_is_kept_and_data_of_one_change_the_noise():
    class Noise:
        def predict_noise(self, l, u):
            return 7 + 0 * u

    class Clamped:
        def predict_data(self, l, u):
            return super().predict_data(l, u).clamp(-0.1, 0.1)

    class Zero(Noise, AbstractModel):
        shape, sde, data_std = (2,), None, 1.0

        def predict_data(self, l, u):
            return 0 * u

    class Mixed(Clamped, GaussianMixture):
        pass

    class Noisy(GaussianMixture):
        def predict_noise(self, l, u):
            return 7 + 0 * u

    class Zeros(Noisy):
        def predict_data(self, l, u):
            return 0 * u

    zeros = Zeros([1.0], [[1.0, 2.0]], [0.3])
    torch.testing.assert_close(zeros.predict_noise(0.5, X), X / noise_scale(0.5))
    assert torch.equal(Noisy([1.0], [[1.0, 2.0]], [0.3]).predict_noise(0.5, X), 7 + 0 * X)

    assert torch.equal(Zero().predict_noise(0.0, X), 7 + 0 * X)
    mixed = Mixed([1.0], [[1.0, 2.0]], [0.3])
    noise = (X - signal_scale(0.5) * mixed.predict_data(0.5, X)) / noise_scale(0.5)
    torch.testing.assert_close(mixed.predict_noise(0.5, X), noise)


def test_a_diffusion_that_is_a_module():
    class Learned(nn.Module, VPSDE):
        def __init__(self):
            nn.Module.__init__(self)
            self.rate = nn.Parameter(torch.ones(()))

        __setattr__ = nn.Module.__setattr__
        __hash__ = nn.Module.__hash__

    sde = Learned()
    assert ScoreModel(lambda x, t: x, sde, shape=(2,)).sde is sde
    with pytest.raises(AttributeError, match="predicts"):
        ScoreModel.__new__(ScoreModel).predicts  # noqa: B018
    assert hasattr(ScoreModel, "sde")


def test_attributes_are_checked_and_converted_when_they_are_set():
    model = ScoreModel(lambda x, t: x, "vp", shape=(2,))
    model.sde = "ve"
    model.predicts = "v_prediction"
    model.conditioning = [999, 0]
    model.data_mean = torch.ones(2)
    assert (model.sde, model.predicts) == (VESDE(), "velocity")
    assert model.conditioning == (999.0, 0.0)
    assert torch.equal(model.data_mean, torch.ones(2))
    for name, value, message in (
        ("sde", "vf", "unknown sde 'vf'"),
        ("predicts", "eps", "did you mean 'noise'"),
        ("conditioning", "logsnr", "did you mean 'log_snr'"),
        ("data_mean", math.nan, "data_mean must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            setattr(model, name, value)
    assert (model.sde, model.predicts) == (VESDE(), "velocity")
    copied = copy.deepcopy(model)
    copied.sde = "vp"
    assert (model.sde, copied.sde) == (VESDE(), VPSDE())


def test_a_plain_score_becomes_a_model():
    sde = VPSDE()
    model, chosen = as_model(lambda x, t: MIXTURE.score(t, x, sde), "vp", (2,))
    assert chosen == sde
    assert model.shape == (2,)
    torch.testing.assert_close(model.denoise(0.5, X), MIXTURE.denoise(0.5, X, sde))


def test_a_shape_that_comes_later_is_compared_with_the_mean():
    model = ScoreModel(nn.Linear(8, 8), "vp", data_mean=torch.arange(8.0), data_std=1.0)
    with pytest.raises(ValueError, match=r"data_mean has shape \(8,\), and a sample \(3, 8, 8\)"):
        as_model(model, None, (3, 8, 8))
    assert as_model(model, None, (8,))[0].shape == (8,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_models_are_solved_in_single_precision_at_least(dtype):
    net = ScoreModel(nn.Linear(2, 2), "vp", shape=(2,)).to(dtype)
    assert solved_like(net).dtype == torch.promote_types(dtype, torch.float32)


def test_attributes_of_a_model_may_be_fields_of_a_dataclass_or_absent():
    class Zero(AbstractModel):
        def predict_data(self, l, u):
            return 0 * u

        def place(self):
            return torch.float32, torch.device("cpu")

    @dataclass(frozen=True, eq=False)
    class Fields(Zero):
        shape: tuple[int, ...]
        sde: str
        scale: float

    absent = Zero()
    assert (absent.shape, absent.sde, absent.data_std) == (None, None, None)
    with pytest.raises(TypeError, match="missing 3 required positional arguments: 'shape', 'sde'"):
        Fields()
    given = Fields((2,), "vp", 3.0)
    assert (given.shape, given.sde, given.data_std, given.scale) == ((2,), "vp", None, 3.0)
    assert copy.deepcopy(given).shape == (2,)
    for copied in (copy.copy(absent), copy.deepcopy(absent)):
        assert (copied.shape, copied.data_std) == (None, None)
    assert not hasattr(AbstractModel, "shape")

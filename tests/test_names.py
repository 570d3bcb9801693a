"""What a user may have meant: arguments in the other order, misspelt names, diffusers' names, flow matching's other time."""

import functools
import re

import pytest
import torch
from torch import nn

import sdekit
from sdekit import DEIS, SDE, EulerMaruyama, Hutchinson, ProbabilityFlow, ReverseSDE, did_you_mean, solve
from sdekit.calling import require_order
from sdekit_diffusion import DIFFUSIONS, METHODS, GaussianMixture, RectifiedFlow, ScoreModel, check_model, data, sample
from sdekit_diffusion._loading.named import named_model
from sdekit_diffusion._sampling.methods import method_of

VP = DIFFUSIONS["vp"]()
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


class Timed(nn.Module):
    def forward(self, t, x):
        return -x * t[:, None]


def unnamed(a, b):
    """A score (x, t) whose names say nothing; with t and x it fails or has another shape."""
    return -a / (1 + torch.as_tensor(b)).reshape(-1, *[1] * (a.ndim - 1))


@pytest.mark.parametrize("kind", [ReverseSDE, ProbabilityFlow])
def test_a_score_of_x_and_t_is_refused_where_t_and_x_are_given(kind):
    for score in (lambda x, t: -x / (1 + t), lambda x_t, time: -x_t / (1 + time), functools.partial(lambda x, t, k: -x, k=1)):
        with pytest.raises(
            TypeError, match=r"called as \(t, x\) here, and this one takes \(x(_t)?, t(ime)?\); pass lambda t, x"
        ):
            kind(VP, score)
    with pytest.raises(
        TypeError, match=r"called as score\(t, x\) here, and this one takes \(x, t\); pass lambda t, x: score\(x, t\)"
    ):
        solve(kind(VP, unnamed), X, [1.0, 0.5], solver=EulerMaruyama())
    solve(kind(VP, lambda t, x: unnamed(x, t)), X, [1.0, 0.5], solver=EulerMaruyama())
    with pytest.raises(ZeroDivisionError):  # an error of its own stays what it is
        solve(kind(VP, lambda a, b: 1 / 0), X, [1.0, 0.5], solver=EulerMaruyama())


def test_a_score_of_t_and_x_is_refused_where_x_and_t_are_given():
    for score in (lambda t, x: -x, Timed(), lambda timestep, sample: -sample):
        with pytest.raises(TypeError, match=r"called as \(x, t\) here, and this one takes \(t"):
            sample(score, 4, sde="vp", shape=(2,))
    with pytest.raises(
        TypeError, match=r"called as net\(x, t\) here, and this one takes \(t, x\); pass lambda x, t: net\(t, x\)"
    ):
        sample(lambda a, b: -b[:, :1].expand_as(b) / (1 + a[:, None]), 4, sde="vp", shape=(2,))
    with pytest.raises(ZeroDivisionError):
        sample(lambda a, b: 1 / 0, 4, sde="vp", shape=(2,))


def test_names_that_say_nothing_are_not_judged():
    for function in (lambda a, b: a, lambda *args: args[0], torch.add, nn.Linear(2, 2), lambda x: x, None):
        for order in ("t, x", "x, t"):
            require_order(function, order)


class Odd:
    noise_type, sde_type = "digonal", "ito"


MISSPELT = [
    (lambda: method_of("eular_maruyama"), "euler_maruyama"),
    (lambda: method_of("DDIM"), "ddim"),
    (lambda: sample(X.new_zeros, 1, sde="vpp", shape=(2,)), "vp"),
    (lambda: ScoreModel(lambda x, t: x, "vp", "nosie"), "noise"),
    (lambda: ScoreModel(lambda x, t: x, "vp", "epsilom"), "epsilon"),
    (lambda: ScoreModel(lambda x, t: x, "vp", "x0"), "data"),
    (lambda: ScoreModel(lambda x, t: x, "vp", "v"), "velocity"),
    (lambda: ScoreModel(lambda x, t: x, "vp", conditioning="logsnr"), "log_snr"),
    (lambda: method_of("ddim", grid="karas"), "karras"),
    (lambda: DEIS(3, "log_rhoo"), "log_rho"),
    (lambda: SDE(lambda t, x: x, lambda t, x: x, "aditive"), "additive"),
    (lambda: SDE(lambda t, x: x, lambda t, x: x, sde_type="itoo"), "ito"),
    (lambda: Hutchinson(kind="radermacher"), "rademacher"),
    (lambda: data.load("mnits"), "mnist"),
    (lambda: named_model("Unet"), "UNet"),
    (lambda: sdekit.interop.from_torchsde(Odd()), "diagonal"),
]


@pytest.mark.parametrize(("call", "meant"), MISSPELT, ids=[meant for _, meant in MISSPELT])
def test_the_nearest_name_is_suggested(call, meant):
    with pytest.raises(ValueError, match=re.escape(f"did you mean {meant!r}?")):
        call()


def test_nothing_is_suggested_where_no_name_is_near():
    assert did_you_mean("warp drive", METHODS) == ""
    with pytest.raises(ValueError, match="unknown method 'warp drive'; choose one of default"):
        method_of("warp drive")


def test_no_prediction_is_suggested_for_none():
    with pytest.raises(ValueError, match="predicts = None is not one of") as caught:
        ScoreModel(lambda x, t: x, "vp", None)
    assert "did you mean" not in str(caught.value)


def test_the_names_of_diffusers():
    pairs = {"epsilon": "noise", "sample": "data", "v_prediction": "velocity", "flow_prediction": "flow"}
    for theirs, ours in pairs.items():
        model, own = (ScoreModel(lambda x, t: torch.sin(x), "vp", name, shape=(2,)) for name in (theirs, ours))
        assert model.predicts == ours
        assert torch.equal(sample(model, 3, seed=0, steps=5), sample(own, 3, seed=0, steps=5))


MIXTURE = GaussianMixture([0.5, 0.5], torch.tensor([[-0.9, 0.4], [0.8, -0.3]]), [0.05, 0.02])


def from_noise_to_data(scale):
    """The velocity x_0 - eps of flow matching with its own time, 0 for noise and `scale` for data."""

    def net(x, t):
        own = 1 - t / scale
        data = MIXTURE.denoise(own.clamp(1e-4, 1), x, RectifiedFlow())
        return (data - x) / own.clamp(min=1e-4)[:, None]

    return net


@pytest.mark.parametrize("scale", [1, 1000])
def test_flow_matching_from_noise_to_data(scale):
    """Named by check_model under whichever arguments, and with those named it denoises and has the law."""
    x = MIXTURE.sample(600, seed=0)
    for sde, predicts in (("flow", "flow"), ("flow", "reverse_flow"), ("vp", "noise")):
        with pytest.raises(ValueError, match=rf"sde='flow', predicts='reverse_flow' and conditioning=\(-{scale}, {scale}\)"):
            check_model(ScoreModel(from_noise_to_data(scale), sde, predicts, shape=(2,)), x)
    model = ScoreModel(from_noise_to_data(scale), "flow", "reverse_flow", shape=(2,), conditioning=(-scale, scale))
    assert check_model(model, x).fits
    made, exact = sample(model, 500, seed=1), sample(MIXTURE, 500, sde="flow", seed=1)
    assert (made - exact).abs().median() < 1e-3


def test_failures_with_points_shaped_like_times_keep_their_message():
    """Points (batch,) and times (batch,) are exchanged without a trace, so that a failure has another cause."""

    def net(x, t, calls=[]):  # noqa: B006 - counts
        calls.append(x)
        if len(calls) == 1:
            raise LookupError("on purpose")
        return x

    with pytest.raises(LookupError, match="on purpose"):
        ScoreModel(net, "vp").denoise(torch.full((3,), 0.5), torch.ones(3))

"""What a user may have meant: arguments in the other order, misspelt names, diffusers' names, flow
matching's other time.
"""

import functools
import re

import pytest
import torch
from torch import nn

import sdekit
from sdekit import (
    DEIS,
    SDE,
    EulerMaruyama,
    Hutchinson,
    ProbabilityFlow,
    ReverseSDE,
    did_you_mean,
    solve,
)
from sdekit.calling import require_order
from sdekit_diffusion import (
    DIFFUSIONS,
    METHODS,
    GaussianMixture,
    Recipe,
    RectifiedFlow,
    ScoreModel,
    check_model,
    data,
    sample,
)
from sdekit_diffusion._loading.named import named_model
from sdekit_diffusion._sampling.methods import method_of

VP = DIFFUSIONS["vp"]()
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


class Timed(nn.Module):
    def forward(self, t, x):
        return -x * t[:, None]


class Called:
    """A score in an object, whose names are those of its method, behind a decorator or not."""

    def __call__(self, x, t):
        return -x


class Decorated:
    @functools.wraps(Called.__call__)
    def __call__(self, *args):
        return -args[0]


class Wrapped:
    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args):
        return self.function(*args)


def unnamed(a, b):
    """A score (x, t) whose names say nothing; with t and x it fails or has another shape."""
    return -a / (1 + torch.as_tensor(b)).reshape(-1, *[1] * (a.ndim - 1))


@pytest.mark.parametrize("kind", [ReverseSDE, ProbabilityFlow])
def test_a_score_of_x_and_t_is_refused_where_t_and_x_are_given(kind):
    for score in (
        lambda x, t: -x / (1 + t),
        lambda x_t, time: -x_t / (1 + time),
        functools.partial(lambda x, t, k: -x, k=1),
        Called(),
        Called().__call__,
        Decorated(),
        Wrapped(lambda x, t: -x),
    ):
        with pytest.raises(
            TypeError,
            match=r"called as \(t, x\) here, and this one takes \(x(_t)?, t(ime)?\); "
            r"pass lambda t, x",
        ):
            kind(VP, score)
    with pytest.raises(
        TypeError,
        match=r"called as score\(t, x\) here, and this one takes \(x, t\); pass lambda "
        r"t, x: score\(x, t\)",
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
        TypeError,
        match=r"called as net\(x, t\) here, and this one takes \(t, x\); pass lambda x, "
        r"t: net\(t, x\)",
    ):
        sample(lambda a, b: -b[:, :1].expand_as(b) / (1 + a[:, None]), 4, sde="vp", shape=(2,))
    with pytest.raises(ZeroDivisionError):
        sample(lambda a, b: 1 / 0, 4, sde="vp", shape=(2,))


def test_names_that_say_nothing_are_not_judged():
    for function in (
        lambda a, b: a,
        lambda *args: args[0],
        torch.add,
        nn.Linear(2, 2),
        lambda x: x,
        functools.lru_cache(unnamed),
        None,
    ):
        for order in ("t, x", "x, t"):
            require_order(function, order)


class Odd:
    noise_type = "digonal"
    sde_type = "ito"


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
    *(
        (lambda sde=sde: ScoreModel(nn.Identity(), sde), sde.lower().removesuffix("sde"))
        for sde in ("VPSDE", "vesde", "subvpsde")
    ),
    *(
        (lambda method=method: method_of(method), "euler_maruyama")
        for method in ("euler-maruyama", "EM", "em")
    ),
    *((lambda method=method: method_of(method), "ddim") for method in ("euler", "sample_euler")),
    (lambda: method_of("sample_euler_ancestral"), "ddpm"),  # with its eta of 1, test_diffusers.py
    (lambda: method_of("EulerAncestralDiscreteScheduler"), "ddpm"),
    (lambda: method_of("sample_lms"), "lms"),
    (lambda: method_of("sample_dpm_2"), "dpm_2"),
    (lambda: method_of("KDPM2AncestralDiscreteScheduler"), "dpm_2_ancestral"),
    (lambda: method_of("DPM++ 2S a"), "dpmpp_2s_ancestral"),
    (lambda: method_of("DDPMScheduler"), "ddpm"),
    (lambda: ScoreModel(nn.Identity(), "vp", "epsilon_prediction"), "noise"),
    (lambda: sample(lambda x, t: -x, 4, sde="vp", shape=(2,), noise="pth"), "path"),
    (
        lambda: sample(lambda x, t: -x, 4, sde="vp", shape=(2,), return_solution=True, save="al"),
        "all",
    ),
    (
        lambda: solve(sdekit.ODE(lambda t, x: x), X, [0.0, 1.0], solver=EulerMaruyama(), save="al"),
        "all",
    ),
    (lambda: sdekit.odeint(lambda t, x: x, X, [0.0, 1.0], method="rk45"), "dopri5"),
    (
        lambda: sdekit.odeint_adjoint(
            lambda t, x: x, X, [0.0, 1.0], method="eulr", adjoint_params=()
        ),
        "euler",
    ),
    (
        lambda: sdekit.sdeint(SDE(lambda t, x: x, lambda t, x: x), X, [0.0, 1.0], method="em"),
        "euler",
    ),
    (lambda: Recipe(weighting="liklihood"), "likelihood"),
    (lambda: Recipe(schedule="cosin"), "cosine"),
    (lambda: Recipe(precision="bfloat"), "bfloat16"),
    (lambda: named_model("Unet"), "UNet"),
    (lambda: sdekit.interop.from_torchsde(Odd()), "diagonal"),
]


def test_the_nearest_name_is_suggested():
    for call, meant in MISSPELT:
        with pytest.raises(ValueError, match=re.escape(f"did you mean {meant!r}?")):
            call()


def test_solvers_are_suggested_for_names():
    for given, meant in (("euler", "EulerMaruyama"), ("heun", "Heun"), ("RK_4", "RK4")):
        with pytest.raises(TypeError, match=re.escape(f"did you mean {meant!r}?")):
            solve(sdekit.ODE(lambda t, x: x), X, [0.0, 1.0], solver=given)


def test_the_list_of_names_is_before_the_suggestion():
    with pytest.raises(
        ValueError,
        match=r"unknown sde 'vpsde'; choose one of ve, vp.*VPSDE\(\); "
        r"did you mean 'vp'\?$",
    ):
        ScoreModel(nn.Identity(), "vpsde")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 0),
        ("warmup", -1),
        ("lr", 0.0),
        ("clip", -1.0),
        ("end", 0.0),
        ("weighting", "x"),
        ("schedule", 3),
        ("ema", ()),
    ],
)
def test_recipes_name_the_setting(setting, value):
    with pytest.raises(ValueError, match=re.escape(f"{setting} = {value!r} must be")):
        Recipe(**{setting: value})


class Plain(nn.Module):
    def forward(self, x, t):
        return torch.tanh(x)


def test_a_model_in_a_lambda_is_no_score():
    model = ScoreModel(Plain(), "vp", shape=(2,))
    settings = {"sde": "vp", "shape": (2,), "steps": 4, "method": "ddim", "seed": 0}
    for dtype in (None, torch.float64):
        with pytest.raises(
            TypeError, match=r"pass the model itself, or return model\.score\(t, x\)"
        ):
            sample(lambda x, t: model(x, t), 4, dtype=dtype, **settings)
    for conditions in ("sigma", (999, 0)):
        scores = ScoreModel(Plain(), "vp", "score", conditioning=conditions, shape=(2,))
        with pytest.raises(TypeError, match="pass the model itself"):
            sample(lambda x, t, scores=scores: scores(x, t), 4, **settings)


@pytest.mark.filterwarnings("ignore:VPSDE.* ends at")  # the network is that of no data
def test_scores_made_with_models_are_scores():
    """Of a score network its output is the score; guidance combines several models."""
    model = ScoreModel(Plain(), "vp", shape=(2,))
    other = ScoreModel(lambda x, t: 0.5 * x, "vp", shape=(2,))
    settings = {"sde": "vp", "shape": (2,), "steps": 4, "method": "ddim", "seed": 0}
    expected = sample(model, 4, method="ddim", steps=4, seed=0)

    def direct(x, t):
        return -model(x, t) / VP.sigma(t)[:, None]

    for score in (lambda x, t: model.score(t, x), direct):
        torch.testing.assert_close(sample(score, 4, **settings), expected)

    def guided(x, t):
        return 1.5 * model.score(t, x) - 0.5 * other.score(t, x)

    assert torch.isfinite(sample(guided, 4, **settings)).all()
    scores = ScoreModel(lambda x, t: -x, "vp", "score", shape=(2,))
    found = sample(lambda x, t: scores(x, t), 4, **settings)
    torch.testing.assert_close(found, sample(scores, 4, method="ddim", steps=4, seed=0))
    # As a network of the same parametrisation.
    noise = ScoreModel(lambda x, t: model(x, t), "vp", shape=(2,))
    torch.testing.assert_close(sample(noise, 4, method="ddim", steps=4, seed=0), expected)


def test_nothing_is_suggested_where_no_name_is_near():
    assert did_you_mean("heun", METHODS) == ""  # known, but not allowed there
    assert did_you_mean("warp drive", METHODS) == ""
    with pytest.raises(ValueError, match="unknown method 'warp drive'; choose one of default"):
        method_of("warp drive")


def test_no_prediction_is_suggested_for_none():
    with pytest.raises(ValueError, match="predicts = None is not one of") as caught:
        ScoreModel(lambda x, t: x, "vp", None)
    assert "did you mean" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:VPSDE.* ends at")  # the network is that of no data
def test_the_names_of_diffusers():
    pairs = {
        "epsilon": "noise",
        "sample": "data",
        "v_prediction": "velocity",
        "flow_prediction": "flow",
    }
    for theirs, ours in pairs.items():
        model, own = (
            ScoreModel(lambda x, t: torch.sin(x), "vp", name, shape=(2,)) for name in (theirs, ours)
        )
        assert model.predicts == ours
        assert torch.equal(sample(model, 3, seed=0, steps=5), sample(own, 3, seed=0, steps=5))


MIXTURE = GaussianMixture([0.5, 0.5], torch.tensor([[-0.9, 0.4], [0.8, -0.3]]), [0.05, 0.02])


def from_noise_to_data(scale):
    """The velocity x_0 - eps of flow matching with its own time, 0 for noise and `scale` for
    data.
    """

    def net(x, t):
        own = 1 - t / scale
        data = MIXTURE.denoise(own.clamp(1e-4, 1), x, RectifiedFlow())
        return (data - x) / own.clamp(min=1e-4)[:, None]

    return net


WRONG = [("flow", "flow"), ("flow", "reverse_flow"), ("vp", "noise")]


@pytest.mark.parametrize(("scale", "wrong"), [(1, WRONG[:2]), (1000, WRONG[2:])])
def test_flow_matching_from_noise_to_data(scale, wrong):
    """Named by check_model under whichever arguments, and with those named it denoises and has the
    law.
    """
    x = MIXTURE.sample(150, seed=0)
    for sde, predicts in wrong:
        others = "" if predicts == "reverse_flow" else "sde='flow', predicts='reverse_flow' and "
        with pytest.raises(ValueError, match=rf"With {others}conditioning=\(-{scale}, {scale}\)"):
            check_model(ScoreModel(from_noise_to_data(scale), sde, predicts, shape=(2,)), x)
    model = ScoreModel(
        from_noise_to_data(scale), "flow", "reverse_flow", shape=(2,), conditioning=(-scale, scale)
    )
    assert check_model(model, x).fits
    made = sample(model, 500, seed=1)
    exact = sample(MIXTURE, 500, sde="flow", seed=1)
    assert (made - exact).abs().median() < 1e-3


def test_failures_with_points_shaped_like_times_keep_their_message():
    """Points (batch,) and times (batch,) are exchanged without a trace, so that a failure has
    another cause.
    """

    def net(x, t, calls=[]):  # noqa: B006 - counts
        calls.append(x)
        if len(calls) == 1:
            raise LookupError("on purpose")
        return x

    with pytest.raises(LookupError, match="on purpose"):
        ScoreModel(net, "vp").denoise(torch.full((3,), 0.5), torch.ones(3))

"""Functions of users that change their input, or what they returned before: refused, or harmless;
x0 is never changed.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sdekit import (
    ODE,
    RK4,
    SDE,
    SRA1,
    SRID2,
    AbstractSDE,
    AdamsBashforth,
    AdamsMoulton,
    Checkpointed,
    Dopri5,
    Dopri8,
    EulerHeun,
    EulerMaruyama,
    ExponentialHeun,
    Heun,
    Midpoint,
    Milstein,
    PIDController,
    ProbabilityFlow,
    ReverseSDE,
    Reversible,
    ReversibleHeun,
    SemiLinear,
    SlowRK,
    UniPC,
    WhiteNoise,
    integrate,
    log_likelihood,
    odeint,
    sdeint,
    solve,
    uniform,
)
from sdekit.calling import ChangedError, checked_call
from sdekit.interop import from_torchsde
from sdekit_diffusion import METHODS, VPSDE, ScoreModel, bits_per_dim, encode, fit, sample
from sdekit_diffusion import log_likelihood as model_log_likelihood

ORDINARY = [
    EulerMaruyama(),
    Heun(),
    Midpoint(),
    ReversibleHeun(),
    RK4(),
    AdamsBashforth(3),
    Dopri5(),
    Dopri8(),
]
STOCHASTIC = [EulerHeun(), Heun(), ReversibleHeun(), SlowRK()]
REFUSED = pytest.raises(ChangedError, match="changes its input in place")
OVERWRITTEN = pytest.raises(ChangedError, match="returned before")
GRID = uniform(0.0, 1.0, 16)


def x0():
    return torch.ones(4, 3, dtype=torch.float64)


def spoiling(t, x):
    return x.mul_(-1)


def fine(t, x):
    return -x


class Reusing:
    """Returns one buffer again and again, or several in turn."""

    def __init__(self, factor, several=1):
        self.factor = factor
        self.buffers = [None] * several

    def __call__(self, t, x):
        buffer = self.buffers.pop(0)
        self.buffers.append(torch.empty_like(x) if buffer is None else buffer)
        return torch.mul(x, self.factor, out=self.buffers[-1])


def right_or_refused(run, expected):
    """With the right result, or refused by the library; returns which."""
    try:
        found = run()
    except RuntimeError as error:
        message = str(error)
    else:
        torch.testing.assert_close(found, expected)
        return "right"
    assert "in place" in message or "returned before" in message
    return "refused"


@pytest.mark.parametrize("solver", ORDINARY, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_drift_that_changes_x_is_refused_and_x0_stays(solver, mode):
    """The issue's case: RK4 with x.mul_(-1) gave .506 for .368, and x0 was overwritten."""
    with mode():
        start = x0()
        expected = solve(ODE(fine), start, GRID, solver=solver).x
        outcome = right_or_refused(
            lambda: solve(ODE(spoiling), start, GRID, solver=solver).x, expected
        )
    assert outcome == ("right" if mode is torch.inference_mode else "refused")
    assert torch.equal(start, x0())


@pytest.mark.parametrize("several", [2, 3, 4])
@pytest.mark.parametrize(
    "solver",
    [*ORDINARY, AdamsBashforth(4), AdamsMoulton(3), UniPC(3)],
    ids=lambda s: f"{type(s).__name__}{getattr(s, 'k', '')}",
)
def test_buffers_that_are_returned_in_turn_do_not_spoil_slopes(solver, several):
    """Two of them gave .4109 for .4 in a multistep rule, silently."""
    with torch.no_grad():
        expected = solve(ODE(fine), x0(), GRID, solver=solver).x
        outcome = right_or_refused(
            lambda: solve(ODE(Reusing(-1.0, several)), x0(), GRID, solver=solver).x, expected
        )
    assert outcome == "refused"


def test_a_diffusion_that_overwrites_the_drift_is_refused_in_the_last_step_too():
    kept = []

    def drift(t, x):
        kept.append(-x)
        return kept[-1]

    def diffusion(t, x):
        kept[-1].zero_()
        return 0.1 * torch.ones_like(x)

    with torch.no_grad(), OVERWRITTEN:
        solve(SDE(drift, diffusion, "additive"), x0(), [0.0, 1.0], solver=EulerMaruyama())


def test_results_that_nobody_has_any_more_may_be_overwritten():
    """By a pool of tensors, of which a result is a view."""
    buffers = Reusing(-1.0, 2)
    rule = AdamsBashforth(1)
    with torch.no_grad():
        expected = solve(ODE(fine), x0(), GRID, solver=rule).x
        found = solve(ODE(lambda t, x: buffers(t, x).detach()), x0(), GRID, solver=rule).x
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "solver", [*ORDINARY, EulerHeun(), SlowRK(), SRID2(), SRA1()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_buffer_that_is_returned_again_does_not_spoil_slopes(solver, mode):
    def problem(f, g):
        if "none" in solver.order and "additive" not in solver.order:
            return ODE(f)
        kind = "diagonal" if "diagonal" in solver.order else "additive"
        return SDE(f, g, kind, solver.sde_type)

    noise = WhiteNoise(0)
    with mode():
        sound = problem(fine, lambda t, x: 0.1 * x if solver.order.get("diagonal") else 0.1 + 0 * x)
        expected = solve(sound, x0(), GRID, solver=solver, noise=noise).x
        g = (
            Reusing(0.1)
            if solver.order.get("diagonal")
            else sound.g
            if isinstance(sound, SDE)
            else None
        )
        outcome = right_or_refused(
            lambda: solve(problem(Reusing(-1.0), g), x0(), GRID, solver=solver, noise=noise).x,
            expected,
        )
    assert outcome == ("right" if mode is torch.inference_mode else "refused")


@pytest.mark.parametrize("solver", STOCHASTIC, ids=lambda s: type(s).__name__)
def test_a_diffusion_that_changes_x_is_refused(solver):
    start = x0()
    with REFUSED:
        solve(
            SDE(fine, lambda t, x: x.mul_(0.1), "diagonal", "stratonovich"),
            start,
            GRID,
            solver=solver,
            noise=WhiteNoise(0),
        )
    assert torch.equal(start, x0())


@pytest.mark.parametrize("solver", ORDINARY, ids=lambda s: type(s).__name__)
def test_the_identity_and_views_as_drifts(solver):
    """f may return x itself, or a view of it."""
    expected = solve(ODE(lambda t, x: 1.0 * x), x0(), GRID, solver=solver).x
    for f in (lambda t, x: x, lambda t, x: x[:], lambda t, x: x.view(-1).view_as(x)):
        start = x0()
        torch.testing.assert_close(solve(ODE(f), start, GRID, solver=solver).x, expected)
        assert torch.equal(start, x0())


def test_a_time_that_is_changed_is_refused():
    """With adaptive steps in float64 t is a view of the solver's own times."""

    def f(t, x):
        return x * t.mul_(0.5)

    with REFUSED:
        solve(ODE(f), x0(), [0.0, 1.0], solver=Dopri5(), control=PIDController())


class Custom(AbstractSDE):
    noise_type = "none"

    def drift(self, t, x):
        return x.mul_(-1)

    def diffusion(self, t, x):
        return 0.0


@pytest.mark.parametrize(
    "problem",
    [
        Custom(),
        SemiLinear(-0.5, lambda t, x: x.mul_(-0.5)),
        ProbabilityFlow(VPSDE(), spoiling),
        ReverseSDE(VPSDE(), spoiling),
        ReverseSDE(SDE(spoiling, lambda t, x: 1.0, "additive"), fine),
    ],
    ids=lambda p: type(p).__name__,
)
def test_every_kind_of_equation_is_guarded(problem):
    with REFUSED:
        solve(problem, x0(), uniform(0.9, 0.1, 8), solver=EulerMaruyama(), noise=WhiteNoise(0))
    with REFUSED:
        list(
            integrate(
                problem, x0(), uniform(0.9, 0.1, 8), solver=EulerMaruyama(), noise=WhiteNoise(0)
            )
        )


def test_a_drift_may_run_in_inference_mode_and_so_may_a_part_of_the_steps():
    @torch.inference_mode()
    def own(t, x):
        return -x

    expected = solve(ODE(fine), x0(), GRID, solver=AdamsBashforth(2)).x
    torch.testing.assert_close(solve(ODE(own), x0(), GRID, solver=AdamsBashforth(2)).x, expected)
    points = integrate(ODE(fine), x0(), GRID, solver=AdamsBashforth(1))
    next(points)
    with torch.inference_mode():
        torch.testing.assert_close(
            list(points)[-1].x, solve(ODE(fine), x0(), GRID, solver=AdamsBashforth(1)).x
        )


@pytest.mark.parametrize("g", ["in inference mode", "changes x.detach()"])
def test_a_diffusion_whose_derivative_autograd_cannot_see_is_refused(g):
    """Milstein's correction was lost, and the result that of Euler and Maruyama."""

    @torch.inference_mode()
    def own(t, x):
        return 0.5 * x

    noisy = {"in inference mode": own, "changes x.detach()": lambda t, x: x * x.detach().mul_(0.5)}[
        g
    ]
    refused = pytest.raises(
        RuntimeError,
        match=r"inference mode, through which no derivative|in "
        r"place",
    )
    with torch.no_grad(), torch.inference_mode(g != "in inference mode"), refused:
        solve(SDE(fine, noisy, "diagonal"), x0(), GRID, solver=Milstein(), noise=WhiteNoise(0))


def test_semilinear_in_inference_mode_keeps_x_for_its_linear_part():
    with torch.inference_mode():
        x = solve(
            SemiLinear(-0.5, lambda t, x: x.mul_(-0.5)), x0(), GRID, solver=ExponentialHeun(-0.5)
        ).x
        assert abs(x[0, 0].item() - math.exp(-1)) < 1e-3


@pytest.mark.parametrize(
    "gradient", [None, Checkpointed(), Reversible()], ids=["plain", "checkpointed", "reversible"]
)
def test_gradients_still_work_and_in_place_is_refused(gradient):
    rate = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    x = solve(ODE(lambda t, x: rate * x), x0(), GRID, solver=ReversibleHeun(), gradient=gradient).x
    x.sum().backward()
    assert abs(rate.grad.item() / (12 * math.exp(-1)) - 1) < 1e-2
    with REFUSED:
        solve(
            ODE(lambda t, x: rate * x.mul_(1.0)),
            x0(),
            GRID,
            solver=ReversibleHeun(),
            gradient=gradient,
        )


def test_adjoint_solvers_interop_and_likelihoods_are_guarded():
    with REFUSED:
        odeint(spoiling, x0(), [0.0, 1.0], method="dopri5")
    with REFUSED:
        odeint(spoiling, x0(), [0.0, 1.0], method="rk4")

    class Torchsde(nn.Module):
        noise_type = "diagonal"
        sde_type = "ito"

        def f(self, t, y):
            return y.mul_(-1)

        def g(self, t, y):
            return 0.1 * torch.ones_like(y)

    with REFUSED:
        sdeint(Torchsde(), x0(), [0.0, 1.0], dt=0.1)
    with REFUSED:
        log_likelihood(ODE(spoiling), x0(), [0.0, 1.0], lambda x: x.sum(dim=1))


class Products(nn.Module):
    """torchsde's equation with a product g . v of its own, which is made by changing v."""

    noise_type = "diagonal"
    sde_type = "stratonovich"

    def f(self, t, y):
        return -y

    def g_prod(self, t, y, v):
        return v.mul_(0.3)


class BothProducts(nn.Module):
    noise_type = "diagonal"
    sde_type = "stratonovich"

    def f_and_g_prod(self, t, y, v):
        return -y, v.mul_(0.3)


@pytest.mark.parametrize("kind", [Products, BothProducts])
@pytest.mark.parametrize(
    "solver", [EulerHeun(), Heun(), Midpoint()], ids=lambda solver: type(solver).__name__
)
def test_products_that_change_the_noise_are_refused(solver, kind):
    with pytest.raises(RuntimeError, match=r"the product g \. v changes its input in place"):
        solve(from_torchsde(kind()), x0(), GRID, solver=solver, noise=WhiteNoise(0))


def test_under_vmap_the_result_is_right():
    """There are no version counters within vmap: f gets copies."""
    starts = torch.stack([x0(), 2 * x0()])

    def end(start, f):
        return solve(ODE(f), start, GRID, solver=RK4()).x

    found, expected = (torch.func.vmap(lambda s, f=f: end(s, f))(starts) for f in (spoiling, fine))
    torch.testing.assert_close(found, expected)
    assert torch.equal(starts, torch.stack([x0(), 2 * x0()]))


@pytest.mark.parametrize(
    ("t", "changed"), [(0.5, "x"), (torch.full((3,), 0.5), "x"), (torch.full((3,), 0.5), "t")]
)
def test_the_score_of_a_reverse_equation_is_named(t, changed):
    """By the equation itself, also outside of a solve."""
    x = torch.ones(3, 2)

    def score(t, x):
        (x if changed == "x" else t).mul_(0.5)
        return -x

    with pytest.raises(ChangedError, match=r"score\(t, x\) changes its input in place"):
        ReverseSDE(VPSDE(), score).drift(t, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_under_jvp_gradients_work_and_in_place_is_refused():
    def end(start, f):
        return solve(ODE(f), start, GRID, solver=RK4()).x

    _, tangent = torch.func.jvp(lambda s: end(s, fine), (x0(),), (x0(),))
    assert abs(tangent[0, 0].item() - math.exp(-1)) < 1e-5
    with REFUSED:
        torch.func.jvp(lambda s: end(s, spoiling), (x0(),), (x0(),))


def test_a_compiled_drift_that_changes_x_is_refused():
    with REFUSED:
        solve(ODE(torch.compile(spoiling, backend="eager")), x0(), GRID, solver=RK4())


# Networks


class Spoiling(nn.Module):
    """A network whose first layer is an activation in place."""

    def __init__(self, inplace=True):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.ReLU(inplace=inplace), nn.Linear(2, 2))

    def forward(self, x, t):
        return self.layers(x)


def model(inplace=True, predicts="noise"):
    return ScoreModel(Spoiling(inplace), "vp", predicts, shape=(2,)).eval()


def few_steps(name):
    """A method and a number of steps, or else a tolerance with which it takes few."""
    method = METHODS[name]
    if method.steps == 0:
        return {"method": replace(method, rtol=0.3, atol=0.3)}
    few = {"reverse_diffusion": 24, "ancestral": 24, "ncsn": 2}
    return {"method": name, "steps": few.get(name, 4)}


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize("name", METHODS)
def test_networks_that_change_x_are_refused_by_all_methods(name):
    for predicts in ("noise", "data", "score", "velocity", "flow"):
        refused_and_x_as_it_was(name, predicts)


def refused_and_x_as_it_was(name, predicts):
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    given = start.clone()
    with REFUSED:
        sample(model(predicts=predicts), x_T=start, seed=0, **few_steps(name))
    assert torch.equal(start, given)


@pytest.mark.filterwarnings("ignore:the last step leaves noise")  # of few steps
@pytest.mark.parametrize("name", METHODS)
def test_in_inference_mode_they_are_right(name):
    with torch.inference_mode():
        found, expected = (
            sample(model(inplace), 3, seed=0, **few_steps(name)) for inplace in (True, False)
        )
    torch.testing.assert_close(found, expected)


def test_training_likelihood_and_encoding_refuse_them():
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    given = data.clone()
    for run in (
        lambda: fit(model(), data, progress=False),
        lambda: model_log_likelihood(model(), data[:4]),
        lambda: encode(model(), data[:4]),
    ):
        with REFUSED:
            run()
    assert torch.equal(data, given)


def test_conditions_are_not_changed():
    class Labelled(nn.Module):
        def forward(self, x, t, y):
            return x + y.add_(1)

    labels = torch.zeros(3, 1)
    with REFUSED:
        sample(
            ScoreModel(Labelled(), "vp", "noise", shape=(2,), data_std=1.0).given(y=labels),
            3,
            method="ddim",
            steps=3,
        )


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize("gradient", [None, Checkpointed()], ids=["plain", "checkpointed"])
def test_a_callback_that_changes_its_state_is_refused(step, gradient):
    def change(point):
        if point.step == step:
            point.x.mul_(2)

    settings = {"solver": RK4(), "gradient": gradient, "callback": change}
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match=f"at step {step} was changed in pl.*wi"),
    ):
        solve(ODE(lambda t, x: -x), torch.ones(2, 1), uniform(0.0, 1.0, 3), **settings)


@pytest.mark.parametrize("name", ["samples", "t0", "t1", "x", "dense"])
def test_a_callback_that_changes_adaptive_steps_is_refused(name):
    def change(accepted):
        value = getattr(accepted, name)
        (value if isinstance(value, torch.Tensor) else value[0]).mul_(2)

    settings = {"solver": Dopri5(), "control": PIDController(), "callback": change}
    with pytest.raises(RuntimeError, match=r"callback changed .* in place.* x\.clone"):
        solve(ODE(lambda t, x: -x), torch.ones(2, 1), [0.0, 1.0], **settings)


def test_a_loop_that_changes_its_state_is_refused():
    points = integrate(ODE(lambda t, x: -x), torch.ones(2, 1), uniform(0.0, 1.0, 3), solver=RK4())
    next(points).x.clone().mul_(2)
    next(points).x.mul_(2)
    with pytest.raises(RuntimeError, match="at step 1 was changed in place"):
        next(points)


class InPlace(nn.Module):
    """Begins with a nonlinearity in place, as many networks do."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(2, 2)

    def forward(self, x, t):
        return self.linear(self.relu(x))


def test_points_that_require_gradients_get_the_same_message():
    """Torch refuses changes of leaves in other words; other failures keep theirs."""
    model = ScoreModel(InPlace(), "vp", shape=(2,))
    leaf = torch.zeros(2, 2, requires_grad=True)
    pixels = torch.zeros(2, 2, dtype=torch.uint8)
    for run in (
        lambda: model_log_likelihood(model, torch.zeros(2, 2)),
        lambda: model_log_likelihood(model, leaf, differentiable=True),
        lambda: bits_per_dim(model, pixels, low=-1.0, high=1.0, levels=256),
        lambda: encode(model, leaf),
        lambda: model.denoise(0.5, leaf),
        lambda: model.score(0.5, leaf),
        lambda: model(leaf, 0.5),
        lambda: sample(model, x_T=torch.randn(2, 2, requires_grad=True)),
        lambda: fit(model, torch.randn(64, 2, requires_grad=True), progress=False),
        lambda: solve(ODE(lambda t, x: x.relu_()), leaf, GRID, solver=Heun()),
    ):
        with REFUSED:
            run()
    failing = ScoreModel(lambda x, t: x @ x, "vp", shape=(3,))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        failing.denoise(0.5, torch.zeros(2, 3, requires_grad=True))


def test_a_function_of_a_number_and_a_state_is_refused_by_itself():
    x = torch.ones(2, 1)
    assert torch.equal(checked_call("f", lambda t, x: t * x, 0.5, x), 0.5 * x)
    with pytest.raises(ChangedError, match="f changes its input in place"):
        checked_call("f", lambda t, x: x.mul_(t), 0.5, x)

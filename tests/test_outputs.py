"""What networks, drifts and diffusions may return: real floating numbers; and what a small g means,
whatever the batch size.
"""

import pytest
import torch
from torch import nn

from sdekit import (
    ODE,
    RK4,
    SDE,
    SRA1,
    AbstractSDE,
    AdamsBashforth,
    BrownianPath,
    Dopri5,
    EulerMaruyama,
    Heun,
    PIDController,
    ProbabilityFlow,
    ReverseSDE,
    ReversibleHeun,
    SemiLinear,
    WhiteNoise,
    odeint,
    sdeint,
    solve,
    uniform,
)
from sdekit.interop import to_torchsde
from sdekit_diffusion import METHODS, VPSDE, ScoreModel, dsm_loss, sample

GRID = uniform(0.0, 1.0, 4)
X = torch.linspace(-1, 2, 6).reshape(2, 3)
WRONG = [torch.int64, torch.int8, torch.bool, torch.complex64]


def cast(dtype):
    return lambda *inputs: next(v for v in inputs if getattr(v, "ndim", 0) > 1).to(dtype)


def refused(dtype):
    return pytest.raises(TypeError, match=f"returned {dtype} for x of torch.float32; return")


@pytest.mark.parametrize("dtype", WRONG)
def test_other_than_real_numbers_are_refused(dtype):
    wrong = cast(dtype)
    problems = [
        ODE(wrong),
        SDE(wrong, lambda t, x: 0.1, "additive"),
        SDE(lambda t, x: -x, wrong),
        SDE(lambda t, x: -x, wrong, "scalar"),
        SDE(lambda t, x: -x, lambda t, x: x.unsqueeze(-1).to(dtype), "general", noise_size=1),
        ReverseSDE(VPSDE(), wrong),
        ProbabilityFlow(VPSDE(), wrong),
    ]
    for problem in problems:
        with refused(dtype):
            solve(problem, X, uniform(0.1, 0.9, 4), solver=EulerMaruyama(), noise=WhiteNoise(0))
    with refused(dtype):
        odeint(wrong, X, [0.0, 1.0], method="rk4")


class Torchsde(nn.Module):
    sde_type = "ito"
    noise_type = "diagonal"

    def __init__(self, f, g):
        super().__init__()
        self.f = f
        self.g = g


@pytest.mark.parametrize("dtype", WRONG)
def test_torchsde_equations_too(dtype):
    for f, g in ((cast(dtype), lambda t, y: 0.1 * y), (lambda t, y: -y, cast(dtype))):
        with refused(dtype):
            sdeint(Torchsde(f, g), X, [0.0, 1.0], dt=0.5)


@pytest.mark.parametrize("dtype", WRONG)
@pytest.mark.parametrize("name", METHODS)
def test_networks_of_all_methods(dtype, name):
    steps = {"steps": 24} if METHODS[name].steps else {}
    with refused(dtype):
        sample(
            ScoreModel(lambda x, t: x.to(dtype), "vp", "noise", shape=(2,)),
            3,
            method=name,
            seed=0,
            **steps,
        )


@pytest.mark.parametrize("dtype", WRONG)
def test_networks_in_training(dtype):
    with refused(dtype):
        dsm_loss(ScoreModel(lambda x, t: x.to(dtype), "vp", "noise", shape=(3,)), X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast(dtype):
    x = solve(ODE(lambda t, x: -x.to(dtype)), X, GRID, solver=Heun()).x
    assert x.dtype == torch.float32
    torch.testing.assert_close(
        x, solve(ODE(lambda t, x: -x), X, GRID, solver=Heun()).x, rtol=2e-2, atol=1e-2
    )


def test_a_truth_value_is_no_number():
    with pytest.raises(TypeError, match="returned bool"):
        solve(
            SDE(lambda t, x: -x, lambda t, x: True, "additive"),
            X,
            GRID,
            solver=EulerMaruyama(),
            noise=WhiteNoise(0),
        )


class PerCoordinate(AbstractSDE):
    """An equation of a user's own, whose g is one number per coordinate."""

    noise_type = "additive"

    def drift(self, t, x):
        return -x

    def diffusion(self, t, x):
        return torch.tensor([0.0, 1.0, 2.0], dtype=x.dtype)


PROBLEMS = {
    "additive": SDE(lambda t, x: -x, lambda t, x: torch.tensor([0.0, 1.0, 2.0]), "additive"),
    "diagonal": SDE(lambda t, x: -x, lambda t, x: torch.tensor([0.0, 1.0, 2.0]), "diagonal"),
    "row": SDE(lambda t, x: -x, lambda t, x: torch.tensor([[0.0, 1.0, 2.0]]), "diagonal"),
    "own": PerCoordinate(),
    "reverse": ReverseSDE(PerCoordinate(), lambda t, x: 0 * x),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_one_number_per_coordinate_whatever_the_batch_size(name, batch):
    """With three rows of three coordinates it was one number per sample."""
    x = torch.zeros(batch, 3)
    found = solve(PROBLEMS[name], x, GRID, solver=EulerMaruyama(), noise=WhiteNoise(0)).x
    assert (found[:, 0] == 0).all()
    assert (found[:, 1:] != 0).all()
    alone = solve(PROBLEMS[name], x[:1], GRID, solver=EulerMaruyama(), noise=WhiteNoise(0)).x
    torch.testing.assert_close(found[:1], alone)


@pytest.mark.parametrize("batch", [2, 3])
def test_to_torchsde_reads_it_in_the_same_way(batch):
    g = to_torchsde(PerCoordinate()).g(torch.tensor(0.0), torch.zeros(batch, 3))
    torch.testing.assert_close(g, torch.diag(torch.tensor([0.0, 1.0, 2.0])).expand(batch, 3, 3))


@pytest.mark.parametrize("batch", [2, 3])
def test_the_reverse_of_noise_per_coordinate(batch):
    """The drift -g^2 s of Anderson's equation has the same factor."""
    forward = PerCoordinate()
    drift = ReverseSDE(forward, lambda t, x: torch.ones_like(x)).drift(0.5, torch.zeros(batch, 3))
    torch.testing.assert_close(drift, torch.tensor([-0.0, -1.0, -4.0]).expand(batch, 3))


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize(
    "solver", [SRA1(), Heun(), ReversibleHeun(), EulerMaruyama()], ids=lambda s: type(s).__name__
)
def test_own_times_of_samples_give_one_number_per_sample(batch, solver):
    """Of the library's own equations with t `(batch,)`, also where there are as many samples as
    coordinates.
    """
    sde = VPSDE()
    x = torch.zeros(batch, 3)
    t = torch.linspace(0.2, 0.8, batch, dtype=torch.float64)
    w = torch.ones(batch, 3)
    found = sde.diffuse(t, x, w, x)
    expected = torch.stack([sde.diffuse(float(s), x[:1], w[:1], x[:1])[0] for s in t])
    torch.testing.assert_close(found, expected)
    if solver.embedded:
        control = PIDController(1e-2, 1e-2)
        noise = BrownianPath(0, [0.1, 0.9])
        whole = solve(sde, x + 1, [0.1, 0.9], solver=solver, noise=noise, control=control).x
        alone = solve(sde, x[:1] + 1, [0.1, 0.9], solver=solver, noise=noise, control=control).x
        torch.testing.assert_close(whole[:1], alone)


def test_g_of_the_time_of_each_sample():
    """With adaptive steps t is `(batch, 1)` and so is g = t."""
    problem = SDE(lambda t, x: -x, lambda t, x: 0.1 + t, "additive")
    noise = BrownianPath(0, [0.0, 1.0])
    whole = solve(
        problem,
        torch.ones(3, 3),
        [0.0, 1.0],
        solver=SRA1(),
        noise=noise,
        control=PIDController(1e-3, 1e-3),
    ).x
    alone = solve(
        problem,
        torch.ones(1, 3),
        [0.0, 1.0],
        solver=SRA1(),
        noise=noise,
        control=PIDController(1e-3, 1e-3),
    ).x
    torch.testing.assert_close(whole[:1], alone)


def test_one_number_per_sample_is_refused_with_its_shape():
    problem = SDE(lambda t, x: -x, lambda t, x: torch.ones(len(x)), "additive")
    with pytest.raises(
        ValueError, match=r"g\(t, x\) returned shape \(2,\) for x of shape \(2, 3\)"
    ):
        solve(problem, X, GRID, solver=EulerMaruyama(), noise=WhiteNoise(0))


class Own(AbstractSDE):
    """An equation of a user's own from two functions of x, whose values torch would broadcast."""

    def __init__(self, f, g=None, noise_type="none", size=None):
        self.f = f
        self.g = g
        self.noise_type = noise_type
        self.size = size

    def drift(self, t, x):
        return self.f(x)

    def diffusion(self, t, x):
        return self.g(x)

    def noise_shape(self, x):
        return AbstractSDE.noise_shape(self, x) if self.size is None else (self.size,)


def test_rates_of_each_sample_without_rows_are_refused_with_adaptive_steps():
    """With one sample left its drift was the first of two, from then on, and its status DONE."""
    k = torch.tensor([[0.1], [50.0]])
    with pytest.raises(ValueError, match=r"shape \(2, 1\) for x of shape \(1, 1\).*define rows"):
        solve(
            Own(lambda x: -k * x),
            torch.ones(2, 1),
            [0.0, 1.0],
            solver=Dopri5(),
            control=PIDController(1e-3, 1e-3),
        )


@pytest.mark.parametrize("solver", [EulerMaruyama(), RK4(), AdamsBashforth(2)], ids=str)
def test_a_drift_of_another_shape_is_refused(solver):
    refused = pytest.raises(ValueError, match=r"drift.* for x of shape \(3, 1\).* return \(3, 1\)")
    for problem in (Own(lambda x: -x[:, 0]), SemiLinear(torch.ones(3), lambda t, x: 0 * x)):
        with refused:
            solve(problem, torch.ones(3, 1), GRID, solver=solver)


def sizes(*shape):
    return lambda x: torch.ones(shape)


@pytest.mark.parametrize(
    ("noise_type", "shape", "size"),
    [
        ("additive", (2,), None),
        ("additive", (1, 2, 3), None),
        ("diagonal", (3, 3), None),
        ("diagonal", (2, 2), None),
        ("scalar", (3,), None),
        ("scalar", (2, 1), None),
        ("general", (2, 4), 4),
        ("general", (2, 3, 1), 4),
        ("general", (1, 3, 4), 4),
    ],
)
def test_a_diffusion_of_another_shape_is_refused(noise_type, shape, size):
    problem = Own(torch.neg, sizes(*shape), noise_type, size)
    with pytest.raises(ValueError, match=r"diffusion.* for x of shape \(2, 3\); it must return"):
        solve(problem, X, GRID, solver=EulerMaruyama(), noise=WhiteNoise(0))


def test_what_general_noise_of_as_many_samples_as_coordinates_reads_is_refused():
    """A matrix (d, m) was read as one row per sample."""
    problem = Own(torch.neg, sizes(2, 4), "general", 4)
    with pytest.raises(ValueError, match=r"shape \(2, 4\) .*; it must return \(2, 2, 4\)"):
        solve(problem, X[:, :2], GRID, solver=EulerMaruyama(), noise=WhiteNoise(0))


def test_numbers_and_smaller_shapes_of_an_own_equation_remain():
    expected = solve(
        Own(torch.neg, torch.ones_like, "additive"),
        X,
        GRID,
        solver=EulerMaruyama(),
        noise=WhiteNoise(0),
    ).x
    values = [sizes(), sizes(3), sizes(1, 3), sizes(2, 1), sizes(2, 3), lambda x: 1.0]
    for g in values:
        problem = Own(torch.neg, g, "additive")
        found = solve(problem, X, GRID, solver=EulerMaruyama(), noise=WhiteNoise(0)).x
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("solver", [EulerMaruyama(), ReversibleHeun()], ids=str)
def test_a_number_as_scalar_noise_remains(solver):
    problem = Own(torch.neg, lambda x: 1.0, "scalar")
    problem.sde_type = solver.sde_type
    found = solve(problem, X, GRID, solver=solver, noise=WhiteNoise(0)).x
    problem.g = torch.ones_like
    expected = solve(problem, X, GRID, solver=solver, noise=WhiteNoise(0)).x
    torch.testing.assert_close(found, expected)

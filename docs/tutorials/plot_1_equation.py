"""
A stochastic differential equation, from equation to paths, orders and adaptive steps
======================================================================================

A population grows up to the carrying capacity of its habitat, with random changes of its growth
rate. This tutorial solves that equation, refines one path of it, measures how fast errors fall with
the step, takes adaptive steps for each sample, and finds when a population first reaches a given
size.
"""

# %%
# The equation
# ------------
# The stochastic logistic equation for the size :math:`X` of a population, in units of the carrying
# capacity, is
#
# .. math:: \mathrm{d}X = r X (1 - X)\, \mathrm{d}t + s X\, \mathrm{d}W
#
# in Ito's sense. ``SDE`` takes the drift and the diffusion coefficient as functions of the time and
# of a batch of states of shape ``(batch, 1)``. The noise is *diagonal*: each coordinate has its own
# noise, whose size may depend on that coordinate.

import math

import matplotlib.pyplot as plt
import sdekit
import torch
from scipy import integrate, special

r = 1.5
s = 0.6
logistic = sdekit.SDE(lambda t, x: r * x * (1 - x), lambda t, x: s * x, noise_type="diagonal")

# %%
# Paths
# -----
# ``solve`` takes the equation, initial states, a grid of times, a solver and the noise.
# ``save="all"`` keeps the states at all times of the grid: ``xs`` has the shape
# ``(times, batch, 1)``. ``SRID2`` is a solver for Ito equations with diagonal noise; the page
# :doc:`/solvers` says which solver suits which equation.
#
# In the long run the law of :math:`X` is a Gamma distribution with shape :math:`2 r / s^2 - 1` and
# rate :math:`2 r / s^2`. Look for the fluctuations that do not die out, and for the agreement of
# the last states with that law.

x0 = torch.full((1000, 1), 0.05, dtype=torch.float64)
grid = sdekit.uniform(0.0, 20.0, 400)
solution = sdekit.solve(
    logistic, x0, grid, solver=sdekit.SRID2(), noise=sdekit.WhiteNoise(seed=0), save="all"
)

c = 2 * r / s**2
sizes = torch.linspace(0.01, 2.5, 200, dtype=torch.float64)
density = c ** (c - 1) / special.gamma(c - 1) * sizes ** (c - 2) * torch.exp(-c * sizes)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.3), width_ratios=[2, 1], sharey=True)
axes[0].plot(grid, solution.xs[:, :15, 0], lw=0.6)
axes[0].plot(grid, solution.xs.mean(dim=1), "k", label="mean of 1000 paths")
axes[0].set(xlabel="time t", ylabel="size X", title="15 paths")
axes[0].legend()
axes[1].hist(
    solution.x[:, 0], bins=20, density=True, orientation="horizontal", color="0.8", label="t = 20"
)
axes[1].plot(density, sizes, "k", label="Gamma law")
axes[1].set(xlabel="density", title="the last states")
axes[1].legend()

# %%
# One Brownian path
# -----------------
# ``WhiteNoise`` draws new noise for each grid: with other steps these would be other paths.
# ``BrownianPath`` is one path per sample, a function of its seed, that every grid reads. A solve
# with smaller steps is then the same experiment, done more accurately. Look for the path of 64
# steps, which follows the finest one; with 16 steps the numerical solution becomes negative, which
# the exact solution does not.

one = torch.full((1, 1), 0.05, dtype=torch.float64)
path = sdekit.BrownianPath(seed=1, knots=(0.0, 8.0))
fig, ax = plt.subplots(figsize=(7, 3.3))
for steps in (16, 64, 1024):
    times = sdekit.uniform(0.0, 8.0, steps)
    solution = sdekit.solve(
        logistic, one, times, solver=sdekit.EulerMaruyama(), noise=path, save="all"
    )
    ax.plot(times, solution.xs[:, 0, 0], ".-" if steps < 100 else "-", ms=4, lw=0.9, label=steps)
ax.set(xlabel="time t", ylabel="size X", title="the same path by Euler and Maruyama's method")
ax.legend(title="steps")

# %%
# Strong and weak order
# ---------------------
# A solution has two kinds of error. With :math:`X^h` the solution with steps of length :math:`h`, a
# solver has the *strong* order :math:`p` and the *weak* order :math:`q` if
#
# .. math::
#    \mathbb{E}\, |X^h_t - X_t| = O(h^p), \qquad
#    |\mathbb{E}\, \varphi(X^h_t) - \mathbb{E}\, \varphi(X_t)| = O(h^q)
#
# for smooth functions :math:`\varphi`. The first is the error of a path, the second that of a mean.
# The exact solution is not known here, so a solve with 1024 steps on the same paths replaces it.
# The error of the mean of :math:`X` is then a mean of differences of the same paths, which has much
# less sampling error than a difference of two means. Bars are two standard errors. Lines go through
# the errors of the longest step and have the orders that the solvers declare: look for dots that
# fall along them or faster.

samples = torch.full((4000, 1), 0.5, dtype=torch.float64)
path = sdekit.BrownianPath(seed=2)


def end(solver, steps):
    """The states at t = 1."""
    times = sdekit.uniform(0.0, 1.0, steps)
    return sdekit.solve(logistic, samples, times, solver=solver, noise=path).x[:, 0]


reference = end(sdekit.SRID2(), 1024)
counts = [4, 8, 16, 32, 64]
steps = torch.tensor([1 / n for n in counts], dtype=torch.float64)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.8))
for i, solver in enumerate((sdekit.EulerMaruyama(), sdekit.Milstein(), sdekit.SRID2())):
    differences = torch.stack([end(solver, n) - reference for n in counts])
    strong = differences.abs().mean(dim=1)
    weak = differences.mean(dim=1).abs()
    bars = 2 * differences.std(dim=1) / len(samples) ** 0.5
    p, q = solver.order["diagonal"]
    name = type(solver).__name__
    axes[0].loglog(steps, strong, "o", ms=4, color=f"C{i}")
    axes[0].loglog(
        steps, strong[0] * (steps / steps[0]) ** p, lw=0.8, color=f"C{i}", label=f"{name}, {p:g}"
    )
    axes[1].errorbar(steps, weak, bars, fmt="o", ms=4, color=f"C{i}")
    axes[1].loglog(
        steps, weak[0] * (steps / steps[0]) ** q, lw=0.8, color=f"C{i}", label=f"{name}, {q:g}"
    )
axes[0].set(xlabel="step h", ylabel="mean error of paths", title="strong order")
axes[1].set(xlabel="step h", ylabel="error of the mean", title="weak order")
for ax in axes:
    ax.legend()
    ax.set_xticks(steps, [f"1/{n}" for n in counts], minor=False)
    ax.set_xticks([], minor=True)

# %%
# Adaptive steps, per sample
# --------------------------
# With :math:`Y = \log X`, Ito's formula gives an equation whose noise does not depend on the state:
#
# .. math:: \mathrm{d}Y = \left(r (1 - e^Y) - s^2 / 2\right) \mathrm{d}t + s\, \mathrm{d}W.
#
# Such *additive* noise allows solvers of weak order 2, and adaptive steps without a noticeable
# bias. With ``control=`` every sample has its own time and its own steps, which follow from
# estimates of the error of each step. The time that the drift receives then has one entry per
# sample, and so may parameters: here the rates :math:`r` of three populations differ by a factor of
# 16, in one call. ``callback`` receives every accepted step. Look for the length of the steps: a
# fast population takes short ones, and the others keep their long ones.

rates = torch.tensor([[1.0], [4.0], [16.0]], dtype=torch.float64)


class Logarithmic(sdekit.AbstractSDE):
    """The equation of log X, with a rate per sample."""

    noise_type = "additive"

    def __init__(self, rates):
        self.rates = rates

    def rows(self, index):
        return Logarithmic(self.rates[index])

    def drift(self, t, y):
        return self.rates * (1 - y.exp()) - s**2 / 2

    def diffusion(self, t, y):
        return s


moves = []
start = torch.full((3, 1), 0.05, dtype=torch.float64).log()
control = sdekit.PIDController(rtol=1e-3, atol=1e-3)
solution = sdekit.solve(
    Logarithmic(rates), start, [0.0, 4.0], solver=sdekit.ShARK(), control=control,
    noise=sdekit.BrownianPath(seed=3, knots=(0.0, 4.0)), callback=moves.append,
)  # fmt: skip

fig, axes = plt.subplots(1, 2, figsize=(9, 3.3))
for i, rate in enumerate(rates[:, 0].tolist()):
    accepted = [
        (float(move.t1[row]), float(move.t1[row] - move.t0[row]), float(move.x[row, 0].exp()))
        for move in moves
        for row in (move.samples == i).nonzero().flatten().tolist()
    ]
    times, lengths, sizes = zip(*accepted, strict=True)
    label = f"r = {rate:g}: {int(solution.accepted[i])} steps"
    axes[0].plot(times, sizes, ".-", ms=2, lw=0.6)
    axes[1].semilogy(times, lengths, ".-", ms=3, lw=0.6, label=label)
axes[0].set(xlabel="time t", ylabel="size X", title="three populations")
axes[1].set(xlabel="time t", ylabel="length of the step", ylim=(5e-4, 4))
axes[1].legend()

# %%
# After a rejected step the same path is read again, on shorter intervals. So the result tends to
# the solution on that path as the tolerance falls: the difference from a solve on 4096 equal steps
# is an error, and not noise.

path = sdekit.BrownianPath(seed=4, knots=(0.0, 4.0))
equation = Logarithmic(rates.repeat(64, 1))
start = torch.full((192, 1), 0.05, dtype=torch.float64).log()
times = sdekit.uniform(0.0, 4.0, 4096)
exact = sdekit.solve(equation, start, times, solver=sdekit.ShARK(), noise=path).x
for tolerance in (1e-1, 1e-2, 1e-3):
    control = sdekit.PIDController(rtol=tolerance, atol=tolerance)
    adaptive = sdekit.solve(
        equation, start, [0.0, 4.0], solver=sdekit.ShARK(), control=control, noise=path
    )
    error = (adaptive.x - exact).abs().mean()
    print(
        f"tolerance {tolerance:g}: error {error:.1e}, {adaptive.accepted.double().mean():.0f} steps"
    )

# %%
# Events
# ------
# When does a population first reach 90 % of the carrying capacity? ``event=`` stops each sample
# where a function of the state passes zero. A stochastic path may pass and return between two times
# of a grid; therefore the event is the first passage of the path in continuous time, drawn given
# both ends of each step. The exact mean time is an integral, which SciPy evaluates. Look for means
# that agree with it within two standard errors, even with long steps; the first time *of the grid*
# at which :math:`X` is larger is too late.

level = 0.9
n = 4000
start = torch.full((n, 1), 0.3, dtype=torch.float64).log()
growth = sdekit.SDE(lambda t, y: r * (1 - y.exp()) - s**2 / 2, lambda t, y: s, "additive")
target = sdekit.Event(lambda t, y: y[:, 0] - math.log(level))


def slope(x):
    """Minus the derivative of the mean time with respect to the initial size."""
    inside = special.gammainc(c - 1, c * x) * special.gamma(c - 1) / c ** (c - 1)
    return 2 / s**2 * x**-c * math.exp(c * x) * inside


expected, _ = integrate.quad(slope, 0.3, level)
print(f"mean time, exact: {expected:.3f}")
fig, ax = plt.subplots(figsize=(6, 3.3))
for step in (0.25, 0.0625):
    times = sdekit.uniform(0.0, 20.0, int(20 / step))
    settings = {"solver": sdekit.ShARK(), "noise": sdekit.WhiteNoise(seed=5)}
    passage = sdekit.solve(growth, start, times, **settings, event=target).events.t[0]
    states = sdekit.solve(growth, start, times, **settings, save="all").xs[:, :, 0]
    late = times[(states > math.log(level)).int().argmax(dim=0)]
    print(
        f"steps of {step:g}: {passage.mean():.3f} +- {passage.std() / n**0.5:.3f}, "
        f"on the grid {late.mean():.3f}"
    )
    ax.hist(passage, bins=60, range=(0, 6), density=True, histtype="step", label=f"{step:g}")
ax.axvline(expected, color="k", lw=0.8)
ax.set(xlabel=f"first time with X = {level:g}", ylabel="density", title="line: the exact mean")
ax.legend(title="step")

# %%
# What to read next
# -----------------
# :doc:`/solvers` has all solvers with their orders, stiff equations and events of ordinary
# equations; :doc:`/gradients` fits the parameters of an equation to data;
# :doc:`plot_2_diffusion_model` builds a diffusion model, which is such an equation in reverse time.

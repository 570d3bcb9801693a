"""
How do I write my own solver?
=============================

Write a frozen dataclass that declares its orders and has one method, ``step``. The loop draws the
noise, keeps the time and checks the states. The example is the tamed Euler method, which remains
stable where Euler's steps overshoot. Look for paths that fall from 10 towards 0 without overshoot.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import sdekit
import torch


@dataclass(frozen=True, eq=False)
class TamedEuler(sdekit.AbstractSolver):
    """x_1 = x_0 + f dt / (1 + |f| dt) + g dW (Hutzenthaler, Jentzen and Kloeden 2012)."""

    order = {"additive": sdekit.Order(1, 1), "diagonal": sdekit.Order(0.5, 1)}

    def step(self, problem, t0, t1, x, noise, state):
        f = problem.drift(t0, x)
        dt = t1 - t0
        tamed = x + f * dt / (1 + f.abs() * abs(dt))
        return sdekit.Step(problem.diffuse(t0, x, noise.w, tamed))


cubic = sdekit.SDE(lambda t, x: -(x**3), lambda t, x: 1.0, "additive")
x0 = torch.full((200, 1), 10.0, dtype=torch.float64)
path = sdekit.BrownianPath(seed=0)
solution = sdekit.solve(
    cubic, x0, sdekit.uniform(0.0, 1.0, 32), solver=TamedEuler(), noise=path, save="all"
)
try:
    sdekit.solve(cubic, x0, solution.ts, solver=sdekit.EulerMaruyama(), noise=path)
except sdekit.NotFiniteError as error:
    print(f"EulerMaruyama: {error}")

fig, ax = plt.subplots(figsize=(5, 3))
ax.plot(solution.ts, solution.xs[:, :5, 0], ".-", ms=3, lw=0.8)
ax.set(xlabel="time", ylabel="x", title="TamedEuler from x = 10, 32 steps")

# %%
# Measure the order
# -----------------
# The error of paths, against a solve in short steps on the same Brownian paths, falls with the
# strong order. Look for dots along the line: a smaller slope than declared is usually a mistake in
# the step.

start = torch.full((200, 1), 1.0, dtype=torch.float64)


def end(solver, steps):
    grid = sdekit.uniform(0.0, 1.0, steps)
    return sdekit.solve(cubic, start, grid, solver=solver, noise=path).x


exact = end(sdekit.ShARK(), 1024)
counts = [16, 32, 64, 128]
errors = [float((end(TamedEuler(), n) - exact).abs().mean()) for n in counts]
fig, ax = plt.subplots(figsize=(5, 3))
ax.loglog(counts, errors, "o", label="TamedEuler")
ax.loglog(counts, [errors[-1] * counts[-1] / n for n in counts], "k", lw=0.8, label="order 1")
ax.set(xlabel="steps", ylabel="mean error", xticks=counts, xticklabels=counts)
ax.minorticks_off()
ax.legend()

# %%
# A Runge-Kutta method is only its tableau
# ----------------------------------------
# With the coefficients ``embedded`` of a method of lower order it would support adaptive steps too.


@dataclass(frozen=True, eq=False)
class Ralston(sdekit.AbstractRungeKutta):
    """Ralston's method of order two (Ralston 1962)."""

    order = {"none": sdekit.Order(2, 2)}
    tableau = sdekit.Tableau(a=((), (2 / 3,)), b=(1 / 4, 3 / 4), c=(0, 2 / 3))


decay = sdekit.ODE(lambda t, x: -x)
for n in (10, 20, 40):
    x = sdekit.solve(decay, start[:1], sdekit.uniform(0.0, 1.0, n), solver=Ralston()).x
    print(f"{n} steps: error {abs(float(x) - torch.exp(torch.tensor(-1.0)).item()):.2e}")

# %%
# ``problem.diffuse`` adds g dW for every type of noise, so a step does not depend on it. A solver
# that needs the space-time area of the noise declares ``levy = "H"``; what it remembers from step
# to step is ``state``. One more solver in the library takes at most 20 lines and two lines of
# registration, and is then tested with the others: :doc:`/contributing`. Reference:
# :class:`sdekit.AbstractSolver`, :class:`sdekit.Step`, :class:`sdekit.AbstractRungeKutta`.

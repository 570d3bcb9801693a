"""
How do I choose a solver for the noise of my equation?
======================================================

The type of the noise decides. Additive noise (g does not depend on x): ``ShARK``. Diagonal noise
(:math:`g_i` depends on :math:`x_i` only) of an Ito equation: ``SRID2``, and of a Stratonovich
equation: ``SlowRK``. General noise (a matrix that depends on x): ``SPaRK`` for a Stratonovich
equation and ``EulerMaruyama`` for an Ito equation. The example measures the error of paths against
a solve with 1024 steps on the same Brownian paths. Look for the slopes: a solver of higher strong
order has a steeper line. For general noise all three have the order 0.5, and their lines differ in
height only.
"""

import matplotlib.pyplot as plt
import sdekit
import torch

RATES = torch.tensor([[0.3, -0.6], [0.5, 0.2]], dtype=torch.float64)


def matrix(t, x):
    """Column j is the direction of Brownian motion j: (batch, 2, 2)."""
    return torch.stack([x @ RATES, torch.cos(x)], dim=2)


f = torch.sin
additive = sdekit.SDE(lambda t, x: f(3 * x), lambda t, x: 0.5 + 0.5 * t, "additive")
diagonal = sdekit.SDE(lambda t, x: f(3 * x), lambda t, x: 0.6 * torch.cos(x), "diagonal")
general = sdekit.SDE(lambda t, x: f(3 * x), matrix, "general", "stratonovich", noise_size=2)
cases = {
    "additive": (additive, [sdekit.EulerMaruyama(), sdekit.SRA1(), sdekit.ShARK()]),
    "diagonal, Ito": (diagonal, [sdekit.EulerMaruyama(), sdekit.Milstein(), sdekit.SRID2()]),
    "general, Stratonovich": (general, [sdekit.EulerHeun(), sdekit.Heun(), sdekit.SPaRK()]),
}
x0 = torch.full((200, 2), 0.5, dtype=torch.float64)
path = sdekit.BrownianPath(seed=0)


def end(equation, solver, steps):
    grid = sdekit.uniform(0.0, 1.0, steps)
    return sdekit.solve(equation, x0, grid, solver=solver, noise=path).x


counts = [4, 8, 16, 32, 64]
fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True)
for ax, (name, (equation, solvers)) in zip(axes, cases.items(), strict=True):
    exact = end(equation, solvers[-1], 1024)
    for solver in solvers:
        errors = [float((end(equation, solver, n) - exact).square().mean().sqrt()) for n in counts]
        ax.loglog(counts, errors, "o-", ms=3, label=type(solver).__name__)
    ax.set(xlabel="steps", title=name, xticks=counts, xticklabels=counts)
    ax.minorticks_off()
    ax.legend()
axes[0].set(ylabel="root mean square error of paths")

# %%
# A step of a better solver costs more
# ------------------------------------
# The tables in :doc:`/solvers` have the orders, the evaluations per step, and the solvers that need
# the fewest evaluations for a given error. Where an error of 0.1 is enough, take ``Milstein`` or
# ``Heun``. ``evaluations`` of a solution counts those of the drift.

for solver in (sdekit.EulerMaruyama(), sdekit.Milstein(), sdekit.SRID2()):
    solution = sdekit.solve(diagonal, x0, sdekit.uniform(0.0, 1.0, 16), solver=solver, noise=path)
    print(type(solver).__name__, int(solution.evaluations[0]), "evaluations of the drift")

# %%
# A solver that does not support the noise is refused
# ---------------------------------------------------
# Every solver declares its (strong, weak) orders by type of noise; a type that is missing is an
# error.

print(sdekit.SRID2().order)
try:
    sdekit.solve(diagonal, x0, [0.0, 1.0], solver=sdekit.ShARK())
except ValueError as error:
    print(error)

# %%
# The solvers for a type of noise and a calculus:

for solver in sdekit.all_solvers():
    order = solver.order.get("general")
    if order is not None and solver.sde_type == "ito":
        print(type(solver).__name__, order)

# %%
# Declare the noise as narrowly as it is: an additive g that is declared as diagonal or general is
# solved correctly, but by solvers of lower order. Stiff drifts need other solvers:
# :doc:`plot_equation_stiff`. Reference: :class:`sdekit.SDE`, :func:`sdekit.all_solvers`.
